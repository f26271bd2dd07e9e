"""The YAML at the top of a card: read from a stranger's with limits, and what of it may stand in ours."""

import re
from itertools import accumulate
from pathlib import Path
from typing import Any

import yaml

from ..errors import FineMixingError
from ..io.checkpoint import check_inside
from ..io.repo_names import is_repo_id
from .report import CleaningReport

__all__ = ["carried_over", "front_matter", "merge_yaml", "metadata_for", "metadata_of", "read_card"]

MAX_CARD_CHARACTERS = 1_000_000
MAX_YAML_CHARACTERS = 50_000  # the largest cards of the Hub have that much, most of it results
MAX_ALIASES, MAX_DEPTH = 10, 50
_BLOCK = re.compile(r"\A\s*---[ \t]*(?:\r\n|\r|\n)(.*?)(?:\r\n|\r|\n)---[ \t]*(?:\r\n|\r|\n|\Z)", re.DOTALL)
# Words that mean something to the Hub, and can mean nothing else to a reader of YAML, Markdown or HTML.
_WORD = re.compile(r"[A-Za-z0-9][\w.+-]{0,63}", re.ASCII)
_CARRIED = {"license": 1, "license_name": 1, "language": 20, "pipeline_tag": 1, "tags": 30}


def read_card(folder: Path) -> str:
    """The README.md of a model folder, or "" where there is none."""
    path = folder / "README.md"
    if not path.is_file():
        return ""
    check_inside(path, folder)
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read(MAX_CARD_CHARACTERS)


def front_matter(card: str) -> tuple[str | None, int]:
    """The text of the YAML block at the top of a card, and where the card's body begins. `None` without one."""
    block = _BLOCK.match(card)
    return (block[1], block.end()) if block else (None, 0)


def metadata_of(card: str) -> dict[str, Any]:
    """The YAML of a card as a mapping; empty where it is missing, too long, broken or no mapping."""
    text, _ = front_matter(card)
    try:
        found = _load(text or "")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _load(text: str) -> Any:
    """YAML of a stranger; a `ValueError` for whatever is wrong with it."""
    # Merge keys can grow without bounds, deep nesting takes a time that does: no card needs either.
    if len(text) > MAX_YAML_CHARACTERS or re.search(r"<<[\"']?\s*:", text) or "tag:yaml.org,2002:merge" in text:
        raise ValueError("it is too long, or has merge keys")
    depth = accumulate((sign in "[{") - (sign in "]}") for sign in text)
    if max(depth, default=0) > MAX_DEPTH or re.search(r"(?m)^\s*(?:[-?] +){10}", text):
        raise ValueError("it is nested too deeply")
    try:
        # Nor more aliases than a person writes: what they stand for can stand for others again.
        if sum(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)) > MAX_ALIASES:
            raise ValueError("it has too many aliases")
        return yaml.safe_load(text)
    except Exception as error:  # its constructors raise what they like
        raise ValueError(str(error)) from error


def carried_over(folder: Path) -> dict[str, Any]:
    """
    What of a suspect's card may stand in ours: its licence, languages, task and tags, as plain words.

    Whatever could be more than a word (a link, markup, a line break) is left out.
    """
    return _words(metadata_of(read_card(folder)))


def _words(found: dict[str, Any]) -> dict[str, Any]:
    kept = {}
    for key, most in _CARRIED.items():
        values = found.get(key)
        values = values if isinstance(values, list) else [values]
        words = [word for word in values if isinstance(word, str) and _WORD.fullmatch(word)][:most]
        if words:
            kept[key] = words if key in ("language", "tags") else words[0]
    return kept


