"""A dry run of mixing from headers alone: what would be mixed, kept or refused, and the room and memory it takes."""

import glob
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from .align.architectures import ties_of_base
from .align.pair_on_disk import pair_headers
from .align.vocabulary import check_same_words
from .config import FineMixingConfig
from .errors import FineMixingError, printable
from .hub.errors import hub_error
from .hub.fetch import TrustArguments, check_custom_code, fetch_model, fetch_small_files, local_folder
from .hub.lineage import chosen_base
from .hub.listing import RepoContents, has_pickles, needed_files
from .io.adapter_on_base import merged_headers
from .io.adapters import Adapter
from .io.checkpoint import TensorInfo, wrapper_of
from .io.dtypes import SAFETENSORS_NAMES
from .io.folder import LocalModel, is_adapter, weights_in
from .io.safe_config import read_model_config, refuse_adapter
from .io.safe_json import check_inside, read_json, read_object
from .repo_contents import ADAPTER_WEIGHTS_NAME, size_text

# As measured (benchmarks/mixing.py and `hf-finemix mix` with E-PUR on MiniLM): neither grows with the model.
MEMORY_OF_MIX, MEMORY_OF_E_PUR = 80_000_000, 330_000_000
# Of clean, a parameter: weights and gradients in float32, and the two moments of AdamW.
BYTES_PER_PARAMETER, BYTES_PER_PARAMETER_TO_CLEAN = 4, 16
RANK = 16  # of the LoRA that clean --use-peft trains, by default


