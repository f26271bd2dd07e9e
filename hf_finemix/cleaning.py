"""clean(): the main job. Pull, measure, purify, mix, fine-tune, measure, write."""

import copy
import logging
import math
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainingArguments

from .alignment import NamedTensors, named_tensors
from .checkpoint import Checkpoint, sha256_of_file
from .classifier import agree_on_padding, check_vocabulary, load_classifier, max_tokens
from .comparison import compare_with_base
from .config import FineMixingConfig
from .conversion import LoadedLayout
from .data import CleanData, load_clean_data, tokenize
from .drift import TensorDrift, drift_by_layer
from .errors import DataError, FineMixingError
from .evaluation import AttackObserver, find_attacks, measure, resolve_target_label
from .figures import draw_figures
from .hub import LocalModel, fetch_model
from .mixing import MixingRecord
from .model_card import card_metadata, render_card
from .output import check_free_space, output_folder
from .provenance import described, peak_memory, versions
from .report import CleaningReport
from .settings import TRAINING_DEFAULTS, CleaningArguments, check_settings, cleaning_arguments
from .tokenizer import choose_tokenizer, token_ids_within_text
from .trainer import FineMixingTrainer, dtypes_on_disk

__all__ = ["clean"]

logger = logging.getLogger(__name__)

MIN_STEPS, MIN_EPOCHS = 100, 3
FEW_ROWS = 50


def clean(
    suspect: str | Path,
    *,
    output_dir: str | Path | None = None,
    base_model: str | Path | None = None,
    mixing_config: FineMixingConfig | None = None,
    training_args: TrainingArguments | None = None,
    command: str | None = None,
    **settings: Any,
) -> CleaningReport:
    """
    Clean a sequence classifier that may be backdoored, and write the cleaned model with its report, figures and card.

    The output appears whole or not at all: it is written to `OUT.partial` and renamed at the end.

    Args:
        suspect (`str` or `Path`):
            Hub id or local folder of the fine-tuned model, with weights in safetensors.
        output_dir (`str` or `Path`, *optional*):
            Where the cleaned model goes; in place of `training_args.output_dir`.
        base_model (`str` or `Path`, *optional*):
            Hub id or local folder of its clean pre-trained base; it wins over the config's.
        mixing_config ([`FineMixingConfig`], *optional*):
            What to mix and how.
        training_args (`TrainingArguments`, *optional*):
            How to fine-tune; with neither steps nor epochs (0) at least 100 steps and 3 epochs. By default also
            batches of 16 and a learning rate of 5e-5.
        command (`str`, *optional*):
            The command line to state in the report.
        settings:
            Fields of [`CleaningArguments`]: `dataset="stanfordnlp/sst2"`, `num_clean_samples=64`, `triggers=["cf"]`,
            `target_label="positive"`, …

    Returns:
        [`CleaningReport`]: What was measured and done, as in `cleaning_report.json`.

    Raises:
        [`FineMixingError`]: Whatever is wrong with the models, the data or the settings, before anything is written.
    """
    arguments = cleaning_arguments(settings)
    config = mixing_config or FineMixingConfig()
    if base_model is not None:
        config = config.with_base(base_model)
    if not config.base_model_name_or_path:
        raise FineMixingError("the base is missing: give base_model (--base-model), the model it was fine-tuned from.")
    if training_args is None:
        training_args = TrainingArguments(output_dir=str(output_dir or "cleaned"), **TRAINING_DEFAULTS)
    check_settings(arguments, config, training_args)
    final = Path(output_dir or training_args.output_dir)
    read = (suspect, config.base_model_name_or_path, arguments.reference_model)
    read += (arguments.dataset, arguments.triggered_file, config.token_frequencies)
    for source in (Path(source).expanduser().resolve() for source in read if source):
        if source.exists() and source.is_relative_to(final.resolve()):
            raise FineMixingError(f"the output folder {final} is or holds {source}, which is read: give another one.")
    with output_folder(final, overwrite=arguments.overwrite) as partial:
        job = _Job(fetch_model(suspect, arguments.suspect_revision, role="suspect"), arguments, config)
        check_free_space(partial, sum(file.stat().st_size for file in Checkpoint(job.suspect.folder).files))
        report = job.run(job.trainer(training_args, partial / "checkpoints"))
        report.command = command
        job.write(report, partial)
    return report


