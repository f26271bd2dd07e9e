"""How a FineMixingTrainer chooses ρ: trials from the suspect's weights, cross-validated or on a separate eval set."""

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import TrainerCallback
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.trainer_utils import SaveStrategy, TrainOutput

from ..errors import FineMixingError
from ..io.unwrap import without_adapter
from .calibration import select_rows, spread_rows
from .ratio_search import Outcome, RatioSearch, accuracy_drop, needed_samples, search_ratio

if TYPE_CHECKING:
    from ..trainer import FineMixingTrainer

__all__ = ["check_auto", "choose_ratio", "copied_weights"]

logger = logging.getLogger(__name__)

# A trial looks at so many eval samples at a quarter and at half of its steps, if it has enough steps.
GLANCE_ROWS = 256
MIN_STEPS_TO_GLANCE = 20


def choose_ratio(
    trainer: "FineMixingTrainer", mix_and_train: Callable[[float, str | None], TrainOutput], trial: Any
) -> tuple[RatioSearch, TrainOutput]:
    """
    Try candidates by bisection, each from the suspect's own weights, and leave the trainer with the chosen one
    trained.

    Args:
        trainer ([`FineMixingTrainer`]): Its model is the suspect, or will be by `model_init`.
        mix_and_train (`Callable[[float, str | None], TrainOutput]`): Mixes the trainer's model with ρ and trains it,
            from a checkpoint where there is one.
        trial (`Any`): For `model_init`.
    """
    trials, config = _Trials(trainer, mix_and_train, trial), trainer.mixing_config
    limit = config.max_accuracy_drop
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


class _Trials:
    """The trials of one search, and what is kept of the best so far."""

    def __init__(
        self, trainer: "FineMixingTrainer", mix_and_train: Callable[[float, str | None], TrainOutput], trial: Any
    ):
        self._trainer, self._mix_and_train, self._folds = trainer, mix_and_train, []
        self._built = trainer.model_init is not None
        if self._built:
            trainer.model = trainer.model_wrapped = trainer.call_model_init(trial).to(trainer.args.device)
        else:
            trainer.restore_suspect()
        self._output: TrainOutput | None = None
        self._kept: dict[str, Any] | None = None
        folds = trainer.mixing_config.cross_validation_folds
        self._data = trainer.train_dataset
        if folds:
            order = np.random.default_rng(trainer.args.seed).permutation(len(self._data))
            self._folds = [np.sort(part) for part in np.array_split(order, folds)]
            self._suspect_of_fold = [self._correct(select_rows(self._data, part)) for part in self._folds]
            self.suspect, self.glance = np.concatenate(self._suspect_of_fold), _Glance(None, 0.0)
        else:
            self.suspect = self._correct(trainer.eval_dataset)
            some = spread_rows(trainer.eval_dataset, GLANCE_ROWS)
            correct = None if some is None else lambda: self._correct(some)
            self.glance = _Glance(correct, trainer.mixing_config.max_accuracy_drop)

    def attempt(self, ratio: float) -> Outcome:
        """A trial; one that an interrupted run has finished is not made again."""
        unfinished = self._trainer.unfinished
        if unfinished is None:
            return self._attempt(ratio)
        return unfinished.trial(
            ratio, lambda: self._attempt(ratio), main_process=self._trainer.is_world_process_zero()
        )

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
        trainer = self._trainer
        saves = trainer.args.save_strategy != SaveStrategy.NO
        if self._folds or self.glance.hopeless is not None or saves:
            self._kept = None  # to be trained anew: on all samples, to the end, or for its checkpoints to come last
            return
        model = trainer.model
        self._kept = {
            "weights": model if self._built else copied_weights(model),
            "output": self._output,
            "attributes": {name: getattr(trainer, name) for name in ("state", "mixing_record", "config_of_mix")},
        }

    def finish(self, search: RatioSearch) -> TrainOutput:
        """The chosen one as the trainer's model, trained on all of its data."""
        trainer, kept = self._trainer, self._kept
        if kept is None:
            self.glance.off = True
            return self._train(search.chosen, final=True)
        if trainer.mixing_record is not kept["attributes"]["mixing_record"]:  # others were tried since
            if self._built:
                trainer.model = trainer.model_wrapped = kept["weights"]
            else:
                trainer.model.load_state_dict(kept["weights"])
            for name, value in kept["attributes"].items():
                setattr(trainer, name, value)
            trainer.optimizer = trainer.lr_scheduler = None
        return kept["output"]

    def _train(self, ratio: float, *, final: bool = False) -> TrainOutput:
        trainer = self._trainer
        if not self._built:
            trainer.restore_suspect()
            trainer.optimizer = trainer.lr_scheduler = None
        self.glance.hopeless = None
        saving = trainer.args.save_strategy
        if trainer.unfinished is not None and not final:
            trainer.args.save_strategy = SaveStrategy.NO  # the checkpoints are those of the last training alone
        try:
            self._output = self._mix_and_train(ratio, trainer.last_checkpoint() if final else None)
        finally:
            trainer.args.save_strategy = saving
        return self._output

    def _on_eval_data(self, ratio: float) -> Outcome:
        self._train(ratio)
        if self.glance.hopeless is not None:
            return Outcome(self.glance.suspect, self.glance.hopeless, stopped_early=True)
        return Outcome(self.suspect, self._correct(self._trainer.eval_dataset))

    def _cross_validated(self, ratio: float) -> Outcome:
        """Each fold is answered by a model tuned on the others, until the drop is shown to be too large."""
        limit, done = self._trainer.mixing_config.max_accuracy_drop, []
        try:
            for i, held_out in enumerate(self._folds):
                others = np.sort(np.concatenate([part for k, part in enumerate(self._folds) if k != i]))
                self._trainer.train_dataset = select_rows(self._data, others)
                self._train(ratio)
                done.append(self._correct(select_rows(self._data, held_out)))
                suspect, cleaned = np.concatenate(self._suspect_of_fold[: i + 1]), np.concatenate(done)
                if hopeless := accuracy_drop(suspect, cleaned)[1] > limit and i + 1 < len(self._folds):
                    break
        finally:
            self._trainer.train_dataset = self._data
        return Outcome(suspect, cleaned, stopped_early=hopeless, trainings=len(done))

    def _correct(self, data: Any) -> np.ndarray:
        """Which answers of the present model are right, whatever the user's own metrics are."""
        trainer, counter = self._trainer, _Answers(shifted=_predicts_the_next_token(self._trainer.model))
        kept = trainer.compute_metrics, trainer.preprocess_logits_for_metrics
        trainer.compute_metrics, trainer.preprocess_logits_for_metrics = counter, _predicted_classes
        generate = getattr(trainer.args, "predict_with_generate", None)
        if generate:  # answers are compared token by token with the labels before them, not freely generated
            trainer.args.predict_with_generate = False
        try:
            for dataset in data.values() if isinstance(data, Mapping) else [data]:
                # Not predict(), which args.prediction_loss_only keeps from predicting. A data loader draws a number,
                # which must not change what the rest of a training draws.
                with torch.random.fork_rng(devices=[]):
                    trainer.evaluation_loop(
                        trainer.get_eval_dataloader(dataset), "Choosing the reserve ratio", prediction_loss_only=False
                    )
        finally:
            trainer.compute_metrics, trainer.preprocess_logits_for_metrics = kept
            if generate:
                trainer.args.predict_with_generate = True
        correct = torch.cat(counter.correct).numpy()
        if not len(correct):
            raise FineMixingError("reserve_ratio='auto' needs labeled eval data: no row of eval_dataset is.")
        return correct


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


