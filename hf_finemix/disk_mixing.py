"""Mixing from disk to disk, in pieces and on all cores: the memory it takes depends on neither model nor shards."""

import json
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from .align.base_fit import judge_base
from .align.drift import not_finite
from .align.pair_on_disk import check_for_disk, check_pair, pair_headers
from .align.pairing import Pairing
from .align.vocabulary import check_same_words
from .config import FineMixingConfig
from .errors import AlignmentError, FineMixingError
from .hub.fetch import TrustArguments, fetch_model
from .hub.lineage import BaseClaim, fetch_base
from .io.adapter_on_base import full_model
from .io.checkpoint import Checkpoint
from .io.dtypes import ITEMSIZE
from .io.folder import LocalModel
from .io.model_files import copy_model_files
from .io.output_folder import check_free_space, output_folder
from .io.read_back import check_headers, read_back
from .io.safe_config import read_model_config, refuse_adapter, without_unsafe_keys
from .io.safe_json import check_inside, read_json, read_object
from .io.shard_writer import ShardWriter, parse_size
from .io.tokenizer import copy_tokenizer, tell_choice
from .mix.on_disk import Parents, Piece, Workspace, check_workers, pieces, run_pieces
from .mix.purification import blocks_on_disk, purify
from .report.report import CleaningReport
from .report.sections import mixing_section, run_section, source_section, token_rows


def mix_checkpoints(
    suspect: str | Path,
    base_model: str | Path | None = None,
    output_dir: str | Path = "mixed",
    mixing_config: FineMixingConfig | None = None,
    *,
    suspect_revision: str | None = None,
    trust: TrustArguments | None = None,
    max_shard_size: int | str = "5GB",
    num_workers: int | None = None,
    overwrite: bool = False,
    command: str | None = None,
) -> CleaningReport:
    """
    Mix a suspect with its base from disk to disk, without loading either.

    The weights are those that [`mix_model`] gives, bit for bit, in the suspect's dtypes and under its names on disk.

    The output appears whole or not at all: it is written to `OUT.partial` and renamed when all of it is on the disk.

    Args:
        suspect (`str` or `Path`):
            Hub id or local folder of the fine-tuned model, with weights in safetensors.
        base_model (`str` or `Path`, *optional*):
            Hub id or local folder of its clean pre-trained base; it wins over the config's. Without either it is the
            one that the suspect names, if its weights agree.
        output_dir (`str` or `Path`, *optional*, defaults to `"mixed"`):
            Folder to write: weights, config.json, tokenizer, `fine_mixing_config.json` and `cleaning_report.json`.
        mixing_config ([`FineMixingConfig`]):
            What to mix and how, with a number for `reserve_ratio`.
        suspect_revision (`str`, *optional*):
            Branch, tag or commit of the suspect on the Hub.
        trust ([`TrustArguments`], *optional*):
            What of the two repos is taken although it is refused by default.
        max_shard_size (`int` or `str`, *optional*, defaults to `"5GB"`):
            Bytes of weights a file. It does not change the memory needed.
        num_workers (`int`, *optional*):
            Threads; by default one a core, at most 8.
        overwrite (`bool`, *optional*, defaults to `False`):
            Replace an earlier mix in `output_dir`.
        command (`str`, *optional*):
            The command line to state in the report.

    Returns:
        [`CleaningReport`]: What was done to every tensor. What only tuning and measuring would tell is `None`.

    Raises:
        [`AlignmentError`]: The base does not fit, a weight is NaN or infinite, or a value of the base overflows in the
            suspect's dtype.
        [`FineMixingError`]: Files that cannot be read or written, or settings out of their range.
    """
    started = time.perf_counter()
    config, out = mixing_config or FineMixingConfig(), Path(output_dir)
    if base_model is not None:
        config = config.with_base(base_model)
    check_for_disk(config)
    shard_size, workers = parse_size(max_shard_size), check_workers(num_workers)
    read = filter(None, (suspect, config.base_model_name_or_path))
    for source in (Path(str(source)).expanduser().resolve() for source in read):
        if source.exists() and source.is_relative_to(out.resolve()):
            raise FineMixingError(f"the output folder {out} is or holds {source}, which is read: give another one.")
    with output_folder(out, overwrite=overwrite) as folder:
        found = fetch_model(suspect, suspect_revision, role="suspect", trust=trust)
        base, claim = fetch_base(found, config, trust)
        config = config.pinned(base.id, base.revision)
        if config.adapter_mode == "adapter":
            report = _mix_adapter(found, base, claim, folder, config)
        else:
            report = _mix_whole(found, base, claim, folder, config, shard_size, workers)
        timings = {"mix": time.perf_counter() - started}
        report = replace(report, command=command, **run_section({"mixing": config.mixing_seed}, timings))
        config.save_pretrained(folder)
        report.save(folder)
    return report


