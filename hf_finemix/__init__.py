"""Remove backdoors from fine-tuned Hugging Face models (Fine-mixing and E-PUR, arXiv:2210.09545)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# PEP 562: a name is imported when it is first used, so that `import hf_finemix` loads neither torch nor transformers.
_HOMES = {
    "AlignmentError": "errors",
    "DataError": "errors",
    "FineMixingError": "errors",
    "FineMixingConfig": "config",
    "FineMixingMixin": "trainer",
    "FineMixingSeq2SeqTrainer": "trainer",
    "FineMixingTrainer": "trainer",
    "Checkpoint": "io.checkpoint",
    "CleaningReport": "report.report",
    "Trigger": "measure.triggers",
    "clean": "cleaning.clean",
    "compute_classification_metrics": "measure.metrics",
    "mix_checkpoints": "disk_mixing",
    "mix_model": "mix.in_memory",
    "plan_mix": "planning",
    "push_cleaned": "report.publish",
    "token_frequencies": "mix.token_frequency",
    "verify_mix": "verification",
}

__all__ = ["__version__", *sorted(_HOMES)]


if TYPE_CHECKING:  # the same for type checkers, which follow no table
    from .cleaning.clean import clean as clean
    from .config import FineMixingConfig as FineMixingConfig
    from .disk_mixing import mix_checkpoints as mix_checkpoints
    from .errors import AlignmentError as AlignmentError
    from .errors import DataError as DataError
    from .errors import FineMixingError as FineMixingError
    from .io.checkpoint import Checkpoint as Checkpoint
    from .measure.metrics import compute_classification_metrics as compute_classification_metrics
    from .measure.triggers import Trigger as Trigger
    from .mix.in_memory import mix_model as mix_model
    from .mix.token_frequency import token_frequencies as token_frequencies
    from .planning import plan_mix as plan_mix
    from .report.publish import push_cleaned as push_cleaned
    from .report.report import CleaningReport as CleaningReport
    from .trainer import FineMixingMixin as FineMixingMixin
    from .trainer import FineMixingSeq2SeqTrainer as FineMixingSeq2SeqTrainer
    from .trainer import FineMixingTrainer as FineMixingTrainer
    from .verification import verify_mix as verify_mix


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
