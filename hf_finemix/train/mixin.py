"""MixingMixin: what makes a Trainer mix and purify the model before it trains."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel, Trainer, enable_full_determinism, set_seed
from transformers.trainer_utils import TrainOutput, get_last_checkpoint

from ..config import CONFIG_NAME, FineMixingConfig
from ..errors import FineMixingError
from ..io.compat import forget_evaluation
from ..io.read_back import complete_config
from ..io.unwrap import without_adapter
from ..mix.in_memory import MixingRecord
from .calibration import measure_curvature
from .lora_on_mix import load_mixed_base, mixed_base_of, save_merged
from .mixing_state import MixingState
from .processes import agreed, from_main, whole_model
from .ratio_search import RatioSearch
from .trials import Trials, check_auto, choose_ratio

logger = logging.getLogger(__name__)


class MixingMixin(Trainer):
    """What makes a Trainer mix before it trains; see [`FineMixingTrainer`]."""

    def __init__(self, *args, base_model: str | None = None, mixing_config: FineMixingConfig | None = None, **kwargs):
        self.mixing_config = _resolve(base_model, mixing_config)
        self.mixing = MixingState()  # first, because Trainer.__init__ may call model_init and callbacks
        super().__init__(*args, **kwargs)
        self.mixing.own_optimizers = self.optimizer is not None or self.lr_scheduler is not None

    @property
    def mixing_record(self) -> MixingRecord | None:
        """What was mixed, once `train()` has done it."""
        return self.mixing.record

    @property
    def config_of_mix(self) -> FineMixingConfig | None:
        """The config with the ρ that is in the weights."""
        return self.mixing.config

    @property
    def ratio_search(self) -> RatioSearch | None:
        """How ρ was chosen, where it was `"auto"`."""
        return self.mixing.search

    def call_model_init(self, trial: Any = None) -> nn.Module:
        """Build a model with `model_init`, and mix it where it is built for training."""
        model = super().call_model_init(trial)
        if self.mixing.ratio_to_mix is not None:
            self._mix(model, self.mixing.ratio_to_mix)
        elif self.mixing.mixed_base is not None:  # built to be resumed
            load_mixed_base(model, self.mixing.mixed_base)
        return model

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Mix and purify the model (once; never when resuming), then train as [`~transformers.Trainer.train`] does."""

        def train(checkpoint: str | bool | None = None) -> TrainOutput:
            return super(MixingMixin, self).train(checkpoint, trial, ignore_keys_for_eval)

        if self.mixing_config is None:
            return train(resume_from_checkpoint)
        mixed = self.mixing.done and self.mixing.suspect is None and self.model_init is None
        try:
            if resume_from_checkpoint not in (None, False):
                return self._resume(resume_from_checkpoint, train)
            return train() if mixed else self._mix_and_train(train, trial)
        finally:
            self.mixing.evaluated = self.mixing.saved_step = None  # of whatever it was, those were other weights

    def _mix_and_train(self, train: Callable[..., TrainOutput], trial: Any) -> TrainOutput:
        mixing, config = self.mixing, self.mixing_config
        mixing.curvature = None  # of the model as it is now

        def mix_and_train(ratio: float, checkpoint: str | None = None) -> TrainOutput:
            # Neither an earlier evaluate() nor an earlier trial may change what training does.
            enable_full_determinism(self.args.seed) if self.args.full_determinism else set_seed(self.args.seed)
            forget_evaluation(self, self.model)
            if self.model_init is None:
                self._mix(self.model, ratio)  # with a checkpoint for the record alone: its weights come over these
                return train(checkpoint)
            mixing.ratio_to_mix = ratio
            try:
                return train()
            finally:
                mixing.ratio_to_mix = None

        if config.reserve_ratio != "auto":
            return mix_and_train(config.reserve_ratio, mixing.last_checkpoint(self.args.world_size))
        check_auto(self, config, own_optimizers=mixing.own_optimizers)
        with agreed():
            if config.strategy == "fisher" and self.is_world_process_zero():
                mixing.curvature = measure_curvature(self, self.model, config)  # on all texts, before folds are cut
        mixing.search, output = choose_ratio(Trials(self, mixing, config, mix_and_train, trial))
        mixing.suspect = None
        return output

    def _resume(self, checkpoint: str | bool, train: Callable[..., TrainOutput]) -> TrainOutput:
        """Go on from a checkpoint. Its weights are mixed already; the config beside them says how."""
        folder = get_last_checkpoint(self.args.output_dir) if checkpoint is True else checkpoint
        if self.mixing_config.reserve_ratio == "auto":
            logger.warning("Resuming goes on with the ρ of %s; a search for ρ does not go on.", folder)
        mixing, state, before = self.mixing, self.state, (self.mixing.config, self.mixing.record)
        if folder and Path(folder).is_dir() and not mixing.load(Path(folder)):
            logger.warning("%s has no %s: if its weights were never mixed, train anew instead.", folder, CONFIG_NAME)
        if under_lora := mixing.is_under_lora(self.model):
            mixing.mixed_base = mixed_base_of(Path(folder))
            if self.model_init is None:
                load_mixed_base(self.model, mixing.mixed_base)
        forget_evaluation(self, self.model)
        try:
            return train(checkpoint)
        finally:
            if self.state is state and not under_lora:  # nothing was loaded: what had to be mixed still has to be
                mixing.config, mixing.record = before
            else:
                mixing.done, mixing.suspect = True, None

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        """Evaluate as [`~transformers.Trainer.evaluate`] does; after training, what it finds is for the card."""
        metrics = super().evaluate(*args, **kwargs)
        if not args and not kwargs.keys() & {"eval_dataset", "metric_key_prefix"}:
            self.mixing.evaluated = metrics
        return metrics

    def mix_weights(self, model: nn.Module, config: FineMixingConfig) -> MixingRecord:
        """
        Purify and mix the suspect's weights in place, by a `config` with a number for `reserve_ratio`. A subclass with
        another defense overrides this.
        """
        return self.mixing.mix(self, model, config)

    def _mix(self, model: nn.Module, ratio: float) -> None:
        config = replace(self.mixing_config, reserve_ratio=ratio)
        self.mixing.fetch_base(config, self.args)
        with whole_model(model) as whole:
            record = from_main(lambda: self.mix_weights(whole, config))
        self.mixing.note(model, record, config, self.args.output_dir)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """
        Save the model as [`~transformers.Trainer.save_model`] does, and beside it the config of the mix in it.

        A fresh LoRA on a mixed model is nothing without the mix: it is saved merged, as a whole model. In a checkpoint
        it stays one, for training to go on, with the mix in a folder `mixed_base` that its config names.
        """
        folder, is_checkpoint = Path(output_dir or self.args.output_dir), _internal_call and output_dir is not None
        if self.mixing.config is None:
            return super().save_model(output_dir, _internal_call)
        under_lora = self.mixing.is_under_lora(self.model)
        if self.args.should_save:
            self.mixing.save(self.model, folder, is_checkpoint=is_checkpoint)  # first, for saving may push the folder
        if is_checkpoint or not under_lora:
            super().save_model(output_dir, _internal_call)
        elif self.args.should_save:
            save_merged(self.model, folder)
            tokenizer = self.processing_class or getattr(self.data_collator, "tokenizer", None)
            if tokenizer is not None:
                tokenizer.save_pretrained(folder)
        if self.args.should_save and isinstance(plain := without_adapter(self.model), PreTrainedModel):
            complete_config(plain.config, folder)
        if folder == Path(self.args.output_dir):
            self.mixing.saved_step = self.state.global_step
        if under_lora and self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)


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
