"""FineMixingTrainer: a transformers Trainer that mixes and purifies the model before it trains."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase, Trainer, TrainingArguments, enable_full_determinism, set_seed
from transformers.trainer_utils import HubStrategy, TrainOutput, get_last_checkpoint

from .checkpoint import Checkpoint
from .config import CONFIG_NAME, FineMixingConfig
from .conversion import LoadedLayout
from .errors import FineMixingError
from .frequency import token_frequencies
from .hub import LocalModel, cached_folder, fetch_model
from .mixing import MixingRecord, mix_model
from .ratio_search import AccuracyCounter, RatioSearch, predicted_classes, search_ratio
from .tokenizer import load_tokenizer

__all__ = ["FineMixingTrainer", "dtypes_on_disk"]

logger = logging.getLogger(__name__)


class FineMixingTrainer(Trainer):
    """
    [`~transformers.Trainer`] that removes a backdoor from the model before fine-tuning it on clean data.

    Takes all arguments of [`~transformers.Trainer`], in its order. Without `base_model` and `mixing_config` it is the
    stock Trainer. With them, `evaluate()` before `train()` judges the suspect; `train()` mixes and purifies once, then
    runs the standard loop; a second `train()` goes on from there; with `model_init` every model built for training is
    mixed; resuming from a checkpoint never mixes.

    With `reserve_ratio="auto"` (the config's default) `train()` fine-tunes once for each candidate ρ, in rising order,
    until the accuracy on `eval_dataset` is within `max_accuracy_drop` of the suspect's.

    Args:
        base_model (`str`, *optional*, keyword only):
            Hub id or local folder of the clean pre-trained model; it wins over the config's.
        mixing_config ([`FineMixingConfig`], *optional*, keyword only):
            What to mix and how.

    Attributes:
        mixing_record ([`mixing.MixingRecord`], *optional*): What was mixed, once `train()` has done it.
        ratio_search ([`ratio_search.RatioSearch`], *optional*): How ρ was chosen, where it was `"auto"`.
        config_of_mix ([`FineMixingConfig`], *optional*): The config with the ρ that is in the weights.
        base ([`hub.LocalModel`], *optional*): The base, once it was fetched.

    Raises:
        [`FineMixingError`]: A config without a base, or `push_to_hub` with a `hub_strategy` other than `"end"`; when
            `train()` starts, also a base that cannot be had or does not fit, or `"auto"` without labelled classes in
            `eval_dataset`, with `optimizers` of one's own, with sharded parameters or with `fp16_full_eval` or
            `bf16_full_eval`.
    """

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
        self.base: LocalModel | None = None
        super().__init__(*args, **kwargs)
        self._own_optimizers = self.optimizer is not None or self.lr_scheduler is not None

    def call_model_init(self, trial: Any = None) -> nn.Module:
        """Build a model with `model_init`, and mix it where it is built for training."""
        model = super().call_model_init(trial)
        if self._ratio_to_mix is not None:
            self._mix(model, self._ratio_to_mix)
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
        if resume_from_checkpoint not in (None, False):
            return self._resume(resume_from_checkpoint, trial, ignore_keys_for_eval)
        if self._mixed and self._suspect is None and self.model_init is None:
            return super().train(None, trial, ignore_keys_for_eval)

        def mix_and_train(ratio: float) -> TrainOutput:
            # Neither an earlier evaluate() nor an earlier trial may change what training does.
            enable_full_determinism(self.args.seed) if self.args.full_determinism else set_seed(self.args.seed)
            if self.model_init is None:
                self._mix(self.model, ratio)
                return super(FineMixingTrainer, self).train(None, trial, ignore_keys_for_eval)
            self._ratio_to_mix = ratio
            try:
                return super(FineMixingTrainer, self).train(None, trial, ignore_keys_for_eval)
            finally:
                self._ratio_to_mix = None

        if self.mixing_config.reserve_ratio != "auto":
            return mix_and_train(self.mixing_config.reserve_ratio)
        return self._train_with_chosen_ratio(mix_and_train, trial)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model as [`~transformers.Trainer.save_model`] does, and beside it the config of the mix in it."""
        if self.config_of_mix is not None and self.args.should_save:
            # First, because saving may push the folder.
            self.config_of_mix.save_pretrained(output_dir or self.args.output_dir)
        super().save_model(output_dir, _internal_call)

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
        from .trainer_publishing import publish_trained

        return publish_trained(self, commit_message, blocking, token, revision, private, **kwargs)

    def create_model_card(self, *args, **kwargs) -> None:
        """Write the card as [`~transformers.Trainer.create_model_card`] does; of a mix, into what README.md holds."""
        if self.mixing_config is None:
            return super().create_model_card(*args, **kwargs)
        from .trainer_publishing import write_card

        return write_card(self, *args, **kwargs)

    def _resume(self, checkpoint: str | bool, trial: Any, ignore_keys_for_eval: list[str] | None) -> TrainOutput:
        """Go on from a checkpoint. Its weights are mixed already; the config beside them says how."""
        folder = get_last_checkpoint(self.args.output_dir) if checkpoint is True else checkpoint
        if self.mixing_config.reserve_ratio == "auto":
            logger.warning("Resuming goes on with the ρ of %s; a search for ρ does not go on.", folder)
        state, config = self.state, self.config_of_mix
        if folder and (Path(folder) / CONFIG_NAME).is_file():
            self.config_of_mix = FineMixingConfig.from_pretrained(folder)
        elif folder:
            self.config_of_mix = None
            logger.warning("%s has no %s: if its weights were never mixed, train anew instead.", folder, CONFIG_NAME)
        try:
            return super().train(checkpoint, trial, ignore_keys_for_eval)
        finally:
            if self.state is state:  # nothing was loaded: what had to be mixed still has to be
                self.config_of_mix = config
            else:
                self._mixed, self._suspect = True, None

    def _train_with_chosen_ratio(self, mix_and_train, trial: Any) -> TrainOutput:
        """Try the candidates in turn, each from the suspect's own weights, and end with the chosen one trained."""
        self._check_auto()
        if self.model_init is not None:
            self.model = self.model_wrapped = self.call_model_init(trial).to(self.args.device)
        elif not self._mixed:
            self._suspect = {name: tensor.to("cpu", copy=True) for name, tensor in self.model.state_dict().items()}
        else:  # an earlier search was interrupted
            self.model.load_state_dict(self._suspect)
        suspect_accuracy = self._eval_accuracy()
        config, trained, output = self.mixing_config, None, None

        def attempt(ratio: float) -> float:
            nonlocal trained, output
            if self.model_init is None:
                self.model.load_state_dict(self._suspect)
                self.optimizer = self.lr_scheduler = None
            output, trained = mix_and_train(ratio), ratio
            accuracy = self._eval_accuracy()
            logger.info("ρ = %g: eval accuracy %.4f, the suspect's is %.4f", ratio, accuracy, suspect_accuracy)
            return accuracy

        search = search_ratio(config.candidate_ratios, suspect_accuracy, config.max_accuracy_drop, attempt)
        if not search.within_limit:
            logger.warning(
                "No candidate ρ keeps the accuracy within %g of the suspect's %.4f: ρ = %g was the best. Give more "
                "clean data, train longer, or allow a larger max_accuracy_drop.",
                config.max_accuracy_drop,
                suspect_accuracy,
                search.chosen,
            )
        if trained != search.chosen:
            attempt(search.chosen)
        self.ratio_search, self._suspect = search, None
        return output

    def _check_auto(self) -> None:
        if self.eval_dataset is None:
            raise FineMixingError(
                "reserve_ratio='auto' chooses ρ by accuracy on eval_dataset, which is missing: give it, or a fixed ρ."
            )
        if self._own_optimizers:
            raise FineMixingError(
                "reserve_ratio='auto' trains several times and cannot reset optimizers=...: pass "
                "optimizer_cls_and_kwargs instead, or a fixed ρ."
            )
        if self.is_fsdp_enabled or self.is_deepspeed_enabled or self.is_distributed_loading_by_transformers:
            raise FineMixingError(
                "reserve_ratio='auto' needs the whole model in one process: choose ρ there, then give it as a number."
            )
        if self.args.fp16_full_eval or self.args.bf16_full_eval:
            raise FineMixingError(
                "reserve_ratio='auto' evaluates between trainings, and fp16_full_eval or bf16_full_eval rounds the "
                "weights each time: leave them off, or give a fixed ρ."
            )

    def _eval_accuracy(self) -> float:
        """Accuracy of the present model on the eval data, whatever the user's own metrics are."""
        datasets = list(self.eval_dataset) if isinstance(self.eval_dataset, Mapping) else [self.eval_dataset]
        kept = self.compute_metrics, self.preprocess_logits_for_metrics
        counter = AccuracyCounter()
        self.compute_metrics, self.preprocess_logits_for_metrics = counter, predicted_classes
        try:
            for dataset in datasets:
                # Not predict(), which args.prediction_loss_only keeps from predicting.
                self.evaluation_loop(
                    self.get_eval_dataloader(dataset), "Choosing the reserve ratio", prediction_loss_only=False
                )
        finally:
            self.compute_metrics, self.preprocess_logits_for_metrics = kept
        if not counter.total:
            raise FineMixingError("reserve_ratio='auto' needs labelled eval data: no row of eval_dataset is.")
        return counter.correct / counter.total

    def _mix(self, model: nn.Module, ratio: float) -> None:
        config = self.mixing_config
        if self.base is None:
            self.base = fetch_model(config.base_model_name_or_path, config.base_model_revision, role="base")
        frequencies, special = None, ()
        if config.purify_embeddings and config.num_purified_tokens:
            tokenizer = self._tokenizer()
            special = tokenizer.all_special_ids
            if self._frequencies is None:
                self._frequencies = token_frequencies(tokenizer, config.token_frequencies)
            frequencies = self._frequencies
        with Checkpoint(self.base.folder) as base:
            self.mixing_record = mix_model(
                model,
                base,
                config,
                reserve_ratio=ratio,
                dtypes=dtypes_on_disk(model),
                token_frequencies=frequencies,
                special_token_ids=special,
            )
        self._mixed, self.config_of_mix = True, replace(config, reserve_ratio=ratio)
        kept = [name for name, tensor in self.mixing_record.tensors.items() if tensor["rule"].startswith("kept")]
        logger.info(
            "Mixed %d tensors with ρ = %g, kept %d (%s), purified %d embeddings",
            len(self.mixing_record.drift),
            ratio,
            len(kept),
            ", ".join(kept),
            len(self.mixing_record.purified_tokens),
        )
        if converted := self.mixing_record.converted_base_tensors:
            logger.info(
                "What is %d tensors of the base on disk is %d in memory (%s, …): merged or split as on loading.",
                len({source for sources in converted.values() for source in sources}),
                len(converted),
                next(iter(converted)),
            )

    def _tokenizer(self) -> PreTrainedTokenizerBase:
        """The user's tokenizer, or else the base's: E-PUR needs to know which token a row stands for."""
        if isinstance(self.processing_class, PreTrainedTokenizerBase):
            return self.processing_class
        tokenizer = load_tokenizer(self.base.folder)
        if tokenizer is None:
            raise FineMixingError(
                f"E-PUR needs a tokenizer, and {self.base.id} has none: pass processing_class=tokenizer, or "
                "purify_embeddings=False."
            )
        return tokenizer


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


def dtypes_on_disk(model: nn.Module) -> dict[str, torch.dtype] | None:
    """The dtypes of the checkpoint that the model was loaded from, where it is still at hand; else `None`."""
    source = getattr(model, "name_or_path", None)
    if not source:
        return None
    folder = cached_folder(source)
    if folder is None:
        return None
    try:
        tensors = LoadedLayout(Checkpoint(folder), model).tensors
    except FineMixingError:  # a model without readable safetensors is mixed in the dtype it has in memory
        return None
    return {name: getattr(torch, info.dtype) for name, info in tensors.items()}
