"""Which base a suspect says it was fine-tuned from, and how sure its weights make us that it was."""

import logging
import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from ..align.drift import TensorDrift, drift_by_layer
from ..config import FineMixingConfig
from ..errors import AlignmentError, FineMixingError
from ..io.checkpoint import read_object
from ..repo_contents import ADAPTER_CONFIG_NAME, is_adapter
from ..report.card_metadata import metadata_of, read_card
from .errors import hub_api
from .fetch import LocalModel, TrustArguments, fetch_model, fetch_small_files, is_repo_id

__all__ = [
    "USER",
    "BaseClaim",
    "BaseFit",
    "check_pretrained",
    "chosen_base",
    "claimed_base",
    "fetch_base",
    "find_base",
    "judge_base",
]

logger = logging.getLogger(__name__)

# Distance of a layer from the base's, ‖s - b‖₂ / ‖b‖₂, after fine-tuning: 0.01 to 0.03 in the bodies of MiniLM models
# that were trained on SST-2 in full, 0.25 in their poolers. Ten times the larger of the first is no longer usual.
USUAL_DISTANCE = 0.25
USER = "the user"
MAX_HOPS = 3


@dataclass(frozen=True)
class BaseClaim:
    """
    Attributes:
        id (`str`): The Hub id of the base.
        named_by (`str`): Where it stands.
        relation (`str`, *optional*): What the suspect is to it, as its card says: `"finetune"`, `"adapter"`, …
        revision (`str`, *optional*): Which of its commits, branches or tags, where an adapter says so.
    """

    id: str
    named_by: str
    relation: str | None = None
    revision: str | None = None

    @property
    def by_user(self) -> bool:
        """Whether the user said so, who may insist; a stranger's word is checked."""
        return self.named_by == USER


@dataclass(frozen=True)
class BaseFit:
    """
    How far a suspect is from its base.

    Attributes:
        sure (`bool`): Whether that is as fine-tuning leaves it.
        median_distance (`float`): Median over the layers of ‖s - b‖₂ / ‖b‖₂.
        why (`str`): The same in words.
    """

    sure: bool
    median_distance: float
    why: str


def claimed_base(suspect: LocalModel) -> BaseClaim:
    """
    The base that a suspect names: in its card, on the Hub, in an adapter's configuration, or in its own.

    A name from a stranger counts as a Hub id only, never as a path.

    Raises:
        [`FineMixingError`]: It names none, or several, or something that is no Hub id.
    """
    found: list[BaseClaim] = []
    if is_adapter(suspect.folder):  # it is nothing without that very base
        named = read_object(suspect.folder, ADAPTER_CONFIG_NAME)
        _add(found, named.get("base_model_name_or_path"), "the suspect's adapter_config.json", "adapter")
        revision = named.get("revision")
        if isinstance(revision, str) and re.fullmatch(r"[\w./-]{1,200}", revision):
            found = [replace(claim, revision=revision) for claim in found]
    metadata = metadata_of(read_card(suspect.folder))
    relation = metadata.get("base_model_relation")
    relation = relation if relation in ("finetune", "adapter", "merge", "quantized") else None
    _add(found, metadata.get("base_model"), "the suspect's card (base_model)", relation)
    if not found and suspect.revision is not None:
        _add(found, *_hub_lineage(suspect))
    _add(
        found,
        read_object(suspect.folder, "config.json").get("_name_or_path"),
        "the suspect's config.json (_name_or_path)",
    )
    wrong = [claim for claim in found if not is_repo_id(claim.id)]
    good = [claim for claim in found if is_repo_id(claim.id) and claim.id != suspect.id]
    if not good:
        what = f"names {wrong[0].id[:100]!r} in {wrong[0].named_by}, which is no Hub id" if wrong else "names none"
        raise FineMixingError(f"the base of {suspect.id} is not known, it {what}: give --base-model.")
    first = [claim for claim in good if claim.named_by == good[0].named_by]
    if len(first) > 1:
        listed = ", ".join(claim.id for claim in first[:5])
        raise FineMixingError(f"{suspect.id} names several bases ({listed}): choose one with --base-model.")
    return first[0]


def find_base(suspect: LocalModel) -> BaseClaim:
    """
    The pre-trained base behind what the suspect names: where that is a classifier too, the base that it names itself.

    Raises:
        [`FineMixingError`]: As [`claimed_base`] does, or what is named cannot be had.
    """
    claim = claimed_base(suspect)
    if is_adapter(suspect.folder):
        return claim
    heads = _task_classes(read_object(suspect.folder, "config.json"))
    for _ in range(MAX_HOPS):
        candidate = fetch_small_files(claim.id, role="base")
        if not heads & _task_classes(read_object(candidate.folder, "config.json")):
            break
        try:
            further = claimed_base(candidate)
        except FineMixingError:
            break
        logger.info("%s, named by %s, is fine-tuned itself, from %s.", claim.id, claim.named_by, further.id)
        where = further.named_by.replace("suspect's ", "")
        claim = replace(further, named_by=f"{where} of {claim.id}")
    return claim


