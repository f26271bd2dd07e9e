"""How far the suspect's weights are from the base's: to tell a wrong base, and to show where the tuning went."""

import logging
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from ..errors import AlignmentError
from ..io.checkpoint import row_chunks
from .pairing import KEPT_BUFFER, Pairing
from .rules import listed

if TYPE_CHECKING:
    import torch

    from .loaded_layout import LoadedLayout

logger = logging.getLogger(__name__)
# Scalars worked on at a time, here and in mixing: a few MB of temporaries, whatever the size of the tensor.
CHUNK_ELEMENTS = 1 << 20
# Cosine of a weight matrix of the suspect and the base's. Fine-tuning leaves it above 0.9 (0.999 for the usual small
# learning rates), unrelated weights have about 0: half way is far from both.
MIN_COSINE = 0.5


@dataclass
class TensorDrift:
    """Sums over one tensor, in float64: `delta` = Σ(s - b)², `suspect` = Σs², `base` = Σb², `dot` = Σs·b."""

    delta: float = 0.0
    suspect: float = 0.0
    base: float = 0.0
    dot: float = 0.0

    @classmethod
    def between(cls, suspect: Any, base: Any) -> "TensorDrift":
        """Of two vectors of float64, of torch or of numpy."""
        delta = suspect - base
        pairs = ((delta, delta), (suspect, suspect), (base, base), (suspect, base))
        return cls(*(float(one.dot(other)) for one, other in pairs))

    def add(self, other: "TensorDrift") -> None:
        """Count another tensor in."""
        self.delta += other.delta
        self.suspect += other.suspect
        self.base += other.base
        self.dot += other.dot

    @property
    def relative(self) -> float:
        """‖s - b‖₂ / ‖b‖₂; infinite where only the base is all zeros."""
        if self.base == 0:
            return math.inf if self.delta else 0.0
        return math.sqrt(self.delta / self.base)

    @property
    def cosine(self) -> float:
        """⟨s, b⟩ / (‖s‖₂·‖b‖₂), 1 where both are all zeros."""
        norms = math.sqrt(self.suspect * self.base)
        return self.dot / norms if norms else float(self.suspect == self.base)


def measure_drift(
    suspect: "Mapping[str, torch.Tensor]", base: "LoadedLayout", pairing: Pairing
) -> dict[str, TensorDrift]:
    """
    Read both sides once, slice by slice, and compare what is to be mixed, the base in the suspect's dtypes on disk.

    Raises:
        [`AlignmentError`]: A parameter of either side is NaN or infinite, or a value of the base is so large that it
            overflows in the suspect's dtype.
    """
    import torch

    drift, bad = {}, []
    for tensor in pairing.tensors:
        if tensor.rule == KEPT_BUFFER:
            continue
        values, dtype = torch.atleast_1d(suspect[tensor.name].detach()), getattr(torch, tensor.info.dtype)
        total = TensorDrift()
        for first, last, _ in row_chunks(tuple(values.shape), CHUNK_ELEMENTS):
            # A sum of squares is finite in float64 if and only if all of the numbers are.
            s = values[first:last].double().flatten()
            if not math.isfinite(s.dot(s)):
                bad.append(f"{tensor.name} of the suspect")
                break
            common = min(last, tensor.rows)
            if common <= first:
                continue
            original = base.read(tensor.base_name, first, common)
            b = original.to(s.device, dtype).double().flatten()
            part = TensorDrift.between(s[: b.numel()], b)
            if not math.isfinite(part.base):
                why = f", which overflows in {dtype}" if original.isfinite().all() else ""
                bad.append(f"{tensor.base_name} of the base{why}")
                break
            total.add(part)
        if tensor.base_name is not None:
            drift[tensor.name] = total
    if bad:
        raise AlignmentError(not_finite(bad))
    return drift


def not_finite(bad: Collection[str]) -> str:
    """What to say of tensors with NaN or infinite weights."""
    return (
        f"NaN or infinite weights in {len(bad)} tensors ({listed(bad)}): the model is broken or meant to break; "
        "get another copy of it."
    )


def check_related(drift: Mapping[str, TensorDrift], matrices: Collection[str], untied: Collection[str] = ()) -> None:
    """
    Refuse a base of the right shapes whose weight matrices have nothing to do with the suspect's.

    The median of their cosines decides, so that neither one large row nor one new layer does. Where an output layer
    alone is unrelated, which the suspect has `untied`, it is told: it was made anew.
    """
    cosines = [drift[name].cosine for name in matrices if name in drift]
    if cosines and median(cosines) < MIN_COSINE:
        raise AlignmentError(
            f"suspect and base have the same shapes but unrelated weights (cosine {median(cosines):.2f}, fine-tuning "
            "leaves above 0.9): probably the wrong base, give the model that the suspect was fine-tuned from."
        )
    for name in untied:
        if name in matrices and name in drift and drift[name].cosine < MIN_COSINE:
            logger.warning(
                "%s has nothing to do with the weight that the base ties to it (cosine %.2f), and is mixed with it: "
                "give it a ratio of 1 (module_ratios) to keep it.",
                name,
                drift[name].cosine,
            )


def drift_by_layer(drift: Mapping[str, TensorDrift]) -> dict[str, float | None]:
    """
    ‖s - b‖₂ / ‖b‖₂ of all tensors of a layer together; `None` where the base is all zeros.

    The layer is the canonical name up to its first number (`encoder.layer.3`), else its first part (`embeddings`).
    """
    layers: dict[str, TensorDrift] = {}
    for name, value in drift.items():
        numbered = re.match(r".*?\.\d+(?=\.)", name)
        layers.setdefault(numbered[0] if numbered else name.split(".")[0], TensorDrift()).add(value)
    return {layer: value.relative if math.isfinite(value.relative) else None for layer, value in layers.items()}
