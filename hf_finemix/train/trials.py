"""How a FineMixingTrainer chooses ρ: trials from the suspect's weights, cross-validated or on a separate eval set."""

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import SaveStrategy, TrainOutput

from ..config import FineMixingConfig
from ..errors import FineMixingError
from .answers import correct_answers
from .calibration import select_rows, spread_rows
from .mixing_state import MixingState, copied_weights
from .ratio_search import Outcome, RatioSearch, accuracy_drop, needed_samples, search_ratio

logger = logging.getLogger(__name__)

# A trial looks at so many eval samples at a quarter and at half of its steps, if it has enough steps.
GLANCE_ROWS = 256
MIN_STEPS_TO_GLANCE = 20


def choose_ratio(trials: "Trials") -> tuple[RatioSearch, TrainOutput]:
    """Try candidates by bisection, and leave the trainer with the chosen one trained."""
    trainer, config, limit = trials.trainer, trials.config, trials.config.max_accuracy_drop
    trainer.add_callback(trials.glance)
    try:
        search = search_ratio(
            config.candidate_ratios,
            float(trials.suspect.mean()),
            limit,
            trials.attempt,
            keep=trials.keep,
            folds=config.cross_validation_folds,
        )
        output = trials.finish(search)
    finally:
        trainer.remove_callback(trials.glance)
    chosen = next(entry for entry in search.trials if entry["reserve_ratio"] == search.chosen)
    if chosen["accepted"] and not search.resolved:
        needed = needed_samples(chosen, limit)
        logger.warning(
            "%d samples cannot tell an accuracy drop of %g (it is known to ± %.3f): ρ = %g is the smallest tried that "
            "is not shown to cost more. Give %seval samples.",
            chosen["n"],
            limit,
            (chosen["drop_interval"][1] - chosen["drop_interval"][0]) / 2,
            search.chosen,
            f"about {needed:,} " if needed else "more ",
        )
    if not chosen["accepted"]:
        logger.warning(
            "No candidate ρ keeps the accuracy within %g of the suspect's %.4f: ρ = %g was the best. Give more "
            "clean data, train longer, or allow a larger max_accuracy_drop.",
            limit,
            search.suspect_accuracy,
            search.chosen,
        )
    return search, output


class Trials:
    """
    The trials of one search, each from the suspect's own weights, and what is kept of the best so far.

    The trainer's model is the suspect, or will be by `model_init` from `trial`; `mix_and_train` mixes it with a ρ and
    trains it, from a checkpoint where there is one.
    """

    def __init__(
        self,
        trainer: Trainer,
        mixing: MixingState,
        config: FineMixingConfig,
        mix_and_train: Callable[[float, str | None], TrainOutput],
        trial: Any = None,
    ):
        self.trainer, self.config, self._mixing, self._mix_and_train = trainer, config, mixing, mix_and_train
        self._folds: list[np.ndarray] = []
        self._built = trainer.model_init is not None
        if self._built:
            trainer.model = trainer.model_wrapped = trainer.call_model_init(trial).to(trainer.args.device)
        else:
            mixing.restore_suspect(trainer.model)
        self._output: TrainOutput | None = None
        self._kept: tuple | None = None
        self._data = trainer.train_dataset
        if folds := config.cross_validation_folds:
            order = np.random.default_rng(trainer.args.seed).permutation(len(self._data))
            self._folds = [np.sort(part) for part in np.array_split(order, folds)]
            self._suspect_of_fold = [correct_answers(trainer, select_rows(self._data, part)) for part in self._folds]
            self.suspect, self.glance = np.concatenate(self._suspect_of_fold), _Glance(None, 0.0)
        else:
            self.suspect = correct_answers(trainer, trainer.eval_dataset)
            some = spread_rows(trainer.eval_dataset, GLANCE_ROWS)
            correct = None if some is None else lambda: correct_answers(trainer, some)
            self.glance = _Glance(correct, config.max_accuracy_drop)

    def attempt(self, ratio: float) -> Outcome:
        """A trial; one that an interrupted run has finished is not made again."""
        if self._mixing.unfinished is None:
            return self._attempt(ratio)
        is_main = self.trainer.is_world_process_zero()
        return self._mixing.unfinished.trial(ratio, lambda: self._attempt(ratio), main_process=is_main)

    def _attempt(self, ratio: float) -> Outcome:
        outcome = self._cross_validated(ratio) if self._folds else self._on_eval_data(ratio)
        logger.info(
            "ρ = %g: accuracy %.4f, the suspect's is %.4f%s",
            ratio,
            outcome.cleaned.mean(),
            outcome.suspect.mean(),
            " (given up half way)" if outcome.stopped_early else "",
        )
        return outcome

    def keep(self) -> None:
        """Remember the trial just made, to go back to it."""
        trainer = self.trainer
        saves = trainer.args.save_strategy != SaveStrategy.NO
        if self._folds or self.glance.hopeless is not None or saves:
            self._kept = None  # to be trained anew: on all samples, to the end, or for its checkpoints to come last
            return
        weights = trainer.model if self._built else copied_weights(trainer.model)
        self._kept = weights, self._output, trainer.state, self._mixing.record, self._mixing.config

    def finish(self, search: RatioSearch) -> TrainOutput:
        """The chosen one as the trainer's model, trained on all of its data."""
        trainer, mixing = self.trainer, self._mixing
        if self._kept is None:
            self.glance.off = True
            return self._train(search.chosen, final=True)
        weights, output, state, record, config = self._kept
        if mixing.record is not record:  # others were tried since
            if self._built:
                trainer.model = trainer.model_wrapped = weights
            else:
                trainer.model.load_state_dict(weights)
            trainer.state, mixing.record, mixing.config = state, record, config
            trainer.optimizer = trainer.lr_scheduler = None
        return output

    def _train(self, ratio: float, *, final: bool = False) -> TrainOutput:
        trainer, mixing = self.trainer, self._mixing
        if not self._built:
            mixing.restore_suspect(trainer.model)
            trainer.optimizer = trainer.lr_scheduler = None
        self.glance.hopeless = None
        saving = trainer.args.save_strategy
        if mixing.unfinished is not None and not final:
            trainer.args.save_strategy = SaveStrategy.NO  # the checkpoints are those of the last training alone
        try:
            checkpoint = mixing.last_checkpoint(trainer.args.world_size) if final else None
            self._output = self._mix_and_train(ratio, checkpoint)
        finally:
            trainer.args.save_strategy = saving
        return self._output

    def _on_eval_data(self, ratio: float) -> Outcome:
        self._train(ratio)
        if self.glance.hopeless is not None:
            return Outcome(self.glance.suspect, self.glance.hopeless, stopped_early=True)
        return Outcome(self.suspect, correct_answers(self.trainer, self.trainer.eval_dataset))

    def _cross_validated(self, ratio: float) -> Outcome:
        """Each fold is answered by a model tuned on the others, until the drop is shown to be too large."""
        limit, done = self.config.max_accuracy_drop, []
        try:
            for i, held_out in enumerate(self._folds):
                others = np.sort(np.concatenate([part for k, part in enumerate(self._folds) if k != i]))
                self.trainer.train_dataset = select_rows(self._data, others)
                self._train(ratio)
                done.append(correct_answers(self.trainer, select_rows(self._data, held_out)))
                suspect, cleaned = np.concatenate(self._suspect_of_fold[: i + 1]), np.concatenate(done)
                if hopeless := accuracy_drop(suspect, cleaned)[1] > limit and i + 1 < len(self._folds):
                    break
        finally:
            self.trainer.train_dataset = self._data
        return Outcome(suspect, cleaned, stopped_early=hopeless, trainings=len(done))


