"""Does a published mix follow from its config, its suspect and its base? Tensor by tensor, element by element."""

import hashlib
import threading
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from .alignment import REINITIALISED_HEAD
from .checkpoint import Checkpoint, sha256_of_file
from .config import FineMixingConfig
from .disk_mixing import mark_purified, open_pair
from .disk_pair import DiskPair
from .errors import FineMixingError
from .hub import fetch_model
from .report import CleaningReport
from .streaming import Piece, Workspace, check_workers, pieces, run_pieces

__all__ = ["Verification", "verify_mix"]


@dataclass
class Verification:
    """
    What was checked of a mixed or cleaned folder, and what was not.

    Attributes:
        kind (`str`): `"mixed"` (weights only) or `"cleaned"` (fine-tuned after mixing).
        tensors (`int`): How many tensors were mixed again from suspect and base and compared.
        elements (`int`): How many scalars these have.
        wrong (`dict[str, int | None]`): Tensors that are not as the config says, by canonical name, with the
            number of elements that differ; `None` where only a digest could be compared.
        problems (`list[str]`): Whatever else does not agree.
        not_checked (`list[str]`): What nobody can derive again, or what was not recorded.
    """

    kind: str
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
        lines = [f"{self.tensors:,} tensors, {self.elements:,} elements derived again from suspect and base: {how}"]
        return "\n".join([*lines, *(f"not checked: {what}" for what in self.not_checked)])

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


def verify_mix(
    folder: str | Path,
    *,
    suspect: str | Path | None = None,
    base: str | Path | None = None,
    num_workers: int | None = None,
) -> Verification:
    """
    Derive a mix again from its suspect, its base and its config, and compare.

    Of a mixed folder every element is compared. Of a cleaned one the digests in its report are, and the hashes of all
    weight files; the fine-tuning after it cannot be derived again.

    Args:
        folder (`str` or `Path`): What `mix` or `clean` wrote, or a Hub id of it.
        suspect, base (`str` or `Path`, *optional*): Where the two are, if not where the report says.
        num_workers (`int`, *optional*): Threads; by default one a core, at most 8.

    Raises:
        [`FineMixingError`]: The folder, its suspect or its base cannot be read. That something disagrees is no error,
            but told in the result.
    """
    workers = check_workers(num_workers)
    published = fetch_model(folder, role="mix").folder
    report, config = CleaningReport.load(published), FineMixingConfig.from_pretrained(published)
    found = Verification("cleaned" if report.training else "mixed")
    known = {f.name for f in fields(FineMixingConfig)}
    stated = {name: value for name, value in report.mixing.items() if name in known}
    found.problems += [
        f"fine_mixing_config.json and the report differ in {name}"
        for name, value in config.to_dict().items()
        if stated.get(name) != value
    ]
    with ExitStack() as stack:
        sides = []
        for role, given, stated_side in (("suspect", suspect, report.suspect), ("base", base, report.base)):
            source, revision = (given, None) if given else (stated_side.get("id"), stated_side.get("revision"))
            if not isinstance(source, (str, Path)):
                raise FineMixingError(f"the report of {published} does not say what its {role} was: give --{role}.")
            sides.append(stack.enter_context(Checkpoint(fetch_model(source, revision, role=role).folder)))
            _compare_hashes(sides[-1], stated_side.get("sha256"), f"the {role}", found)
        mix = stack.enter_context(Checkpoint(published))
        pair, _ = open_pair(*sides, config)
        pair.check(*sides)
        _purify_again(pair, sides, config, report, found)
        if found.kind == "mixed":
            _compare_elements(pair, sides, mix, config, workers, found)
        else:
            _compare_hashes(mix, report.weights, "the cleaned model", found)
            _compare_digests(pair, sides, config, report, workers, found)
            found.not_checked.append("the fine-tuning after the mix, which cannot be derived again")
    return found


def _compare_hashes(side: Checkpoint, stated: Any, whose: str, found: Verification) -> None:
    if not isinstance(stated, dict):
        if found.kind == "cleaned":
            found.not_checked.append(f"the weight files of {whose}, whose hashes were not recorded")
        return
    here = {file.name: sha256_of_file(file) for file in side.files}
    different = sorted(name for name in here.keys() | stated.keys() if here.get(name) != stated.get(name))
    if different:
        found.problems.append(f"{', '.join(different[:3])} of {whose} has not the SHA-256 in the report")


