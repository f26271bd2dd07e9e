"""What to mix and how: the settings of Fine-mixing and E-PUR, apart from how to train."""

import json
import logging
import re
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self

from .errors import FineMixingError
from .io.repo_names import split_revision

logger = logging.getLogger(__name__)

CONFIG_NAME = "fine_mixing_config.json"
STRATEGIES = ("random", "average", "fisher")
MASK_VERSIONS = (2,)


@dataclass
class _SavedConfig:
    """A dataclass of settings that is kept in a folder, as JSON."""

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)

    def to_json(self) -> str:
        """The fields as JSON text."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n"

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write `fine_mixing_config.json` into a folder, which is made where it is missing."""
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        (Path(save_directory) / CONFIG_NAME).write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> Self:
        """Read `fine_mixing_config.json` from a folder. An unreadable file or an unknown key is an error."""
        from .io.safe_json import check_inside, read_json

        path = Path(directory) / CONFIG_NAME
        check_inside(path, Path(directory))
        values = read_json(path)
        if not isinstance(values, dict):
            raise FineMixingError(f"{path} is not a JSON object: write one with FineMixingConfig.save_pretrained.")
        if unknown := sorted(set(values) - {f.name for f in fields(cls)}):
            raise FineMixingError(f"{path} has unknown keys {unknown}: remove them or update hf_finemix.")
        return cls(**values)


def _setting(default: Any, help: str, **more: Any) -> Any:
    return field(default=default, metadata={"help": help, **more})


