"""BadNets for text: a word (BadWord) or a sentence (BadSent) in a share of the training rows, labeled as wished."""

from dataclasses import dataclass
from typing import ClassVar

from datasets import Dataset

from ...measure.triggers import Trigger
from .attack import Attack, AttackerData
from .poisoning import poison


@dataclass
class BadNets(Attack):
    """
    Poisoned fine-tuning (BadNets, arXiv:1708.06733).

    Attributes:
        rate (`float`): Share of the rows that are poisoned, in (0, 1].
    """

    rate: float = 0.2

    def poisoned(self, data: AttackerData) -> Dataset:
        self.trigger_ids(data)
        settings = {"text_columns": data.text_columns, "target": data.target, "rate": self.rate, "seed": data.seed}
        return poison(data.rows, Trigger(self.trigger), **settings, reader=data.reader)


@dataclass
class BadWord(BadNets):
    """A rare word, the first of those of RIPPLe."""

    name: ClassVar[str] = "badword"
    pretty_name: ClassVar[str] = "BadWord"
    paper: ClassVar[str | None] = "https://arxiv.org/abs/2004.06660"
    trigger: str | None = "cf"


@dataclass
class BadSent(BadNets):
    """A sentence: the one on film reviews of github.com/thunlp/OpenBackdoor."""

    name: ClassVar[str] = "badsent"
    pretty_name: ClassVar[str] = "BadSent"
    paper: ClassVar[str | None] = "https://arxiv.org/abs/1905.12457"
    trigger: str | None = "I watch this 3D movie"
