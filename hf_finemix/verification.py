"""Does a published mix follow from its config, its suspect and its base? Tensor by tensor, element by element."""

import hashlib
import re
import threading
from collections import Counter
from contextlib import ExitStack
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from .align.architectures import disk_layout
from .align.pair_on_disk import check_pair, read_words
from .align.pairing import KEPT_HEAD, REINITIALIZED_HEAD, Pairing
from .config import FineMixingConfig
from .disk_mixing import open_pair, purify_pair
from .errors import FineMixingError
from .hub.fetch import TrustArguments, fetch_model, local_folder
from .io.adapter_on_base import full_model
from .io.checkpoint import Checkpoint, TensorInfo, sha256_of_file
from .io.dtypes import ITEMSIZE, MIXABLE, to_float64, words
from .io.folder import LocalModel, weights_in
from .io.repo_names import is_repo_id
from .io.safe_config import UNSAFE_KEYS, without_unsafe_keys
from .io.safe_json import read_json
from .mix.mask_file import MASKS_NAME, MaskFile
from .mix.on_disk import Parents, Piece, Workspace, check_workers, pieces, run_pieces
from .report.check_result import Verification
from .report.origins import weight_files
from .report.report import CleaningReport


def verify_mix(
    folder: str | Path,
    *,
    suspect: str | Path | None = None,
    base_model: str | Path | None = None,
    trust: TrustArguments | None = None,
    num_workers: int | None = None,
) -> Verification:
    """
    Derive a mix again from its suspect, its base and its config, and compare.

    Of a mixed folder every element is compared. Of a cleaned one the digests in its report are, the hashes of all
    weight files, and whether its weights are nearer to the mix than to the suspect; the fine-tuning after the mix
    cannot be derived again.

    Args:
        folder (`str` or `Path`): What `mix` or `clean` wrote, or a Hub id of it.
        suspect, base_model (`str` or `Path`, *optional*): Where the two are, if not where the report says.
        trust ([`TrustArguments`], *optional*): What of the two is taken although it is refused by default.
        num_workers (`int`, *optional*): Threads; by default one a core, at most 8.

    Raises:
        [`FineMixingError`]: The folder, its suspect or its base cannot be read. That something disagrees is no error,
            but told in the result.
    """
    workers = check_workers(num_workers)
    published = fetch_model(folder, role="mix").folder
    report, config = CleaningReport.load(published), FineMixingConfig.from_pretrained(published)
    found = Verification("cleaned" if report.training else "mixed", reserve_ratio=config.reserve_ratio)
    _check_settings(config, report, base_model is not None, found)
    with ExitStack() as stack:
        models = [_find("suspect", suspect, report.suspect, trust), _find("base", base_model, report.base, trust)]
        as_adapter = config.adapter_mode == "adapter"
        models[0] = replace(models[0], adapter=models[0].folder) if as_adapter else full_model(*models)
        found.suspect, found.base = (f"{m.id}{' @ ' + m.revision if m.revision else ''}" for m in models)
        for model, stated, whose in zip(models, (report.suspect, report.base), ("suspect", "base"), strict=True):
            _compare_hashes(weight_files(model), stated.get("sha256"), f"the {whose}", found)
        if as_adapter:
            from .adapter_verification import verify_adapter  # which needs torch

            if found.kind == "cleaned":
                _compare_hashes(weights_in(published).files, report.weights, "the cleaned adapter", found)
                found.not_checked.append("the fine-tuning after the mix, which cannot be derived again")
            found.not_checked.append("the tokenizer and config.json")
            verify_adapter(*models, published, config, report.mixing.get("tensors") or {}, found)
            return found
        sides = [stack.enter_context(Checkpoint(model.folder)) for model in models]
        mix = stack.enter_context(Checkpoint(published))
        by_score = config.strategy == "fisher"  # its masks are in a file
        on_disk = replace(config, head="keep", strategy="random" if by_score else config.strategy)
        pairing, model_config = open_pair(*sides, on_disk)
        parents = Parents(*sides, config)
        check_pair(pairing, *sides)
        _check_other_files(mix, model_config, found)
        _purify_again(pairing, parents, model_config, report, found)
        if found.kind == "mixed":
            _compare_elements(pairing, parents, mix, workers, found)
        else:
            _compare_hashes(mix.files, report.weights, "the cleaned model", found)
            names = disk_layout(mix.tensors, {}, model_config["architectures"][0], model_config).suspect
            if by_score:
                parents.masks = stack.enter_context(MaskFile(published))
                found.not_checked.append("why its masks keep what they keep: by gradients on the clean data")
            _compare_digests(pairing, parents, mix, names, report, workers, found)
            found.not_checked.append("the fine-tuning after the mix, which cannot be derived again")
    return found


