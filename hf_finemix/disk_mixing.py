"""Mixing from disk to disk, in pieces and on all cores: the memory it takes depends on neither model nor shards."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from .align.base_fit import judge_base
from .align.drift import not_finite
from .align.pair_on_disk import DiskPair, TensorMix, check_for_disk
from .align.vocabulary import check_same_words
from .config import FineMixingConfig
from .errors import AlignmentError, FineMixingError
from .hub.fetch import TrustArguments, fetch_model
from .hub.lineage import BaseClaim, fetch_base
from .io.adapters import full_model
from .io.checkpoint import Checkpoint, check_inside, read_json, read_object
from .io.folder import LocalModel
from .io.model_files import copy_model_files
from .io.output_folder import check_free_space, output_folder
from .io.read_back import check_headers, read_back
from .io.safe_config import read_model_config, refuse_adapter, without_unsafe_keys
from .io.shard_writer import ShardWriter, parse_size
from .io.tokenizer import copy_tokenizer, tell_choice
from .mix.on_disk import Piece, Workspace, check_workers, pieces, run_pieces
from .mix.purification import purify_on_disk
from .report.report import CleaningReport
from .report.sections import mixing_section, run_section, source_section, token_rows

__all__ = ["mix_checkpoints", "open_pair", "purify_pair"]


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
    with ExitStack() as stack:
        folder = stack.enter_context(output_folder(out, overwrite=overwrite))
        models = [fetch_model(suspect, suspect_revision, role="suspect", trust=trust)]
        base, claim = fetch_base(models[0], config, trust)
        config = config.pinned(base.id, base.revision)
        if config.adapter_mode == "adapter":
            return _mix_adapter(models[0], base, claim, folder, config, command, started)
        models = [full_model(models[0], base), base]
        sides = [stack.enter_context(Checkpoint(model.folder)) for model in models]
        pair, model_config = open_pair(*sides, config)
        drift = pair.check(*sides)
        fit = judge_base(claim, drift, drift, (len(list(pair.mixed())), len(pair.tensors)))
        purified, added = purify_pair(pair, *sides, config, model_config)
        written = {tensor.source: tensor.info for tensor in pair.tensors}
        check_free_space(folder, sum(info.nbytes for info in written.values()))
        kept = _mix(pair, *sides, stack.enter_context(ShardWriter(folder, written, shard_size)), config, workers)
        _write_config(model_config, sides[0].folder, folder)
        note = copy_tokenizer(sides[0].folder, sides[1].folder, folder)
        tell_choice(note, models[0].id)
        copy_model_files(models[0], sides[1].folder, folder)
        check_headers(folder, written, pair.layout.suspect.get(pair.layout.embedding))
        report = CleaningReport(
            command=command,
            suspect=source_section(models[0], hashes=False),
            base=source_section(base, claim, fit, hashes=False),
            tokenizer=note,
            mixing=mixing_section(
                config,
                {t.name: _described(t, kept.get(t.name), config) for t in pair.tensors},
                ignored_base=pair.ignored_base_tensors(),
                ignored_suspect=pair.layout.ignored,
                added_tokens=added,
            ),
            purified_tokens=purified,
            **run_section({"mixing": config.mixing_seed}, {"mix": time.perf_counter() - started}),
        )
        config.save_pretrained(folder)
        report.save(folder)
    return report


def _mix_adapter(
    suspect: LocalModel,
    base: LocalModel,
    claim: BaseClaim,
    folder: Path,
    config: FineMixingConfig,
    command: str | None,
    started: float,
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
    report = CleaningReport(
        command=command,
        suspect=source_section(replace(suspect, adapter=suspect.folder), hashes=False),
        base=source_section(base, claim, hashes=False),
        tokenizer=note,
        mixing=mixing_section(config, record.tensors, added_tokens=[]),
        **run_section({"mixing": config.mixing_seed}, {"mix": time.perf_counter() - started}),
    )
    config.save_pretrained(folder)
    report.save(folder)
    return report


def open_pair(suspect: Checkpoint, base: Checkpoint, config: FineMixingConfig) -> tuple[DiskPair, dict[str, Any]]:
    """Align two checkpoints on disk; with the pair, the content of the suspect's config.json."""
    refuse_adapter(suspect.folder, suspect.folder)
    path = suspect.folder / "config.json"
    check_inside(path, suspect.folder)
    architecture, model_config = read_model_config(read_json(path), path)
    base_config = read_object(base.folder, "config.json")
    pair = DiskPair.from_headers(suspect.tensors, base.tensors, architecture, model_config, config, base_config)
    check_same_words(suspect.folder, base.folder, *pair.vocabulary)
    return pair, model_config


def purify_pair(
    pair: DiskPair, suspect: Checkpoint, base: Checkpoint, config: FineMixingConfig, model_config: dict[str, Any]
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
    purified, added = purify_on_disk(pair, suspect, base, config, frequencies, tokenizer.all_special_ids)
    tokens = tokenizer.convert_ids_to_tokens
    return token_rows(purified, tokens), token_rows(({"id": i} for i in added), tokens)


def _mix(
    pair: DiskPair, suspect: Checkpoint, base: Checkpoint, writer: ShardWriter, config: FineMixingConfig, workers: int
) -> dict[str, int]:
    """Write every tensor of the mix; how many elements of each are the suspect's own."""
    kept, bad, lock = {tensor.name: 0 for tensor in pair.tensors}, set(), threading.Lock()
    # The tensors are in the order of the files: each is whole, and sent to the disk, while the next is being mixed.
    work = pieces(pair.tensors)
    left = dict.fromkeys(writer.file_of.values(), 0)
    for tensor, _, _ in work:
        left[writer.file_of[tensor.source]] += 1

    disk = ThreadPoolExecutor(1)
    try:
        synced = [disk.submit(writer.sync, file) for file, count in left.items() if not count]

        def do(piece: Piece, workspace: Workspace) -> None:
            tensor, start, stop = piece
            size, count = tensor.info.nbytes // tensor.info.elements, 0
            for first, raw, own in workspace.mixed_chunks(tensor, suspect, base, config, start, stop, bad):
                writer.write(tensor.source, memoryview(raw), first * size)
                count += own
            file = writer.file_of[tensor.source]
            with lock:
                kept[tensor.name] += count
                left[file] -= 1
                if not left[file]:
                    synced.append(disk.submit(writer.sync, file))
            if bad:
                raise AlignmentError(not_finite(sorted(bad)))

        run_pieces(work, do, workers, "Mixing")
        for future in synced:
            future.result()
    finally:
        disk.shutdown(cancel_futures=True)
    return kept


def _described(tensor: TensorMix, kept: int | None, config: FineMixingConfig) -> dict[str, Any]:
    fraction = kept / tensor.info.elements if tensor.info.elements else 1.0
    if config.strategy == "average" and tensor.base_dtype is not None:
        fraction = None  # no element is either parent's
    return {"rule": tensor.rule, "kept_fraction": fraction, "sha256": None}


def _write_config(content: dict[str, Any], source: Path, folder: Path) -> None:
    """The suspect's configuration, without what would ask for code or for other files."""
    files = {"config.json": content}
    generation = source / "generation_config.json"
    if generation.is_file():
        check_inside(generation, source)
        files[generation.name] = read_json(generation)
    for name, values in files.items():
        if isinstance(values, dict):
            values = without_unsafe_keys(values)
            (folder / name).write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