class _Glance(TrainerCallback):
    """
    Gives a trial up at half of its steps where it would be over the limit even if it gained as much accuracy in the
    second half as in the second quarter: learning curves flatten.
    """

    def __init__(self, correct: Callable[[], np.ndarray] | None, limit: float):
        self._correct, self._limit, self._at_quarter = correct, limit, 0.0
        self.off = correct is None
        self.suspect = None if correct is None else correct()  # the model is still the suspect
        self.hopeless: np.ndarray | None = None  # a trial's answers where it was given up

    def on_step_end(self, args, state, control, **kwargs):
        if self.off or state.max_steps < MIN_STEPS_TO_GLANCE:
            return
        if state.global_step == state.max_steps // 4:
            self._at_quarter = self._correct().mean()
        elif state.global_step == state.max_steps // 2:
            answers = self._correct()
            drop, low, _ = accuracy_drop(self.suspect, answers)
            gain = max(0.0, answers.mean() - self._at_quarter)
            if min(low, drop) - gain > self._limit:
                self.hopeless, control.should_training_stop = answers, True


def check_auto(trainer: Trainer, config: FineMixingConfig, *, own_optimizers: bool) -> None:
    """Raise a [`FineMixingError`] where ρ cannot be chosen with this trainer."""
    folds, data = config.cross_validation_folds, trainer.train_dataset
    size = len(data) if folds and hasattr(data, "__len__") else 0
    if size < folds:
        raise FineMixingError(
            f"cross_validation_folds is {folds}, and train_dataset has {size or 'no known number of'} samples: give "
            "fewer folds, or an eval_dataset."
        )
    if not folds and trainer.eval_dataset is None:
        what = "chooses ρ by accuracy on eval_dataset, which is missing: give it, cross_validation_folds, or a fixed ρ"
    elif own_optimizers:
        what = (
            "trains several times and cannot reset optimizers=...: pass optimizer_cls_and_kwargs instead, or a fixed ρ"
        )
    elif trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled or trainer.is_distributed_loading_by_transformers:
        what = "needs the whole model in one process: choose ρ there, then give it as a number"
    elif trainer.args.fp16_full_eval or trainer.args.bf16_full_eval:
        what = "evaluates between trainings, and fp16_full_eval or bf16_full_eval rounds the weights each time: leave "
        what += "them off, or give a fixed ρ"
    else:
        return
    raise FineMixingError(f"reserve_ratio='auto' {what}.")
