"""The stages of one cleaning, each a function of what the earlier ones gave: clean() has their order."""

import copy
import logging
import math
from dataclasses import asdict, replace
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, Trainer, TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from ..align.base_fit import check_pretrained, judge_base
from ..align.drift import drift_by_layer
from ..align.vocabulary import check_same_words
from ..config import FineMixingConfig
from ..errors import DataError, FineMixingError
from ..hub.fetch import fetch_model
from ..hub.lineage import fetch_base
from ..io.checkpoint import sha256_of_file
from ..io.folder import LocalModel, weights_in
from ..io.loading import agree_on_padding, check_vocabulary
from ..io.read_back import check_tokenizer, read_back
from ..io.tokenizer import choose_tokenizer, tell_choice
from ..measure.attack_success import AttackObserver, by_length
from ..measure.classification import Classification
from ..measure.find_task import find_task
from ..mix.mask_file import save_masks
from ..mix.subject import Subject, open_subject
from ..report.card import render_card
from ..report.figures import draw_figures
from ..report.report import CleaningReport
from ..report.sections import search_section, training_section
from ..train.defaults import train_at_least
from ..train.processes import from_main, whole_model
from ..train.unfinished_run import CHECKPOINTS, UnfinishedRun
from ..trainer import FineMixingTrainer
from .arguments import CleaningArguments
from .results import Before, Cleaned, Fit, Pulled, Samples

logger = logging.getLogger(__name__)

FEW_ROWS = 50


def pull(suspect: LocalModel, arguments: CleaningArguments, config: FineMixingConfig) -> Pulled:
    """Fetch what belongs to the suspect: its base, and a model for the benign floor."""
    base, claim = fetch_base(suspect, config, arguments)
    reference = None
    if arguments.reference_model:
        reference = fetch_model(arguments.reference_model, role="reference model", trust=arguments)
    asked, pinned = config.pinned(base.id, base.revision), config.pinned(base.folder, None)
    return Pulled(arguments, suspect, base, claim, reference, asked, pinned)


def check_fit(pulled: Pulled) -> Fit:
    """Load the suspect, and see that it was fine-tuned from that base."""
    task = find_task(pulled.suspect)
    subject, pair = open_subject(pulled.suspect, pulled.base, pulled.config, task.load)
    check_same_words(subject.source.folder, pulled.base.folder, *pair.pairing.vocabulary)
    pair.check_related()
    fitting = len(pair.pairing.mixed()), len(pair.suspect.tensors)
    fit = judge_base(pulled.claim, pair.drift, pair.pairing.matrices(), fitting)
    if not pair.pairing.heads():
        # A language model's head is in its base too.
        check_pretrained(pulled.base, pulled.claim, pair.drift.values(), tuned=task is Classification)
    return Fit(subject, task, fit, drift_by_layer(pair.drift), subject.ignored_tensors(pair))


def prepare_samples(pulled: Pulled, fit: Fit) -> Samples:
    """Choose the tokenizer and the rows, and put the triggers in."""
    arguments, model = pulled.arguments, fit.subject.model
    tokenizer, note = choose_tokenizer(fit.subject.source.folder, pulled.base.folder)
    check_vocabulary(tokenizer, model)
    agree_on_padding(tokenizer, model)
    check_tokenizer(tokenizer, model.config)
    task = fit.task(model, tokenizer, arguments)
    reference = None if pulled.reference is None else _load_reference(pulled.reference, pulled.base, fit, tokenizer)
    data = task.clean_data(arguments)
    if pulled.chooses_on_eval and not len(data.eval):
        raise DataError(
            f"reserve_ratio='auto' needs eval data, and {arguments.dataset} leaves none: give an eval_split, "
            "fewer num_clean_samples, cross_validation_folds, or a fixed reserve_ratio."
        )
    if not len(data.test):
        raise DataError(f"{arguments.dataset} leaves no rows to test on: give a test_split or more rows.")
    attacks = task.attacks(data.test, data.text_columns)
    logger.info("Data: %s", data)
    if len(data.tuning) < arguments.num_clean_samples:
        logger.warning("Only %d rows to tune on, not %d.", len(data.tuning), arguments.num_clean_samples)
    for role, rows in (("test", data.test), ("eval", data.eval)):
        if len(rows) < FEW_ROWS and (role == "test" or pulled.chooses_on_eval):
            logger.warning(
                "Only %d %s rows: an accuracy of 90 %% is then known to ± %.0f points (standard error).",
                len(rows),
                role,
                100 * math.sqrt(0.9 * 0.1 / len(rows)),
            )
    return Samples(task, tokenizer, note, data, attacks, reference)


