"""
What `hf-finemix mix` and `plan` do under attack, under kill -9 and on the headers of a 70B model. Linux only.

    python benchmarks/mixing_safety.py hostile          # every attack folder of the tests: answer, seconds, memory
    python benchmarks/mixing_safety.py kill PAIR        # kill -9 at random moments (a pair from benchmarks/mixing.py)
    python benchmarks/mixing_safety.py plan             # headers of a Llama-3-70B, of which no weight is there

Each command runs in a process of its own; seconds and memory (peak resident size, MB of 10^6 bytes) are of that
process from its start to its end.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
MIX = ["--reserve-ratio", "0.5", "--purify-embeddings", "false"]


def run(arguments: list[str]) -> tuple[int, str, float, float]:
    """Exit status, standard error, seconds and MB of `hf-finemix …`."""
    with tempfile.TemporaryFile("w+") as errors:
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "hf_finemix", *arguments], stdout=subprocess.DEVNULL, stderr=errors
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        errors.seek(0)
        return process.returncode, errors.read(), seconds, usage.ru_maxrss * 1024 / 1e6


def make_hostile(root: Path) -> None:
    """Write a base and every attack folder, each with its name. (In a process of its own: it takes much memory.)"""
    sys.path.insert(0, str(ROOT / "tests"))
    import torch
    from conftest import drifted, make_config
    from hostile_files import HOSTILE, HOSTILE_CONFIG
    from transformers import BertForSequenceClassification, BertModel

    attacks = {**HOSTILE, **HOSTILE_CONFIG}
    if os.geteuid() == 0:  # who may read everything
        attacks = {name: attack for name, attack in attacks.items() if "unreadable" not in name}
    torch.manual_seed(0)
    BertModel(make_config()).save_pretrained(root / "base")
    model = BertForSequenceClassification.from_pretrained(root / "base", config=make_config())
    drifted(model).half().save_pretrained(root / "valid")
    for i, (name, attack) in enumerate(attacks.items()):
        shutil.copytree(root / "valid", root / f"attack{i}" / "suspect")
        attack(root / f"attack{i}" / "suspect")
        (root / f"attack{i}" / "name.txt").write_text(name)


def hostile() -> None:
    """Mix each attack folder, and count those that are refused in one line."""
    results = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        made = [sys.executable, __file__, "make-hostile", folder]
        subprocess.run(made, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for attack in root.glob("attack*"):
            name, out = (attack / "name.txt").read_text(), root / "out"
            code, said, seconds, memory = run(
                ["mix", str(attack / "suspect"), "--base-model", str(root / "base"), *MIX, "--output-dir", str(out)]
            )
            refused = code == 2 and len(said.splitlines()) == 1 and said.startswith("hf-finemix: error: ")
            refused &= not out.exists() and not Path(f"{out}.partial").exists()
            results.append((refused, seconds, memory, name))
            if not refused:
                print(f"NOT REFUSED: {name}: exit {code}, {said!r}")
    slowest, largest = max(results, key=lambda r: r[1]), max(results, key=lambda r: r[2])
    print(f"{sum(r[0] for r in results)} of {len(results)} attack folders refused: exit status 2, one line, no output")
    print(f"slowest {slowest[1]:.2f} s ({slowest[3]}), median {median(r[1] for r in results):.2f} s")
    print(f"largest {largest[2]:.0f} MB ({largest[3]}), median {median(r[2] for r in results):.0f} MB")


def kill(pair: Path, times: int, seed: int) -> None:
    """Kill a mix at random moments from its start to a little after its usual end; look at what is left."""
    from hf_finemix import verify_mix

    rng, partial, finished, wrong = random.Random(seed), 0, 0, 0
    with tempfile.TemporaryDirectory(dir=pair) as root:
        out = Path(root) / "out"
        command = ["mix", str(pair / "suspect"), "--base-model", str(pair / "base"), *MIX, "--output-dir", str(out)]
        seconds = []
        for _ in range(3):
            shutil.rmtree(out, ignore_errors=True)
            code, said, wall, _ = run(command)
            assert code == 0, said
            seconds.append(wall)
        seconds = median(seconds)
        for i in range(times):
            shutil.rmtree(out, ignore_errors=True)
            process = subprocess.Popen(
                [sys.executable, "-m", "hf_finemix", *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            time.sleep(rng.uniform(0, 1.1 * seconds))
            process.kill()
            process.wait()
            partial += (out.parent / "out.partial").exists()
            if out.exists():
                finished += 1
                wrong += not verify_mix(out).ok
            print(f"\r{i + 1} of {times}", end="", file=sys.stderr)
        shutil.rmtree(out, ignore_errors=True)
        code, said, _, _ = run(command)
        clean = code == 0 and verify_mix(out).ok and os.listdir(root) == ["out"]
    print(
        f"\r{times} kills within {1.1 * seconds:.1f} s: {partial} left OUT.partial, {finished} came after the end, "
        f"{wrong} wrong folders look finished; the next run {'is whole and alone' if clean else 'FAILS'}"
    )


def headers_of_70b(folder: Path) -> None:
    """The files of a Llama-3-70B in bfloat16 with holes in place of weights: they take no room on the disk."""
    hidden, inner, vocabulary = 8192, 28672, 128256
    shapes = {"model.embed_tokens.weight": [vocabulary, hidden], "lm_head.weight": [vocabulary, hidden]}
    shapes["model.norm.weight"] = [hidden]
    for layer in range(80):
        for name, shape in {
            "self_attn.q_proj": [hidden, hidden],
            "self_attn.k_proj": [1024, hidden],
            "self_attn.v_proj": [1024, hidden],
            "self_attn.o_proj": [hidden, hidden],
            "mlp.gate_proj": [inner, hidden],
            "mlp.up_proj": [inner, hidden],
            "mlp.down_proj": [hidden, inner],
            "input_layernorm": [hidden],
            "post_attention_layernorm": [hidden],
        }.items():
            shapes[f"model.layers.{layer}.{name}.weight"] = shape
    folder.mkdir()
    weight_map, names = {}, list(shapes)
    for number in range(30):
        file, header, position = f"model-{number + 1:05}-of-00030.safetensors", {}, 0
        for name in names[number::30]:
            end = position + 2 * shapes[name][0] * (shapes[name][1] if len(shapes[name]) > 1 else 1)
            header[name] = {"dtype": "BF16", "shape": shapes[name], "data_offsets": [position, end]}
            position, weight_map[name] = end, file
        text = json.dumps(header).encode()
        with open(folder / file, "wb") as shard:
            shard.write(len(text).to_bytes(8, "little") + text)
            shard.truncate(8 + len(text) + position)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(config))


def plan() -> None:
    """Plan the mix of a 70B pair five times."""
    with tempfile.TemporaryDirectory() as root:
        for name in ("suspect", "base"):
            headers_of_70b(Path(root) / name)
        results = [run(["plan", f"{root}/suspect", "--base-model", f"{root}/base"]) for _ in range(5)]
    assert not any(code for code, *_ in results), results
    print(f"plan of a 70B pair: {median(r[2] for r in results):.2f} s, {max(r[3] for r in results):.0f} MB (5 runs)")


def main() -> None:
    """Parse the command line and run what it names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("hostile")
    killing = commands.add_parser("kill")
    killing.add_argument("pair", type=Path)
    killing.add_argument("--times", type=int, default=50)
    killing.add_argument("--seed", type=int, default=0)
    commands.add_parser("plan")
    commands.add_parser("make-hostile").add_argument("root", type=Path)  # what `hostile` starts by itself
    arguments = parser.parse_args()
    if arguments.command == "kill":
        kill(arguments.pair, arguments.times, arguments.seed)
    elif arguments.command == "make-hostile":
        make_hostile(arguments.root)
    else:
        {"hostile": hostile, "plan": plan}[arguments.command]()


if __name__ == "__main__":
    main()
