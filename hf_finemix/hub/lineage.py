"""Which base a suspect says it was fine-tuned from."""

import logging
import re
from dataclasses import dataclass, replace
from typing import Any

from ..config import FineMixingConfig
from ..errors import FineMixingError
from ..io.folder import LocalModel, is_adapter
from ..io.repo_names import is_repo_id
from ..io.safe_json import read_object
from ..repo_contents import ADAPTER_CONFIG_NAME
from .cards import metadata_of, read_card
from .errors import hub_api
from .fetch import TrustArguments, fetch_model, fetch_small_files

logger = logging.getLogger(__name__)

USER = "the user"
MAX_HOPS = 3


@dataclass(frozen=True)
class BaseClaim:
    """
    A base on the Hub, and where it is named.

    Attributes:
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


def claimed_base(suspect: LocalModel) -> BaseClaim:
    """
    The base that a suspect names: in its card, on the Hub, in an adapter's configuration, or in its own. A name from a
    stranger counts as a Hub id only, never as a path.
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
    config = read_object(suspect.folder, "config.json")
    _add(found, config.get("_name_or_path"), "the suspect's config.json (_name_or_path)")
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
    """The pre-trained base behind what the suspect names: where that is a classifier too, the base that it names."""
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
    """The base that the user gives, or else the one that the suspect names."""
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
