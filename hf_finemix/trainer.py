"""FineMixingTrainer: a transformers Trainer that mixes and purifies the model before it trains."""

import inspect

from transformers import Seq2SeqTrainer, Trainer

from .config import FineMixingConfig
from .report.from_trainer import PublishingMixin
from .train.mixin import MixingMixin
from .train.signatures import show_signatures

_OWN_ARGUMENTS = [
    inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
    for name, annotation in (("base_model", str | None), ("mixing_config", FineMixingConfig | None))
]


class FineMixingMixin(PublishingMixin, MixingMixin):
    """
    What makes a Trainer mix before it trains, and publish what it made; see [`FineMixingTrainer`].

    It goes before any subclass of [`~transformers.Trainer`]: `class MyTrainer(FineMixingMixin, SFTTrainer)`.
    """

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if FineMixingMixin in cls.__bases__:
            for mixin in FineMixingMixin.__bases__:
                show_signatures(cls, mixin, _OWN_ARGUMENTS)


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
        mixing_record ([`MixingRecord`], *optional*): What was mixed, once `train()` has done it.
        ratio_search ([`RatioSearch`], *optional*): How ρ was chosen, where it was `"auto"`.
        config_of_mix ([`FineMixingConfig`], *optional*): The config with the ρ that is in the weights.
        mixing ([`MixingState`]): All else that it knows of its mixing, such as the base.

    Raises:
        [`FineMixingError`]: A config without a base, or `push_to_hub` with a `hub_strategy` other than `"end"`; when
            `train()` starts, also a base that cannot be had or does not fit, or `"auto"` without labeled classes in
            `eval_dataset`, with `optimizers` of one's own, with sharded parameters or with `fp16_full_eval` or
            `bf16_full_eval`.
    """


class FineMixingSeq2SeqTrainer(FineMixingMixin, Seq2SeqTrainer):
    """[`~transformers.Seq2SeqTrainer`] that mixes before it trains: all of [`FineMixingTrainer`], and generation."""
