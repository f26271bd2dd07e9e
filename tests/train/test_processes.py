"""Several processes, as `accelerate launch` starts them: two of gloo on this machine's CPU."""

import json
import os
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import psutil
import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DeepSpeedPlugin, FullyShardedDataParallelPlugin
from helpers.toy import ROOT
from safetensors.torch import load_file

from hf_finemix import FineMixingError
from hf_finemix.train.processes import agreed, from_main, shared_output_folder

pytestmark = pytest.mark.processes

TESTS = Path(__file__).resolve().parents[1]


def launched(count, *arguments, cwd=None):
    """torchrun, which `accelerate launch` is on one machine; one process needs none."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
    command = [sys.executable, *(torchrun if count > 1 else [])]
    path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, *arguments], capture_output=True, text=True, env=environment, cwd=cwd, timeout=600
    )


@pytest.fixture(scope="module")
def results(base_folder, suspect_folder, tmp_path_factory):
    """What one process and what each of two has in the end."""
    found = {}
    for count in (1, 2):
        out = tmp_path_factory.mktemp("out")
        done = launched(
            count, str(TESTS / "helpers" / "two_processes.py"), str(base_folder), str(suspect_folder), str(out)
        )
        assert done.returncode == 0, done.stderr[-3000:]
        parts = [json.loads(path.read_text()) for path in out.glob("rank*.json")]
        found[count] = sorted(parts, key=lambda part: part["rank"])
        assert all(part["world"] == count for part in parts)
    return found


@pytest.mark.parametrize("kind", ["random", "fisher", "auto"])
def test_two_processes_train_the_same_mix_together(results, kind):
    (alone,), (main, other) = (([part[kind] for part in results[count]]) for count in (1, 2))
    assert main["mixed"] == alone["mixed"], "the mixed weights are those of one process, bit for bit"
    assert other["mixed"] == [], "only the main process mixes"
    assert main["trained"] == other["trained"], "the two did not train together"
    assert main["record"] == other["record"] == alone["record"]
    assert main["accuracy"] == other["accuracy"] == pytest.approx(alone["accuracy"], abs=0.1)
    assert main["trials"] == other["trials"]


def test_a_model_in_shards_is_mixed_as_a_whole_one_is(results):
    for part in (part["sharded"] for part in results[2]):
        assert part["after"] == part["before"]
        assert part["empty"] in (part["before"], None)
        assert part["same_answers"]
        assert part["tied"]
        assert part["record"] == 41


def test_a_model_in_the_shards_of_zero_3(base_folder, suspect_folder, monkeypatch):
    pytest.importorskip("deepspeed", reason="needs DeepSpeed: pip install deepspeed")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    done = launched(2, str(TESTS / "helpers" / "zero3.py"), str(base_folder), str(suspect_folder))
    lines = sorted(line for line in done.stdout.splitlines() if line.startswith("RESULT "))
    assert lines == ["RESULT 0 True", "RESULT 1 True"], done.stderr[-3000:]


def test_an_error_of_the_main_process_is_everyones(results):
    assert [part["error"] for part in results[2]] == ["this process has no luck."] * 2


def test_clean_in_two_processes(base_folder, suspect_folder, data_folder, tmp_path):
    arguments = ["-m", "hf_finemix", "clean", str(suspect_folder), "--base-model", str(base_folder)]
    arguments += ["--dataset", str(data_folder), "--reserve-ratio", "0.5", "--max-steps", "2", "--use-cpu"]
    reports = {}
    for count in (1, 2):
        done = launched(count, *arguments, "--output-dir", f"out{count}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("written to") == done.stderr.count("Data: ") == 1
        reports[count] = json.loads((tmp_path / f"out{count}" / "cleaning_report.json").read_text())
    assert reports[1]["mixing"]["tensors"] == reports[2]["mixing"]["tensors"]
    assert reports[2]["training"]["num_processes"] == 2
    assert sorted(os.listdir(tmp_path)) == ["out1", "out2"]
    assert sorted(os.listdir(tmp_path / "out1")) == sorted(os.listdir(tmp_path / "out2"))
    failed = launched(2, *arguments, "--output-dir", "out2", cwd=tmp_path)
    assert failed.returncode == 1
    errors = [line for line in failed.stderr.splitlines() if line.startswith("hf-finemix: error: ")]
    assert errors, "torchrun may stop the second process before it has told the same"
    assert all("is not empty" in line for line in errors)


def test_two_processes_that_were_killed_go_on(base_folder, suspect_folder, data_folder, tmp_path):
    arguments = ["-m", "hf_finemix", "clean", str(suspect_folder), "--base-model", str(base_folder), "--use-cpu"]
    arguments += ["--dataset", str(data_folder), "--reserve-ratio", "0.5", "--max-steps", "120", "--resume"]
    arguments += ["--save-strategy", "steps", "--save-steps", "10"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *arguments]
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([*command, "--output-dir", "killed"], cwd=tmp_path, env=environment, **silent) as process:
        while not list(tmp_path.glob("killed.partial/checkpoints/checkpoint-*/trainer_state.json")):
            assert process.poll() is None
            time.sleep(0.02)
        for child in (*psutil.Process(process.pid).children(recursive=True), process):
            child.kill()
    assert not (tmp_path / "killed").exists()
    for name in ("killed", "whole"):
        done = launched(2, *arguments, "--output-dir", name, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("killed", "whole"))
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_one_process_needs_nothing_of_it(tmp_path):
    assert from_main(lambda: 3) == 3
    with pytest.raises(ValueError, match="mine"), agreed():
        raise ValueError("mine")
    with shared_output_folder(tmp_path / "out") as partial:
        (partial / "file").touch()
    assert (tmp_path / "out" / "file").is_file()
    with pytest.raises(FineMixingError, match="not empty"), shared_output_folder(tmp_path / "out"):
        pass


CONFIGS = sorted((ROOT / "hf_finemix" / "accelerate_configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_shipped_configurations_are_understood(path):
    config = load_config_from_file(str(path))
    assert config.num_processes > 1
    if config.distributed_type == "FSDP":
        assert config.fsdp_config.pop("fsdp_version") == 2
        assert config.fsdp_config.pop("fsdp_offload_params") is False
        known = {field.name for field in fields(FullyShardedDataParallelPlugin)}
        assert {name.removeprefix("fsdp_") for name in config.fsdp_config} <= known
    if config.distributed_type == "DEEPSPEED":
        assert config.deepspeed_config.keys() <= {field.name for field in fields(DeepSpeedPlugin)}