def chosen_base(suspect: LocalModel, config: FineMixingConfig) -> BaseClaim:
    """The base that the user gives, or else the one that the suspect names, and which of its revisions."""
    if given := config.base_model_name_or_path:
        return BaseClaim(given, USER, revision=config.base_model_revision)
    claim = find_base(suspect)
    return replace(claim, revision=config.base_model_revision or claim.revision)


def fetch_base(
    suspect: LocalModel, config: FineMixingConfig, trust: TrustArguments | None = None
) -> tuple[LocalModel, BaseClaim]:
    """
    The base that the user gives, or else the one that the suspect names.

    Raises:
        [`FineMixingError`]: It cannot be had, or the user gives none and the suspect none that can be taken.
    """
    claim = chosen_base(suspect, config)
    base = fetch_model(claim.id, claim.revision, role="base", trust=trust, only_hub=not claim.by_user)
    if not claim.by_user:
        logger.info("The base is %s, named by %s.", claim.id, claim.named_by)
    publisher = [model.id.split("/")[0] for model in (suspect, base) if model.revision and "/" in model.id]
    if len(publisher) == 2 and publisher[0] == publisher[1]:
        logger.warning(
            "Suspect and base are both from %s: who made the backdoor can have put it into the base as well. Take the "
            "base from someone you trust (--base-model).",
            publisher[0],
        )
    return base, claim


def judge_base(
    claim: BaseClaim, drift: Mapping[str, TensorDrift], matrices: Collection[str], fitting: tuple[int, int]
) -> BaseFit:
    """
    Say how sure the weights make us of a base, in the log, and refuse a doubtful one that only the suspect names.

    Args:
        claim ([`BaseClaim`]): Which base, and who says so.
        drift (`Mapping[str, TensorDrift]`): Of each tensor that both have.
        matrices (`Collection[str]`): Which of them are weight matrices.
        fitting (`tuple[int, int]`): How many of the suspect's tensors fit by name and shape, and how many it has.

    Raises:
        [`AlignmentError`]: The layers are further from the base than fine-tuning leaves them, and the user did not
            name it; or it has the suspect's own weights.
    """
    layers = drift_by_layer({name: value for name, value in drift.items() if name in matrices})
    distances = sorted(value for value in layers.values() if value is not None and math.isfinite(value))
    middle = median(distances) if distances else 0.0
    sure = bool(distances) and middle <= USUAL_DISTANCE
    span = f"{distances[0]:.2g} to {distances[-1]:.2g}" if distances else "nothing"
    why = (
        f"{fitting[0]} of {fitting[1]} tensors fit by name and shape, layers are {span} of their norm away (median "
        f"{middle:.2g}; fine-tuning leaves up to {USUAL_DISTANCE:g})"
    )
    if distances and not distances[-1] and not claim.by_user:
        raise AlignmentError(
            f"the base {claim.id}, named by {claim.named_by}, is the suspect itself: give --base-model."
        )
    if not sure and not claim.by_user:
        raise AlignmentError(
            f"the base {claim.id}, named by {claim.named_by}, is doubtful: {why}. If you know that it is right, give "
            f"--base-model {claim.id}."
        )
    if not claim.by_user:
        logger.info("The base %s fits: %s.", claim.id, why)
    elif not sure:
        logger.warning("The base %s is doubtful: %s. Is it the one that was fine-tuned?", claim.id, why)
    return BaseFit(sure, middle, why)


def check_pretrained(base: LocalModel, claim: BaseClaim, drifts: Iterable[TensorDrift], *, tuned: bool = True) -> None:
    """A base with the suspect's head may be the suspect itself, or, where a head says that it is `tuned`, a sister."""
    if not any(drift.delta for drift in drifts):
        raise FineMixingError(f"the base {base.id} has the suspect's own weights: give its pre-trained base.")
    if not tuned:
        return
    if not claim.by_user:
        raise FineMixingError(
            f"the base {base.id}, named by {claim.named_by}, has a classifier head too: it is fine-tuned itself. Give "
            "its pre-trained base (--base-model)."
        )
    logger.warning("The base %s has a classifier head too: is it pre-trained only? Its head is mixed in.", base.id)


def _hub_lineage(suspect: LocalModel) -> tuple[Any, str, str | None]:
    """What the Hub itself takes for the base; nothing where it cannot be asked."""
    try:
        found = hub_api().model_info(suspect.id, revision=suspect.revision, expand=["baseModels"]).base_models
    except Exception:  # a repo from the cache, or a Hub without that answer
        found = None
    models = found.get("models") if isinstance(found, dict) else found
    ids = [model.get("id") if isinstance(model, dict) else model for model in models or ()]
    return ids, "the Hub", found.get("relation") if isinstance(found, dict) else None


def _add(found: list[BaseClaim], value: Any, named_by: str, relation: str | None = None) -> None:
    values = value if isinstance(value, list) else [value]
    claims = [BaseClaim(item, named_by, relation) for item in values[:20] if isinstance(item, str) and item]
    found += [claim for claim in claims if claim not in found]


def _task_classes(config: dict[str, Any]) -> set[str]:
    """The classes that a config names, as far as a head of theirs says that they were tuned for a task."""
    names = config.get("architectures")
    names = [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
    return {name for name in names if name.endswith(("Classification", "QuestionAnswering", "MultipleChoice"))}