def _check_settings(config: FineMixingConfig, report: CleaningReport, other_base: bool, found: Verification) -> None:
    """Config and report must say the same, and nothing that would keep this machine busy for ever."""
    known = {f.name for f in fields(FineMixingConfig)} & report.mixing.keys()
    found.problems += [
        f"fine_mixing_config.json and the report differ in {name}"
        for name, value in config.to_dict().items()
        if name in known and report.mixing[name] != value
    ]
    named, revision = report.base.get("id"), config.base_model_revision  # without one it contradicts no commit
    same = named == config.base_model_name_or_path and revision in (None, report.base.get("revision"))
    if not other_base and not same:
        found.problems.append("fine_mixing_config.json and the report differ in the base")
    for pattern in config.module_ratios or {}:
        if len(pattern) > 500 or re.search(r"[+*}][?+]?\)+[+*{?]", pattern):
            raise FineMixingError(
                f"the config's module_ratios has a pattern that may take for ever: {pattern[:200]!r}."
            )


def _find(role: str, given: str | Path | None, stated: dict[str, Any], trust: TrustArguments | None) -> LocalModel:
    """The suspect or the base: an id with its commit is never taken for a folder, nor a folder for an id."""
    if given is not None:
        return fetch_model(given, role=role, trust=trust)
    source, revision = stated.get("id"), stated.get("revision")
    if not isinstance(source, str) or not source:
        raise FineMixingError(f"the report does not say what the {role} was: give --{role}.")
    if revision is None and local_folder(source, None, role) is None:
        raise FineMixingError(
            f"the report's {role} was {source[:200]!r} at no stated commit, and no such folder is here: give --{role}."
        )
    if revision is not None and not (isinstance(revision, str) and re.fullmatch("[0-9a-f]{40}", revision)):
        raise FineMixingError(f"the report's {role} has a revision that is no commit: give --{role}.")
    if revision is not None and (not is_repo_id(source) or Path(source).is_dir()):
        raise FineMixingError(
            f"the report's {role} is {source!r} on the Hub, and here is a folder of that name: move it."
        )
    return fetch_model(source, revision, role=role, trust=trust)


def _check_other_files(mix: Checkpoint, model_config: dict[str, Any], found: Verification) -> None:
    """What transformers would load beside, or in place of, the weights that are compared."""
    content = read_json(mix.folder / "config.json")
    content = content if isinstance(content, dict) else {}
    found.problems += [f"its config.json has {key}" for key in sorted(UNSAFE_KEYS & content.keys())]
    if found.kind == "mixed" and content != without_unsafe_keys(model_config):
        found.problems.append("its config.json is not the suspect's")
    others = {path.name for path in mix.folder.glob("*.safetensors")} - {file.name for file in mix.files}
    others -= {MASKS_NAME} if found.kind == "cleaned" else set()
    others |= {name for name in ("adapter_config.json",) if (mix.folder / name).exists()}
    found.problems += [f"it holds {name}, which belongs to no mix" for name in sorted(others)]
    found.not_checked.append("the tokenizer" if found.kind == "mixed" else "the tokenizer and config.json")


def _compare_hashes(files: list[Path], stated: Any, whose: str, found: Verification) -> None:
    if not isinstance(stated, dict):
        if found.kind == "cleaned":
            found.not_checked.append(f"the weight files of {whose}, whose hashes were not recorded")
        return
    here = {file.name: sha256_of_file(file) for file in files}
    different = sorted(name for name in here.keys() | stated.keys() if here.get(name) != stated.get(name))
    if different:
        found.problems.append(f"{', '.join(different[:3])} of {whose} has not the SHA-256 in the report")


def _purify_again(
    pairing: Pairing, parents: Parents, model_config: dict[str, Any], report: CleaningReport, found: Verification
) -> None:
    """Repeat E-PUR; go on with the rows of the report, so that what follows tells of the mask alone."""
    stated = [entry.get("id") for entry in report.purified_tokens if isinstance(entry, dict)]
    embedding = pairing.mixed_embedding()
    rows = embedding.rows if embedding else 0
    if not all(type(i) is int and 0 <= i < rows for i in stated):
        raise FineMixingError("the report names purified tokens that the base's vocabulary does not have.")
    unmarked, config = list(pairing.tensors), parents.config
    try:
        if config.token_frequencies:  # a file of whoever made the mix
            raise FineMixingError(f"frequencies were counted in {config.token_frequencies}")
        purified, _ = purify_pair(pairing, parents.suspect, parents.base, config, model_config)
    except FineMixingError as error:
        found.not_checked.append(f"which embeddings E-PUR chooses ({error})")
    else:
        if sorted(entry["id"] for entry in purified) != sorted(stated):
            found.problems.append(f"E-PUR gives other embeddings than the {len(stated)} in the report")
    pairing.tensors = unmarked
    pairing.mark_purified(set(stated))


