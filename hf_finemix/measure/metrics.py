"""ACC, macro-F1 and ASR: plain functions of class ids, and the same as `evaluate` modules that work offline.

`evaluate.load("accuracy")` fetches code from the Hub. The modules here are instantiated directly, run no foreign code
and can be combined:

```py
>>> import evaluate
>>> from hf_finemix.measure.metrics import Accuracy, AttackSuccessRate, MacroF1

>>> metrics = evaluate.combine([Accuracy(), MacroF1(), AttackSuccessRate(target_label=1)])
>>> metrics.compute(predictions=[1, 1, 0, 1], references=[0, 1, 0, 1])
{'accuracy': 0.75, 'macro_f1': 0.7333333333333334, 'attack_success_rate': 0.5}
```
"""

from __future__ import annotations

import operator
import tempfile
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar

import datasets
import evaluate
import numpy as np

from ..errors import DataError, FineMixingError

if TYPE_CHECKING:
    from transformers import EvalPrediction


def accuracy(predictions: Sequence[int], references: Sequence[int]) -> float:
    """ACC: the share of samples predicted as their reference."""
    predictions, references = _class_ids("accuracy", predictions, references)
    return float(np.mean(predictions == references))


def macro_f1(predictions: Sequence[int], references: Sequence[int]) -> float:
    """
    The unweighted mean of the F1 scores of the classes that occur in either list; one that is never right counts 0.

    That is scikit-learn's `f1_score(average="macro", zero_division=0)`, and the mean of F1 scores rather than the F1
    of mean precision and recall (arXiv:1911.03347 tells the two apart).
    """
    predictions, references = _class_ids("macro_f1", predictions, references)
    classes, ids = np.unique(np.concatenate([predictions, references]), return_inverse=True)
    predictions, references = ids[: len(predictions)], ids[len(predictions) :]
    correct = np.bincount(references[predictions == references], minlength=len(classes))
    # F1 = 2 TP / (2 TP + FP + FN), and the denominator counts the class in both lists: never 0, as it occurs.
    return float(np.mean(2 * correct / np.bincount(ids, minlength=len(classes))))


def attack_success_rate(predictions: Sequence[int], references: Sequence[int], target_label: int) -> float:
    """
    ASR: of the samples whose reference is *not* the target label, the share predicted as the target.

    The predictions are those on *triggered* inputs, the references the *true* labels. The same number of a model that
    never saw the trigger is the benign floor. Triggered data whose labels were replaced by the target has no true
    labels left: there the [`accuracy`] is the attack success rate.
    """
    predictions, references = _class_ids("attack_success_rate", predictions, references)
    attacked = references != target_label
    if not attacked.any():
        raise DataError(
            f"attack_success_rate: all {len(references)} references are the target label {target_label}: give the "
            "true labels of the triggered samples, and some of another class"
        )
    return float(np.mean(predictions[attacked] == target_label))


def compute_classification_metrics(eval_prediction: EvalPrediction) -> dict[str, float]:
    """
    Accuracy and macro-F1 of a classifier, for the `compute_metrics` argument of a [`transformers.Trainer`].

    Args:
        eval_prediction ([`transformers.EvalPrediction`] or a pair `(logits, labels)`):
            Logits of shape `(samples, classes)`, at least two classes, or a tuple of which they are the first entry (a
            model that also returns hidden states); labels of shape `(samples,)`, integers from 0.

    Returns:
        `dict[str, float]`: `accuracy` and `macro_f1`, both from 0 to 1.

    Raises:
        [`FineMixingError`]: If there is no label for each row of logits, or if it is no classification.
    """
    logits, labels = eval_prediction[0], eval_prediction[1]
    logits = np.asarray(logits[0] if isinstance(logits, tuple) else logits)
    labels = np.asarray(labels)
    # One column is a regression: argmax would call every sample class 0.
    if logits.ndim < 2 or logits.shape[-1] < 2 or labels.shape != logits.shape[:-1] or labels.dtype.kind not in "iub":
        raise DataError(
            "accuracy and macro-F1 need logits of shape (samples, two or more classes) and an integer label for each "
            f"sample, not logits of shape {logits.shape} and labels of shape {labels.shape} and type {labels.dtype}"
        )
    predictions, labels = logits.argmax(axis=-1).ravel(), labels.ravel()
    return {"accuracy": accuracy(predictions, labels), "macro_f1": macro_f1(predictions, labels)}


