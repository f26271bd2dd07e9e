"""The stages of one cleaning: load, measure, mix and fine-tune, measure, write."""

import copy
import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from .align.alignment import NamedTensors, named_tensors
from .align.base_fit import check_pretrained, judge_base
from .align.drift import drift_by_layer
from .align.loaded_layout import LoadedLayout
from .align.pair_in_memory import compare_with_base, dtypes_on_disk
from .align.vocabulary import check_same_words
from .cleaning_arguments import CleaningArguments
from .config import FineMixingConfig
from .errors import DataError, FineMixingError
from .hub.fetch import fetch_model
from .hub.lineage import fetch_base
from .io.adapters import full_model
from .io.checkpoint import Checkpoint, sha256_of_file
from .io.folder import LocalModel, weights_in
from .io.loading import agree_on_padding, check_vocabulary
from .io.model_files import copy_model_files
from .io.read_back import check_tokenizer, read_back, save_model
from .io.tokenizer import choose_tokenizer, tell_choice, token_ids_within_text
from .measure.attack_success import AttackObserver, by_length
from .measure.classification import Classification
from .measure.clean_data import CleanData
from .measure.find_task import find_task
from .mix.adapter_output import adapter_to_train, drift_of_merged, dtypes_of_adapter, round_adapter, save_adapter
from .mix.in_memory import MixingRecord
from .mix.mask_file import save_masks
from .report.card import render_card
from .report.card_metadata import carried_over
from .report.figures import draw_figures
from .report.origins import described, described_fit, described_training, peak_memory, versions
from .report.report import CleaningReport
from .train.defaults import train_at_least
from .train.processes import from_main, whole_model
from .train.unfinished_run import CHECKPOINTS, UnfinishedRun
from .trainer import FineMixingTrainer

__all__ = ["CleaningJob"]

logger = logging.getLogger(__name__)

FEW_ROWS = 50