def make_trainer(
    pulled: Pulled, fit: Fit, samples: Samples, training_args: TrainingArguments, partial: Path
) -> FineMixingTrainer:
    """The Trainer that mixes and trains the suspect, and measures it."""
    args = copy.copy(training_args)
    args.output_dir = str(partial / CHECKPOINTS)
    args.hub_token, args.push_to_hub = None, False  # checkpoints hold the arguments; what is published is the end
    # Every prediction counts, whatever else the training is set to.
    args.prediction_loss_only, args.dataloader_drop_last, args.eval_do_concat_batches = False, False, True
    args.batch_eval_metrics = False
    args.dataloader_pin_memory &= torch.accelerator.is_available()  # without one it only warns
    train_at_least(args, len(samples.data.tuning))
    _check_evaluation(args, samples, pulled.arguments.dataset)
    trainer = _trainer_of(fit.subject.model, args, pulled.config, samples, pulled.arguments)
    if pulled.arguments.resume:
        _keep_for_resuming(trainer, pulled, partial)
    return trainer


def measure_before(trainer: FineMixingTrainer, pulled: Pulled, fit: Fit, samples: Samples) -> Before:
    """Measure the suspect, and the floors that were asked for."""
    task, test, floor, matched = samples.task, samples.encoded(samples.data.test), None, None
    with pulled.timed("measure_before"):
        before = task.measure(trainer, test, samples.attacks)
        if task.no_better_than_guessing(before):
            logger.warning(
                "The suspect's accuracy is %.1f %%, worse than guessing: are these data of its task, and the "
                "text columns (%s) right?",
                100 * before["accuracy"],
                " and ".join(samples.data.text_columns),
            )
        if samples.reference is not None:
            other = Trainer(
                model=samples.reference,
                args=trainer.args,
                data_collator=trainer.data_collator,
                processing_class=samples.tokenizer,
            )
            other.remove_callback(PrinterCallback)
            measured = task.measure(other, test, samples.attacks)
            floor = {"model": pulled.reference.id, "revision": pulled.reference.revision, **measured}
    if pulled.arguments.measure_matched_floor:
        # What the same recipe gives without any weight of the suspect's body: its head on the base.
        config = replace(pulled.config, reserve_ratio=0.0, module_ratios=None, strategy="random")
        with pulled.timed("matched_floor"):
            other = _trainer_of(fit.subject.load(), trainer.args, config, samples, pulled.arguments)
            other.train()
            matched = task.measure(other, test, samples.attacks)
    return Before(before, floor, matched)


def mix_and_train(trainer: FineMixingTrainer, pulled: Pulled, fit: Fit, samples: Samples) -> Cleaned:
    """Mix, fine-tune, round to what is saved, and measure that."""
    observer = AttackObserver(trainer, samples.attacks)
    if pulled.config.reserve_ratio == "auto":
        trainer.add_callback(observer)
        if trainer.mixing.unfinished is not None:
            trainer.mixing.unfinished.observer = observer
    with pulled.timed("clean"):
        output = trainer.train()
        if pulled.arguments.use_peft:  # merged, also the trainer's, to be measured
            trainer.model = trainer.model_wrapped = trainer.model.merge_and_unload(safe_merge=True)
            trainer.accelerator.free_memory()  # or it would evaluate the other one
        with whole_model(trainer.model) as whole:
            drift = from_main(lambda: _round(whole, fit.subject, output.training_loss))
    with pulled.timed("measure_after"):
        after = samples.task.measure(trainer, samples.encoded(samples.data.test), samples.attacks)
    search = search_section(trainer.ratio_search, observer.take)
    lora = pulled.arguments.lora_settings()
    training = training_section(trainer.args, output.global_step, output.training_loss, lora=lora)
    return Cleaned(trainer.model, trainer.mixing_record, drift, search, training, trainer.args.seed, after)


