"""The settings of clean(), and whatever is wrong with them that can be told before anything is loaded."""

import difflib
import math
import os
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from transformers import TrainingArguments
from transformers.training_args import ParallelMode

from ..config import FineMixingConfig
from ..errors import FineMixingError
from ..hub.fetch import TrustArguments
from ..measure.arguments import DataArguments, MeasureArguments
from ..train.peft_arguments import PeftArguments


@dataclass
class CleaningArguments(PeftArguments, MeasureArguments, DataArguments, TrustArguments):
    r"""
    Settings of [`clean`], besides those of [`DataArguments`], [`MeasureArguments`], [`TrustArguments`] and
    [`PeftArguments`]: with `use_peft` a LoRA is trained on the mix, and merged into it at the end.

    Parameters:
        suspect_revision (`str`, *optional*):
            Branch, tag or commit of the suspect on the Hub.
        reference_model (`str`, *optional*):
            Hub id or folder of a model that was trained on clean data only: its attack success is the benign floor.
        measure_matched_floor (`bool`, *optional*, defaults to `False`):
            Also fine-tune and measure the base's body with the suspect's head (ρ = 0), which a cleaning has to beat.
        create_pr (`bool`, *optional*, defaults to `False`):
            Publish as a pull request: on the suspect's own repo, or on `hub_model_id`.
        overwrite (`bool`, *optional*, defaults to `False`):
            Replace the output folder where it is not empty.
        resume (`bool`, *optional*, defaults to `False`):
            Go on where an interrupted run with the same settings was, and keep what is done for the next one to go on
            from: checkpoints (of a training without `save_strategy`, ten) and the trials of ρ, in `OUT.partial`.
    """

    suspect_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the suspect."})
    reference_model: str | None = field(
        default=None, metadata={"help": "Hub id or folder of a cleanly trained model, for the benign floor."}
    )
    measure_matched_floor: bool = field(
        default=False, metadata={"help": "Also fine-tune and measure at ρ = 0: what the clean data alone give."}
    )
    create_pr: bool = field(
        default=False, metadata={"help": "Publish as a pull request, on the suspect's own repo or on hub_model_id."}
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace the output folder where it is not empty."})
    resume: bool = field(default=False, metadata={"help": "Go on where an interrupted run was; keep what is done."})


def cleaning_arguments(settings: dict[str, Any]) -> CleaningArguments:
    """
    The settings of [`clean`] given by name.

    Raises:
        [`FineMixingError`]: An unknown one; the message says where it belongs.
    """
    known = {f.name for f in fields(CleaningArguments)}
    for name in (name for name in settings if name not in known):
        near = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(known))}."
        for owner, kind in (("mixing_config", FineMixingConfig), ("training_args", TrainingArguments)):
            if name in {f.name for f in fields(kind)}:
                hint = f"give it as {owner}={kind.__name__}({name}=…)."
        raise FineMixingError(f"clean() has no setting {name!r}: {hint}")
    return CleaningArguments(**settings)


def check_settings(arguments: CleaningArguments, config: FineMixingConfig, training_args: TrainingArguments) -> None:
    """Raise a [`FineMixingError`] for what cannot be done, or is out of its range."""
    if (processes := int(os.environ.get("WORLD_SIZE") or 1)) != training_args.world_size:
        raise FineMixingError(
            f"{processes} processes were started, and none knows of the others: give use_cpu (--use-cpu) where "
            "not each has an accelerator."
        )
    if training_args.resume_from_checkpoint:
        raise FineMixingError("resume_from_checkpoint: clean() finds its checkpoints itself, give resume (--resume).")
    if training_args.load_best_model_at_end and training_args.eval_strategy == "no":
        raise FineMixingError(
            "load_best_model_at_end needs checkpoints to judge: give eval_strategy and save_strategy."
        )
    if training_args.fp16_full_eval or training_args.bf16_full_eval:
        raise FineMixingError(
            "fp16_full_eval and bf16_full_eval round the weights that are to be mixed: leave them off."
        )
    for name in ("learning_rate", "per_device_train_batch_size", "per_device_eval_batch_size", "seed"):
        least = 1 if name.endswith("size") else 0
        if not least <= getattr(training_args, name) < math.inf:  # nor where it is not a number
            raise FineMixingError(f"{name} is {getattr(training_args, name)}: give {least} or more.")
    if training_args.max_steps < -1:
        raise FineMixingError(f"max_steps is {training_args.max_steps}: give 1 or more, or -1 to train by epochs.")
    if arguments.use_peft and config.adapter_mode == "adapter":
        raise FineMixingError("adapter_mode='adapter' trains the suspect's own LoRA: leave use_peft off.")
    if arguments.sample_seed < 0:
        raise FineMixingError(f"sample_seed is {arguments.sample_seed}: give 0 or more.")
    if config.token_frequencies and not Path(config.token_frequencies).is_file():
        raise FineMixingError(f"token_frequencies is {config.token_frequencies}, which is no file: check the path.")
    _check_libraries(training_args)


def _check_libraries(args: TrainingArguments) -> None:
    """Refuse what a training would ask for only once models and data are loaded: libraries that are not there."""
    from torch import nn
    from transformers import Trainer
    from transformers.integrations import get_reporting_integration_callbacks
    from transformers.utils import is_liger_kernel_available

    if args.use_liger_kernel and not is_liger_kernel_available():
        raise FineMixingError("use_liger_kernel needs the library liger-kernel, which is not there: install it.")
    if args.fsdp and args.parallel_mode != ParallelMode.DISTRIBUTED:
        raise FineMixingError("fsdp works in several processes only: start them with accelerate launch.")
    name, value = "report_to", ", ".join(args.report_to)
    try:
        for callback in get_reporting_integration_callbacks(args.report_to):
            callback()
        name, value = "optim", str(getattr(args.optim, "value", args.optim))
        with suppress(ValueError):  # what it says of the model is told when there is one
            Trainer.get_optimizer_cls_and_kwargs(args, nn.Linear(1, 1))
    except (ImportError, RuntimeError, ValueError) as error:
        raise FineMixingError(f"{name} is {value}: {' '.join(str(error).split())[:300]}") from error