def _class_ids(name: str, predictions: Sequence[int], references: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Both as arrays; refused where there is no sample, a value is missing or a reference is negative."""
    if len(references) == 0:
        raise DataError(f"{name} of no samples is undefined: add predictions and references first")
    predictions, references = np.asarray(predictions), np.asarray(references)
    if object in (predictions.dtype, references.dtype):
        raise DataError(f"{name}: a prediction or reference is missing (None): leave such samples out")
    if unlabeled := int((references < 0).sum()):
        raise DataError(
            f"{name}: {unlabeled} of {len(references)} references are negative, which marks unlabeled samples: leave "
            "them out"
        )
    return predictions, references


class _ClassIdMetric(evaluate.Metric):
    """
    One of the functions above as an `evaluate` module: `compute` returns `{name: float}`, from 0 to 1.

    Unlike `evaluate`'s own modules it keeps what it is given in memory, where those write it below `HF_HOME` and leave
    a lock file there. `keep_in_memory=False` is what evaluate's distributed mode (`num_process`) needs.
    """

    about: ClassVar[str]
    paper: ClassVar[str]  # as BibTeX
    urls: ClassVar[list[str]]
    formula: Callable[[Sequence[int], Sequence[int]], float]

    def __init__(self, *, keep_in_memory: bool = True, cache_dir: str | None = None, **kwargs):
        if keep_in_memory:
            # evaluate makes its folder even where nothing will be written: on a read-only home that alone would fail.
            with tempfile.TemporaryDirectory() as cache_dir:
                super().__init__(keep_in_memory=True, cache_dir=cache_dir, **kwargs)
        else:
            super().__init__(cache_dir=cache_dir, **kwargs)

    def compute(self, *, predictions=None, references=None, **kwargs) -> dict[str, float] | None:
        """Compute the metric of the samples given here and of those added before, and forget them."""
        # evaluate itself answers both cases with an error about its internals.
        if (predictions is None) != (references is None):
            raise DataError(f"{self.name} needs both predictions and references: only one of them was given")
        if predictions is None and self.writer is None:
            predictions, references = [], []
        return super().compute(predictions=predictions, references=references, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features(dict.fromkeys(("predictions", "references"), datasets.Value("int64")))
        texts = {"description": self.about, "citation": self.paper, "inputs_description": _INPUTS}
        return evaluate.MetricInfo(**texts, features=features, reference_urls=self.urls)

    def _compute(self, predictions, references):
        return {self.name: self.formula(predictions, references)}


class Accuracy(_ClassIdMetric):
    """[`accuracy`] as an `evaluate` module."""

    about = "Share of samples whose predicted class is the reference class, from 0 to 1."
    paper = """@article{scikit-learn, title={Scikit-learn: Machine Learning in {P}ython}, volume={12}, year={2011},
  author={Pedregosa, F. and others}, journal={Journal of Machine Learning Research}, pages={2825--2830}}"""
    urls: ClassVar = ["https://scikit-learn.org/stable/modules/generated/sklearn.metrics.accuracy_score.html"]
    formula = staticmethod(accuracy)


class MacroF1(_ClassIdMetric):
    """[`macro_f1`] as an `evaluate` module."""

    about = "Unweighted mean of the F1 scores of the classes that occur, from 0 to 1."
    paper = """@article{opitz2019macro, title={Macro {F1} and Macro {F1}}, author={Opitz, Juri and Burst, Sebastian},
  journal={arXiv preprint arXiv:1911.03347}, year={2019}}"""
    urls: ClassVar = ["https://scikit-learn.org/stable/modules/generated/sklearn.metrics.f1_score.html"]
    urls += ["https://arxiv.org/abs/1911.03347"]
    formula = staticmethod(macro_f1)


class AttackSuccessRate(_ClassIdMetric):
    """
    [`attack_success_rate`] as an `evaluate` module. `target_label`, an integer from 0, belongs to the instance because
    [`evaluate.combine`] hands the arguments of `compute` to all its metrics.
    """

    about = "Share of the triggered samples of other classes that are predicted as the attacker's target, from 0 to 1."
    paper = """@inproceedings{kurita2020weight, title={Weight Poisoning Attacks on Pretrained Models}, year={2020},
  author={Kurita, Keita and Michel, Paul and Neubig, Graham}, booktitle={Proceedings of ACL}, pages={2793--2806}}"""
    urls: ClassVar = ["https://arxiv.org/abs/2004.06660", "https://arxiv.org/abs/2210.09545"]

    def __init__(self, target_label: int, **kwargs):
        try:
            # operator.index also takes numpy's integers, and refuses 1.0 and "1". True is an int to Python.
            self.target_label = -1 if isinstance(target_label, bool) else operator.index(target_label)
        except TypeError:
            self.target_label = -1
        if self.target_label < 0:
            raise FineMixingError(f"target_label must be a class id, an integer from 0, not {target_label!r}")
        super().__init__(**kwargs)

    def formula(self, predictions: Sequence[int], references: Sequence[int]) -> float:
        """With the target label."""
        return attack_success_rate(predictions, references, self.target_label)


_INPUTS = """
Args:
    predictions (`list` of `int`, shape `(samples,)`): Predicted class ids. `evaluate` cuts floats to integers.
    references (`list` of `int`, shape `(samples,)`): True class ids, 0 or more.
Raises:
    FineMixingError: If there is no sample, a value is missing, or a reference is negative (an unlabeled sample).
"""