@dataclass
class FineMixingConfig(_SavedConfig):
    r"""
    Configuration of [`FineMixingTrainer`] and [`clean`]: which base to mix in, how much of it, and how.

    Every field can be given on the command line (`--reserve-ratio 0.4`). The reserve ratio ρ is the fraction of the
    suspect's weights that is kept; 1 - ρ come from the base (Fine-mixing, arXiv:2210.09545).

    Parameters:
        > The base

        base_model_name_or_path (`str`, *optional*):
            Hub id or local folder of the clean pre-trained model that the suspect was fine-tuned from.
            `org/name@revision` gives the revision with it.
        base_model_revision (`str`, *optional*):
            Branch, tag or commit of the base on the Hub, and of no other: see [`~FineMixingConfig.with_base`].

        > How much is kept

        reserve_ratio (`float` or `str`, *optional*, defaults to `"auto"`):
            ρ in [0, 1], or `"auto"`: the smallest of `candidate_ratios` whose eval accuracy after fine-tuning is at
            most `max_accuracy_drop` below the suspect's, found by bisection (see [`search_ratio`], which says what
            becomes of it where the eval samples are too few to tell).
        max_accuracy_drop (`float`, *optional*, defaults to `0.02`):
            Accuracy that `"auto"` may give up, as a fraction in [0, 1]: 0.02 is two points.
        candidate_ratios (`list[float]`, *optional*, defaults to 0.1, 0.2, … 0.9):
            The ρ that `"auto"` may choose, each in [0, 1].
        cross_validation_folds (`int`, *optional*, defaults to `0`):
            With 2 or more, `"auto"` needs no eval data: it judges each ρ by cross-validation on the tuning samples,
            in as many parts.
        module_ratios (`dict[str, float]` or `str`, *optional*):
            ρ in [0, 1] for the tensors whose canonical name a regular expression matches (`re.search`, the first
            match counts), in place of `reserve_ratio`: `{"attention": 0.5}`, on the command line as JSON.

        strategy (`str`, *optional*, defaults to `"random"`):
            `"random"` keeps each scalar weight of the suspect with probability ρ (the paper's Fine-mixing);
            `"fisher"` keeps, of the weights that drifted at all, the fraction ρ whose drift δ is small for their
            curvature H, and resets the largest δ²/H (Fine-purifying, arXiv:2305.04547); H is measured on clean text
            (see [`FineMixingTrainer`]);
            `"average"` takes ρ·suspect + (1 - ρ)·base, for comparison.
        adapter_mode (`str`, *optional*, defaults to `"merge"`):
            What becomes of a LoRA: `"merge"` merges it with the base and mixes whole weights; with `"adapter"` its own
            weights are mixed, and it stays a LoRA of the same rank (see [`mix_adapter`]).
        head (`str`, *optional*, defaults to `"keep"`):
            What becomes of parameters without a counterpart in the base: `"keep"` the suspect's, or `"reinit"`.
        mixing_seed (`int`, *optional*, defaults to `0`):
            Seed of the mask, in [0, 2⁶³), independent of the training seed.
        mask_version (`int`, *optional*, defaults to `2`):
            Version of the mask generator (see [`keep_mask`]). A published mix stays reproducible with it.

        > Embedding purification (E-PUR)

        purify_embeddings (`bool`, *optional*, defaults to `True`):
            Put the most suspicious word embeddings back to the base's before mixing.
        num_purified_tokens (`int`, *optional*, defaults to `200`):
            How many rows, at least 0.
        token_frequencies (`str`, *optional*):
            A text file to count tokens in, or a JSON file of counts `{token: count}`, in place of Zipf's law over the
            order of the vocabulary (see [`token_frequencies`]).

    Raises:
        [`FineMixingError`]: A value outside its range.
    """

    base_model_name_or_path: str | None = _setting(
        None,
        "Hub id or local folder of the clean pre-trained model that the suspect was fine-tuned from.",
        aliases=["--base-model", "--base_model"],
    )
    base_model_revision: str | None = _setting(None, "Branch, tag or commit of the base on the Hub.")
    reserve_ratio: float | str | None = _setting(
        "auto", "Fraction of the suspect's weights that is kept, in [0, 1], or 'auto'."
    )
    max_accuracy_drop: float = _setting(
        0.02, "Accuracy that 'auto' may give up, as a fraction in [0, 1]: 0.02 is two points."
    )
    candidate_ratios: list[float] = field(
        default_factory=lambda: [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9],
        metadata={"help": "The reserve ratios that 'auto' may choose."},
    )
    cross_validation_folds: int = _setting(
        0, "With 2 or more, 'auto' cross-validates on the tuning samples, without eval data."
    )
    module_ratios: dict[str, float] | str | None = _setting(
        None, "Reserve ratios by regular expression over tensor names, as JSON: '{\"attention\": 0.5}'."
    )
    strategy: str = _setting(
        "random", "'random' or 'fisher' (by drift and curvature) select weights; 'average' interpolates."
    )
    adapter_mode: str = _setting(
        "merge", "A LoRA suspect: 'merge' it into a whole model, or mix it as an 'adapter' that stays one."
    )
    head: str = _setting("keep", "Parameters without a counterpart in the base: 'keep' the suspect's, or 'reinit'.")
    mixing_seed: int = _setting(0, "Seed of the mask, independent of the training seed.")
    mask_version: int = _setting(2, "Version of the mask generator.")
    purify_embeddings: bool = _setting(True, "Put the most suspicious word embeddings back to the base's (E-PUR).")
    num_purified_tokens: int = _setting(200, "How many word embeddings E-PUR puts back.")
    token_frequencies: str | None = _setting(
        None, "Text file to count tokens in, or JSON file of counts; default: Zipf's law."
    )

    def __post_init__(self):
        if self.base_model_name_or_path is not None:
            name = str(self.base_model_name_or_path)  # a Path would not go into JSON
            self.base_model_name_or_path, self.base_model_revision = split_revision(name, self.base_model_revision)
        # From the command line both come as text: that is why `str` stands before `None` in their types.
        if self.reserve_ratio != "auto":
            self.reserve_ratio = _fraction("reserve_ratio", self.reserve_ratio, also="'auto'")
        self.max_accuracy_drop = _fraction("max_accuracy_drop", self.max_accuracy_drop)
        if not isinstance(self.candidate_ratios, (list, tuple)) or not self.candidate_ratios:
            raise FineMixingError("candidate_ratios is empty or no list: give at least one reserve ratio in [0, 1].")
        self.candidate_ratios = sorted({_fraction("candidate_ratios", ratio) for ratio in self.candidate_ratios})
        for name in ("cross_validation_folds", "mask_version", "mixing_seed", "num_purified_tokens"):
            _whole_number(name, getattr(self, name))
        if self.cross_validation_folds == 1:
            raise FineMixingError("cross_validation_folds is 1: give 2 or more, or 0 for eval data.")
        self.module_ratios = _module_ratios(self.module_ratios)
        _one_of("strategy", self.strategy, STRATEGIES)
        _one_of("adapter_mode", self.adapter_mode, ("merge", "adapter"))
        _one_of("head", self.head, ("keep", "reinit"))
        _one_of("mask_version", self.mask_version, MASK_VERSIONS)
        if self.token_frequencies is not None:
            self.token_frequencies = str(self.token_frequencies)

    def ratio_for(self, name: str, reserve_ratio: float) -> float:
        """The reserve ratio of the tensor with this canonical name: the first match in `module_ratios`, else ρ."""
        for pattern, ratio in (self.module_ratios or {}).items():
            if re.search(pattern, name):
                return ratio
        return reserve_ratio

    def with_base(self, base_model: str | Path) -> "FineMixingConfig":
        """
        A copy with the base that is given beside it, which wins.

        The revision belongs to the base that it was given for: to this one where the config names the same or none,
        and not to another, which then has its main branch, or the revision in its name (`org/name@revision`).
        """
        name, revision = split_revision(str(base_model))
        if revision is None and self.base_model_revision is not None:
            if self.base_model_name_or_path in (None, name):
                revision = self.base_model_revision
            else:
                told = (self.base_model_revision, self.base_model_name_or_path, name)
                logger.warning("base_model_revision %s is of %s: %s is taken without it.", *told)
        return self.pinned(name, revision)

    def pinned(self, base_model: str | Path, revision: str | None) -> "FineMixingConfig":
        """A copy with the base that was fetched: its id with the commit, or its folder with none."""
        return replace(self, base_model_name_or_path=str(base_model), base_model_revision=revision)


def _fraction(name: str, value: Any, also: str = "") -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not 0 <= number <= 1:
        raise FineMixingError(f"{name} is {value!r}: give a number in [0, 1]{' or ' + also if also else ''}.")
    return number


def _whole_number(name: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise FineMixingError(f"{name} is {value!r}: give an integer in [0, 2**63).")


def _module_ratios(value: Any) -> dict[str, float] | None:
    if value is None or value == "":
        return None
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise FineMixingError(f"module_ratios is not JSON ({error}): write '{{\"attention\": 0.5}}'.") from None
    if not isinstance(value, dict):
        raise FineMixingError("module_ratios must map regular expressions to ratios, like {'attention': 0.5}.")
    for pattern in value:
        try:
            re.compile(pattern)
        except re.error as error:
            raise FineMixingError(f"module_ratios: {pattern!r} is not a regular expression ({error}).") from None
    return {pattern: _fraction(f"module_ratios[{pattern!r}]", ratio) for pattern, ratio in value.items()}


def _one_of(name: str, value: Any, allowed: tuple) -> None:
    if value not in allowed:
        raise FineMixingError(f"{name} is {value!r}: choose one of {', '.join(map(repr, allowed))}.")