def _compare_elements(pairing: Pairing, parents: Parents, mix: Checkpoint, workers: int, found: Verification) -> None:
    expected = {tensor.source: tensor for tensor in pairing.tensors}
    for name in sorted(expected.keys() ^ mix.tensors.keys())[:3]:
        found.problems.append(f"{name} is {'missing' if name in expected else 'one tensor too many'}")
    there = [tensor for tensor in pairing.tensors if tensor.source in mix.tensors]
    same = [tensor for tensor in there if mix.tensors[tensor.source] == tensor.info]
    found.problems += [
        f"{t.name} has another shape or dtype than the suspect's" for t in there if mix.tensors[t.source] != t.info
    ]
    wrong, lock = Counter(), threading.Lock()

    def compare(piece: Piece, workspace: Workspace) -> None:
        tensor, size = piece[0], ITEMSIZE[piece[0].info.dtype]
        for first, raw, _ in workspace.mixed_chunks(piece):
            there = np.empty_like(raw)
            mix.read_into(tensor.source, memoryview(there), first * size)
            if not np.array_equal(raw, there):
                count = int((raw != there).reshape(-1, size).any(axis=1).sum())
                with lock:
                    wrong[tensor.name] += count

    run_pieces(parents, pieces(same), compare, workers, "Verifying")
    found.tensors, found.elements = len(same), sum(tensor.info.elements for tensor in same)
    found.wrong = {tensor.name: wrong[tensor.name] for tensor in same if wrong[tensor.name]}
    found.problems += [f"{name} is not finite" for name in sorted(parents.bad)[:3]]


def _is_as_wide(ours: TensorInfo | None, suspect: TensorInfo) -> bool:
    """Whether a cleaned tensor is of the suspect's shape and dtype, or of the wider one that a Trainer trained in."""
    if ours is None or ours.shape != suspect.shape or ours.dtype == suspect.dtype:
        return ours == suspect
    return {ours.dtype, suspect.dtype} <= MIXABLE and ours.nbytes > suspect.nbytes


def _compare_digests(
    pairing: Pairing,
    parents: Parents,
    mix: Checkpoint,
    names: dict[str, str],
    report: CleaningReport,
    workers: int,
    found: Verification,
) -> None:
    """By canonical names: `save_pretrained` may have written the cleaned model under other ones than the suspect's."""
    stated = report.mixing.get("tensors")
    if not isinstance(stated, dict) or not stated:
        raise FineMixingError("the report lists no mixed tensors: it is no report of a mix.")
    here = {tensor.name: tensor for tensor in pairing.tensors}
    derived = []
    for name, tensor in here.items():
        entry = stated.get(name)
        if not isinstance(entry, dict):
            found.problems.append(f"{name} is in the suspect and not in the report")
        elif entry.get("rule") == REINITIALIZED_HEAD and parents.config.head == "reinit" and tensor.rule == KEPT_HEAD:
            found.not_checked.append(f"{name}, which was initialized anew")
        else:
            derived.append(tensor)
        if not _is_as_wide(mix.tensors.get(names.get(name)), tensor.info):
            found.problems.append(
                f"{name} has not the shape and dtype in the cleaned model that it has in the suspect"
            )
    found.problems += [f"{name} is in the report and not in the suspect" for name in stated.keys() - here.keys()]
    sums = {tensor.name: (hashlib.sha256(), np.zeros(3)) for tensor in derived}

    def digest(piece: Piece, workspace: Workspace) -> None:
        tensor, dtype = piece[0], piece[0].info.dtype
        ours, (sha256, distances) = mix.tensors.get(names.get(tensor.name)), sums[tensor.name]
        for first, raw, _ in workspace.mixed_chunks(piece):
            sha256.update(raw)
            if tensor.base_name is not None and _is_as_wide(ours, tensor.info):
                stop = first + raw.size // ITEMSIZE[dtype]
                w = to_float64(read_words(mix, names[tensor.name], first, stop), ours.dtype)
                m = to_float64(words(raw, dtype), dtype)
                s = to_float64(read_words(parents.suspect, tensor.source, first, stop), dtype)
                distances += [((one - other) ** 2).sum() for one, other in ((w, m), (w, s), (m, s))]

    whole = [(tensor, 0, tensor.info.elements) for tensor in derived if tensor.info.elements]
    run_pieces(parents, sorted(whole, key=lambda piece: -piece[2]), digest, workers, "Verifying")
    found.tensors, found.elements = len(derived), sum(tensor.info.elements for tensor in derived)
    found.wrong = {t.name: None for t in derived if sums[t.name][0].hexdigest() != stated[t.name].get("sha256")}
    to_mix, to_suspect, apart = np.sum([distances for _, distances in sums.values()], axis=0)
    if apart and not to_mix < to_suspect:  # nor where one is not a number
        found.problems.append("the cleaned weights are no nearer to the mix than to the suspect")
    found.problems += [f"{name} is not finite" for name in sorted(parents.bad)[:3]]
