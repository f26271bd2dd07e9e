"""The model card of a cleaned model, from its report alone, and how it is put into a card that is there already."""

import re
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from ..errors import FineMixingError
from ..hub.cards import front_matter
from ..io.safe_json import check_inside
from .card_metadata import merge_yaml, metadata_for
from .figures import TITLES
from .report import CleaningReport, percent
from .schema import Source
from .verdict import verdict

_METHODS = {
    "random": "by Fine-mixing (arXiv:2210.09545): a fraction",
    "fisher": "by Fine-purifying (arXiv:2305.04547): those whose drift is small for their curvature, a fraction",
    "average": "by averaging: a share",
}
_CLASS = "the attacker's class"
_ADAPTER = (
    "It stays a LoRA adapter of the same rank: what was mixed are its own weights, with what they were before any "
    "training, which is the base."
)
BEGIN, END = "<!-- hf_finemix: begin -->", "<!-- hf_finemix: end -->"


def render_card(report: CleaningReport) -> str:
    """
    The README.md of a cleaned model.

    Ids, triggers and other text of strangers appear as code with everything live taken out.

    Raises:
        [`FineMixingError`]: The report lacks what a card says.
    """
    with _one_line_error():
        metadata = yaml.safe_dump(metadata_for(report), sort_keys=False, allow_unicode=True)
    return f"---\n{metadata}---\n\n{BEGIN}\n{card_section(report)}{END}\n"


def card_section(report: CleaningReport, *, figures: bool = True) -> str:
    """What the card says, without its YAML; `figures=False` leaves out the pictures, where they are not at hand."""
    import jinja2

    template = (Path(__file__).parent / "templates" / "model_card.md").read_text(encoding="utf-8")
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False, keep_trailing_newline=True)
    with _one_line_error():
        return environment.from_string(template).render(_values(report, figures))