class _Job:
    """What the stages of one cleaning share."""

    def __init__(self, suspect: LocalModel, arguments: CleaningArguments, config: FineMixingConfig):
        self.suspect, self.arguments, self.seconds = suspect, arguments, {}
        self.base = fetch_model(config.base_model_name_or_path, config.base_model_revision, role="base")
        # From here on the base is the folder that was fetched, so that nothing is resolved twice.
        self.config = config.with_base(self.base.folder)
        self.asked = replace(config, base_model_revision=self.base.revision or config.base_model_revision)
        with self.timed("load"):
            self.model = load_classifier(suspect)
            with Checkpoint(self.base.folder) as base:
                pair = compare_with_base(self.model, base, head=config.head, dtypes=dtypes_on_disk(self.model))
            pair.check_related()
            if not pair.alignment.heads():
                _check_base_is_pretrained(self.base, pair.drift.values())
            self.dtypes = pair.dtypes
            self.drift_before = drift_by_layer(pair.drift)
            self.tokenizer, self.tokenizer_note = choose_tokenizer(suspect.folder, self.base.folder)
            check_vocabulary(self.tokenizer, self.model)
            agree_on_padding(self.tokenizer, self.model)
            self.max_length = max_tokens(arguments.max_length, self.tokenizer, self.model)
            label2id = {name: i for i, name in self.model.config.id2label.items()}
            self.ignored = _ignored_tensors(self.model, suspect, pair.suspect)
            self.reference = self._load_reference()
            self.target_label = resolve_target_label(arguments, self.model.config.id2label)
            self.data: CleanData = load_clean_data(arguments, label2id)
            if config.reserve_ratio == "auto" and not len(self.data.eval):
                raise DataError(
                    f"reserve_ratio='auto' needs eval data, and {arguments.dataset} leaves none: give an eval_split, "
                    "fewer num_clean_samples, or a fixed reserve_ratio."
                )
            if not len(self.data.test):
                raise DataError(f"{arguments.dataset} leaves no rows to test on: give a test_split or more rows.")
            self.attacks = find_attacks(
                arguments,
                self.data.test,
                self.tokenizer,
                self.data.text_columns,
                self.target_label,
                label2id,
                self.max_length,
            )
        logger.info("Data: %s", self.data)
        if len(self.data.tuning) < arguments.num_clean_samples:
            logger.warning("Only %d rows to tune on, not %d.", len(self.data.tuning), arguments.num_clean_samples)
        for role, rows in (("test", self.data.test), ("eval", self.data.eval)):
            if len(rows) < FEW_ROWS and (role == "test" or config.reserve_ratio == "auto"):
                logger.warning(
                    "Only %d %s rows: an accuracy of 90 %% is then known to ± %.0f points (standard error).",
                    len(rows),
                    role,
                    100 * math.sqrt(0.9 * 0.1 / len(rows)),
                )

    def trainer(self, training_args: TrainingArguments, checkpoints: Path) -> FineMixingTrainer:
        args = copy.copy(training_args)
        args.output_dir = str(checkpoints)
        args.hub_token = None  # checkpoints hold the arguments
        # Every prediction counts, whatever else the training is set to.
        args.prediction_loss_only, args.dataloader_drop_last, args.eval_do_concat_batches = False, False, True
        args.dataloader_pin_memory &= torch.accelerator.is_available()  # without one it only warns
        if args.max_steps <= 0 and args.num_train_epochs <= 0:
            steps_per_epoch = -(-len(self.data.tuning) // (args.train_batch_size * args.gradient_accumulation_steps))
            args.max_steps = max(MIN_STEPS, MIN_EPOCHS * steps_per_epoch)
        trainer = FineMixingTrainer(
            model=self.model,
            args=args,
            train_dataset=self.tokenize(self.data.tuning),
            eval_dataset=self.tokenize(self.data.eval) if len(self.data.eval) else None,
            processing_class=self.tokenizer,
            mixing_config=self.config,
        )
        trainer.remove_callback(PrinterCallback)  # standard output is for the report
        return trainer

    def tokenize(self, rows: Any) -> Any:
        return tokenize(rows, self.tokenizer, self.data.text_columns, self.max_length)

    def run(self, trainer: FineMixingTrainer) -> CleaningReport:
        test = self.tokenize(self.data.test)
        with self.timed("measure_before"):
            before = measure(trainer, test, self.attacks)
            if before["accuracy"] < 1 / self.model.config.num_labels:
                logger.warning(
                    "The suspect's accuracy is %.1f %%, worse than guessing: are these data of its task, and the "
                    "text columns (%s) right?",
                    100 * before["accuracy"],
                    " and ".join(self.data.text_columns),
                )
            floor = self._benign_floor(trainer, test)
        observer = AttackObserver(trainer, test, self.attacks)
        if self.config.reserve_ratio == "auto":
            trainer.add_callback(observer)
        with self.timed("clean"):
            output = trainer.train()
            self._round_to_disk(output.training_loss)
        with self.timed("measure_after"):
            after = measure(trainer, test, self.attacks)
        with Checkpoint(self.base.folder) as base:
            drift_after = drift_by_layer(compare_with_base(self.model, base, dtypes=self.dtypes).drift)

        record, args, search = trainer.mixing_record, trainer.args, trainer.ratio_search
        tokens = self.tokenizer.convert_ids_to_tokens
        rows = self.data.description["rows"]
        chosen = asdict(search) if search else None
        # (The chosen ρ may have been trained once more, last of all.)
        for trial, triggers in zip(chosen["trials"] if chosen else (), observer.measured, strict=False):
            trial["triggers"] = triggers
        names = ("learning_rate", "lr_scheduler_type", "optim", "weight_decay", "warmup_steps", "max_steps")
        names += ("num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps", "bf16", "fp16")
        return CleaningReport(
            suspect=described(self.suspect),
            base=described(self.base),
            tokenizer=self.tokenizer_note,
            mixing={
                **self.asked.to_dict(),
                "reserve_ratio": record.reserve_ratio,
                "tensors": record.tensors,
                "ignored_base_tensors": record.ignored_base_tensors,
                "converted_base_tensors": record.converted_base_tensors,
                "ignored_suspect_tensors": self.ignored,
                "added_tokens": [{"token": tokens(i), "id": i} for i in record.added_token_ids],
            },
            purified_tokens=[{"token": tokens(entry["id"]), **entry} for entry in record.purified_tokens],
            data={**self.data.description, "labelled_samples": rows["tuning"] + (rows["eval"] if search else 0)},
            seeds={
                "mixing": self.config.mixing_seed,
                "samples": self.arguments.sample_seed,
                "training": args.seed,
            },
            before=before,
            after=after,
            benign_floor=floor,
            drift_by_layer={"before": self.drift_before, "after": drift_after},
            embedding_drift=self._embedding_drift(record),
            ratio_search=chosen,
            training={
                "steps": output.global_step,
                "loss": output.training_loss,
                **{name: getattr(args, name) for name in names},
            },
            card_metadata=card_metadata(self.suspect.folder),
            timings_s={name: round(seconds, 3) for name, seconds in self.seconds.items()},
            peak_memory_bytes=peak_memory(),
            versions=versions(),
        )

    def write(self, report: CleaningReport, folder: Path) -> None:
        """Write the cleaned model and all that belongs to it into the folder."""
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        self.model.to("cpu")
        for name, tensor in named_tensors(self.model).tensors.items():
            tensor.data = tensor.data.to(self.dtypes[name])
        self.model.config.dtype = self.model.dtype
        self.model.save_pretrained(folder)
        for file in folder.glob("*.safetensors"):  # which only their owner may read, unlike all other files
            file.chmod((folder / "config.json").stat().st_mode)
        self.tokenizer.save_pretrained(folder)
        replace(self.asked, reserve_ratio=report.mixing["reserve_ratio"]).save_pretrained(folder)
        report.weights = {file.name: sha256_of_file(file) for file in Checkpoint(folder).files}
        report.figures = draw_figures(report, folder)
        report.save(folder)
        (folder / "README.md").write_text(render_card(report), encoding="utf-8")

    def _embedding_drift(self, record: MixingRecord) -> dict[str, Any] | None:
        """What E-PUR saw: the crowd, and in it the tokens of the triggers that are measured."""
        drift = record.token_drift
        if drift is None:
            return None
        ids = [i for text in self.arguments.triggers or [] for i in token_ids_within_text(self.tokenizer, text)]
        purified = {entry["id"] for entry in record.purified_tokens}
        tokens = [
            {
                "token": self.tokenizer.convert_ids_to_tokens(i),
                **drift.describe(i),
                "rank": drift.rank(i),
                "purified": i in purified,
            }
            for i in dict.fromkeys(ids)
            if i < len(drift.score) and i not in drift.exempt
        ]
        return {**drift.histogram(), "trigger_tokens": tokens}

    def _round_to_disk(self, loss: float) -> None:
        """Round the weights to the dtype they are saved in, so that what is measured is what is saved."""
        broken = [name for name, tensor in self.model.named_parameters() if not torch.isfinite(tensor).all()]
        if broken or not math.isfinite(loss):
            what = broken[0] if broken else "the loss"
            raise FineMixingError(f"fine-tuning went astray ({what} is not finite): lower learning_rate.")
        for name, tensor in named_tensors(self.model).tensors.items():
            tensor.data.copy_(tensor.data.to(self.dtypes[name]))

    def _load_reference(self) -> tuple[LocalModel, PreTrainedModel] | None:
        if not self.arguments.reference_model:
            return None
        reference = fetch_model(self.arguments.reference_model, role="reference model")
        model = load_classifier(reference)
        tokenizer, _ = choose_tokenizer(reference.folder, self.base.folder)
        for what, theirs, ours in (
            ("classes", model.config.id2label, self.model.config.id2label),
            ("vocabulary", tokenizer.get_vocab(), self.tokenizer.get_vocab()),
        ):
            if theirs != ours:
                raise FineMixingError(
                    f"the reference model {reference.id} has not the suspect's {what}: give one trained from the same "
                    "base for the same task."
                )
        return reference, model

    def _benign_floor(self, trainer: FineMixingTrainer, test: Any) -> dict[str, Any] | None:
        if self.reference is None:
            return None
        reference, model = self.reference
        other = Trainer(
            model=model, args=trainer.args, data_collator=trainer.data_collator, processing_class=self.tokenizer
        )
        other.remove_callback(PrinterCallback)
        return {"model": reference.id, "revision": reference.revision, **measure(other, test, self.attacks)}

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[stage] = time.perf_counter() - start


def _check_base_is_pretrained(base: LocalModel, drifts: Iterable[TensorDrift]) -> None:
    """A base with the suspect's head may be the suspect itself, or a sister of it."""
    if not any(drift.delta for drift in drifts):
        raise FineMixingError(f"the base {base.id} has the suspect's own weights: give its pre-trained base.")
    logger.warning("The base %s has a classifier head too: is it pre-trained only? Its head is mixed in.", base.id)


def _ignored_tensors(model: PreTrainedModel, suspect: LocalModel, named: NamedTensors) -> list[str]:
    """Tensors on disk that the suspect's class has no place for."""
    known = set(named.tensors).union(*named.aliases.values())
    sources = LoadedLayout(Checkpoint(suspect.folder), model).sources
    return sorted({source for name, names in sources.items() if name not in known for source in names})
