"""
What `hf-finemix mix` costs on checkpoints of large models, against mergekit and against copying files. Linux only.

    python benchmarks/mixing.py make --size 1.1B pairs/1.1B
    python benchmarks/mixing.py run pairs/1.1B --mergekit mergekit/bin --output 1.1B.json  # resumes where it stopped
    python benchmarks/mixing.py table 0.3B.json 1.1B.json
    python benchmarks/mixing.py scaling 0.3B.json 1.1B.json --output docs/mixing_scaling.png

mergekit is called as a program, from a virtual environment of its own:

    python -m venv mergekit && mergekit/bin/pip install torch==2.13.0 && mergekit/bin/pip install mergekit==0.1.5

A pair is shaped like Llama, in bfloat16, and random; base and suspect differ in nearly every element. The contenders
take a share ρ of the weights at random from the suspect and the rest from the base:

- ours: the command `hf-finemix mix` without purification
- ours (in process): `mix_checkpoints` alone, in a Python that has imported it already
- mergekit: `dare_linear` of density ρ and weight 1 without rescaling, with the fastest of its flags on this pair
- bound: no mixing at all; both checkpoints are read in full and the suspect's is written, by one thread or by two

They run in turn, each in a process of its own. Before each start the last output is removed, `sync` is called and both
checkpoints are read once, to lie in the page cache. The clock stops when all files of the output are on disk (fsync).
CPU seconds are the process's own, user and system, with its children; MB of memory are of 2^20 bytes. Run it on a
quiet machine with room on the disk for three checkpoints.
"""

import argparse
import json
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from itertools import chain, pairwise, zip_longest
from math import prod
from pathlib import Path
from statistics import median

# hidden size, intermediate size, layers, heads, key-value heads; 0.01B is for trying this script
SIZES = {
    "0.01B": (128, 384, 8, 4, 4),
    "0.1B": (768, 2048, 8, 12, 4),
    "0.3B": (1024, 2816, 21, 16, 4),
    "1.1B": (2048, 5632, 22, 32, 4),
    "2.2B": (2048, 5632, 47, 32, 4),
    "4.4B": (3072, 8192, 42, 24, 8),
}
VOCABULARY = 32000
STD, NOISE = 0.02, 0.002  # of the base's weights, and of what the suspect's differ by before rounding
INDEX = "model.safetensors.index.json"
UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}
BLOCK = 1 << 20  # bytes read at once by the bound
PIECE = 1 << 26  # bytes that a thread of the bound takes on at once
OURS, IN_PROCESS, MERGEKIT = "ours", "ours (in process)", "mergekit"
BOUNDS = {"bound (2 threads)": 2, "bound (1 thread)": 1}
# No tokenizer, no card, no progress bars: mergekit only mixes. Its help calls --out-shard-size a number of parameters,
# but it counts bytes.
MERGEKIT_COMMON = ["--no-copy-tokenizer", "--no-write-model-card", "--quiet"]
MERGEKIT_PILOT = [
    [],
    ["--async-write"],
    ["--async-write", "--write-threads", "2"],
    ["--lazy-unpickle"],
    ["--low-cpu-memory"],
]


# Checkpoints


def read_header(path: Path) -> tuple[int, dict[str, dict]]:
    """Where the data begins in a file of safetensors, and what the header says of each tensor."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return 8 + length, header


def shards(folder: Path) -> list[Path]:
    """The files of a checkpoint's weights."""
    return sorted(folder.glob("*.safetensors"))


def tensors(folder: Path) -> dict[str, tuple[Path, int, list[int]]]:
    """File, place of the first byte and shape of each tensor."""
    places = {}
    for path in shards(folder):
        start, header = read_header(path)
        for name, entry in header.items():
            if entry["dtype"] != "BF16":
                raise SystemExit(f"{path}: {name} is {entry['dtype']}, not BF16")
            places[name] = (path, start + entry["data_offsets"][0], entry["shape"])
    return places


def size_in_bytes(text: str) -> int:
    """Of `500MB`, say."""
    match = re.fullmatch(r"(\d+)(KB|MB|GB)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text} is no size like 500MB")
    return int(match[1]) * UNITS[match[2]]