def metadata_for(report: CleaningReport) -> dict[str, Any]:
    """The YAML. Local paths are no Hub ids and stay out of it."""
    from huggingface_hub import EvalResult, ModelCardData

    carried = _words(report.card_metadata)
    stays_adapter = report.mixing.get("adapter_mode") == "adapter"
    sides = (report.base,) if stays_adapter else (report.base, report.suspect)
    sources = [part for part in sides if part.get("revision") and is_repo_id(str(part["id"]))]
    tags = [tag for tag in carried.get("tags") or () if tag not in ("hf_finemix", "backdoor-removal")]
    dataset = _dataset(report)
    task = carried.get("pipeline_tag")
    results = []
    measured = [("accuracy", "Accuracy on clean text", report.after.get("accuracy"))]
    measured += [("f1", "Macro-F1 on clean text", report.after.get("macro_f1"))]
    for i, trigger in enumerate(report.after.get("triggers") or (), 1):
        measured.append(("attack_success_rate", f"Attack success, trigger {i}", trigger.get("asr")))
    for kind, name, value in measured:
        if value is not None and task is not None:
            results.append(EvalResult(task, dataset["type"], dataset["name"], kind, round(value, 4), metric_name=name))
            results[-1].dataset_revision, results[-1].dataset_split = dataset["revision"], dataset["split"]
    relation = "adapter" if stays_adapter else "merge" if len(sources) > 1 else "finetune"
    card = ModelCardData(
        license=carried.get("license"),
        license_name=carried.get("license_name"),
        language=carried.get("language"),
        pipeline_tag=task,
        library_name="peft" if stays_adapter else "transformers",
        base_model=[part["id"] for part in sources] or None,
        base_model_relation=relation if sources else None,
        tags=["hf_finemix", "backdoor-removal", *tags],
        datasets=[dataset["type"]] if dataset["revision"] else None,
        metrics=list(dict.fromkeys(result.metric_type for result in results)) or None,
        model_name=f"{_slug(Path(str(report.suspect['id'])).name)}-cleaned",
        eval_results=results or None,
    )
    return {key: value for key, value in card.to_dict().items() if value and key != "model_name"}


def merge_yaml(old: str | None, new: str, where: str) -> str:
    """Our keys in the place of theirs; every other line stays as it was written. Tags are added to theirs."""
    ours = yaml.safe_load(new)
    try:
        theirs = _load(old or "") or {}
    except ValueError as error:
        raise FineMixingError(
            f"the YAML of {where} cannot be read: mend it there, or publish to another repo."
        ) from error
    if not isinstance(theirs, dict):
        raise FineMixingError(f"the YAML of {where} is no mapping: mend it there, or publish to another repo.")
    for key in ("license", "license_name", "language"):  # theirs to choose
        if key in theirs:
            ours.pop(key, None)
    if isinstance(theirs.get("tags"), list):
        ours["tags"] = [*theirs["tags"], *(tag for tag in ours["tags"] if tag not in theirs["tags"])]
    wanted = theirs | ours
    ours = {key: value for key, value in ours.items() if key not in theirs or theirs[key] != value}
    lines = []
    for block in re.split(r"(?m)^(?=[^\s#\-\]}])", (old or "").strip("\r\n")):
        key = block.split(":", 1)[0].strip("\"' ")
        if block and key not in ours:
            lines.append(block.rstrip("\r\n") + "\n")
    merged = "".join(lines) + (yaml.safe_dump(ours, sort_keys=False, allow_unicode=True) if ours else "")
    try:
        kept = _load(merged) == wanted
    except ValueError:
        kept = False
    return merged if kept else yaml.safe_dump(wanted, sort_keys=False, allow_unicode=True)


def _dataset(report: CleaningReport) -> dict[str, str | None]:
    """What the numbers were measured on, as the Hub wants it named."""
    data = report.data
    name = str(data.get("id") or "unknown")
    split = re.match(r"[\w.-]+", str((data.get("splits") or {}).get("test", "")))
    if not data.get("sha") or not is_repo_id(name):
        return {"type": "local", "name": f"{_slug(Path(name).name)} (local files)", "revision": None, "split": None}
    return {"type": name, "name": name.split("/")[-1], "revision": data["sha"], "split": split and split[0]}


def _slug(text: Any) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", str(text)).strip("-.")[:80] or "model"