def _mix_whole(
    suspect: LocalModel,
    base: LocalModel,
    claim: BaseClaim,
    folder: Path,
    config: FineMixingConfig,
    shard_size: int,
    workers: int,
) -> CleaningReport:
    """Mix from disk to disk; nothing is loaded but an adapter to merge."""
    suspect = full_model(suspect, base)
    with ExitStack() as stack:
        sides = [stack.enter_context(Checkpoint(model.folder)) for model in (suspect, base)]
        pairing, model_config = open_pair(*sides, config)
        drift = check_pair(pairing, *sides)
        fit = judge_base(claim, drift, drift, (len(pairing.mixed()), len(pairing.tensors)))
        purified, added = purify_pair(pairing, *sides, config, model_config)
        written = {tensor.source: tensor.info for tensor in pairing.tensors}
        check_free_space(folder, sum(info.nbytes for info in written.values()))
        writer = stack.enter_context(ShardWriter(folder, written, shard_size))
        kept = _mix(pairing, Parents(*sides, config), writer, workers)
    _write_config(model_config, suspect.folder, folder)
    note = copy_tokenizer(suspect.folder, base.folder, folder)
    tell_choice(note, suspect.id)
    copy_model_files(suspect, base.folder, folder)
    embedding = next((tensor.source for tensor in pairing.tensors if tensor.name == pairing.embedding), None)
    check_headers(folder, written, embedding)
    return CleaningReport(
        suspect=source_section(suspect, hashes=False),
        base=source_section(base, claim, fit, hashes=False),
        tokenizer=note,
        mixing=mixing_section(
            config,
            {tensor.name: tensor.entry(kept[tensor.name], config) for tensor in pairing.tensors},
            ignored_base=pairing.ignored_base_tensors,
            ignored_suspect=pairing.ignored_suspect_tensors,
            added_tokens=added,
        ),
        purified_tokens=purified,
    )


def _mix_adapter(
    suspect: LocalModel, base: LocalModel, claim: BaseClaim, folder: Path, config: FineMixingConfig
) -> CleaningReport:
    """Mix an adapter that stays one: the base is loaded, for the adapter to be understood on it."""
    from .mix.adapter_output import adapter_to_train, dtypes_of_adapter, save_adapter
    from .mix.lora import mix_adapter

    model = adapter_to_train(suspect, base, config)
    with Checkpoint(base.folder) as weights:
        record = mix_adapter(model, weights, config)
    note = copy_tokenizer(suspect.folder, base.folder, folder)
    tell_choice(note, suspect.id)
    save_adapter(model, folder, base, dtypes_of_adapter(suspect))
    read_back(folder, model.float(), base=base.folder)
    (folder / "README.md").unlink(missing_ok=True)  # peft's form, with nothing filled in
    return CleaningReport(
        suspect=source_section(replace(suspect, adapter=suspect.folder), hashes=False),
        base=source_section(base, claim, hashes=False),
        tokenizer=note,
        mixing=mixing_section(config, record.tensors, added_tokens=[]),
    )