class _Answers:
    """
    A `compute_metrics` that notes which answers are right, with `batch_eval_metrics` or without.

    An answer is a class; a token of a text, each for itself; or a span, of which both ends must be right.

    Args:
        shifted (`bool`): Whether the answer to a token is the label of the next one.
    """

    def __init__(self, shifted: bool = False):
        self._shifted = shifted
        self.correct: list[torch.Tensor] = [torch.empty(0, dtype=torch.bool)]

    def __call__(self, prediction: Any, compute_result: bool = True) -> dict[str, float]:
        labels = prediction.label_ids
        if isinstance(labels, tuple) and len(labels) > 1:  # where a span begins, and where it ends
            ends = torch.stack([torch.as_tensor(part).cpu() for part in labels], dim=-1)
            self.correct.append((torch.as_tensor(prediction.predictions).cpu() == ends).all(dim=-1))
            return {}
        predictions, labels = _flat(prediction.predictions, 0, -self._shifted), _flat(labels, self._shifted, 0)
        if labels.is_floating_point() or labels.shape != predictions.shape:
            raise FineMixingError(
                "reserve_ratio='auto' compares accuracies, and the labels of eval_dataset are no classes: give a "
                "fixed ρ."
            )
        self.correct.append((predictions == labels)[labels != -100])
        return {}


def check_auto(trainer: "FineMixingTrainer", own_optimizers: bool) -> None:
    """Raise a [`FineMixingError`] where ρ cannot be chosen with this trainer."""
    folds = trainer.mixing_config.cross_validation_folds
    if folds:
        size = len(trainer.train_dataset) if hasattr(trainer.train_dataset, "__len__") else 0
        if size < folds:
            raise FineMixingError(
                f"cross_validation_folds is {folds}, and train_dataset has {size or 'no known number of'} samples: "
                "give fewer folds, or an eval_dataset."
            )
    elif trainer.eval_dataset is None:
        raise FineMixingError(
            "reserve_ratio='auto' chooses ρ by accuracy on eval_dataset, which is missing: give it, "
            "cross_validation_folds, or a fixed ρ."
        )
    if own_optimizers:
        raise FineMixingError(
            "reserve_ratio='auto' trains several times and cannot reset optimizers=...: pass "
            "optimizer_cls_and_kwargs instead, or a fixed ρ."
        )
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled or trainer.is_distributed_loading_by_transformers:
        raise FineMixingError(
            "reserve_ratio='auto' needs the whole model in one process: choose ρ there, then give it as a number."
        )
    if trainer.args.fp16_full_eval or trainer.args.bf16_full_eval:
        raise FineMixingError(
            "reserve_ratio='auto' evaluates between trainings, and fp16_full_eval or bf16_full_eval rounds the "
            "weights each time: leave them off, or give a fixed ρ."
        )


def _predicted_classes(logits: Any, labels: Any) -> torch.Tensor:
    if isinstance(labels, (list, tuple)) and len(labels) > 1:
        return torch.stack([part.argmax(dim=-1) for part in logits[: len(labels)]], dim=-1)
    return (logits[0] if isinstance(logits, tuple) else logits).argmax(dim=-1)


def _predicts_the_next_token(model: torch.nn.Module) -> bool:
    return type(without_adapter(model)).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()


def _flat(values: Any, first: int = 0, last: int = 0) -> torch.Tensor:
    """One vector of an array, of a tensor on any device, or of one for each batch, without the ends of its rows."""
    parts = [torch.as_tensor(part).cpu() for part in (values if isinstance(values, (list, tuple)) else [values])]
    if first or last:
        parts = [part[:, first : part.shape[1] + last] for part in parts]
    return torch.cat([part.flatten() for part in parts])


def copied_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A model's weights on the CPU, which no training changes."""
    return {name: tensor.to("cpu", copy=True) for name, tensor in model.state_dict().items()}
