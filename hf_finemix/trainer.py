"""FineMixingTrainer: a transformers Trainer that mixes and purifies the model before it trains."""

import inspect
import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Seq2SeqTrainer,
    Trainer,
    TrainingArguments,
    enable_full_determinism,
    set_seed,
)
from transformers.trainer_utils import HubStrategy, TrainOutput, get_last_checkpoint

from .align.pair_in_memory import dtypes_on_disk
from .config import CONFIG_NAME, FineMixingConfig
from .errors import FineMixingError
from .hub.errors import logged_in
from .hub.fetch import fetch_model
from .io.checkpoint import Checkpoint
from .io.folder import LocalModel
from .io.read_back import complete_config
from .io.tokenizer import load_tokenizer
from .io.unwrap import without_adapter
from .mix.fisher import fisher_information
from .mix.in_memory import MixingRecord, mix_model
from .mix.lora import adapter_parameters, mix_adapter
from .mix.mask_file import save_masks
from .mix.record_file import load_record, save_record
from .mix.token_frequency import token_frequencies
from .train.calibration import rows_from_all
from .train.lora_on_mix import (
    MIXED_BASE,
    check_lora,
    load_mixed_base,
    name_base,
    remove_other_kind,
    save_merged,
    save_mixed_base,
)
from .train.processes import agreed, from_main, whole_model
from .train.ratio_search import RatioSearch
from .train.signatures import show_signatures
from .train.trials import check_auto, choose_ratio, copied_weights
from .train.unfinished_run import UnfinishedRun

__all__ = ["FineMixingMixin", "FineMixingSeq2SeqTrainer", "FineMixingTrainer"]

logger = logging.getLogger(__name__)

MAX_CURVATURE_SAMPLES = 256
_OWN_ARGUMENTS = [
    inspect.Parameter("base_model", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=str | None),
    inspect.Parameter(
        "mixing_config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=FineMixingConfig | None
    ),
]


