"""Which of the suspect's weights to keep: those whose drift is small for how much the model's answers depend on them.

Fine-purifying (arXiv:2305.04547) resets the weights with the largest δ²/H: they moved far from the base, and clean
text does not need them there. What a backdoor has moved is mostly of that kind.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import nn

from ..align.names import named_tensors
from ..align.pairing import TensorMix
from ..errors import FineMixingError

# With at most so many classes the expectation over the labels is computed, beyond that so many labels are drawn.
MAX_CLASSES = 8
# What counts as no curvature at all, as a share of the mean: weights that no text touched are then told apart by δ².
FLOOR = 1e-6
_WORDS = 1 << 16


@torch.enable_grad()
def fisher_information(
    model: nn.Module,
    batches: Iterable[Mapping[str, torch.Tensor]],
    *,
    seed: int = 0,
    parameters: Mapping[str, nn.Parameter] | None = None,
) -> dict[str, torch.Tensor]:
    r"""
    The diagonal of the Fisher information: H_i = E_x E_{y ~ p(y|x)} (∂ log p(y|x) / ∂w_i)², of each scalar weight.

    No label is needed: y comes from the model's own distribution. With at most 8 classes the expectation over y is
    exact, in one backward pass less than there are classes; with more, or one answer a token, 8 labels are drawn for
    each text.

    Args:
        model: The suspect, with its own weights; it gives `logits`, or several (`start_logits`, …), or a tuple in
            which scores come first or behind the loss. Nothing of it is changed.
        batches: Clean text, **one sample a batch**, on the model's device; if with labels, the loss that the model
            makes of them does not count.
        seed: Of the labels drawn.
        parameters: Of which, by name; all of the model's by default.

    Returns:
        `dict[str, torch.Tensor]`: H by canonical name, float32 on the CPU, of the parameters' shapes.

    Raises:
        [`FineMixingError`]: No text, or a model without `logits`.
    """
    if parameters is None:
        parameters = {
            name: tensor
            for name, tensor in named_tensors(model).tensors.items()
            if isinstance(tensor, nn.Parameter) and tensor.is_floating_point()
        }
    trained = [parameter.requires_grad for parameter in parameters.values()]
    training, generator, count = model.training, torch.Generator().manual_seed(seed), 0
    squares = {name: torch.zeros_like(parameter, dtype=torch.float32) for name, parameter in parameters.items()}
    model.eval()  # no dropout
    try:
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        with _sparse_gradients(model):
            for batch in batches:
                terms = [term for logits in _logits(model(**batch)) for term in _terms(logits.float(), generator)]
                for i, term in enumerate(terms):
                    gradients = torch.autograd.grad(
                        term, list(parameters.values()), retain_graph=i + 1 < len(terms), allow_unused=True
                    )
                    for total, gradient in zip(squares.values(), gradients, strict=True):
                        if gradient is not None:
                            _add_square(total, gradient)
                count += 1
    finally:
        model.train(training)
        for parameter, before in zip(parameters.values(), trained, strict=True):
            parameter.requires_grad_(before)
    if not count:
        raise FineMixingError("strategy='fisher' needs clean text to tune on: give a train dataset.")
    return {name: (total / count).cpu() for name, total in squares.items()}


def _logits(output: Any) -> list[torch.Tensor]:
    """The scores in what a model gives: by name, or else what comes first behind the loss, and what has its shape."""
    if isinstance(getattr(output, "logits", None), torch.Tensor):
        return [output.logits]
    values = [output] if isinstance(output, torch.Tensor) else output
    if isinstance(output, Mapping):
        values = [value for name, value in output.items() if name.endswith("logits")] or output.values()
    scores = [v for v in values if isinstance(v, torch.Tensor) and v.is_floating_point() and v.dim()]
    if not scores:
        raise FineMixingError("strategy='fisher' needs a model that gives logits: use 'random'.")
    return [value for value in scores if value.shape == scores[0].shape]


def _terms(logits: torch.Tensor, generator: torch.Generator) -> list[torch.Tensor]:
    """Scalars whose squared gradients sum up to the expectation, over labels, of the squared score."""
    log_p = logits.log_softmax(-1).reshape(-1, logits.shape[-1])
    p = log_p.detach().exp()
    if len(p) == 1 and p.shape[1] <= MAX_CLASSES:
        # The covariance of the scores is J'(diag(p) - pp')J, J = dlogits/dw: a term for each direction, but for the
        # one in which all logits grow alike.
        covariance = (torch.diag(p[0]) - torch.outer(p[0], p[0])).double().cpu()
        values, vectors = torch.linalg.eigh(covariance)
        directions = (vectors * values.clamp(min=0).sqrt()).T[1:].to(logits)
        return list(directions @ logits.flatten())
    terms = []
    for _ in range(MAX_CLASSES):
        labels = torch.multinomial(p.cpu(), 1, generator=generator).to(log_p.device)
        terms.append(log_p.gather(1, labels).sum() / MAX_CLASSES**0.5)
    return terms


@contextmanager
def _sparse_gradients(model: nn.Module) -> Iterator[None]:
    """Of word embeddings only the rows that a text has: of a small model the others are most of all weights."""
    embedding = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    weights = [weight for _, weight in model.named_parameters(remove_duplicate=False)]
    alone = type(embedding) is nn.Embedding and not embedding.sparse
    alone = alone and sum(weight is embedding.weight for weight in weights) == 1  # a tied layer has a dense gradient
    if alone:
        embedding.sparse = True
    try:
        yield
    finally:
        if alone:
            embedding.sparse = False


def _add_square(total: torch.Tensor, gradient: torch.Tensor) -> None:
    if gradient.is_sparse:
        gradient = gradient.coalesce()
        total.index_add_(0, gradient.indices()[0], gradient.values().float().square())
    else:
        total.addcmul_(gradient.float(), gradient.float())


class ScoreMask:
    """
    The mask that keeps, of the weights that drifted, the fraction ρ with the smallest δ²/H, by one threshold over the
    whole model.

    A pure function of the weights of both sides and of H (`curvature`), so it is the same in any order or slice, and
    masks nest: what a ratio keeps, every larger ratio keeps too. Scores are computed when asked for and never held:
    the memory is that of H.
    """

    def __init__(self, curvature: Mapping[str, torch.Tensor]):
        self._curvature = curvature
        total = sum(float(tensor.sum(dtype=torch.float64)) for tensor in curvature.values())
        self._floor = max(FLOOR * total / max(1, sum(tensor.numel() for tensor in curvature.values())), 1e-30)

    def scores(self, name: str, start: int, suspect: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
        """δ²/H of a slice of the tensor `name` from element `start` on: flat, float32, on the CPU, at least 0."""
        delta = (suspect.float() - base.float()).flatten().cpu()
        if name not in self._curvature:  # a buffer, or a weight that the model's answers do not depend on
            return delta * delta / self._floor
        curvature = self._curvature[name].flatten()[start : start + delta.numel()]
        return delta * delta / (curvature + self._floor)

    def thresholds(
        self, tensors: Collection[TensorMix], scores: Callable[[TensorMix], Iterable[torch.Tensor]]
    ) -> dict[str, float]:
        """Up to which score each tensor's weights are kept: all tensors of one ratio share one `threshold`."""
        found = {}
        for ratio in {tensor.ratio for tensor in tensors}:
            group = [tensor for tensor in tensors if tensor.ratio == ratio]
            threshold = self.threshold(lambda group=group: chain.from_iterable(map(scores, group)), ratio)
            found |= {tensor.name: threshold for tensor in group}
        return found

    def threshold(self, slices: Callable[[], Iterable[torch.Tensor]], ratio: float) -> float:
        """
        The score up to which weights are kept: the ⌊ρ·n⌋-th smallest of n, or the largest below 0 for none.

        n counts the weights that drifted. The others are the base's own, kept or not: embeddings of words that
        fine-tuning never saw, whatever a LoRA leaves alone. They must not take up ρ. `slices` gives all scores, twice.
        """
        if ratio in (0, 1):
            return -1.0 if ratio == 0 else float("inf")
        # Floats that are not negative are in the order of their bits: two digits of 16 bits, the higher one first.
        prefix, rank = None, None
        for shift in (16, 0):
            counts = np.zeros(_WORDS, dtype=np.int64)
            for part in slices():
                bits = part.numpy().view(np.uint32)
                bits = bits[bits > 0]
                if prefix is not None:
                    bits = bits[bits >> 16 == prefix]
                counts += np.bincount((bits >> shift) & 0xFFFF, minlength=_WORDS)
            if rank is None and not (rank := int(ratio * counts.sum())):
                return -1.0
            below = np.cumsum(counts)
            digit = int(np.searchsorted(below, rank))
            rank -= int(below[digit] - counts[digit])
            prefix = digit if prefix is None else (prefix << 16) | digit
        return float(np.array([prefix], dtype=np.uint32).view(np.float32)[0])
