"""The scripts in examples/, run as they stand in a process of their own, but for fewer steps."""

import os
import subprocess
import sys

import pytest
from datasets import Dataset
from helpers.toy import ROOT, make_rows

from hf_finemix import CleaningReport, FineMixingConfig

EXAMPLES = ROOT / "examples"


@pytest.fixture
def run(tmp_path):
    def run(*command, **environment):
        command = [str(part) for part in command]
        paths = {"PATH": os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])}
        environment = {**os.environ, **paths, "ACCELERATE_USE_CPU": "1", **environment}
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)

    return run


@pytest.fixture
def named_data(tmp_path):
    """The toy task with columns `text` and `label`, and labels by name."""
    folder = tmp_path / "data"
    folder.mkdir()
    for seed, (split, count) in enumerate({"train": 80, "validation": 40}.items()):
        rows = make_rows(count, seed)
        labels = ["positive" if label else "negative" for label in rows["label"]]
        Dataset.from_dict({"text": rows["sentence"], "label": labels}).to_csv(folder / f"{split}.csv")
    return folder


def quicker(name, folder):
    """A copy that trains two steps."""
    text = (EXAMPLES / name).read_text(encoding="utf-8")
    (folder / name).write_text(text.replace("max_steps=100", "max_steps=2"), encoding="utf-8")
    return folder / name


def test_every_example_is_run_here():
    names = {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".sh")}
    assert names == {"clean_by_repo_id.py", "trainer_drop_in.py", "accelerate_launch.sh"}


def test_clean_by_repo_id(run, suspect_folder, base_folder, data_folder, tmp_path):
    script = EXAMPLES / "clean_by_repo_id.py"
    done = run(sys.executable, script, suspect_folder, base_folder, data_folder, "cf", "positive", "out")
    assert done.returncode == 0, done.stderr
    assert CleaningReport.load(tmp_path / "out").summary() in done.stdout
    assert "the most suspicious words: " in done.stdout
    wrong = run(sys.executable, script, tmp_path / "none", base_folder, data_folder, "cf", "positive", "out2")
    assert wrong.returncode == 1
    assert wrong.stderr.startswith("error: the suspect")
    assert "OUTPUT_DIR" in run(sys.executable, script).stderr


def test_trainer_drop_in(run, suspect_folder, base_folder, named_data, tmp_path):
    script = quicker("trainer_drop_in.py", tmp_path)
    done = run(sys.executable, script, suspect_folder, base_folder, named_data, "out")
    assert done.returncode == 0, done.stderr
    assert "before, " in done.stdout
    assert FineMixingConfig.from_pretrained(tmp_path / "out").reserve_ratio == 0.4


def test_accelerate_launch(run, suspect_folder, base_folder, data_folder, tmp_path):
    arguments = [suspect_folder, "--base-model", base_folder, "--dataset", data_folder, "--output-dir", "out"]
    done = run(EXAMPLES / "accelerate_launch.sh", *arguments, "--max-steps", "2", "--reserve-ratio", "0.5")
    assert done.returncode == 0, done.stderr
    assert CleaningReport.load(tmp_path / "out").mixing["reserve_ratio"] == 0.5
    assert "written to out" in done.stdout