class CleaningJob:
    """What the stages of one cleaning share."""

    def __init__(self, suspect: LocalModel, arguments: CleaningArguments, config: FineMixingConfig):
        self.arguments, self.seconds = arguments, {}
        self.base, claim = fetch_base(suspect, config, arguments)
        # From here on the base is the folder that was fetched, so that nothing is resolved twice.
        self.config = config.pinned(self.base.folder, None)
        self.asked = config.pinned(self.base.id, self.base.revision)
        with self.timed("load"):
            self.adapter = suspect if config.adapter_mode == "adapter" else None
            self.kind = find_task(suspect)
            self.suspect = full_model(suspect, self.base)
            self.model = self.kind.load(self.suspect)
            with Checkpoint(self.base.folder) as base:
                pair = compare_with_base(self.model, base, head=config.head, dtypes=dtypes_on_disk(self.model))
            check_same_words(self.suspect.folder, self.base.folder, *pair.vocabulary)
            pair.check_related()
            fitting = len(pair.alignment.mixed()), len(pair.suspect.tensors)
            self.base_fit = described_fit(claim, judge_base(claim, pair.drift, pair.matrices(), fitting))
            if not pair.alignment.heads():
                has_head = self.kind is Classification  # a language model's is in its base too
                check_pretrained(self.base, claim, pair.drift.values(), tuned=has_head)
            self.dtypes = pair.dtypes
            self.drift_before = drift_by_layer(pair.drift)
            if self.adapter:
                self.model, self.dtypes = self._loaded(), dtypes_of_adapter(suspect)
            self.tokenizer, self.tokenizer_note = choose_tokenizer(self.suspect.folder, self.base.folder)
            check_vocabulary(self.tokenizer, self.model)
            agree_on_padding(self.tokenizer, self.model)
            check_tokenizer(self.tokenizer, self.model.config)
            self.task = self.kind(self.model, self.tokenizer, arguments)
            self.ignored = [] if self.adapter else _ignored_tensors(self.model, self.suspect, pair.suspect)
            self.reference = self._load_reference()
            self.data: CleanData = self.task.clean_data(arguments)
            self._chosen_on_eval = config.reserve_ratio == "auto" and not config.cross_validation_folds
            if self._chosen_on_eval and not len(self.data.eval):
                raise DataError(
                    f"reserve_ratio='auto' needs eval data, and {arguments.dataset} leaves none: give an eval_split, "
                    "fewer num_clean_samples, cross_validation_folds, or a fixed reserve_ratio."
                )
            if not len(self.data.test):
                raise DataError(f"{arguments.dataset} leaves no rows to test on: give a test_split or more rows.")
            self.attacks = self.task.attacks(self.data.test, self.data.text_columns)
        logger.info("Data: %s", self.data)
        if len(self.data.tuning) < arguments.num_clean_samples:
            logger.warning("Only %d rows to tune on, not %d.", len(self.data.tuning), arguments.num_clean_samples)
        for role, rows in (("test", self.data.test), ("eval", self.data.eval)):
            if len(rows) < FEW_ROWS and (role == "test" or self._chosen_on_eval):
                logger.warning(
                    "Only %d %s rows: an accuracy of 90 %% is then known to ± %.0f points (standard error).",
                    len(rows),
                    role,
                    100 * math.sqrt(0.9 * 0.1 / len(rows)),
                )

    def trainer(self, training_args: TrainingArguments, partial: Path) -> FineMixingTrainer:
        args = copy.copy(training_args)
        args.output_dir = str(partial / CHECKPOINTS)
        args.hub_token, args.push_to_hub = None, False  # checkpoints hold the arguments; what is published is the end
        # Every prediction counts, whatever else the training is set to.
        args.prediction_loss_only, args.dataloader_drop_last, args.eval_do_concat_batches = False, False, True
        args.batch_eval_metrics = False
        args.dataloader_pin_memory &= torch.accelerator.is_available()  # without one it only warns
        train_at_least(args, len(self.data.tuning))
        self._check_evaluation(args)
        trainer = self._trainer_of(self.model, args, self.config)
        if self.arguments.resume:
            self._keep_for_resuming(trainer, partial)
        return trainer

    def _check_evaluation(self, args: TrainingArguments) -> None:
        """What a Trainer would find out once it has trained for a while, or never say."""
        if args.eval_strategy != IntervalStrategy.NO and not len(self.data.eval):
            raise DataError(
                f"eval_strategy needs eval data, and {self.arguments.dataset} leaves none: give an eval_split."
            )
        if args.metric_for_best_model is None:
            return
        better = {"loss": False, **self.task.metrics}
        if (name := args.metric_for_best_model.removeprefix("eval_")) not in better:
            raise FineMixingError(
                f"metric_for_best_model is {name!r}, which is not measured: give one of {', '.join(better)}."
            )
        if not better[name]:
            args.greater_is_better = False  # by its name alone, more of a perplexity would be better

    def _loaded(self) -> PreTrainedModel:
        """The suspect as it is to be mixed: whole, or the base with its adapter on it."""
        return adapter_to_train(self.adapter, self.base, self.config) if self.adapter else self.kind.load(self.suspect)

    def _keep_for_resuming(self, trainer: FineMixingTrainer, partial: Path) -> None:
        """Let the training write checkpoints, and the search its trials, for a run to go on from."""
        args = trainer.args
        if args.save_strategy == SaveStrategy.NO:
            args.save_strategy, args.save_total_limit = SaveStrategy.STEPS, 2
            args.save_steps = max(1, args.max_steps // 10) if args.max_steps > 0 else 0.1
        own = {name: value for name, value in asdict(self.arguments).items() if name not in ("overwrite", "resume")}
        training = described_training(args, 0, None) | {"seed": args.seed}
        identity = {"suspect": self.suspect.id, "suspect_revision": self.suspect.revision}
        trainer.mixing.unfinished = UnfinishedRun(partial, {**identity, **self.asked.to_dict(), **own, **training})
        if args.process_index == 0:
            trainer.mixing.unfinished.begin()

    def _trainer_of(
        self, model: PreTrainedModel, args: TrainingArguments, config: FineMixingConfig
    ) -> FineMixingTrainer:
        if self.arguments.use_peft:
            model = self.arguments.with_lora(model, self.kind.lora_task)
        trainer = FineMixingTrainer(
            model=model,
            args=args,
            train_dataset=self.tokenize(self.data.tuning),
            eval_dataset=by_length(self.tokenize(self.data.eval)) if len(self.data.eval) else None,
            data_collator=self.task.collator,
            processing_class=self.tokenizer,
            mixing_config=config,
        )
        if args.eval_strategy != IntervalStrategy.NO:
            trainer.compute_metrics = self.task.compute_metrics
            trainer.preprocess_logits_for_metrics = self.task.preprocess_logits
        trainer.remove_callback(PrinterCallback)  # standard output is for the report
        return trainer

    def tokenize(self, rows: Any) -> Any:
        return self.task.encode(rows, self.data.text_columns)

    def run(self, trainer: FineMixingTrainer) -> CleaningReport:
        test = self.tokenize(self.data.test)
        with self.timed("measure_before"):
            before = self.task.measure(trainer, test, self.attacks)
            if self.task.no_better_than_guessing(before):
                logger.warning(
                    "The suspect's accuracy is %.1f %%, worse than guessing: are these data of its task, and the "
                    "text columns (%s) right?",
                    100 * before["accuracy"],
                    " and ".join(self.data.text_columns),
                )
            floor = self._benign_floor(trainer, test)
        matched = self._matched_floor(trainer, test) if self.arguments.measure_matched_floor else None
        observer = AttackObserver(trainer, self.attacks)
        if self.config.reserve_ratio == "auto":
            trainer.add_callback(observer)
            if trainer.mixing.unfinished is not None:
                trainer.mixing.unfinished.observer = observer
        with self.timed("clean"):
            output = trainer.train()
            self.model = self._merged(trainer)
            with whole_model(self.model) as whole:
                drift_after = from_main(lambda: self._round_to_disk(whole, output.training_loss))
        with self.timed("measure_after"):
            after = self.task.measure(trainer, test, self.attacks)

        record, args, search = trainer.mixing_record, trainer.args, trainer.ratio_search
        self._masks = record.masks
        tokens = self.tokenizer.convert_ids_to_tokens
        rows = self.data.description["rows"]
        chosen = asdict(search) if search else None
        for trial in chosen["trials"] if chosen else ():
            trial["triggers"] = observer.take(trial["trainings"])
        return CleaningReport(
            suspect=described(self.suspect),
            base={**described(self.base), **self.base_fit},
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
            data={
                **self.data.description,
                "labelled_samples": rows["tuning"] + (rows["eval"] if self._chosen_on_eval else 0),
                "target": self.task.target_name,
            },
            seeds={
                "mixing": self.config.mixing_seed,
                "samples": self.arguments.sample_seed,
                "training": args.seed,
            },
            before=before,
            after=after,
            benign_floor=floor,
            matched_floor=matched,
            drift_by_layer={"before": self.drift_before, "after": drift_after},
            embedding_drift=self._embedding_drift(record),
            ratio_search=chosen,
            training={
                **described_training(args, output.global_step, output.training_loss),
                "lora": self.arguments.lora_settings(),
            },
            card_metadata={**carried_over(self.suspect.folder), "pipeline_tag": self.kind.pipeline_tag},
            timings_s={name: round(seconds, 3) for name, seconds in self.seconds.items()},
            peak_memory_bytes=peak_memory(),
            versions=versions(),
        )

    def write(self, report: CleaningReport, folder: Path) -> CleaningReport:
        """Write the cleaned model and all that belongs to it into the folder; returns the report as it is there."""
        with whole_model(self.model, changed=False) as whole:
            return from_main(lambda: self._write(whole, report, folder))

    def _write(self, model: PreTrainedModel, report: CleaningReport, folder: Path) -> CleaningReport:
        model.to("cpu")
        if self.adapter:
            save_adapter(model, folder, self.base, self.dtypes)
        else:
            for name, tensor in named_tensors(model).tensors.items():
                tensor.data = tensor.data.to(self.dtypes[name])
            model.config.dtype = model.dtype
            save_model(model, folder)
            copy_model_files(self.suspect, self.base.folder, folder)
        for file in folder.glob("*.safetensors"):  # which only their owner may read, unlike all other files
            file.chmod((folder / "config.json").stat().st_mode)
        self.tokenizer.save_pretrained(folder)
        tell_choice(self.tokenizer_note, self.suspect.id)
        read_back(folder, model.float(), self.tokenizer, base=self.base.folder)
        replace(self.asked, reserve_ratio=report.mixing["reserve_ratio"]).save_pretrained(folder)
        if report.mixing["strategy"] == "fisher":
            save_masks(self._masks, folder)
        report.weights = {file.name: sha256_of_file(file) for file in weights_in(folder).files}
        report.figures = draw_figures(report, folder)
        report.save(folder)
        (folder / "README.md").write_text(render_card(report), encoding="utf-8")
        UnfinishedRun.remove(folder)
        return report

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

    def _merged(self, trainer: FineMixingTrainer) -> PreTrainedModel:
        """The model that was trained, in which there is no LoRA any more; also the trainer's, to be measured."""
        if self.arguments.use_peft:
            trainer.model = trainer.model_wrapped = trainer.model.merge_and_unload(safe_merge=True)
            trainer.accelerator.free_memory()  # or it would evaluate the other one
        return trainer.model

    def _round_to_disk(self, model: PreTrainedModel, loss: float) -> dict[str, float | None]:
        """Round the weights to the dtype they are saved in, so that what is measured is what is saved; their drift."""
        if self.adapter:
            round_adapter(model, self.dtypes)
        else:
            for name, tensor in named_tensors(model).tensors.items():
                tensor.data.copy_(tensor.data.to(self.dtypes[name]))
        # After rounding: what is finite in float32 can be too large for float16.
        broken = [name for name, tensor in model.named_parameters() if not torch.isfinite(tensor).all()]
        if broken or not math.isfinite(loss):
            what = broken[0] if broken else "the loss"
            raise FineMixingError(f"fine-tuning went astray ({what} is not finite): lower learning_rate.")
        if self.adapter:
            return drift_of_merged(model, self.base)
        with Checkpoint(self.base.folder) as base:
            return drift_by_layer(compare_with_base(model, base, dtypes=self.dtypes).drift)

    def _load_reference(self) -> tuple[LocalModel, PreTrainedModel] | None:
        if not self.arguments.reference_model:
            return None
        reference = fetch_model(self.arguments.reference_model, role="reference model", trust=self.arguments)
        model = self.kind.load(reference)
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
        return {"model": reference.id, "revision": reference.revision, **self.task.measure(other, test, self.attacks)}

    def _matched_floor(self, trainer: FineMixingTrainer, test: Any) -> dict[str, Any]:
        """What the same recipe gives without any weight of the suspect's body: its head on the base."""
        config = replace(self.config, reserve_ratio=0.0, module_ratios=None, strategy="random")
        with self.timed("matched_floor"):
            floor = self._trainer_of(self._loaded(), trainer.args, config)
            floor.train()
            return self.task.measure(floor, test, self.attacks)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[stage] = time.perf_counter() - start


def _ignored_tensors(model: PreTrainedModel, suspect: LocalModel, named: NamedTensors) -> list[str]:
    """Tensors on disk that the suspect's class has no place for."""
    known = set(named.tensors).union(*named.aliases.values())
    sources = LoadedLayout(Checkpoint(suspect.folder), model).sources
    return sorted({source for name, names in sources.items() if name not in known for source in names})
