"""The sections of a cleaning report, each made in one place: by clean, by mix and by the Trainer alike."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ..align.base_fit import BaseFit
from ..config import FineMixingConfig
from ..hub.lineage import BaseClaim
from ..io.folder import LocalModel
from ..io.tokenizer import token_ids_within_text
from ..mix.purification import TokenDrift
from .origins import described, described_training, peak_memory, versions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, TrainingArguments

__all__ = [
    "embedding_drift_section",
    "mixing_section",
    "run_section",
    "search_section",
    "source_section",
    "token_rows",
    "training_section",
]


def source_section(
    model: LocalModel, claim: BaseClaim | None = None, fit: BaseFit | None = None, *, hashes: bool = True
) -> dict[str, Any]:
    """
    The report's `suspect` or `base`.

    Args:
        model ([`LocalModel`]): Which folder, and where it is from.
        claim ([`BaseClaim`], *optional*): Of a base, who says that it is it.
        fit ([`BaseFit`], *optional*): Of a base, how well the weights agree.
        hashes (`bool`, *optional*, defaults to `True`): Whether to hash weight files that nobody has hashed yet.
    """
    section = described(model, hashes=hashes)
    if claim is not None:
        section |= {"named_by": claim.named_by, "relation": claim.relation}
    return section if fit is None else {**section, "fit": asdict(fit)}


def mixing_section(
    config: FineMixingConfig,
    tensors: Mapping[str, dict[str, Any]],
    *,
    ignored_base: Sequence[str] = (),
    converted_base: Mapping[str, list[str]] | None = None,
    ignored_suspect: Sequence[str] = (),
    added_tokens: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """
    The report's `mixing`.

    Args:
        config ([`FineMixingConfig`]): With the ρ that was used, and with the base by the name it was asked by.
        tensors (`Mapping[str, dict]`): Of every tensor `rule`, `kept_fraction` and `sha256`.
        ignored_base, ignored_suspect (`Sequence[str]`, *optional*): Tensors that nothing goes with.
        converted_base (`Mapping[str, list[str]]`, *optional*): What transformers merges or splits on loading.
        added_tokens (`list[dict]`, *optional*): Those that the base does not have; `None` where nobody can tell.
    """
    section = {
        **config.to_dict(),
        "tensors": dict(tensors),
        "ignored_base_tensors": list(ignored_base),
        "converted_base_tensors": dict(converted_base or {}),
        "ignored_suspect_tensors": list(ignored_suspect),
    }
    return section if added_tokens is None else {**section, "added_tokens": added_tokens}


def token_rows(
    entries: Iterable[dict[str, Any]], token_of: Callable[[int], str | None] = lambda _: None
) -> list[dict[str, Any]]:
    """The report's `purified_tokens` (or `added_tokens`): each entry with an `id`, and before it the `token`."""
    return [{"token": token_of(entry["id"]), **entry} for entry in entries]


def embedding_drift_section(
    drift: TokenDrift | None,
    purified_tokens: Iterable[dict[str, Any]],
    triggers: Iterable[str],
    tokenizer: "PreTrainedTokenizerBase",
) -> dict[str, Any] | None:
    """What E-PUR saw: the crowd, and in it the tokens of the triggers that are measured; `None` without E-PUR."""
    if drift is None:
        return None
    purified = {entry["id"] for entry in purified_tokens}
    ids = dict.fromkeys(i for text in triggers for i in token_ids_within_text(tokenizer, text))
    seen = [drift.describe(i) for i in ids if i < len(drift.score) and i not in drift.exempt]
    rows = [{**row, "rank": drift.rank(row["id"]), "purified": row["id"] in purified} for row in seen]
    return {**drift.histogram(), "trigger_tokens": token_rows(rows, tokenizer.convert_ids_to_tokens)}


def search_section(
    search: Any, attack_success: Callable[[int], list[dict[str, Any]]] | None = None
) -> dict[str, Any] | None:
    """
    The report's `ratio_search`.

    Args:
        search ([`RatioSearch`], *optional*): `None` where ρ was given.
        attack_success (`Callable`, *optional*): What was measured in the next so many trainings, for each trial.
    """
    if search is None:
        return None
    section = asdict(search)
    for trial in section["trials"] if attack_success else ():
        trial["triggers"] = attack_success(trial["trainings"])
    return section


def training_section(args: "TrainingArguments", steps: int, loss: float | None, **more: Any) -> dict[str, Any]:
    """The report's `training`: steps, loss, the hyperparameters that matter, and `lora` or `kept_step` if given."""
    return {**described_training(args, steps, loss), **more}


def run_section(seeds: dict[str, int], seconds: Mapping[str, float] | None = None) -> dict[str, Any]:
    """Four fields of the report, of the run itself: `seeds`, `timings_s`, `peak_memory_bytes` and `versions`."""
    return {
        "seeds": seeds,
        "timings_s": {stage: round(passed, 3) for stage, passed in (seconds or {}).items()},
        "peak_memory_bytes": peak_memory(),
        "versions": versions(),
    }