@dataclass
class MixPlan:
    """
    What mixing two models would do and need. Sizes are in bytes.

    Attributes:
        suspect, base (`dict`): `id`, `revision`, and of the weights `tensors`, `parameters`, `bytes`, `dtypes`
            (parameters by dtype) and `download` (still to be fetched; 0 for a local folder).
        architecture (`str`): The suspect's class.
        rules (`list[dict]`): `rule`, and how many `tensors`, `parameters` and `bytes` of the suspect it applies to.
        refused (`str`, *optional*): Why the two cannot be mixed on disk.
        purified_rows (`int`): How many word embeddings E-PUR would put back at most.
        ignored_base_tensors (`list[str]`): What of the base nothing goes with.
        disk (`dict`): `output`, `download` and `needed` in all, and what is `free` where the output would go.
        memory (`dict`): Of `mix`; of `clean`, and of `clean --use-peft` (rank 16) where it is not an adapter already,
            but for activations.
    """

    suspect: dict[str, Any]
    base: dict[str, Any]
    architecture: str
    rules: list[dict[str, Any]] = field(default_factory=list)
    refused: str | None = None
    purified_rows: int = 0
    ignored_base_tensors: list[str] = field(default_factory=list)
    disk: dict[str, int] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON values."""
        return asdict(self)

    def summary(self) -> str:
        """The plan as text, for people."""
        lines = []
        for role, side in (("suspect", self.suspect), ("base", self.base)):
            dtypes = ", ".join(side["dtypes"])
            lines.append(
                f"{role:8} {printable(side['id'])}{' @ ' + side['revision'][:7] if side['revision'] else ''}: "
                f"{side['tensors']:,} tensors, {side['parameters']:,} parameters, {size_text(side['bytes'])} "
                f"({dtypes})"
            )
        for entry in self.rules:
            lines.append(f"{entry['tensors']:8,} tensors, {entry['parameters']:15,} parameters  {entry['rule']}")
        if self.purified_rows:
            lines.append(f"up to {self.purified_rows} word embeddings would be the base's again (E-PUR)")
        if self.ignored_base_tensors:
            names = ", ".join(map(printable, self.ignored_base_tensors[:3]))
            more = ", …" if len(self.ignored_base_tensors) > 3 else ""
            lines.append(f"{len(self.ignored_base_tensors)} tensors of the base are ignored ({names}{more})")
        disk = {name: size_text(number) for name, number in self.disk.items()}
        lines.append(
            f"disk     {disk['needed']} needed ({disk['output']} output, {disk['download']} download), "
            f"{disk['free']} free"
        )
        memory = {name: size_text(number) for name, number in self.memory.items()}
        lora = f", {memory['clean_with_lora']} with --use-peft" if "clean_with_lora" in memory else ""
        lines.append(f"memory   about {memory['mix']} for mix; for clean {memory['clean']} and more{lora}")
        return "\n".join(lines)


def plan_mix(
    suspect: str | Path,
    base_model: str | Path | None = None,
    mixing_config: FineMixingConfig | None = None,
    *,
    suspect_revision: str | None = None,
    trust: TrustArguments | None = None,
    output_dir: str | Path = "mixed",
) -> MixPlan:
    """
    Plan a mix without reading a weight, and without fetching one from the Hub. Nothing is written. Pickled weights
    have no headers: with `trust.allow_pickle` they are fetched and read.

    Args:
        suspect (`str` or `Path`): Hub id or local folder of the fine-tuned model.
        base_model (`str` or `Path`, *optional*): Hub id or local folder of its base; it wins over the config's.
            Without either it is the one that the suspect names.
        mixing_config ([`FineMixingConfig`], *optional*): What to mix and how; ρ does not matter here.
        suspect_revision (`str`, *optional*): Branch, tag or commit of the suspect on the Hub.
        trust ([`TrustArguments`], *optional*): What is taken although it is refused by default.
        output_dir (`str` or `Path`, *optional*): Where the mix would go, for the free space there.

    Raises:
        [`FineMixingError`]: A model cannot be found, or its headers or config.json cannot be read. That the two do not
            fit is no error, but told in `refused`.
    """
    config = mixing_config or FineMixingConfig()
    if base_model is not None:
        config = config.with_base(base_model)
    trust = trust or TrustArguments()
    sides = [_headers(suspect, suspect_revision, "suspect", trust)]
    claim = chosen_base(sides[0].model, config)
    sides.append(_headers(claim.id, claim.revision, "base", trust, only_hub=not claim.by_user))
    merging = is_adapter(sides[0].model.folder)
    if config.adapter_mode == "adapter":
        return _plan_adapter(sides, config, Path(output_dir))
    if merging:
        sides[0].tensors, content = merged_headers(sides[0].model, sides[0].tensors, sides[1].model)
    else:
        path = sides[0].model.folder / "config.json"
        check_inside(path, sides[0].model.folder)
        content = read_json(path)
    architecture, model_config = read_model_config(content, f"config.json of {suspect}")
    plan = MixPlan(sides[0].described(), sides[1].described(), architecture)
    try:
        check_custom_code(sides[0].model, trust)
        settings = replace(config, reserve_ratio=0.5 if config.reserve_ratio == "auto" else config.reserve_ratio)
        base_config = read_object(sides[1].model.folder, "config.json")
        tensors = (side.tensors for side in sides)
        pairing = pair_headers(*tensors, architecture, model_config, settings, base_config)
        check_same_words(*(side.model.folder for side in sides), *pairing.vocabulary)
    except FineMixingError as error:
        plan.refused = str(error)
    else:
        plan.rules, plan.ignored_base_tensors = pairing.counted(), pairing.ignored_base_tensors
        embedding = pairing.mixed_embedding()
        if config.purify_embeddings and embedding is not None:
            plan.purified_rows = min(config.num_purified_tokens, embedding.rows)
    _add_room(plan, sides, Path(output_dir))
    # Roughly what a LoRA is put on: matrices, but for embeddings, whose rows are tokens or places.
    layers = [i.shape for name, i in sides[0].tensors.items() if len(i.shape) == 2 and "embed" not in name]
    plan.memory = {
        "mix": (MEMORY_OF_E_PUR if plan.purified_rows else MEMORY_OF_MIX) + merging * plan.suspect["bytes"],
        "clean": BYTES_PER_PARAMETER_TO_CLEAN * plan.suspect["parameters"],
        "clean_with_lora": BYTES_PER_PARAMETER * plan.suspect["parameters"]
        + BYTES_PER_PARAMETER_TO_CLEAN * RANK * sum(map(sum, layers)),
    }
    return plan


def _plan_adapter(sides: "list[_Headers]", config: FineMixingConfig, out: Path) -> MixPlan:
    """Of an adapter that stays one: its own weights are mixed and trained, and the base is held beside it."""
    from .mix.lora import pair_adapter

    suspect, base = sides
    if not is_adapter(suspect.model.folder):
        raise FineMixingError(f"adapter_mode='adapter' is for LoRA adapters, and {suspect.model.id} is a whole model.")
    adapter = Adapter.read(suspect.model, suspect.tensors)
    plan = MixPlan(suspect.described(), base.described(), f"LoRA for {adapter.task}")
    theirs = {name.partition(".")[2]: info for name, info in base.tensors.items()} | base.tensors
    names = theirs.keys() | ties_of_base(read_object(base.model.folder, "config.json"), theirs, adapter.tensors).keys()
    own = adapter.own_base_weights()
    mixed = {name: info for name, info in adapter.tensors.items() if name not in own.values()}
    plan.rules = pair_adapter(mixed, names).counted()
    brought = {name: adapter.tensors[source] for name, source in own.items()} | adapter.tensors
    resized = [name for name, info in brought.items() if name in theirs and theirs[name].shape != info.shape]
    if resized:
        plan.refused = f"the adapter has {resized[0]} in another size than the base: use adapter_mode='merge'."
    elif adapter.settings.get("bias", "none") != "none" or config.head == "reinit":
        plan.refused = "adapter_mode='adapter' keeps the head, and cannot mix an adapter with biases: use 'merge'."
    _add_room(plan, sides, out)
    held = BYTES_PER_PARAMETER * plan.base["parameters"]
    plan.memory = {"mix": held, "clean": held + BYTES_PER_PARAMETER_TO_CLEAN * plan.suspect["parameters"]}
    return plan


def _add_room(plan: MixPlan, sides: "list[_Headers]", out: Path) -> None:
    output, download = plan.suspect["bytes"], sum(side.download for side in sides)
    place = next(p for p in (out.resolve(), *out.resolve().parents) if p.exists())
    free = shutil.disk_usage(place).free
    plan.disk = {"output": output, "download": download, "needed": output + download, "free": free}


@dataclass
class _Headers:
    model: LocalModel  # with the small files alone, where it is on the Hub
    tensors: Mapping[str, TensorInfo]
    download: int = 0

    def described(self) -> dict[str, Any]:
        dtypes = Counter()
        for info in self.tensors.values():
            dtypes[info.dtype] += info.elements
        return {
            "id": self.model.id,
            "revision": self.model.revision,
            "tensors": len(self.tensors),
            "parameters": dtypes.total(),
            "bytes": sum(info.nbytes for info in self.tensors.values()),
            "dtypes": dict(dtypes.most_common()),
            "download": self.download,
        }


def _headers(
    source: str | Path, revision: str | None, role: str, trust: TrustArguments, only_hub: bool = False
) -> _Headers:
    model = None if only_hub else local_folder(str(source), revision, role)
    whole = model is not None
    if model is None:
        model = fetch_small_files(str(source), revision, role=role)
    if role == "base" or not is_adapter(model.folder):
        refuse_adapter(model.folder, model.id)
    if model.contents is not None and not (trust.allow_pickle and has_pickles(model.contents)):
        return _headers_on_hub(model, model.contents, role)
    if trust.allow_pickle or not whole:  # pickles to read, or a repo in the cache, where its weights have to be
        model = fetch_model(source, revision, role=role, trust=trust, only_hub=only_hub, to_read=False)
    return _Headers(model, weights_in(model.folder).tensors)


def _headers_on_hub(model: LocalModel, contents: RepoContents, role: str) -> _Headers:
    """By range requests of a few kB a file."""
    from huggingface_hub import get_safetensors_metadata, parse_safetensors_file_metadata, snapshot_download
    from huggingface_hub.errors import NotASafetensorsRepoError, SafetensorsParsingError

    repo = model.id
    try:
        names = [glob.escape(name) for name in needed_files(contents)]
        if is_adapter(model.folder):
            file = ADAPTER_WEIGHTS_NAME
            parsed = {file: parse_safetensors_file_metadata(repo, file, revision=contents.sha)}
        else:
            parsed = get_safetensors_metadata(repo, revision=contents.sha).files_metadata
        files = snapshot_download(repo, revision=contents.revision, allow_patterns=names, dry_run=True)
    except FineMixingError:
        raise
    except NotASafetensorsRepoError as error:
        raise FineMixingError(f"{repo} has no model.safetensors: ask for a safetensors version.") from error
    except (SafetensorsParsingError, KeyError, TypeError, AttributeError) as error:
        raise FineMixingError(f"{repo} has a header that cannot be read ({error}): get another copy.") from error
    except Exception as error:
        raise hub_error(error, f"the {role} {repo}") from error
    tensors = {}
    for file, metadata in parsed.items():
        for name, info in metadata.tensors.items():
            sizes = info.shape if isinstance(info.shape, list) else [None]
            possible = info.dtype in SAFETENSORS_NAMES and all(type(n) is int and 0 <= n < 2**63 for n in sizes)
            possible &= name not in tensors
            if possible:
                tensors[name] = TensorInfo(tuple(sizes), SAFETENSORS_NAMES[info.dtype])
                begin, end = info.data_offsets
                possible = end - begin == tensors[name].nbytes
            if not possible:
                raise FineMixingError(
                    f"{repo}: {file} has {name[:200]!r} with an impossible dtype or shape, or twice."
                )
    wrapper = wrapper_of(tensors)
    tensors = {name.removeprefix(wrapper): info for name, info in tensors.items()}
    return _Headers(model, tensors, sum(file.file_size for file in files if file.will_download))