def checked_size(text: str) -> str:
    """The same, as it stands."""
    size_in_bytes(text)
    return text


def llama_tensors(size: str) -> dict[str, list[int]]:
    """Name and shape of each tensor, in the model's order."""
    hidden, intermediate, layers, heads, kv_heads = SIZES[size]
    kv = hidden // heads * kv_heads
    layer = {
        "input_layernorm": [hidden],
        "self_attn.q_proj": [hidden, hidden],
        "self_attn.k_proj": [kv, hidden],
        "self_attn.v_proj": [kv, hidden],
        "self_attn.o_proj": [hidden, hidden],
        "post_attention_layernorm": [hidden],
        "mlp.gate_proj": [intermediate, hidden],
        "mlp.up_proj": [intermediate, hidden],
        "mlp.down_proj": [hidden, intermediate],
    }
    shapes = {"model.embed_tokens.weight": [VOCABULARY, hidden]}
    for i in range(layers):
        shapes |= {f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()}
    return shapes | {"model.norm.weight": [hidden], "lm_head.weight": [VOCABULARY, hidden]}


def llama_config(size: str) -> dict:
    """What config.json says."""
    hidden, intermediate, layers, heads, kv_heads = SIZES[size]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 2048,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-05,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def make(folder: Path, size: str, shard_size: int) -> None:
    """Write base and suspect side by side, block by block."""
    import numpy as np

    sides = [folder / "base", folder / "suspect"]
    config = json.dumps(llama_config(size), indent=2) + "\n"
    if all((side / INDEX).exists() for side in sides):  # written last
        if any((side / "config.json").read_text(encoding="utf-8") != config for side in sides):
            raise SystemExit(f"{folder} holds a pair of another size")
        print(f"{folder} is there already")
        return
    # The tensors of each shard, at least one.
    shapes = llama_tensors(size)
    parts: list[list[str]] = [[]]
    filled = 0
    for name, shape in shapes.items():
        filled += 2 * prod(shape)
        if parts[-1] and filled > shard_size:
            parts.append([])
            filled = 2 * prod(shape)
        parts[-1].append(name)
    files = [f"model-{k:05}-of-{len(parts):05}.safetensors" for k in range(1, len(parts) + 1)]
    for side in sides:
        if side.exists():
            shutil.rmtree(side)
        side.mkdir(parents=True)
        (side / "config.json").write_text(config, encoding="utf-8")

    def rounded(numbers):
        """float32 as the bits of bfloat16, to nearest and ties to even; the input is used up."""
        bits = numbers.view(np.uint32)
        bits += 0x7FFF + ((bits >> 16) & 1)
        bits >>= 16
        return bits.astype(np.uint16)

    generator = np.random.default_rng(0)
    start = time.perf_counter()
    for file, names in zip(files, parts, strict=True):
        offsets = [0]
        for name in names:
            offsets.append(offsets[-1] + 2 * prod(shapes[name]))
        header = {"__metadata__": {"format": "pt"}}
        for name, span in zip(names, pairwise(offsets), strict=True):
            header[name] = {"dtype": "BF16", "shape": shapes[name], "data_offsets": span}
        head = json.dumps(header).encode()
        head += b" " * (-len(head) % 8)
        with (sides[0] / file).open("wb") as base, (sides[1] / file).open("wb") as suspect:
            for output in (base, suspect):
                output.write(len(head).to_bytes(8, "little") + head)
            left = offsets[-1] // 2
            while left:
                count = min(left, 1 << 20)
                left -= count
                values = rounded(STD * generator.standard_normal(count, dtype=np.float32))
                base.write(values.data)
                noise = NOISE * generator.standard_normal(count, dtype=np.float32)
                noise += (values.astype(np.uint32) << 16).view(np.float32)
                suspect.write(rounded(noise).data)
        print(f"{file}, {time.perf_counter() - start:.0f} s", flush=True)
    total = sum(map(prod, shapes.values()))
    weight_map = {name: file for file, names in zip(files, parts, strict=True) for name in names}
    index = {"metadata": {"total_size": 2 * total}, "weight_map": weight_map}
    for side in sides:
        (side / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    print(f"{total:,} parameters in {len(parts)} shards")


# What runs in processes of its own


def fsync(path: Path) -> None:
    """Bring a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_all(folder: Path) -> None:
    """Bring a folder and all that is in it to the disk."""
    for path in [*folder.rglob("*"), folder]:
        fsync(path)


class Target:
    """A file that several threads write; the last of them brings it to the disk."""

    def __init__(self, path: Path, size: int):
        self.descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        self.left = size
        self.lock = threading.Lock()
        if size and hasattr(os, "posix_fallocate"):
            os.posix_fallocate(self.descriptor, 0, size)

    def write(self, part: memoryview, place: int) -> None:
        if os.pwrite(self.descriptor, part, place) != len(part):
            raise OSError("could not write all of it: is the disk full?")

    def finish(self, count: int) -> None:
        """`count` more bytes are written."""
        with self.lock:
            self.left -= count
            last = not self.left
        if last:
            os.fsync(self.descriptor)
            os.close(self.descriptor)


def copy(base: Path, suspect: Path, output: Path, threads: int) -> None:
    """
    Read both checkpoints and write the suspect's weights, piece by piece of both in turn. A shard is synced once it is
    complete, while another thread goes on.
    """
    output.mkdir(parents=True)
    queues: list[list[tuple[Path, int, int, Target | None]]] = []
    for folder in (base, suspect):
        pieces = []
        for path in shards(folder):
            size = path.stat().st_size
            target = Target(output / path.name, size) if folder == suspect else None
            pieces += [(path, start, min(start + PIECE, size), target) for start in range(0, size, PIECE)]
        queues.append(pieces)
    buffers = threading.local()

    def work(piece: tuple[Path, int, int, Target | None]) -> None:
        path, start, end, target = piece
        if not hasattr(buffers, "block"):
            buffers.block = memoryview(bytearray(BLOCK))
        with path.open("rb", buffering=0) as source:
            source.seek(start)
            place = start
            while place < end:
                part = buffers.block[: source.readinto(buffers.block[: end - place])]
                if not part:
                    raise OSError(f"{path} has become shorter")
                if target:
                    target.write(part, place)
                place += len(part)
        if target:
            target.finish(end - start)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, filter(None, chain.from_iterable(zip_longest(*queues)))))
    for path in suspect.glob("*.json"):
        shutil.copyfile(path, output / path.name)


def mix_in_process(base: Path, suspect: Path, output: Path, ratio: float, shard_size: str) -> None:
    """Time the mixing without the start of Python and the imports, and print the seconds."""
    from hf_finemix import FineMixingConfig, mix_checkpoints

    config = FineMixingConfig(reserve_ratio=ratio, purify_embeddings=False, mixing_seed=0)

    def cpu() -> float:
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(usage.ru_utime + usage.ru_stime for usage in used)

    cpu_before, start = cpu(), time.perf_counter()
    mix_checkpoints(suspect, base, output, config, max_shard_size=shard_size)
    fsync_all(output)
    print(json.dumps({"wall": time.perf_counter() - start, "cpu": cpu() - cpu_before}))


def compare(base: Path, suspect: Path, output: Path) -> None:
    """Print how many elements of the output are one of the parents', bit for bit."""
    import numpy as np

    folders = [tensors(folder) for folder in (base, suspect, output)]
    elements = exact = differing = from_suspect = 0
    for name in sorted(set().union(*folders)):
        places = [folder.get(name) for folder in folders]
        if None in places or len({tuple(shape) for _, _, shape in places}) > 1:
            raise SystemExit(f"{name} is not in all three checkpoints in one shape")
        total = prod(places[0][2])
        for start in range(0, total, 1 << 22):
            count = min(1 << 22, total - start)
            of_base, of_suspect, mixed = (
                np.fromfile(path, "<u2", count, offset=offset + 2 * start) for path, offset, _ in places
            )
            differs, is_suspect = of_base != of_suspect, mixed == of_suspect
            elements += count
            exact += int(np.count_nonzero(is_suspect | (mixed == of_base)))
            differing += int(np.count_nonzero(differs))
            from_suspect += int(np.count_nonzero(differs & is_suspect))
    print(
        json.dumps(
            {
                "elements": elements,
                "exact_share": exact / elements,
                "parents_differ_share": differing / elements,
                "suspect_share": from_suspect / differing if differing else None,
            }
        )
    )


# Measuring


class Failed(Exception):
    """A contender's command failed; the message holds its last words."""


def measure(command: list, base: Path, suspect: Path, output: Path) -> dict[str, float]:
    """
    Run one contender from a warm page cache, and see its output onto the disk.

    The peak memory that Linux tells of a process is never below that of the process which started it, so this one must
    stay small: no numpy here.
    """
    with suppress(FileNotFoundError):
        shutil.rmtree(output)
    os.sync()
    block = bytearray(BLOCK)
    for path in [*shards(base), *shards(suspect)]:
        with path.open("rb", buffering=0) as file:
            while file.readinto(block):
                pass
    # No contender needs the network: all paths are local.
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        start = time.perf_counter()
        process = subprocess.Popen(list(map(str, command)), stdout=stdout, stderr=stderr, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode == 0:
            fsync_all(output)
        wall = time.perf_counter() - start
        words = []
        for stream in (stdout, stderr):
            stream.seek(0)
            words.append(stream.read().decode(errors="replace").strip())
    if process.returncode:
        last = "\n".join((words[1] or words[0]).splitlines()[-20:])
        raise Failed(f"exit status {process.returncode}:\n{last}")
    result = {"wall": wall, "cpu": usage.ru_utime + usage.ru_stime, "peak_mb": usage.ru_maxrss / 1024}
    if "in-process" in command:
        result |= json.loads(words[0].splitlines()[-1])
    return {key: round(value, 4) for key, value in result.items()}


def from_proc(file: str, key: str) -> str | None:
    """One line's value in /proc."""
    for line in Path("/proc", file).read_text(encoding="utf-8").splitlines():
        if line.startswith(key):
            return line.partition(":")[2].strip()
    return None


def memory_mb(key: str) -> int:
    """A line of /proc/meminfo."""
    return int(from_proc("meminfo", key).split()[0]) // 1024


def find_versions(mergekit: Path | None) -> dict[str, str]:
    """Of Python and the packages in use, without importing them."""
    versions = {"python": platform.python_version()}
    for name in ("numpy", "torch", "hf_finemix"):
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    if mergekit:
        code = "from importlib.metadata import version; print(version('mergekit'), version('torch'))"
        command = [str(mergekit / "python"), "-c", code]
        words = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        versions["mergekit"], versions["torch of mergekit"] = words
    return versions


def describe(folder: Path, ratio: float, shard_size: str, mergekit: Path | None) -> dict:
    """Machine, versions, pair and settings."""
    base, suspect = folder / "base", folder / "suspect"
    if not all((side / INDEX).exists() for side in (base, suspect)):
        raise SystemExit(f"{folder} holds no pair: make it first")
    inputs = sum(path.stat().st_size for path in [*shards(base), *shards(suspect)])
    written = sum(path.stat().st_size for path in shards(suspect))
    available = memory_mb("MemAvailable")
    return {
        "machine": {
            "cores": os.cpu_count(),
            "cpu": from_proc("cpuinfo", "model name") or platform.machine(),
            "memory_mb": memory_mb("MemTotal"),
        },
        "versions": find_versions(mergekit),
        "pair": {
            "parameters": sum(prod(shape) for _, _, shape in tensors(suspect).values()),
            "bytes": written,
            "shards": len(shards(suspect)),
        },
        "settings": {"ratio": ratio, "shard_size": shard_size},
        "page_cache": {
            "available_mb": available,
            "inputs_fit": inputs >> 20 < available,
            "inputs_and_output_fit": (inputs + written) >> 20 < available,
        },
    }


def load(output: Path, found: dict) -> dict:
    """What has been measured before, which must have been in the same circumstances, or a fresh start."""
    if not output.exists():
        return {**found, "pilot": {}, "runs": {}, "exact": {}}
    results = json.loads(output.read_text(encoding="utf-8"))
    for part in ("machine", "versions", "pair", "settings"):
        for key in results[part].keys() & found[part].keys():
            if results[part][key] != found[part][key]:
                was, now = results[part][key], found[part][key]
                raise SystemExit(f"{output}: {part}, {key}: {was} then, {now} now; give another --output")
    results["versions"] |= found["versions"]
    return results


def save(output: Path, results: dict) -> None:
    """Write what there is, with medians and ratios."""
    medians = {
        name: {key: round(median(run[key] for run in runs), 4) for key in runs[0]}
        for name, runs in results["runs"].items()
    }
    bounds = [name for name in BOUNDS if name in medians]
    results["medians"] = medians
    results["bound"] = bound = min(bounds, key=lambda name: medians[name]["wall"]) if bounds else None
    results["ratios"] = {
        f"{above} / {'bound' if below == bound else below}": round(medians[above]["wall"] / medians[below]["wall"], 3)
        for above, below in [(OURS, bound), (IN_PROCESS, bound), (MERGEKIT, bound), (OURS, MERGEKIT)]
        if above in medians and below in medians
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    part = output.with_name(output.name + ".part")
    part.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(output)


def mergekit_command(mergekit: Path, config: Path, output: Path, shard_size: str, flags: list[str]) -> list:
    """The whole command."""
    fixed = ["--out-shard-size", str(size_in_bytes(shard_size)), *MERGEKIT_COMMON]
    return [mergekit / "mergekit-yaml", config, output, *fixed, *flags]


def pilot(run: Callable[[list], dict], command: Callable[[list[str]], list], results: dict, keep: Callable) -> None:
    """Run mergekit once with each set of flags, and choose the fastest."""
    for flags in MERGEKIT_PILOT:
        name = " ".join(flags) or "plain"
        if name in results["pilot"]:
            continue
        try:
            results["pilot"][name] = run(command(flags))
        except Failed as failure:
            results["pilot"][name] = {"failed": str(failure)}
        print("mergekit, pilot:", name, results["pilot"][name], flush=True)
        keep()
    worked = {name: measured["wall"] for name, measured in results["pilot"].items() if "wall" in measured}
    if not worked:
        raise SystemExit("mergekit failed with all flags: {}".format(results["pilot"]["plain"]["failed"]))
    results["mergekit_flags"] = min(worked, key=worked.get)


def run(folder: Path, ratio: float, repeats: int, shard_size: str, mergekit: Path | None, output: Path) -> None:
    """Measure all contenders in turn; what `output` holds already is not measured again."""
    if mergekit and not (mergekit / "mergekit-yaml").exists():
        raise SystemExit(f"{mergekit} holds no mergekit-yaml")
    base, suspect, mixed = (folder.resolve() / name for name in ("base", "suspect", "mixed"))
    results = load(output, describe(folder, ratio, shard_size, mergekit))
    keep = partial(save, output, results)
    start = partial(measure, base=base, suspect=suspect, output=mixed)
    if not results["page_cache"]["inputs_fit"]:
        print("the two checkpoints do not fit in free memory: they are read from the disk")
    own = [sys.executable, "-S", Path(__file__).resolve()]  # -S: for what needs the standard library only
    ours = [sys.executable, "-m", "hf_finemix", "mix", suspect, "--base-model", base, "--reserve-ratio", ratio]
    ours += ["--purify-embeddings", "false", "--max-shard-size", shard_size, "--output-dir", mixed]
    in_process = [sys.executable, own[-1], "in-process", base, suspect, mixed, ratio, shard_size]
    commands = {OURS: ours, IN_PROCESS: in_process}
    with ExitStack() as stack:
        if mergekit:
            config = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "config.yml"
            model = {"model": str(suspect), "parameters": {"density": ratio, "weight": 1}}
            merge = {
                "models": [model],
                "merge_method": "dare_linear",
                "base_model": str(base),
                "parameters": {"rescale": False, "normalize": False},
                "dtype": "bfloat16",
            }
            config.write_text(json.dumps(merge), encoding="utf-8")  # JSON is YAML too
            command = partial(mergekit_command, mergekit.absolute(), config, mixed, shard_size)
            warm_up = [str(mergekit / "mergekit-yaml"), "--help"]
            subprocess.run(warm_up, stdout=subprocess.DEVNULL, check=True)
            pilot(start, command, results, keep)
            flags = results["mergekit_flags"]
            commands[MERGEKIT] = command([] if flags == "plain" else flags.split())
        for name, threads in BOUNDS.items():
            commands[name] = [*own, "copy", base, suspect, mixed, threads]
        for repeat in range(repeats):
            for name, command in commands.items():
                runs = results["runs"].get(name, [])
                if len(runs) > repeat:
                    continue
                try:
                    measured = start(command)
                except Failed as failure:
                    raise SystemExit(f"{name} failed with {failure}") from None
                results["runs"][name] = [*runs, measured]
                print(f"{repeat + 1}/{repeats} {name} {measured}", flush=True)
                if name in (OURS, MERGEKIT) and name not in results["exact"]:
                    arguments = list(map(str, [sys.executable, own[-1], "compare", base, suspect, mixed]))
                    words = subprocess.run(arguments, stdout=subprocess.PIPE, text=True, check=True).stdout
                    results["exact"][name] = json.loads(words)
                    print(name, results["exact"][name], flush=True)
                keep()
    with suppress(FileNotFoundError):
        shutil.rmtree(mixed)
    print(json.dumps(results["ratios"], indent=2, ensure_ascii=False))


# Showing


def read_results(paths: list[Path]) -> list[dict]:
    """From the smallest pair to the largest."""
    results = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    return sorted(results, key=lambda result: result["pair"]["parameters"])


def series(results: list[dict]) -> Iterator[tuple[str, list[tuple[dict, dict]]]]:
    """For each contender, and the faster bound: the pairs that each was measured on, and the medians."""
    for label in (OURS, IN_PROCESS, MERGEKIT, "bound"):
        names = [(result, result["bound"] if label == "bound" else label) for result in results]
        points = [(result["pair"], result["medians"][name]) for result, name in names if name in result["medians"]]
        if points:
            yield label, points


def table(paths: list[Path]) -> None:
    """Print Markdown."""
    results = read_results(paths)
    print("| pair | contender | wall s, median (min–max) | CPU s | peak RSS MB | a parent's bits, % of elements |")
    print("|---|---|---:|---:|---:|---:|")
    for result in results:
        size = f"{result['pair']['parameters'] / 1e9:.2g} B, {result['pair']['bytes'] / 1e9:.2g} GB"
        for name in (OURS, IN_PROCESS, MERGEKIT, *BOUNDS):
            if name not in result["runs"]:
                continue
            walls = [run["wall"] for run in result["runs"][name]]
            middle = result["medians"][name]
            wall = f"{middle['wall']:.2f} ({min(walls):.2f}–{max(walls):.2f})"
            exact = result["exact"].get(name)
            share = f"{100 * exact['exact_share']:.4f}" if exact else ""
            print(f"| {size} | {name} | {wall} | {middle['cpu']:.2f} | {middle['peak_mb']:.0f} | {share} |")
    for result in results:
        machine, versions = result["machine"], result["versions"]
        shown = ", ".join(f"{name} {value:.2f}" for name, value in result["ratios"].items())
        counts = "–".join(map(str, sorted({len(runs) for runs in result["runs"].values()})))
        print(f"\n{result['pair']['parameters']:,} parameters, {counts} runs each: {shown}.", end="")
        if "mergekit_flags" in result:
            print(f" mergekit's fastest flags: {result['mergekit_flags']}.", end="")
        if not result["page_cache"]["inputs_and_output_fit"]:
            what = "inputs and output" if result["page_cache"]["inputs_fit"] else "inputs"
            print(f" The {what} did not fit in free memory.", end="")
        print(f"\n{machine['cores']} cores of {machine['cpu']}, {machine['memory_mb'] / 1024:.0f} GiB; ", end="")
        print(", ".join(f"{name} {number}" for name, number in versions.items()) + ".")


def scaling(paths: list[Path], output: Path) -> None:
    """Draw time per parameter and peak memory against the number of parameters."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    style = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}
    looks = {
        OURS: ("#0072B2", "o"),
        IN_PROCESS: ("#56B4E9", "D"),
        MERGEKIT: ("#D55E00", "s"),
        "bound": ("#595959", "^"),
    }
    labels = {OURS: "hf-finemix mix", IN_PROCESS: "… without its start", MERGEKIT: "mergekit dare_linear"}
    labels["bound"] = "read both, write one (bound)"
    results = read_results(paths)
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(8, 3.8), dpi=144, layout="constrained")
        left, right = figure.subplots(1, 2)
        for name, points in series(results):
            sizes = [pair["parameters"] for pair, _ in points]
            times = [1e9 * middle["wall"] / pair["parameters"] for pair, middle in points]
            color, marker = looks[name]
            left.plot(sizes, times, color=color, marker=marker, label=labels[name])
            right.plot(sizes, [middle["peak_mb"] for _, middle in points], color=color, marker=marker)
        for axes, what in ((left, "wall time, ns per parameter"), (right, "peak memory (RSS), MB")):
            axes.set_xscale("log")
            axes.set_yscale("log")
            sizes = [result["pair"]["parameters"] for result in results]
            axes.set_xticks(sizes, [f"{size / 1e9:.2g} B" for size in sizes])
            axes.xaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_locator(LogLocator(subs=[1, 2, 5]))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.grid(axis="y", color="#dddddd", linewidth=0.6)
            axes.set_xlabel("parameters of the model (bfloat16)")
            axes.set_ylabel(what)
        figure.legend(loc="outside upper center", ncols=4, columnspacing=1.2, handlelength=1.6)
        output.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(output, metadata={"Software": None})
    print(output)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True, metavar="{make,run,table,scaling}")
    command = commands.add_parser("make", help="write a pair of checkpoints")
    command.add_argument("folder", type=Path)
    command.add_argument("--size", choices=SIZES, default="1.1B")
    command.add_argument("--shard-size", type=size_in_bytes, default="500MB")
    command = commands.add_parser("run", help="measure all contenders on a pair")
    command.add_argument("folder", type=Path)
    command.add_argument("--ratio", type=float, default=0.5, help="share of the suspect's weights")
    command.add_argument("--repeats", type=int, default=5)
    command.add_argument("--shard-size", type=checked_size, default="500MB")
    command.add_argument("--mergekit", type=Path, help="bin folder of its environment; left out without it")
    command.add_argument("--output", type=Path, default=Path("results.json"))
    command = commands.add_parser("table", help="print results as Markdown")
    command.add_argument("results", type=Path, nargs="+")
    command = commands.add_parser("scaling", help="draw results of several pairs")
    command.add_argument("results", type=Path, nargs="+")
    command.add_argument("--output", type=Path, default=Path("docs/mixing_scaling.png"))
    for name in ("copy", "in-process", "compare"):  # what the script starts by itself
        command = commands.add_parser(name)
        for folder in ("base", "suspect", "output"):
            command.add_argument(folder, type=Path)
        if name == "copy":
            command.add_argument("threads", type=int)
        if name == "in-process":
            command.add_argument("ratio", type=float)
            command.add_argument("shard_size")
    arguments = parser.parse_args()
    if arguments.command == "make":
        make(arguments.folder, arguments.size, arguments.shard_size)
    elif arguments.command == "run":
        given = vars(arguments)
        del given["command"]
        run(**given)
    elif arguments.command == "table":
        table(arguments.results)
    elif arguments.command == "scaling":
        scaling(arguments.results, arguments.output)
    else:
        paths = (arguments.base, arguments.suspect, arguments.output)
        if arguments.command == "copy":
            copy(*paths, arguments.threads)
        elif arguments.command == "in-process":
            mix_in_process(*paths, arguments.ratio, arguments.shard_size)
        else:
            compare(*paths)


if __name__ == "__main__":
    main()