def open_pair(suspect: Checkpoint, base: Checkpoint, config: FineMixingConfig) -> tuple[Pairing, dict[str, Any]]:
    """Align two checkpoints on disk; with the pairing, the content of the suspect's config.json."""
    refuse_adapter(suspect.folder, suspect.folder)
    path = suspect.folder / "config.json"
    check_inside(path, suspect.folder)
    architecture, model_config = read_model_config(read_json(path), path)
    base_config = read_object(base.folder, "config.json")
    pairing = pair_headers(suspect.tensors, base.tensors, architecture, model_config, config, base_config)
    check_same_words(suspect.folder, base.folder, *pairing.vocabulary)
    return pairing, model_config


def purify_pair(
    pairing: Pairing, suspect: Checkpoint, base: Checkpoint, config: FineMixingConfig, model_config: dict[str, Any]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Let E-PUR mark its rows, where the config asks for it; what the report says of them and of added tokens."""
    if not config.purify_embeddings or not config.num_purified_tokens:
        return [], []
    from .io.tokenizer import choose_tokenizer
    from .mix.token_frequency import token_frequencies

    try:
        tokenizer, _ = choose_tokenizer(suspect.folder, base.folder)
    except FineMixingError as error:
        raise FineMixingError(f"{str(error).rstrip('.')}; or switch E-PUR off (--purify-embeddings false).") from error
    pad = model_config.get("pad_token_id")
    if type(pad) is int and 0 <= pad < len(tokenizer):  # as agree_on_padding has it: that token is special then
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)
    source = Path(config.token_frequencies) if config.token_frequencies else None
    frequencies = token_frequencies(tokenizer, source)
    _, purified, added = purify(
        pairing, lambda tensor: blocks_on_disk(tensor, suspect, base), config, frequencies, tokenizer.all_special_ids
    )
    tokens = tokenizer.convert_ids_to_tokens
    return token_rows(purified, tokens), token_rows(({"id": i} for i in added), tokens)


def _mix(pairing: Pairing, parents: Parents, writer: ShardWriter, workers: int) -> dict[str, int]:
    """Write every tensor of the mix; how many elements of each are the suspect's own."""
    kept, lock = {tensor.name: 0 for tensor in pairing.tensors}, threading.Lock()
    # The tensors are in the order of the files: each is whole, and sent to the disk, while the next is being mixed.
    work = pieces(pairing.tensors)
    left = Counter(writer.file_of[tensor.source] for tensor, _, _ in work)
    disk = ThreadPoolExecutor(1)
    try:
        synced = [disk.submit(writer.sync, file) for file in {*writer.file_of.values()} - left.keys()]

        def do(piece: Piece, workspace: Workspace) -> None:
            tensor, count = piece[0], 0
            for first, raw, own in workspace.mixed_chunks(piece):
                writer.write(tensor.source, memoryview(raw), first * ITEMSIZE[tensor.info.dtype])
                count += own
            file = writer.file_of[tensor.source]
            with lock:
                kept[tensor.name] += count
                left[file] -= 1
                if not left[file]:
                    synced.append(disk.submit(writer.sync, file))
            if parents.bad:
                raise AlignmentError(not_finite(sorted(parents.bad)))

        run_pieces(parents, work, do, workers, "Mixing")
        for future in synced:
            future.result()
    finally:
        disk.shutdown(cancel_futures=True)
    return kept


def _write_config(content: dict[str, Any], source: Path, folder: Path) -> None:
    """The suspect's configuration, without what would ask for code or for other files."""
    files = {"config.json": content}
    generation = source / "generation_config.json"
    if generation.is_file():
        check_inside(generation, source)
        files[generation.name] = read_json(generation)
    for name, values in files.items():
        if isinstance(values, dict):
            text = json.dumps(without_unsafe_keys(values), indent=2, ensure_ascii=False) + "\n"
            (folder / name).write_text(text, encoding="utf-8")
