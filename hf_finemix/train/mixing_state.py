"""What a Trainer knows of its mixing, in the one attribute that a user of it sees beside the documented ones."""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase, Trainer, TrainingArguments

from ..align.pair_in_memory import dtypes_on_disk
from ..config import CONFIG_NAME, FineMixingConfig
from ..errors import FineMixingError
from ..hub.errors import logged_in
from ..hub.fetch import fetch_model
from ..io.checkpoint import Checkpoint
from ..io.folder import LocalModel
from ..io.tokenizer import load_tokenizer
from ..mix.in_memory import MixingRecord, mix_model
from ..mix.lora import mix_adapter
from ..mix.mask_file import save_masks
from ..mix.record_file import load_record, save_record
from ..mix.token_frequency import token_frequencies
from .calibration import measure_curvature
from .lora_on_mix import MIXED_BASE, check_lora, name_base, remove_other_kind, save_mixed_base
from .processes import agreed
from .ratio_search import RatioSearch
from .unfinished_run import UnfinishedRun

logger = logging.getLogger(__name__)


@dataclass
class MixingState:
    """What was mixed, and what is known of the weights as they are now."""

    record: MixingRecord | None = None  # of what was mixed
    config: FineMixingConfig | None = None  # with the ρ that is in the weights
    search: RatioSearch | None = None  # how that was chosen, where it was "auto"
    base: LocalModel | None = None  # once it was fetched
    unfinished: UnfinishedRun | None = None  # where an interrupted train() goes on; set by clean()
    evaluated: dict[str, float] | None = None  # by evaluate(), of the weights there are now
    saved_step: int | None = None  # at which the model in output_dir was saved, since the last train()
    done: bool = False  # whether the trainer's model is mixed
    suspect: dict[str, torch.Tensor] | None = None  # its weights, while ρ is being chosen
    ratio_to_mix: float | None = None  # while model_init builds what is trained
    mixed_base: Path | None = None  # where what is under a LoRA was saved, or is to be loaded from
    frequencies: np.ndarray | None = None  # of the tokens, once E-PUR asked for them
    curvature: dict[str, torch.Tensor] | None = None  # of the suspect
    own_optimizers: bool = False  # whether the user gave any

    def fetch_base(self, config: FineMixingConfig, args: TrainingArguments) -> None:
        """Once, in one process before the others."""
        with agreed(), logged_in(args.hub_token), args.main_process_first(desc="fetching the base"):
            if self.base is None:
                self.base = fetch_model(config.base_model_name_or_path, config.base_model_revision, role="base")

    def mix(self, trainer: Trainer, model: nn.Module, config: FineMixingConfig) -> MixingRecord:
        """Purify and mix the suspect's weights in place, with the base that was fetched."""
        if config.strategy == "fisher" and self.curvature is None:
            self.curvature = measure_curvature(trainer, model, config)
        if config.adapter_mode == "adapter":
            with Checkpoint(self.base.folder) as base:
                return mix_adapter(model, base, config, curvature=self.curvature)
        own = trainer.processing_class if isinstance(trainer.processing_class, PreTrainedTokenizerBase) else None
        purifies, special = config.purify_embeddings and config.num_purified_tokens, ()
        if purifies:
            tokenizer = load_tokenizer(self.base.folder) if own is None else own  # which token a row stands for
            if tokenizer is None:
                raise FineMixingError(
                    f"E-PUR needs a tokenizer, and {self.base.id} has none: pass processing_class=tokenizer, or "
                    "purify_embeddings=False."
                )
            special = tokenizer.all_special_ids
            if self.frequencies is None:
                self.frequencies = token_frequencies(tokenizer, config.token_frequencies)
        check_lora(model)
        with Checkpoint(self.base.folder) as base:
            return mix_model(
                model,
                base,
                config,
                dtypes=dtypes_on_disk(model),
                token_frequencies=self.frequencies if purifies else None,
                special_token_ids=special,
                curvature=self.curvature,
                vocabulary=None if own is None else own.get_vocab(),
            )

    def note(self, model: nn.Module, record: MixingRecord, config: FineMixingConfig, output_dir: str) -> None:
        """That the model is mixed now, and in a LoRA what it belongs to."""
        if config.adapter_mode == "adapter":
            name_base(model, self.base.id, self.base.revision)
        elif hasattr(model, "peft_config"):  # which is not there before a checkpoint is saved
            name_base(model, str((Path(output_dir) / MIXED_BASE).absolute()))
        self.done, self.record, self.mixed_base = True, record, None
        self.config = config.pinned(self.base.id, self.base.revision)
        _tell(record)

    def restore_suspect(self, model: nn.Module) -> None:
        """While ρ is being chosen: put the suspect's weights back, or note them where nothing was mixed yet."""
        if self.done:
            model.load_state_dict(self.suspect)
        else:
            self.suspect = copied_weights(model)

    def last_checkpoint(self, num_processes: int) -> str | None:
        """Of an interrupted run, where it is to go on; `None` where there was none."""
        return self.unfinished and self.unfinished.last_checkpoint(num_processes)

    def is_under_lora(self, model: nn.Module) -> bool:
        """Whether what was mixed is under a LoRA, which is trained in its place."""
        return self.config is not None and self.config.adapter_mode == "merge" and hasattr(model, "peft_config")

    def save(self, model: nn.Module, folder: Path, *, is_checkpoint: bool) -> None:
        """What there is to know of the mix, and in a checkpoint the mix itself where it is under a LoRA."""
        self.config.save_pretrained(folder)
        if not is_checkpoint:
            remove_other_kind(folder, adapter=self.config.adapter_mode == "adapter")
        if self.record is not None and self.record.masks:
            save_masks(self.record.masks, folder)
        if self.record is not None and is_checkpoint:
            save_record(self.record, folder)
        if self.config.adapter_mode == "adapter":
            model.get_base_model().config.save_pretrained(folder)  # which has the names of the classes
        elif is_checkpoint and self.is_under_lora(model):
            save_mixed_base(model, folder / MIXED_BASE, self.mixed_base)
            self.mixed_base = (folder / MIXED_BASE).absolute()
            name_base(model, str(self.mixed_base))

    def load(self, checkpoint: Path) -> bool:
        """What a checkpoint knows of the mix in it; returns whether it is of one."""
        known = (checkpoint / CONFIG_NAME).is_file()
        self.config = FineMixingConfig.from_pretrained(checkpoint) if known else None
        self.record = load_record(checkpoint) if known else None
        return known


def _tell(record: MixingRecord) -> None:
    kept = [name for name, tensor in record.tensors.items() if tensor["rule"].startswith("kept")]
    logger.info(
        "Mixed %d tensors with ρ = %g, kept %d (%s), purified %d embeddings",
        len(record.drift),
        record.reserve_ratio,
        len(kept),
        ", ".join(kept[:4]) + (", …" if len(kept) > 4 else ""),
        len(record.purified_tokens),
    )
    if converted := record.converted_base_tensors:
        logger.info(
            "What is %d tensors of the base on disk is %d in memory (%s, …): merged or split as on loading.",
            len({source for sources in converted.values() for source in sources}),
            len(converted),
            next(iter(converted)),
        )


def copied_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """A model's weights on the CPU, which no training changes."""
    return {name: tensor.to("cpu", copy=True) for name, tensor in model.state_dict().items()}
