"""The model card of a cleaned model, from its report alone."""

from pathlib import Path
from typing import Any

import yaml

from .figures import TITLES
from .report import CleaningReport, percent

__all__ = ["card_metadata", "render_card"]

BEGIN, END = "<!-- hf_finemix: begin -->", "<!-- hf_finemix: end -->"


def render_card(report: CleaningReport) -> str:
    """
    The README.md of a cleaned model.

    Ids, triggers and other text of strangers appear as code with everything live taken out.
    """
    import jinja2

    template = (Path(__file__).parent / "templates" / "model_card.md").read_text(encoding="utf-8")
    floor = report.benign_floor or {}

    def rate(part: dict[str, Any], i: int) -> str:
        return percent(part["triggers"][i]["asr"] if part.get("triggers") else None)

    values = {
        "metadata": yaml.safe_dump(_metadata(report), sort_keys=False, allow_unicode=True).strip(),
        "begin_marker": BEGIN,
        "end_marker": END,
        "suspect": _name(report.suspect),
        "suspect_revision": _revision(report.suspect),
        "base": _name(report.base),
        "base_revision": _revision(report.base),
        "verdict": _verdict(report),
        "n": report.after["n"],
        "accuracy_before": percent(report.before["accuracy"]),
        "accuracy_after": percent(report.after["accuracy"]),
        "accuracy_floor": percent(floor.get("accuracy")),
        "triggers": [
            {
                "trigger": code(trigger["trigger"]),
                "n": trigger["n"],
                "before": rate(report.before, i),
                "after": rate(report.after, i),
                "floor": rate(floor, i),
            }
            for i, trigger in enumerate(report.after["triggers"])
        ],
        "figures": [{"path": path, "title": TITLES[Path(path).stem]} for path in report.figures],
        "reserve_ratio": f"{report.mixing['reserve_ratio']:g}",
        "num_purified": len(report.purified_tokens),
        "trigger_tokens": _trigger_tokens(report),
        "num_tuning": report.data["rows"]["tuning"],
        "text_columns": " and ".join(map(code, report.data["text_columns"])),
        "chosen": _chosen(report),
        "command": _inert(report.command, "`<>") if report.command else None,
    }
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False, keep_trailing_newline=True)
    return environment.from_string(template).render(values)


def card_metadata(folder: Path) -> dict[str, Any]:
    """Licence, language, task and tags of the suspect's card, where it has any: plain strings, nothing else."""
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace")[:100_000] if card.is_file() else ""
    block = text[4:].split("\n---", 1)[0] if text.startswith("---\n") else ""
    try:
        found = yaml.safe_load(block)
    except (yaml.YAMLError, ValueError, RecursionError):
        found = None
    found = found if isinstance(found, dict) else {}
    values = {key: found.get(key) for key in ("license", "language", "pipeline_tag", "tags")}
    lists = {key: value if isinstance(value, list) else [value] for key, value in values.items() if value}
    return {
        key: kept if key in ("language", "tags") else kept[0]
        for key, value in lists.items()
        if (kept := [item for item in value if isinstance(item, str) and len(item) < 100 and item.isprintable()])
    }


def code(text: Any) -> str:
    """Text of a stranger as inline code: one line, no backticks, no pipe that would end a table cell."""
    return f"`{_inert(str(text)[:120], '`|<>')}`"


def _inert(text: str, live: str) -> str:
    """The text with a dot for each of the signs in `live`, and for whatever cannot be seen or turns text around."""
    return "".join(sign if sign.isprintable() and sign not in live else "·" for sign in text)


def _verdict(report: CleaningReport) -> str:
    change = 100 * (report.after["accuracy"] - report.before["accuracy"])
    accuracy = f"Accuracy on clean text changed by {change:+.1f} points."
    if not report.after["triggers"]:
        return f"{accuracy} **Whether a backdoor was there, and whether it is gone, was not measured.**"
    worst = max(range(len(report.after["triggers"])), key=lambda i: report.after["triggers"][i]["asr"])
    before, after = (part["triggers"][worst]["asr"] for part in (report.before, report.after))
    return f"**The most successful trigger's success went from {percent(before)} to {percent(after)}.** {accuracy}"


def _name(source: dict[str, Any]) -> str:
    """A Hub id, or the last part of a local path: where the folder lies is nobody's business."""
    return code(source["id"] if source["revision"] else Path(source["id"]).name)


def _revision(source: dict[str, Any]) -> str:
    return f"revision {code(source['revision'])}" if source["revision"] else "a local folder"


def _trigger_tokens(report: CleaningReport) -> str:
    """Where the tokens of the measured triggers stand in E-PUR's ranking."""
    drift = report.embedding_drift or {}
    places = [
        f"{code(token['token'])} is {token['rank']:,} ({'put back' if token['purified'] else 'not put back'})"
        for token in drift.get("trigger_tokens", [])[:10]
    ]
    return f"By its score, among {drift['num_tokens']:,} tokens, {', '.join(places)}." if places else ""


def _chosen(report: CleaningReport) -> str:
    search = report.ratio_search
    if not search:
        return "ρ was given by the user."
    accuracy = f"{search['max_accuracy_drop'] * 100:g} points of the suspect's {percent(search['suspect_accuracy'])}"
    if search["within_limit"]:
        return f"ρ was chosen as the smallest tried whose accuracy on eval data is within {accuracy}."
    return f"No ρ tried kept the accuracy on eval data within {accuracy}: the most accurate one was taken."


def _metadata(report: CleaningReport) -> dict[str, Any]:
    """The YAML block. Local paths are no Hub ids and stay out of it."""
    bases = [part["id"] for part in (report.base, report.suspect) if part["revision"]]
    metadata = {key: report.card_metadata.get(key) for key in ("license", "language", "pipeline_tag")}
    metadata |= {"library_name": "transformers", "tags": ["hf_finemix", "backdoor-removal"]}
    if bases:
        metadata["base_model"] = bases
    if report.data.get("sha"):
        metadata["datasets"] = [report.data["id"]]
    return {key: value for key, value in metadata.items() if value}