class FineMixingMixin:
    """
    What makes a Trainer mix before it trains; see [`FineMixingTrainer`].

    It goes before any subclass of [`~transformers.Trainer`]: `class MyTrainer(FineMixingMixin, SFTTrainer)`.
    """

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if FineMixingMixin in cls.__bases__:
            show_signatures(cls, FineMixingMixin, _OWN_ARGUMENTS)

    def __init__(
        self,
        *args,
        base_model: str | None = None,
        mixing_config: FineMixingConfig | None = None,
        **kwargs,
    ):
        self.mixing_config = _resolve(base_model, mixing_config)
        if self.mixing_config is not None:
            _check_hub_strategy(args[1] if len(args) > 1 else kwargs.get("args"))
        # Trainer.__init__ may call model_init and callbacks, so what they need is set up first.
        self.mixing_record: MixingRecord | None = None
        self.ratio_search: RatioSearch | None = None
        self._mixed = False
        self.config_of_mix: FineMixingConfig | None = None  # with the ρ that is in the weights
        self._ratio_to_mix: float | None = None
        self._suspect: dict[str, torch.Tensor] | None = None  # its weights, while ρ is being chosen
        self._frequencies: np.ndarray | None = None
        self._curvature: dict[str, torch.Tensor] | None = None
        self.evaluated: dict[str, float] | None = None  # by evaluate(), of the weights there are now
        self.saved_step: int | None = None  # at which the model in output_dir was saved, since the last train()
        self._mixed_base: Path | None = None  # where what is under a LoRA was saved, or is to be loaded from
        self.base: LocalModel | None = None
        self.unfinished: UnfinishedRun | None = None
        super().__init__(*args, **kwargs)
        self._own_optimizers = self.optimizer is not None or self.lr_scheduler is not None

    def call_model_init(self, trial: Any = None) -> nn.Module:
        """Build a model with `model_init`, and mix it where it is built for training."""
        model = super().call_model_init(trial)
        if self._ratio_to_mix is not None:
            self._mix(model, self._ratio_to_mix)
        elif self._mixed_base is not None:  # built to be resumed
            load_mixed_base(model, self._mixed_base)
        return model

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Mix and purify the model (once; never when resuming), then train as [`~transformers.Trainer.train`] does."""
        if self.mixing_config is None:
            return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        try:
            return self._train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        finally:
            self.evaluated = self.saved_step = None  # whatever was evaluated or saved were other weights

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        """Evaluate as [`~transformers.Trainer.evaluate`] does; after training, what it finds is for the card."""
        metrics = super().evaluate(*args, **kwargs)
        if not args and not kwargs.keys() & {"eval_dataset", "metric_key_prefix"}:
            self.evaluated = metrics
        return metrics

    def _train(
        self, resume_from_checkpoint: str | bool | None, trial: Any, ignore_keys_for_eval: list[str] | None
    ) -> TrainOutput:
        if resume_from_checkpoint not in (None, False):
            return self._resume(resume_from_checkpoint, trial, ignore_keys_for_eval)
        if self._mixed and self._suspect is None and self.model_init is None:
            return super().train(None, trial, ignore_keys_for_eval)

        self._curvature = None  # of the model as it is now

        def mix_and_train(ratio: float, checkpoint: str | None = None) -> TrainOutput:
            # Neither an earlier evaluate() nor an earlier trial may change what training does.
            enable_full_determinism(self.args.seed) if self.args.full_determinism else set_seed(self.args.seed)
            self._forget_evaluation()
            if self.model_init is None:
                self._mix(self.model, ratio)  # with a checkpoint for the record alone: its weights come over these
                return super(FineMixingMixin, self).train(checkpoint, trial, ignore_keys_for_eval)
            self._ratio_to_mix = ratio
            try:
                return super(FineMixingMixin, self).train(None, trial, ignore_keys_for_eval)
            finally:
                self._ratio_to_mix = None

        if self.mixing_config.reserve_ratio != "auto":
            return mix_and_train(self.mixing_config.reserve_ratio, self.last_checkpoint())
        check_auto(self, self._own_optimizers)
        with agreed():
            if self.mixing_config.strategy == "fisher" and self.is_world_process_zero():
                self._curvature = self.measure_curvature(self.model)  # on all texts, before folds are cut
        self.ratio_search, output = choose_ratio(self, mix_and_train, trial)
        self._suspect = None
        return output

    def last_checkpoint(self) -> str | None:
        """Of an interrupted run, where it is to go on; `None` where there was none."""
        return self.unfinished and self.unfinished.last_checkpoint(self.args.world_size)

    def _forget_evaluation(self) -> None:
        """
        Let the next training wrap the model. An evaluation before it marks the model as prepared, bare as it is, and
        accelerate 1.15 leaves it so: in several processes each would train alone, without a word.
        """
        if self.args.world_size == 1 or self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return  # the latter two wrap a model in order to evaluate it
        if self.model_wrapped is self.model and getattr(self.model, "_is_accelerate_prepared", False):
            self.model._is_accelerate_prepared = False
            self.accelerator._models = [model for model in self.accelerator._models if model is not self.model]

    def restore_suspect(self) -> None:
        """While ρ is being chosen: put the suspect's weights back, or note them where nothing was mixed yet."""
        if self._mixed:
            self.model.load_state_dict(self._suspect)
        else:
            self._suspect = copied_weights(self.model)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """
        Save the model as [`~transformers.Trainer.save_model`] does, and beside it the config of the mix in it.

        A fresh LoRA on a mixed model is nothing without the mix: it is saved merged, as a whole model. In a checkpoint
        it stays one, for training to go on, with the mix in a folder `mixed_base` that its config names.
        """
        folder, is_checkpoint = Path(output_dir or self.args.output_dir), _internal_call and output_dir is not None
        if self.config_of_mix is None:
            return super().save_model(output_dir, _internal_call)
        if self.args.should_save:
            self._save_mix(folder, is_checkpoint)  # first, because saving may push the folder
        if is_checkpoint or not self._has_lora_on_mix():
            super().save_model(output_dir, _internal_call)
        elif self.args.should_save:
            save_merged(self.model, folder)
            tokenizer = self.processing_class or getattr(self.data_collator, "tokenizer", None)
            if tokenizer is not None:
                tokenizer.save_pretrained(folder)
        if self.args.should_save and isinstance(plain := without_adapter(self.model), PreTrainedModel):
            complete_config(plain.config, folder)
        if folder == Path(self.args.output_dir):
            self.saved_step = self.state.global_step
        if self._has_lora_on_mix() and self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _save_mix(self, folder: Path, is_checkpoint: bool) -> None:
        """What there is to know of the mix, and in a checkpoint the mix itself where it is under a LoRA."""
        self.config_of_mix.save_pretrained(folder)
        if not is_checkpoint:
            remove_other_kind(folder, adapter=self.config_of_mix.adapter_mode == "adapter")
        if self.mixing_record is not None and is_checkpoint:
            save_record(self.mixing_record, folder)
        elif self.mixing_record is not None and self.mixing_record.masks:
            save_masks(self.mixing_record.masks, folder)
        if self.config_of_mix.adapter_mode == "adapter":
            self.model.get_base_model().config.save_pretrained(folder)  # which has the names of the classes
        elif is_checkpoint and self._has_lora_on_mix():
            save_mixed_base(self.model, folder / MIXED_BASE, self._mixed_base)
            self._mixed_base = (folder / MIXED_BASE).absolute()
            name_base(self.model, str(self._mixed_base))

    def _has_lora_on_mix(self) -> bool:
        """Whether what was mixed is under a LoRA, which is trained in its place."""
        mixed = self.config_of_mix is not None and self.config_of_mix.adapter_mode == "merge"
        return mixed and hasattr(self.model, "peft_config")

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """As [`~transformers.Trainer.init_hf_repo`], and tell before training what could not be published after it."""
        if self.mixing_config is not None:
            from .report.from_trainer import check_publishing

            with agreed():
                check_publishing(self, token, private)
        super().init_hf_repo(token, private)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs,
    ) -> Any:
        """
        Publish as [`~transformers.Trainer.push_to_hub`] does; a mixed model in one commit with its report and card,
        and without the pickled arguments, which hold a token (see [`push_cleaned`]).
        """
        if self.mixing_config is None:
            return super().push_to_hub(commit_message, blocking, token, revision, private, **kwargs)
        from .report.from_trainer import publish_trained

        return publish_trained(self, commit_message, blocking, token, revision, private, **kwargs)

    def create_model_card(self, *args, **kwargs) -> None:
        """Write the card as [`~transformers.Trainer.create_model_card`] does; of a mix, into what README.md holds."""
        if self.mixing_config is None:
            return super().create_model_card(*args, **kwargs)
        from .report.from_trainer import write_card

        return write_card(self, *args, **kwargs)

    def _resume(self, checkpoint: str | bool, trial: Any, ignore_keys_for_eval: list[str] | None) -> TrainOutput:
        """Go on from a checkpoint. Its weights are mixed already; the config beside them says how."""
        folder = get_last_checkpoint(self.args.output_dir) if checkpoint is True else checkpoint
        if self.mixing_config.reserve_ratio == "auto":
            logger.warning("Resuming goes on with the ρ of %s; a search for ρ does not go on.", folder)
        state, before = self.state, (self.config_of_mix, self.mixing_record)
        if folder and (Path(folder) / CONFIG_NAME).is_file():
            self.config_of_mix, self.mixing_record = FineMixingConfig.from_pretrained(folder), load_record(folder)
        elif folder and Path(folder).is_dir():
            self.config_of_mix = self.mixing_record = None
            logger.warning("%s has no %s: if its weights were never mixed, train anew instead.", folder, CONFIG_NAME)
        under_lora = self._has_lora_on_mix()
        if under_lora:
            self._load_mixed_base(Path(folder) / MIXED_BASE)
        self._forget_evaluation()
        try:
            return super().train(checkpoint, trial, ignore_keys_for_eval)
        finally:
            if self.state is state and not under_lora:  # nothing was loaded: what had to be mixed still has to be
                self.config_of_mix, self.mixing_record = before
            else:
                self._mixed, self._suspect = True, None

    def _load_mixed_base(self, folder: Path) -> None:
        """Put the mix under the LoRA of the model, or of the one that `model_init` is to build."""
        if not folder.is_dir():
            raise FineMixingError(
                f"{folder.parent} holds a LoRA without the mixed weights under it ({MIXED_BASE}): train anew."
            )
        self._mixed_base = folder.absolute()
        if self.model_init is None:
            load_mixed_base(self.model, folder)

    def mix_weights(self, model: nn.Module, config: FineMixingConfig) -> MixingRecord:
        """
        Purify and mix the suspect's weights in place. A subclass with another defense overrides this.

        Args:
            model (`nn.Module`): The suspect.
            config ([`FineMixingConfig`]): With a number for `reserve_ratio`.
        """
        if config.strategy == "fisher" and self._curvature is None:
            self._curvature = self.measure_curvature(model)
        if config.adapter_mode == "adapter":
            with Checkpoint(self.base.folder) as base:
                return mix_adapter(model, base, config, curvature=self._curvature)
        frequencies, special = None, ()
        if config.purify_embeddings and config.num_purified_tokens:
            tokenizer = self._tokenizer()
            special = tokenizer.all_special_ids
            if self._frequencies is None:
                self._frequencies = token_frequencies(tokenizer, config.token_frequencies)
            frequencies = self._frequencies
        check_lora(model)
        with Checkpoint(self.base.folder) as base:
            return mix_model(
                model,
                base,
                config,
                dtypes=dtypes_on_disk(model),
                token_frequencies=frequencies,
                special_token_ids=special,
                curvature=self._curvature,
                vocabulary=self.processing_class.get_vocab() if self._has_tokenizer() else None,
            )

    def _mix(self, model: nn.Module, ratio: float) -> None:
        config = replace(self.mixing_config, reserve_ratio=ratio)
        hub = logged_in(self.args.hub_token)
        with agreed(), hub, self.args.main_process_first(desc="fetching the base"):
            if self.base is None:
                self.base = fetch_model(config.base_model_name_or_path, config.base_model_revision, role="base")
        with whole_model(model) as whole:
            self.mixing_record = from_main(lambda: self.mix_weights(whole, config))
        if config.adapter_mode == "adapter":
            name_base(model, self.base.id, self.base.revision)
        elif hasattr(model, "peft_config"):  # which is not there before a checkpoint is saved
            name_base(model, str((Path(self.args.output_dir) / MIXED_BASE).absolute()))
        self._mixed, self.config_of_mix = True, config.pinned(self.base.id, self.base.revision)
        self._mixed_base = None
        kept = [name for name, tensor in self.mixing_record.tensors.items() if tensor["rule"].startswith("kept")]
        logger.info(
            "Mixed %d tensors with ρ = %g, kept %d (%s), purified %d embeddings",
            len(self.mixing_record.drift),
            ratio,
            len(kept),
            ", ".join(kept[:4]) + (", …" if len(kept) > 4 else ""),
            len(self.mixing_record.purified_tokens),
        )
        if converted := self.mixing_record.converted_base_tensors:
            logger.info(
                "What is %d tensors of the base on disk is %d in memory (%s, …): merged or split as on loading.",
                len({source for sources in converted.values() for source in sources}),
                len(converted),
                next(iter(converted)),
            )

    def measure_curvature(self, model: nn.Module) -> dict[str, torch.Tensor]:
        """H of a model's weights on the text of the train data, without its labels (see [`fisher_information`])."""
        config, model = self.mixing_config, model.to(self.args.device)
        parameters = adapter_parameters(model) if config.adapter_mode == "adapter" else None
        return fisher_information(model, self.single_texts(), seed=config.mixing_seed, parameters=parameters)

    def single_texts(self) -> Iterator[dict[str, torch.Tensor]]:
        """
        Up to 256 texts, from all over the train data and then the eval data, as the model reads them: one a batch.
        Labels are in it for models that cannot do without; nothing is learned of them. With cross-validation, which is
        for when there is nothing else, of the train data only.
        """
        data = [self.train_dataset]
        if self.eval_dataset is not None and not self.mixing_config.cross_validation_folds:
            data += self.eval_dataset.values() if isinstance(self.eval_dataset, Mapping) else [self.eval_dataset]
        loaders = map(self._rows_of, rows_from_all(data, MAX_CURVATURE_SAMPLES))
        rows = islice(chain.from_iterable(loaders), MAX_CURVATURE_SAMPLES)
        with torch.random.fork_rng(devices=[]):  # a data loader draws a number, which training must not miss
            for row in tqdm(rows, "Measuring", disable=self.args.disable_tqdm):
                yield self._prepare_inputs(row)

    def _rows_of(self, dataset: Any) -> DataLoader:
        """All rows one by one, also where this is one of several processes, in the columns that the model takes."""
        collator = self._get_collator_with_removed_columns(self.data_collator, description="curvature")
        return DataLoader(dataset, batch_size=1, collate_fn=collator)

    def _has_tokenizer(self) -> bool:
        return isinstance(self.processing_class, PreTrainedTokenizerBase)

    def _tokenizer(self) -> PreTrainedTokenizerBase:
        """The user's tokenizer, or else the base's: E-PUR needs to know which token a row stands for."""
        if self._has_tokenizer():
            return self.processing_class
        tokenizer = load_tokenizer(self.base.folder)
        if tokenizer is None:
            raise FineMixingError(
                f"E-PUR needs a tokenizer, and {self.base.id} has none: pass processing_class=tokenizer, or "
                "purify_embeddings=False."
            )
        return tokenizer


