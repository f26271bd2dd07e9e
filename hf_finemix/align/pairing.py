"""One plan of a mix, of models in memory, of files and of adapters: what becomes of every tensor of the suspect."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

from ..config import FineMixingConfig
from ..io.checkpoint import TensorInfo

MIXED = "mixed"
MIXED_CONVERTED = "mixed: merged or split on loading"
MIXED_COMMON_ROWS = "mixed: common rows of a grown vocabulary, new rows kept"
MIXED_CUT_ROWS = "mixed: common rows of a cut vocabulary, the base's further rows ignored"
TIED = " (with the weight that the base ties to it)"  # after one of the above
KEPT_HEAD = "kept: not in the base (head)"
REINITIALIZED_HEAD = "reinitialized: not in the base (head)"
KEPT_BUFFER = "kept: buffer"
# Of an adapter that stays one.
MIXED_IN_ADAPTER = "mixed: the base is what it was before any training"
KEPT_DIRECTION = "kept: counts only through the other matrix of its pair"


@dataclass(frozen=True)
class TensorMix:
    """What becomes of one tensor of the suspect."""

    name: str  # the canonical one, which the mask goes by
    info: TensorInfo  # shape and dtype, in the suspect's files and in the mix
    rule: str  # one of those named in this module
    base_name: str | None = None  # where it is mixed, of its counterpart: its own name, or that of a weight tied to it
    rows: int = 0  # how many leading rows are mixed: all, but where the base has a smaller vocabulary
    source: str = ""  # what the suspect itself calls it
    base_sources: tuple[str, ...] = ()  # names on disk of its counterpart
    ratio: float = 1.0  # its ρ
    purified: tuple[int, ...] = ()  # rows that are the base's, in rising order

    @property
    def row(self) -> int:
        """Elements of a row, at least 1."""
        return max(1, prod(self.info.shape[1:]))

    @property
    def mixed_elements(self) -> int:
        """How many leading elements are mixed."""
        return self.rows * prod(self.info.shape[1:])

    def entry(self, kept: int, config: FineMixingConfig, sha256: str | None = None) -> dict[str, Any]:
        """What a report says of it, where `kept` of its elements are the suspect's own."""
        fraction = kept / self.info.elements if self.info.elements else 1.0
        if self.rule == REINITIALIZED_HEAD:
            fraction = 0.0
        elif config.strategy == "average" and self.base_name is not None:
            fraction = None  # no element is either parent's
        return {"rule": self.rule, "kept_fraction": fraction, "sha256": sha256}


@dataclass
class Pairing:
    """A suspect and its base, tensor by tensor; what is ignored, converted or tied goes by names on disk."""

    tensors: list[TensorMix]  # every tensor of the mix, in the suspect's order
    embedding: str | None = None  # the canonical name of the suspect's input embedding
    vocabulary: tuple[int, int] = (0, 0)  # rows of both input embeddings; 0 where they are not mixed
    ignored_base_tensors: list[str] = field(default_factory=list)  # what nothing goes with
    converted_base_tensors: dict[str, list[str]] = field(default_factory=dict)  # canonical name → what it is made of
    ignored_suspect_tensors: list[str] = field(default_factory=list)  # what the suspect's class has no place for
    tied: dict[str, str] = field(default_factory=dict)  # what is not written where it equals this other one

    def mixed(self) -> list[TensorMix]:
        """Those that take weights from the base."""
        return [tensor for tensor in self.tensors if tensor.base_name is not None]

    def matrices(self) -> set[str]:
        """Names of the weight matrices, which tell more than biases and norms do."""
        return {tensor.name for tensor in self.tensors if len(tensor.info.shape) > 1}

    def untied(self) -> list[str]:
        """Those that the suspect has apart, and the base ties to another weight."""
        return [tensor.name for tensor in self.tensors if tensor.rule.endswith(TIED)]

    def heads(self) -> list[TensorMix]:
        """Those without a counterpart in the base: the classifier, sometimes the pooler."""
        return [tensor for tensor in self.tensors if tensor.rule in (KEPT_HEAD, REINITIALIZED_HEAD)]

    def mixed_embedding(self) -> TensorMix | None:
        """The input embedding, where it is mixed."""
        return next((tensor for tensor in self.mixed() if tensor.name == self.embedding), None)

    def set_ratios(self, config: FineMixingConfig, ratio: float) -> None:
        """Give each tensor that is mixed its ρ: `ratio`, but for what the config's `module_ratios` names."""
        self.tensors = [
            t if t.base_name is None else replace(t, ratio=config.ratio_for(t.name, ratio)) for t in self.tensors
        ]

    def mark_purified(self, ids: Collection[int]) -> None:
        """Take these rows of the embedding from the base."""
        embedding = self.mixed_embedding() if ids else None
        self.tensors = [
            replace(t, purified=tuple(sorted(ids)), rule=f"purified and {t.rule}") if t is embedding else t
            for t in self.tensors
        ]

    def counted(self) -> list[dict[str, Any]]:
        """Each `rule`, with the number of `tensors`, `parameters` and `bytes` of the suspect that it applies to."""
        rules: dict[str, Mapping[str, int]] = {}
        for tensor in self.tensors:
            before = rules.get(tensor.rule, {"tensors": 0, "parameters": 0, "bytes": 0})
            sizes = (1, tensor.info.elements, tensor.info.nbytes)
            rules[tensor.rule] = {key: before[key] + size for key, size in zip(before, sizes, strict=True)}
        return [{"rule": rule, **counts} for rule, counts in rules.items()]
