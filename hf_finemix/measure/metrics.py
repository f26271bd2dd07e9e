"""ACC, macro-F1 and ASR as `evaluate` modules that work offline.

`evaluate.load("accuracy")` fetches code from the Hub. These classes are instantiated directly, run no foreign code and
can be combined:

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
from typing import TYPE_CHECKING

import datasets
import evaluate
import numpy as np

from hf_finemix.errors import DataError, FineMixingError

if TYPE_CHECKING:
    from transformers import EvalPrediction

__all__ = ["Accuracy", "AttackSuccessRate", "MacroF1", "compute_classification_metrics"]

_INPUTS = """
Args:
    predictions (`list` of `int`, shape `(samples,)`): Predicted class ids. `evaluate` cuts floats to integers.
    references (`list` of `int`, shape `(samples,)`): True class ids, 0 or more.
Raises:
    FineMixingError: If there is no sample, a value is missing, or a reference is negative (an unlabeled sample).
"""


class _ClassIdMetric(evaluate.Metric):
    """
    What the metrics of this module share: class ids in, checked; one fraction out; and no files.

    Args:
        keep_in_memory (`bool`, *optional*, defaults to `True`):
            Unlike `evaluate`'s default, under which every instance writes what it is given below `HF_HOME` and leaves
            a lock file there. `False` is what evaluate's own distributed mode (`num_process`) needs.
        kwargs:
            The other arguments of [`evaluate.Metric`].
    """

    def __init__(self, *, keep_in_memory: bool = True, **kwargs):
        super().__init__(keep_in_memory=keep_in_memory, **kwargs)

    def _build_data_dir(self) -> str:
        # evaluate makes this folder in the user's cache even where nothing will be written: on a read-only home that
        # alone would fail.
        return "" if self.keep_in_memory else super()._build_data_dir()

    def compute(self, *, predictions=None, references=None, **kwargs) -> dict[str, float] | None:
        """Compute the metric of the samples given here and of those added before, and forget them."""
        # evaluate itself answers both cases with an error about its internals.
        if (predictions is None) != (references is None):
            raise DataError(f"{self.name} needs both predictions and references: only one of them was given")
        if predictions is None and self.writer is None:
            raise DataError(_no_samples(self.name))
        return super().compute(predictions=predictions, references=references, **kwargs)

    def _metric_info(self, description: str, citation: str, reference_urls: list[str]) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=description,
            citation=citation,
            inputs_description=_INPUTS,
            features=datasets.Features(
                {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
            ),
            reference_urls=reference_urls,
        )

    def _class_ids(self, predictions: list, references: list) -> tuple[np.ndarray, np.ndarray]:
        if len(references) == 0:
            raise DataError(_no_samples(self.name))
        if None in predictions or None in references:
            raise DataError(f"{self.name}: a prediction or reference is missing (None): leave such samples out")
        predictions, references = np.asarray(predictions), np.asarray(references)
        unlabeled = int((references < 0).sum())
        if unlabeled:
            raise DataError(
                f"{self.name}: {unlabeled} of {len(references)} references are negative, which marks unlabeled "
                "samples: leave them out"
            )
        return predictions, references


class Accuracy(_ClassIdMetric):
    """
    ACC: the share of samples predicted as their reference. `compute` returns `{"accuracy": float}`, from 0 to 1.

    Args:
        keep_in_memory (`bool`, *optional*, defaults to `True`):
            Make no files. The other arguments of [`evaluate.Metric`] are accepted too.
    """

    def _info(self):
        return self._metric_info(
            description="Share of samples whose predicted class is the reference class, from 0 to 1.",
            citation=_SCIKIT_LEARN,
            reference_urls=["https://scikit-learn.org/stable/modules/generated/sklearn.metrics.accuracy_score.html"],
        )

    def _compute(self, predictions, references):
        predictions, references = self._class_ids(predictions, references)
        return {"accuracy": float(np.mean(predictions == references))}


class MacroF1(_ClassIdMetric):
    """
    The unweighted mean of the classes' F1 scores. `compute` returns `{"macro_f1": float}`, from 0 to 1.

    The classes are those that occur in the references or in the predictions; one that is never right counts 0. That is
    scikit-learn's `f1_score(average="macro", zero_division=0)`, and the mean of F1 scores rather than the F1 of mean
    precision and recall (arXiv:1911.03347 tells the two apart).

    Args:
        keep_in_memory (`bool`, *optional*, defaults to `True`):
            Make no files. The other arguments of [`evaluate.Metric`] are accepted too.
    """

    def _info(self):
        return self._metric_info(
            description="Unweighted mean of the F1 scores of the classes that occur, from 0 to 1.",
            citation=_MACRO_F1,
            reference_urls=[
                "https://scikit-learn.org/stable/modules/generated/sklearn.metrics.f1_score.html",
                "https://arxiv.org/abs/1911.03347",
            ],
        )

    def _compute(self, predictions, references):
        predictions, references = self._class_ids(predictions, references)
        classes, ids = np.unique(np.concatenate([predictions, references]), return_inverse=True)
        predictions, references = ids[: len(predictions)], ids[len(predictions) :]
        correct = np.bincount(references[predictions == references], minlength=len(classes))
        # F1 = 2 TP / (2 TP + FP + FN), and the denominator counts the class in both lists: never 0, as it occurs.
        occurrences = np.bincount(ids, minlength=len(classes))
        return {"macro_f1": float(np.mean(2 * correct / occurrences))}


class AttackSuccessRate(_ClassIdMetric):
    """
    ASR: of the samples whose reference is *not* the target label, the share predicted as the target. `compute` returns
    `{"attack_success_rate": float}`, from 0 to 1.

    The predictions are those on *triggered* inputs, the references the *true* labels; samples of the target class do
    not count, because for them the target is the right answer. The same number of a model that never saw the trigger
    is the benign floor. Triggered data whose labels were replaced by the target has no true labels left: there the
    [`Accuracy`] is the attack success rate.

    Args:
        target_label (`int`):
            The class id that the attacker wants, 0 or more. It belongs to the instance because [`evaluate.combine`]
            hands the arguments of `compute` to all its metrics.
        keep_in_memory (`bool`, *optional*, defaults to `True`):
            Make no files. The other arguments of [`evaluate.Metric`] are accepted too.

    Raises:
        [`FineMixingError`]: If `target_label` is not an integer from 0, or, in `compute`, if every reference is the
            target label.
    """

    def __init__(self, target_label: int, *, keep_in_memory: bool = True, **kwargs):
        try:
            # operator.index also takes numpy's integers, and refuses 1.0 and "1". True is an int to Python.
            self.target_label = -1 if isinstance(target_label, bool) else operator.index(target_label)
        except TypeError:
            self.target_label = -1
        if self.target_label < 0:
            raise FineMixingError(f"target_label must be a class id, an integer from 0, not {target_label!r}")
        super().__init__(keep_in_memory=keep_in_memory, **kwargs)

    def _info(self):
        return self._metric_info(
            description="Share of the triggered samples of other classes that are predicted as the attacker's target "
            "class, from 0 to 1.",
            citation=_ATTACK_SUCCESS_RATE,
            reference_urls=["https://arxiv.org/abs/2004.06660", "https://arxiv.org/abs/2210.09545"],
        )

    def _compute(self, predictions, references):
        predictions, references = self._class_ids(predictions, references)
        attacked = references != self.target_label
        if not attacked.any():
            raise DataError(
                f"{self.name}: all {len(references)} references are the target label {self.target_label}: give the "
                "true labels of the triggered samples, and some of another class"
            )
        return {"attack_success_rate": float(np.mean(predictions[attacked] == self.target_label))}


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
    metrics = evaluate.combine([Accuracy(), MacroF1()])
    return metrics.compute(predictions=logits.argmax(axis=-1).ravel(), references=labels.ravel())


def _no_samples(name: str) -> str:
    return f"{name} of no samples is undefined: add predictions and references first"


_SCIKIT_LEARN = """\
@article{scikit-learn,
  title={Scikit-learn: Machine Learning in {P}ython},
  author={Pedregosa, F. and Varoquaux, G. and Gramfort, A. and Michel, V. and Thirion, B. and Grisel, O. and
          Blondel, M. and Prettenhofer, P. and Weiss, R. and Dubourg, V. and Vanderplas, J. and Passos, A. and
          Cournapeau, D. and Brucher, M. and Perrot, M. and Duchesnay, E.},
  journal={Journal of Machine Learning Research},
  volume={12},
  pages={2825--2830},
  year={2011}
}"""

_MACRO_F1 = """\
@article{opitz2019macro,
  title={Macro {F1} and Macro {F1}},
  author={Opitz, Juri and Burst, Sebastian},
  journal={arXiv preprint arXiv:1911.03347},
  year={2019}
}"""

_ATTACK_SUCCESS_RATE = """\
@inproceedings{kurita2020weight,
  title={Weight Poisoning Attacks on Pretrained Models},
  author={Kurita, Keita and Michel, Paul and Neubig, Graham},
  booktitle={Proceedings of the 58th Annual Meeting of the Association for Computational Linguistics},
  pages={2793--2806},
  year={2020}
}
@inproceedings{zhang2022fine,
  title={Fine-mixing: Mitigating Backdoors in Fine-tuned Language Models},
  author={Zhang, Zhiyuan and Lyu, Lingjuan and Ma, Xingjun and Wang, Chenguang and Sun, Xu},
  booktitle={Findings of the Association for Computational Linguistics: EMNLP 2022},
  year={2022}
}"""