def write(
    report: CleaningReport, folder: Path, pulled: Pulled, fit: Fit, samples: Samples, cleaned: Cleaned
) -> CleaningReport:
    """Write the cleaned model and all that belongs to it into the folder; returns the report as it is there."""

    def write_whole(model: PreTrainedModel) -> CleaningReport:
        model.to("cpu")
        fit.subject.save(model, folder)
        for file in folder.glob("*.safetensors"):  # which only their owner may read, unlike all other files
            file.chmod((folder / "config.json").stat().st_mode)
        samples.tokenizer.save_pretrained(folder)
        tell_choice(samples.tokenizer_note, fit.subject.source.id)
        read_back(folder, model.float(), samples.tokenizer, base=pulled.base.folder)
        replace(pulled.asked, reserve_ratio=report.mixing["reserve_ratio"]).save_pretrained(folder)
        if pulled.asked.strategy == "fisher":
            save_masks(cleaned.record.masks, folder)
        report.weights = {file.name: sha256_of_file(file) for file in weights_in(folder).files}
        report.figures = draw_figures(report, folder)
        report.save(folder)
        (folder / "README.md").write_text(render_card(report), encoding="utf-8")
        UnfinishedRun.remove(folder)
        return report

    with whole_model(cleaned.model, changed=False) as whole:
        return from_main(lambda: write_whole(whole))


def _load_reference(
    reference: LocalModel, base: LocalModel, fit: Fit, tokenizer: PreTrainedTokenizerBase
) -> PreTrainedModel:
    model = fit.task.load(reference)
    theirs, _ = choose_tokenizer(reference.folder, base.folder)
    for what, other, ours in (
        ("classes", model.config.id2label, fit.subject.model.config.id2label),
        ("vocabulary", theirs.get_vocab(), tokenizer.get_vocab()),
    ):
        if other != ours:
            raise FineMixingError(
                f"the reference model {reference.id} has not the suspect's {what}: give one trained from the same "
                "base for the same task."
            )
    return model


def _check_evaluation(args: TrainingArguments, samples: Samples, dataset: str) -> None:
    """What a Trainer would find out once it has trained for a while, or never say."""
    if args.eval_strategy != IntervalStrategy.NO and not len(samples.data.eval):
        raise DataError(f"eval_strategy needs eval data, and {dataset} leaves none: give an eval_split.")
    if args.metric_for_best_model is None:
        return
    better = {"loss": False, **samples.task.metrics}
    if (name := args.metric_for_best_model.removeprefix("eval_")) not in better:
        raise FineMixingError(
            f"metric_for_best_model is {name!r}, which is not measured: give one of {', '.join(better)}."
        )
    if not better[name]:
        args.greater_is_better = False  # by its name alone, more of a perplexity would be better


def _keep_for_resuming(trainer: FineMixingTrainer, pulled: Pulled, partial: Path) -> None:
    """Let the training write checkpoints, and the search its trials, for a run to go on from."""
    args = trainer.args
    if args.save_strategy == SaveStrategy.NO:
        args.save_strategy, args.save_total_limit = SaveStrategy.STEPS, 2
        args.save_steps = max(1, args.max_steps // 10) if args.max_steps > 0 else 0.1
    own = {name: value for name, value in asdict(pulled.arguments).items() if name not in ("overwrite", "resume")}
    training = training_section(args, 0, None, seed=args.seed)
    identity = {"suspect": pulled.suspect.id, "suspect_revision": pulled.suspect.revision}
    trainer.mixing.unfinished = UnfinishedRun(partial, {**identity, **pulled.asked.to_dict(), **own, **training})
    if args.process_index == 0:
        trainer.mixing.unfinished.begin()


def _trainer_of(
    model: PreTrainedModel,
    args: TrainingArguments,
    config: FineMixingConfig,
    samples: Samples,
    arguments: CleaningArguments,
) -> FineMixingTrainer:
    if arguments.use_peft:
        model = arguments.with_lora(model, samples.task.lora_task)
    trainer = FineMixingTrainer(
        model=model,
        args=args,
        train_dataset=samples.encoded(samples.data.tuning),
        eval_dataset=by_length(samples.encoded(samples.data.eval)) if len(samples.data.eval) else None,
        data_collator=samples.task.collator,
        processing_class=samples.tokenizer,
        mixing_config=config,
    )
    if args.eval_strategy != IntervalStrategy.NO:
        trainer.compute_metrics = samples.task.compute_metrics
        trainer.preprocess_logits_for_metrics = samples.task.preprocess_logits
    trainer.remove_callback(PrinterCallback)  # standard output is for the report
    return trainer


def _round(model: PreTrainedModel, subject: Subject, loss: float) -> dict[str, float | None]:
    """Round the weights to the dtype they are saved in, so that what is measured is what is saved; their drift."""
    subject.round(model)
    # After rounding: what is finite in float32 can be too large for float16.
    broken = [name for name, tensor in model.named_parameters() if not torch.isfinite(tensor).all()]
    if broken or not math.isfinite(loss):
        what = broken[0] if broken else "the loss"
        raise FineMixingError(f"fine-tuning went astray ({what} is not finite): lower learning_rate.")
    return subject.drift(model)
