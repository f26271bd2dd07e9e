"""The sections of a cleaning report, each made in one place: by clean, by mix and by the Trainer alike."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ..align.base_fit import BaseFit
from ..config import FineMixingConfig
from ..hub.lineage import BaseClaim
from ..io.checkpoint import sha256_of_file
from ..io.folder import LocalModel
from ..io.tokenizer import token_ids_within_text
from ..mix.purification import TokenDrift
from .origins import peak_memory, versions, weight_files
from .schema import EmbeddingDrift, Mixing, Run, Search, Source, Training, Trigger

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, TrainingArguments


def source_section(
    model: LocalModel, claim: BaseClaim | None = None, fit: BaseFit | None = None, *, hashes: bool = True
) -> Source:
    """
    The report's `suspect` or `base`.

    Args:
        model ([`LocalModel`]): Which folder, and where it is from.
        claim ([`BaseClaim`], *optional*): Of a base, who says that it is it.
        fit ([`BaseFit`], *optional*): Of a base, how well the weights agree.
        hashes (`bool`, *optional*, defaults to `True`): Whether to hash weight files that nobody has hashed yet.
    """
    files = weight_files(model)  # of which those of a repo were hashed when they were fetched
    found = {file.name: model.sha256.get(file.name) or (sha256_of_file(file) if hashes else None) for file in files}
    section: Any = {"id": model.id, "revision": model.revision, "sha256": found if all(found.values()) else None}
    if model.security is not None:
        section["security"] = model.security
    if claim is not None:
        section |= {"named_by": claim.named_by, "relation": claim.relation}
    if fit is not None:
        section["fit"] = asdict(fit)
    return section


def mixing_section(
    config: FineMixingConfig,
    tensors: Mapping[str, Any],
    *,
    ignored_base: Sequence[str] = (),
    converted_base: Mapping[str, list[str]] | None = None,
    ignored_suspect: Sequence[str] = (),
    added_tokens: list[Any] | None = None,
) -> Mixing:
    """
    The report's `mixing`.

    Args:
        config ([`FineMixingConfig`]): With the ρ that was used, and with the base by the name it was asked by.
        tensors (`Mapping[str, dict]`): Of every tensor `rule`, `kept_fraction` and `sha256`.
        ignored_base, ignored_suspect (`Sequence[str]`, *optional*): Tensors that nothing goes with.
        converted_base (`Mapping[str, list[str]]`, *optional*): What transformers merges or splits on loading.
        added_tokens (`list[dict]`, *optional*): Those that the base does not have; `None` where nobody can tell.
    """
    section: Any = {
        **config.to_dict(),
        "tensors": dict(tensors),
        "ignored_base_tensors": list(ignored_base),
        "converted_base_tensors": dict(converted_base or {}),
        "ignored_suspect_tensors": list(ignored_suspect),
    }
    if added_tokens is not None:
        section["added_tokens"] = added_tokens
    return section


def token_rows(entries: Iterable[dict[str, Any]], token_of: Callable[..., Any] = lambda _: None) -> list[Any]:
    """The report's `purified_tokens` (or `added_tokens`): each entry with an `id`, and before it the `token`."""
    return [{"token": token_of(entry["id"]), **entry} for entry in entries]


def embedding_drift_section(
    drift: TokenDrift | None,
    purified_tokens: Iterable[dict[str, Any]],
    triggers: Iterable[str],
    tokenizer: "PreTrainedTokenizerBase",
) -> EmbeddingDrift | None:
    """What E-PUR saw: the crowd, and in it the tokens of the triggers that are measured; `None` without E-PUR."""
    if drift is None:
        return None
    purified = {entry["id"] for entry in purified_tokens}
    ids = dict.fromkeys(i for text in triggers for i in token_ids_within_text(tokenizer, text))
    seen = [drift.describe(i) for i in ids if i < len(drift.score) and i not in drift.exempt]
    rows = [{**row, "rank": drift.rank(row["id"]), "purified": row["id"] in purified} for row in seen]
    section: Any = {**drift.histogram(), "trigger_tokens": token_rows(rows, tokenizer.convert_ids_to_tokens)}
    return section


def search_section(search: Any, attack_success: Callable[[int], list[Trigger]] | None = None) -> Search | None:
    """
    The report's `ratio_search`.

    Args:
        search ([`RatioSearch`], *optional*): `None` where ρ was given.
        attack_success (`Callable`, *optional*): What was measured in the next so many trainings, for each trial.
    """
    if search is None:
        return None
    section: Any = asdict(search)
    if attack_success is not None:
        for trial in section["trials"]:
            trial["triggers"] = attack_success(trial["trainings"])
    return section


def training_section(args: "TrainingArguments", steps: int, loss: float | None, **more: Any) -> Training:
    """
    The report's `training`: nothing else of the arguments, which hold a token.

    Args:
        args (`TrainingArguments`): Of which the hyperparameters that matter are told.
        steps (`int`), loss (`float`, *optional*): What came of them.
        more: `lora` or `kept_step`, where there is one.
    """
    names = ("learning_rate", "lr_scheduler_type", "optim", "weight_decay", "warmup_steps", "max_steps")
    names += ("num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps", "bf16", "fp16")
    arguments: Any = {name: getattr(args, name) for name in names}
    return Training(steps=steps, loss=loss, num_processes=args.world_size, **arguments, **more)


def run_section(seeds: dict[str, int], seconds: Mapping[str, float] | None = None) -> Run:
    """Four fields of the report, of the run itself: `seeds`, `timings_s`, `peak_memory_bytes` and `versions`."""
    return {
        "seeds": seeds,
        "timings_s": {stage: round(passed, 3) for stage, passed in (seconds or {}).items()},
        "peak_memory_bytes": peak_memory(),
        "versions": versions(),
    }
