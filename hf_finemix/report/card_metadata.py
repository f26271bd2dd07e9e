"""The YAML at the top of our card: what it says, and what of a stranger's may stand in it."""

import re
from pathlib import Path
from typing import Any

import yaml

from ..errors import FineMixingError
from ..hub.cards import _load, metadata_of, read_card
from ..io.repo_names import is_repo_id
from .report import CleaningReport

# Words that mean something to the Hub, and can mean nothing else to a reader of YAML, Markdown or HTML.
_WORD = re.compile(r"[A-Za-z0-9][\w.+-]{0,63}", re.ASCII)
_CARRIED = {"license": 1, "license_name": 1, "language": 20, "pipeline_tag": 1, "tags": 30}


def carried_over(folder: Path) -> dict[str, Any]:
    """
    What of a suspect's card may stand in ours: its license, languages, task and tags, as plain words.

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