def _purify_again(
    pair: DiskPair, sides: list[Checkpoint], config: FineMixingConfig, report: CleaningReport, found: Verification
) -> None:
    """Repeat E-PUR; go on with the rows of the report, so that what follows tells of the mask alone."""
    stated = [entry.get("id") for entry in report.purified_tokens if isinstance(entry, dict)]
    rows = next((t.mixed_elements // t.row for t in pair.mixed() if t.name == pair.layout.embedding), 0)
    if not all(type(i) is int and 0 <= i < rows for i in stated):
        raise FineMixingError("the report names purified tokens that the base's vocabulary does not have.")
    unmarked = list(pair.tensors)
    try:
        purified, _ = mark_purified(pair, *sides, config)
    except FineMixingError as error:
        found.not_checked.append(f"which embeddings E-PUR chooses ({error})")
    else:
        if sorted(entry["id"] for entry in purified) != sorted(stated):
            found.problems.append(
                f"E-PUR gives other embeddings than the {len(stated)} in the report (with another version of wordfreq "
                f"than {report.versions.get('wordfreq')} it may)"
            )
    pair.tensors = unmarked
    pair.mark_purified(stated)


def _compare_elements(
    pair: DiskPair,
    sides: list[Checkpoint],
    mix: Checkpoint,
    config: FineMixingConfig,
    workers: int,
    found: Verification,
) -> None:
    expected = {tensor.source: tensor for tensor in pair.tensors}
    for name in sorted(expected.keys() ^ mix.tensors.keys())[:3]:
        found.problems.append(f"{name} is {'missing' if name in expected else 'one tensor too many'}")
    same = [t for t in pair.tensors if mix.tensors.get(t.source) == t.info]
    for tensor in pair.tensors:
        if tensor.source in mix.tensors and mix.tensors[tensor.source] != tensor.info:
            found.problems.append(f"{tensor.name} has another shape or dtype than the suspect's")
    wrong, bad, lock = dict.fromkeys((tensor.name for tensor in same), 0), set(), threading.Lock()

    def compare(piece: Piece, workspace: Workspace) -> None:
        tensor, start, stop = piece
        size = tensor.info.nbytes // tensor.info.elements
        for first, raw, _ in workspace.mixed_chunks(tensor, *sides, config, start, stop, bad):
            there = np.empty_like(raw)
            mix.read_into(tensor.source, memoryview(there), first * size)
            if not np.array_equal(raw, there):
                count = int((raw != there).reshape(-1, size).any(axis=1).sum())
                with lock:
                    wrong[tensor.name] += count

    run_pieces(pieces(same), compare, workers, "Verifying")
    found.tensors, found.elements = len(same), sum(tensor.info.elements for tensor in same)
    found.wrong = {name: count for name, count in wrong.items() if count}
    found.problems += [f"{name} is not finite" for name in sorted(bad)[:3]]


def _compare_digests(
    pair: DiskPair,
    sides: list[Checkpoint],
    config: FineMixingConfig,
    report: CleaningReport,
    workers: int,
    found: Verification,
) -> None:
    stated = report.mixing.get("tensors")
    if not isinstance(stated, dict) or not stated:
        raise FineMixingError("the report lists no mixed tensors: it is no report of a mix.")
    stated = {name: entry if isinstance(entry, dict) else {} for name, entry in stated.items()}
    here = {tensor.name: tensor for tensor in pair.tensors}
    new_heads = [name for name, entry in stated.items() if entry.get("rule") == REINITIALISED_HEAD]
    if new_heads:
        found.not_checked.append(f"{len(new_heads)} parameters that were initialised anew ({new_heads[0]}, …)")
    unknown = [name for name in stated if name not in here and name not in new_heads]
    found.problems += [f"{name} is in the report and not in the suspect" for name in unknown[:3]]
    missing = [tensor.name for tensor in pair.mixed() if tensor.name not in stated]
    found.problems += [f"{name} is in suspect and base and not in the report" for name in missing[:3]]
    derived = [here[name] for name in stated if name in here and name not in new_heads]
    digests, bad = {tensor.name: hashlib.sha256() for tensor in derived}, set()

    def digest(piece: Piece, workspace: Workspace) -> None:
        for _, raw, _ in workspace.mixed_chunks(piece[0], *sides, config, piece[1], piece[2], bad):
            digests[piece[0].name].update(raw)

    whole = [(tensor, 0, tensor.info.elements) for tensor in derived if tensor.info.elements]
    run_pieces(sorted(whole, key=lambda piece: -piece[2]), digest, workers, "Verifying")
    found.tensors, found.elements = len(derived), sum(tensor.info.elements for tensor in derived)
    found.wrong = {t.name: None for t in derived if digests[t.name].hexdigest() != stated[t.name].get("sha256")}