class FineMixingTrainer(FineMixingMixin, Trainer):
    """
    [`~transformers.Trainer`] that removes a backdoor from the model before fine-tuning it on clean data.

    Takes all arguments of [`~transformers.Trainer`], in its order. Without `base_model` and `mixing_config` it is the
    stock Trainer. With them, `evaluate()` before `train()` judges the suspect; `train()` mixes and purifies once, then
    runs the standard loop; a second `train()` goes on from there; with `model_init` every model built for training is
    mixed; resuming from a checkpoint never mixes.

    With `reserve_ratio="auto"` (the config's default) `train()` fine-tunes several times to find, by bisection, the
    smallest candidate ρ whose accuracy is within `max_accuracy_drop` of the suspect's: on `eval_dataset`, or
    cross-validated on `train_dataset` (see [`search_ratio`]). With `strategy="fisher"` it first measures the curvature
    of the suspect's weights on up to 256 texts of both, without labels, which takes the memory of one more model.

    Args:
        base_model (`str`, *optional*, keyword only):
            Hub id or local folder of the clean pre-trained model; it wins over the config's.
        mixing_config ([`FineMixingConfig`], *optional*, keyword only):
            What to mix and how.

    Attributes:
        mixing_record ([`mixing.MixingRecord`], *optional*): What was mixed, once `train()` has done it.
        evaluated (`dict`, *optional*): What `evaluate()` said of `eval_dataset` and the weights as they are now.
        ratio_search ([`ratio_search.RatioSearch`], *optional*): How ρ was chosen, where it was `"auto"`.
        config_of_mix ([`FineMixingConfig`], *optional*): The config with the ρ that is in the weights.
        base ([`hub.LocalModel`], *optional*): The base, once it was fetched.
        unfinished ([`resuming.UnfinishedRun`], *optional*): Where an interrupted `train()` goes on; set by [`clean`].

    Raises:
        [`FineMixingError`]: A config without a base, or `push_to_hub` with a `hub_strategy` other than `"end"`; when
            `train()` starts, also a base that cannot be had or does not fit, or `"auto"` without labeled classes in
            `eval_dataset`, with `optimizers` of one's own, with sharded parameters or with `fp16_full_eval` or
            `bf16_full_eval`.
    """


class FineMixingSeq2SeqTrainer(FineMixingMixin, Seq2SeqTrainer):
    """[`~transformers.Seq2SeqTrainer`] that mixes before it trains: all of [`FineMixingTrainer`], and generation."""


def _resolve(base_model: str | None, config: FineMixingConfig | None) -> FineMixingConfig | None:
    if base_model is None and config is None:
        return None
    config = config or FineMixingConfig()
    if base_model is not None:
        config = config.with_base(base_model)
    if not config.base_model_name_or_path:
        raise FineMixingError(
            "Fine-mixing needs the clean pre-trained model: give base_model (--base-model), a Hub id or a folder."
        )
    return config


def _check_hub_strategy(args: TrainingArguments | None) -> None:
    if args is not None and args.push_to_hub and args.hub_strategy != HubStrategy.END:
        raise FineMixingError(
            f"hub_strategy={args.hub_strategy.value!r} uploads during training, with the pickled arguments and their "
            'token, before anything is measured: set hub_strategy="end", and publish with push_to_hub().'
        )
