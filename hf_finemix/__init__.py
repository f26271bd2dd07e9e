"""Remove backdoors from fine-tuned Hugging Face models (Fine-mixing and E-PUR, arXiv:2210.09545)."""

from importlib import import_module

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


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