@contextmanager
def _one_line_error() -> Iterator[None]:
    """A report may be a stranger's, or of a kind that has no card."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise FineMixingError(f"the report lacks what a card says ({error!r}): give one that clean wrote.") from error


def merge_card(existing: str, ours: str, *, where: str = "README.md") -> str:
    """
    Put our section and our YAML keys into a card, and leave everything else of it as it is.

    Args:
        existing (`str`): The card that is there; our section of an earlier time is replaced.
        ours (`str`): What [`render_card`] gave.
        where (`str`, *optional*): Which card it is, for messages.

    Raises:
        [`FineMixingError`]: The YAML of the existing card cannot be read.
    """
    new_yaml, start = front_matter(ours)
    section = ours[start:].strip("\r\n") + "\n"
    old_yaml, start = front_matter(existing)
    body = existing[start:]
    before, begin, rest = body.partition(BEGIN)
    _, end, after = rest.partition(END)
    if begin and end and body.count(BEGIN) == body.count(END) == 1:
        body = before + section.rstrip("\n") + after
    else:  # none of ours yet, or markers that somebody else has put there
        body = f"\n{section}{_without_markers(body)}"
    return f"---\n{merge_yaml(old_yaml, new_yaml, where)}---\n{body}"


def card_in_folder(folder: Path, report: CleaningReport) -> str:
    """The card of a report, put into the README.md of its folder where there is one. Raises as [`merge_card`] does."""
    path = folder / "README.md"
    if not path.is_file():
        return render_card(report)
    check_inside(path, folder)
    return merge_card(path.read_text(encoding="utf-8", errors="replace"), render_card(report), where=str(path))


def text_of_others(card: str) -> str:
    """The body of a card without our section."""
    body = card[front_matter(card)[1] :]
    before, begin, rest = body.partition(BEGIN)
    return (before + rest.partition(END)[2] if begin else body).strip()


def _values(report: CleaningReport, figures: bool) -> dict[str, Any]:
    parts = {
        "before": report.before,
        "after": report.after,
        "matched": report.matched_floor or {},
        "benign": report.benign_floor or {},
    }

    def rates(i: int) -> dict[str, str]:
        return {
            name: percent(part["triggers"][i]["asr"] if part.get("triggers") else None) for name, part in parts.items()
        }

    triggers, writes = report.after.get("triggers") or [], "perplexity" in report.after
    return {
        "suspect": _name(report.suspect),
        "base": _name(report.base),
        "verdict": verdict(report),
        "notes": report.notes(code),
        "n": _number(report.after.get("n")),
        "accuracy": {name: percent(part.get("accuracy")) for name, part in parts.items()},
        "triggers": [
            {"trigger": code(trigger["trigger"]), "n": _number(trigger["n"]), **rates(i)}
            for i, trigger in enumerate(triggers)
        ],
        "accuracy_of": "accuracy of the next token" if writes else "accuracy",
        "perplexity": writes and {name: _perplexity(part) for name, part in parts.items()},
        "success": _success(report, writes),
        "seeds": "Seeds: " + ", ".join(f"{code(name)} {_number(seed)}" for name, seed in report.seeds.items()) + ".",
        "figures": [
            {"path": path, "title": TITLES[Path(path).stem]}
            for path in report.figures
            if figures and re.fullmatch(r"figures/\w+\.png", path) and Path(path).stem in TITLES
        ],
        "reserve_ratio": f"{report.mixing['reserve_ratio']:g}",
        "method": _METHODS.get(report.mixing.get("strategy"), _METHODS["random"]),
        "drifted": " that had drifted" if report.mixing.get("strategy") == "fisher" else "",
        "num_purified": len(report.purified_tokens),
        "trigger_tokens": _trigger_tokens(report),
        "adapter": _ADAPTER if report.mixing.get("adapter_mode") == "adapter" else "",
        "tuned": bool(report.training),
        "num_tuning": _number(report.data.get("rows", {}).get("tuning")),
        "chosen": _chosen(report),
        "command": _inert(report.command, "`<>") if report.command else None,
        "sources": list(_sources(report)),
        "provenance": list(_provenance(report)),
        "verify": _verify(report),
    }


def _success(report: CleaningReport, writes: bool) -> str:
    target = code(report.data["target"]) if report.data.get("target") else None
    if writes:
        return f"how often the answer holds what the attacker wants ({target or 'not named'}), where it should not,"
    return f"how often a text that is not {target or _CLASS} is taken for it"


def _perplexity(part: Mapping[str, Any]) -> str:
    value = part.get("perplexity")
    return "not measured" if value is None else f"{float(value):.2f}"


def _sources(report: CleaningReport) -> Iterator[dict[str, str]]:
    for role, source in (("suspect", report.suspect), ("base", report.base)):
        commit = code(source["revision"]) if source.get("revision") else "a local folder"
        yield {"role": role, "name": _name(source), "commit": commit, "hashes": _hashes(source.get("sha256"))}
    yield {"role": "this model", "name": "", "commit": "", "hashes": _hashes(report.weights)}


def _hashes(files: dict[str, str] | None) -> str:
    """Of the first weight files; a sharded model has the others in its report."""
    shown = [f"{code(name)} {code(digest)}" for name, digest in list((files or {}).items())[:3]]
    return "<br>".join(shown) + (" …" if len(files or {}) > 3 else "") if shown else "not measured"


def _provenance(report: CleaningReport) -> Iterator[str]:
    if fit := report.base.get("fit"):
        by = code(report.base.get("named_by"))
        yield f"The base was named by {by}; {'it fits' if fit['sure'] else 'it is doubtful'}: {code(fit['why'], 300)}."
    if security := report.suspect.get("security"):
        scans = {
            "finished": f"flagged {len(security['flagged'])} files" if security["flagged"] else "found nothing",
            "unfinished": "was not finished, so it says nothing",
        }
        yield f"The Hub's own scan of the suspect's files {scans.get(security['hub_scan'], 'is not known')}."
        if pickles := security.get("pickles"):
            yield f"Its weights were pickled: scanned with {code(pickles['scanner'])} and read as data alone."
    if report.tokenizer.get("source") == "suspect":
        differences = ", ".join(map(str, report.tokenizer["differences"]))
        what = "what it does to a text was not examined"
        yield f"**The tokenizer is the suspect's** ({code(differences)} differ): {what}."
    data = report.data
    if data.get("rows"):
        rows = ", ".join(f"{_number(count)} for {code(use)}" for use, count in data["rows"].items())
        commit = f" at {code(data['sha'])}" if data.get("sha") else ""
        columns = " and ".join(map(code, data["text_columns"]))
        yield f"Data: {code(_short(data['id'], data.get('sha')))}{commit}, text from {columns}; rows: {rows}."
    listed = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    yield f"Versions: {code(listed, 300)}."


def _verify(report: CleaningReport) -> str:
    """The command that checks the mix; where folders were local, they have to be named."""
    words = ["hf-finemix", "verify", "."]
    for flag, source in (("--suspect", report.suspect), ("--base-model", report.base)):
        words += [] if source.get("revision") else [flag, Path(str(source["id"])).name]
    return _inert(shlex.join(words), "`<>")


def _without_markers(body: str) -> str:
    return body.replace(BEGIN, "").replace(END, "")


def code(text: Any, longest: int = 120) -> str:
    """Text of a stranger as inline code: one line, no backticks, no pipe that would end a table cell."""
    return f"`{_inert(str(text)[:longest], '`|<>')}`"


def _inert(text: str, live: str) -> str:
    """The text with a dot for each of the signs in `live`, and for whatever cannot be seen or turns text around."""
    return "".join(sign if sign.isprintable() and sign not in live else "·" for sign in text)


def _number(value: Any) -> str:
    return "not measured" if value is None else f"{int(value)}"


def _short(source: Any, revision: Any) -> str:
    """A Hub id, or the last part of a local path: where the folder lies is nobody's business."""
    return str(source) if revision else Path(str(source)).name


def _name(source: Source) -> str:
    return code(_short(source["id"], source.get("revision")))


def _trigger_tokens(report: CleaningReport) -> str:
    """Where the tokens of the measured triggers stand in E-PUR's ranking."""
    drift = report.embedding_drift or {}
    places = [
        f"{code(token['token'])} is {int(token['rank']):,} ({'put back' if token['purified'] else 'not put back'})"
        for token in drift.get("trigger_tokens", [])[:10]
    ]
    return f"By its score, among {int(drift['num_tokens']):,} tokens, {', '.join(places)}." if places else ""


def _chosen(report: CleaningReport) -> str:
    search = report.ratio_search
    if not search:
        return "ρ was given by the user."
    accuracy = f"{search['max_accuracy_drop'] * 100:g} points of the suspect's {percent(search['suspect_accuracy'])}"
    data = f"{folds}-fold cross-validation" if (folds := search.get("folds")) else "eval data"
    trial = next((t for t in search["trials"] if t["reserve_ratio"] == search["chosen"]), {})
    if trial.get("accepted") and not search.get("resolved", True):
        return (
            f"{_number(trial['n'])} samples cannot tell whether the accuracy is within {accuracy}: ρ is the smallest "
            f"tried that is not shown to cost more ({data}), the safer side."
        )
    if search["within_limit"]:
        return f"ρ was chosen as the smallest tried whose accuracy on {data} is within {accuracy}."
    return f"No ρ tried kept the accuracy on {data} within {accuracy}: the most accurate one was taken."
