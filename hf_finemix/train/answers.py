"""Which answers of a Trainer's model are right, whatever the user's own metrics are."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from transformers import Trainer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from ..errors import FineMixingError
from ..io.unwrap import without_adapter


def correct_answers(trainer: Trainer, data: Any) -> np.ndarray:
    """Of the present model, for each label of the data. Raises a [`FineMixingError`] where there is none."""
    kind = type(without_adapter(trainer.model)).__name__
    shifted = kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
    found = [torch.empty(0, dtype=torch.bool)]

    def note(prediction: Any, compute_result: bool = True) -> dict[str, float]:
        """A `compute_metrics`, with `batch_eval_metrics` or without."""
        found.append(_correct(prediction.predictions, prediction.label_ids, shifted))
        return {}

    kept = trainer.compute_metrics, trainer.preprocess_logits_for_metrics
    trainer.compute_metrics, trainer.preprocess_logits_for_metrics = note, _predicted_classes
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
    correct = torch.cat(found).numpy()
    if not len(correct):
        raise FineMixingError("reserve_ratio='auto' needs labeled eval data: no row of eval_dataset is.")
    return correct


def _correct(predictions: Any, labels: Any, shifted: bool) -> torch.Tensor:
    """Of classes; of a text's tokens, each for itself and maybe the label of the next; or of spans with both ends."""
    if isinstance(labels, tuple) and len(labels) > 1:  # where a span begins, and where it ends
        ends = torch.stack([torch.as_tensor(part).cpu() for part in labels], dim=-1)
        return (torch.as_tensor(predictions).cpu() == ends).all(dim=-1)
    predictions, labels = _flat(predictions, 0, -shifted), _flat(labels, shifted, 0)
    if labels.is_floating_point() or labels.shape != predictions.shape:
        raise FineMixingError(
            "reserve_ratio='auto' compares accuracies, and the labels of eval_dataset are no classes: give a fixed ρ."
        )
    return (predictions == labels)[labels != -100]


def _predicted_classes(logits: Any, labels: Any) -> torch.Tensor:
    if isinstance(labels, (list, tuple)) and len(labels) > 1:
        return torch.stack([part.argmax(dim=-1) for part in logits[: len(labels)]], dim=-1)
    return (logits[0] if isinstance(logits, tuple) else logits).argmax(dim=-1)


def _flat(values: Any, first: int, last: int) -> torch.Tensor:
    """One vector of an array, of a tensor on any device, or of one for each batch, without the ends of its rows."""
    parts = [torch.as_tensor(part).cpu() for part in (values if isinstance(values, (list, tuple)) else [values])]
    if first or last:
        parts = [part[:, first : part.shape[1] + last] for part in parts]
    return torch.cat([part.flatten() for part in parts])
