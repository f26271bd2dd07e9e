"""What the stages of a cleaning give, and the report of all that."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..align.base_fit import BaseFit
from ..config import FineMixingConfig
from ..hub.lineage import BaseClaim
from ..io.folder import LocalModel
from ..measure.attack_success import TriggeredSamples
from ..measure.clean_data import CleanData
from ..measure.task import Task
from ..mix.in_memory import MixingRecord
from ..mix.subject import Subject
from ..report.card_metadata import carried_over
from ..report.report import CleaningReport
from ..report.schema import Measured, Search, Training
from ..report.sections import embedding_drift_section, mixing_section, run_section, source_section, token_rows
from .arguments import CleaningArguments


class Stopwatch:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[stage] = time.perf_counter() - start


@dataclass(frozen=True)
class Pulled:
    """
    What was asked for, and the models for it on this machine: the Hub is asked for none any more.

    Attributes:
        arguments ([`CleaningArguments`]): The settings of clean().
        suspect, base ([`LocalModel`]), reference ([`LocalModel`], *optional*): Where the models are.
        claim ([`BaseClaim`]): Who named the base.
        asked ([`FineMixingConfig`]): What to mix and how, the base by its id and commit: for the report.
        config ([`FineMixingConfig`]): The same, the base as the folder that was fetched.
        timed (`Stopwatch`): Times the stages.
    """

    arguments: CleaningArguments
    suspect: LocalModel
    base: LocalModel
    claim: BaseClaim
    reference: LocalModel | None
    asked: FineMixingConfig
    config: FineMixingConfig
    timed: Stopwatch = field(default_factory=Stopwatch)

    @property
    def chooses_on_eval(self) -> bool:
        """Whether ρ is chosen by the accuracy on the eval rows, which are labelled samples then."""
        return self.config.reserve_ratio == "auto" and not self.config.cross_validation_folds


@dataclass(frozen=True)
class Fit:
    """
    The suspect, found to be fine-tuned from the base.

    Attributes:
        subject ([`Subject`]): The suspect, loaded.
        task (`type[Task]`): What it is for.
        base ([`BaseFit`]): How well the base fits.
        drift (`dict[str, float | None]`): How far each layer is from the base's.
        ignored (`list[str]`): Tensors on disk that the suspect's class has no place for.
    """

    subject: Subject
    task: type[Task]
    base: BaseFit
    drift: dict[str, float | None]
    ignored: list[str]


@dataclass(frozen=True)
class Samples:
    """
    What is trained and measured on, and how the model reads it.

    Attributes:
        task ([`Task`]), tokenizer (`PreTrainedTokenizerBase`): How.
        tokenizer_note (`dict`): For the report: whose tokenizer it is.
        data ([`CleanData`]): Rows for tuning, choosing and testing.
        attacks (`list[TriggeredSamples]`): Test rows with the triggers put in.
        reference (`PreTrainedModel`, *optional*): The model for the benign floor.
    """

    task: Task
    tokenizer: PreTrainedTokenizerBase
    tokenizer_note: dict[str, Any]
    data: CleanData
    attacks: list[TriggeredSamples]
    reference: PreTrainedModel | None

    def encoded(self, rows: Dataset) -> Dataset:
        """Rows as the model reads them."""
        return self.task.encode(rows, self.data.text_columns)


@dataclass(frozen=True)
class Before:
    """What was measured of the suspect, of a model that never saw the trigger, and of the base with its head."""

    suspect: Measured
    benign_floor: Measured | None
    matched_floor: Measured | None


@dataclass(frozen=True)
class Cleaned:
    """
    The model that was mixed and trained.

    Attributes:
        model (`PreTrainedModel`): Rounded to what is saved.
        record ([`MixingRecord`]): What was mixed.
        drift (`dict[str, float | None]`): How far each layer is from the base's now.
        ratio_search (`dict`, *optional*), training (`dict`): For the report.
        seed (`int`): Of the training.
        measured (`dict`): Its accuracy and attack success.
    """

    model: PreTrainedModel
    record: MixingRecord
    drift: dict[str, float | None]
    ratio_search: Search | None
    training: Training
    seed: int
    measured: Measured


def make_report(pulled: Pulled, fit: Fit, samples: Samples, before: Before, cleaned: Cleaned) -> CleaningReport:
    """What was done and measured."""
    record, rows = cleaned.record, samples.data.description["rows"]
    tokens = samples.tokenizer.convert_ids_to_tokens
    seeds = {"mixing": pulled.config.mixing_seed, "samples": pulled.arguments.sample_seed, "training": cleaned.seed}
    return CleaningReport(
        suspect=source_section(fit.subject.source),
        base=source_section(pulled.base, pulled.claim, fit.base),
        tokenizer=samples.tokenizer_note,
        mixing=mixing_section(
            replace(pulled.asked, reserve_ratio=record.reserve_ratio),
            record.tensors,
            ignored_base=record.ignored_base_tensors,
            converted_base=record.converted_base_tensors,
            ignored_suspect=fit.ignored,
            added_tokens=token_rows(({"id": i} for i in record.added_token_ids), tokens),
        ),
        purified_tokens=token_rows(record.purified_tokens, tokens),
        data={
            **samples.data.description,
            "labelled_samples": rows["tuning"] + (rows["eval"] if pulled.chooses_on_eval else 0),
            "target": samples.task.target_name,
        },
        before=before.suspect,
        after=cleaned.measured,
        benign_floor=before.benign_floor,
        matched_floor=before.matched_floor,
        drift_by_layer={"before": fit.drift, "after": cleaned.drift},
        embedding_drift=embedding_drift_section(
            record.token_drift, record.purified_tokens, pulled.arguments.triggers or [], samples.tokenizer
        ),
        ratio_search=cleaned.ratio_search,
        training=cleaned.training,
        card_metadata={**carried_over(fit.subject.source.folder), "pipeline_tag": samples.task.pipeline_tag},
        **run_section(seeds, pulled.timed.seconds),
    )
