"""What verify finds: what was derived again, what is wrong, and what cannot be checked."""

from dataclasses import asdict, dataclass, field
from typing import Any

from ..errors import printable


@dataclass
class Verification:
    """
    What was checked of a mixed or cleaned folder, and what was not.

    Attributes:
        kind (`str`): `"mixed"` (weights only) or `"cleaned"` (fine-tuned after mixing).
        suspect, base (`str`): From what the mix was derived again: id or folder, and commit.
        reserve_ratio (`float`): With which ρ.
        tensors (`int`): How many tensors were mixed again from suspect and base and compared.
        elements (`int`): How many scalars these have.
        wrong (`dict[str, int | None]`): Tensors that are not as the config says, by canonical name, with the
            number of elements that differ; `None` where only a digest could be compared.
        problems (`list[str]`): Whatever else does not agree.
        not_checked (`list[str]`): What nobody can derive again, or what was not recorded.
    """

    kind: str
    suspect: str = ""
    base: str = ""
    reserve_ratio: float | None = None
    tensors: int = 0
    elements: int = 0
    wrong: dict[str, int | None] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    not_checked: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing disagrees."""
        return not self.wrong and not self.problems

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON values."""
        return {"ok": self.ok, **asdict(self)}

    def summary(self) -> str:
        """The result as text, for people."""
        how = "every element is the one the mask says" if self.kind == "mixed" else "each mix has the reported digest"
        lines = [
            f"{self.tensors:,} tensors, {self.elements:,} elements derived again: {how}",
            f"suspect {self.suspect}",
            f"base    {self.base} (do you trust it?)",
            f"ρ       {self.reserve_ratio:g} of the weights are the suspect's",
            *(f"not checked: {what}" for what in self.not_checked),
        ]
        return "\n".join(map(printable, lines))

    def failure(self) -> str:
        """What is wrong, in one line."""
        parts = list(self.problems[:3])
        if self.wrong:
            name, count = next(iter(self.wrong.items()))
            where = f"{name} is not what suspect, base and mask give"
            if count is not None:
                where += f" ({count:,} elements differ)"
            parts.append(where + (f", nor are {len(self.wrong) - 1} more tensors" if len(self.wrong) > 1 else ""))
        return f"{'; '.join(parts)}: the folder is not what its report says, do not trust it."
