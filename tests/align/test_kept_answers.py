import json
import os
import subprocess
import sys

import pytest
from helpers.toy import ROOT

from hf_finemix import plan_mix
from hf_finemix.align import architectures
from hf_finemix.align.kept_answers import keep_answer, kept_answer

PLAN = """
import sys
from hf_finemix.cli import main
code = main(["plan", *sys.argv[1:], "--json"])
print(sorted({"torch", "transformers.modeling_utils", "transformers.models.bert.modeling_bert"} & set(sys.modules)))
sys.exit(code)
"""


def plan(pair, home, **variables):
    """What `plan` prints in a process of its own, and which heavy modules it has imported."""
    environment = {**os.environ, "HF_HOME": str(home), "PYTHONPATH": str(ROOT), **variables}
    command = [sys.executable, "-c", PLAN, str(pair[0]), "--base-model", str(pair[1])]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    printed, heavy = done.stdout.rsplit("[", 1)
    return {**json.loads(printed), "disk": None}, "[" + heavy.strip()


@pytest.fixture
def pair(suspect_folder, base_folder):
    return suspect_folder, base_folder


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A cache of its own in this process."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def asked(monkeypatch):
    """The classes that were made to be asked."""
    found, make = [], architectures._empty_model
    monkeypatch.setattr(architectures, "_empty_model", lambda name, *a, **k: found.append(name) or make(name, *a, **k))
    return found


def entries(home):
    return sorted(home.glob("hf_finemix/architectures-*/*.json"))


def test_the_first_run_asks_the_class_and_the_second_imports_none(pair, tmp_path):
    first, heavy = plan(pair, tmp_path)
    assert "modeling_bert" in heavy
    kept = entries(tmp_path)
    assert len(kept) == 2  # of the pair, and what the base ties
    assert plan(pair, tmp_path) == (first, "[]")
    assert entries(tmp_path) == kept
    assert {file.name for file in kept[0].parent.iterdir()} == {file.name for file in kept}  # nothing half-written


def test_nothing_is_kept_where_it_is_switched_off(pair, tmp_path):
    _, heavy = plan(pair, tmp_path, HF_FINEMIX_DISABLE_CACHE="1")
    assert "modeling_bert" in heavy
    assert not entries(tmp_path)
    plan(pair, tmp_path)
    assert "modeling_bert" in plan(pair, tmp_path, HF_FINEMIX_DISABLE_CACHE="yes")[1]


def test_what_another_version_of_transformers_said_is_not_read(pair, home, asked, monkeypatch):
    plan_mix(*pair)
    count = len(asked)
    plan_mix(*pair)
    assert len(asked) == count
    monkeypatch.setattr("hf_finemix.align.kept_answers.version", lambda name: "99.0")
    plan_mix(*pair)
    assert len(asked) == 2 * count
    assert {file.parent.name for file in entries(home)} >= {"architectures-99.0"}


@pytest.mark.parametrize(
    "content",
    ["", "{", "null", "[]", "[1]", '"text"', "{}", "[" * 100_000, '{"suspect": {}, "base": {}, "buffers": []}', "\0"],
)
def test_a_broken_entry_is_made_anew(pair, home, asked, content):
    expected = plan_mix(*pair).rules
    for file in entries(home):
        file.write_text(content)
    count = len(asked)
    assert plan_mix(*pair).rules == expected
    assert len(asked) > count
    plan_mix(*pair)
    assert len(asked) <= 2 * count + 1


@pytest.mark.parametrize(
    "changes",
    [
        {"suspect": {"classifier.weight": "../../secret"}},
        {"suspect": ["classifier.weight"]},
        {"base": {}},
        {"base": {"embeddings.word_embeddings.weight": ["a"]}},
        {"aliases": {"a": [["b"]]}},
        {"aliases": {"a": [1]}},
        {"aliases": 3},
        {"embedding": ["a"]},
        {"embedding": 7},
        {"buffers": [{}]},
        {"buffers": 1},
        {"ignored": ["more"]},
        {"converted": {"a": ["b"]}},
        {"unknown": 1},
    ],
)
def test_an_entry_that_is_no_layout_of_these_names_is_made_anew(pair, home, asked, changes):
    expected = plan_mix(*pair).rules
    layout = next(file for file in entries(home) if file.read_text().startswith("{"))
    layout.write_text(json.dumps(json.loads(layout.read_text()) | changes))
    count = len(asked)
    assert plan_mix(*pair).rules == expected
    assert len(asked) == count + 1
    assert "converted" in layout.read_text()
    plan_mix(*pair)
    assert len(asked) == count + 1


@pytest.mark.parametrize("content", [[["a", 1]], [[{}]], [1], {"a": 1}])
def test_ties_that_are_no_names_are_made_anew(pair, home, asked, content):
    plan_mix(*pair)
    ties = next(file for file in entries(home) if not file.read_text().startswith("{"))
    before, count = ties.read_text(), len(asked)
    ties.write_text(json.dumps(content))
    assert plan_mix(*pair).refused is None
    assert len(asked) == count + 1
    assert ties.read_text() == before


def test_a_home_that_cannot_be_written_is_no_error(pair, home):
    (home / "hf_finemix").write_text("a file where the folder should be")
    assert plan_mix(*pair).refused is None
    assert not entries(home)


def test_an_answer_is_of_one_class_and_one_config(home):
    config = {"model_type": "bert", "tie_word_embeddings": True, "dtype": "float32"}
    keep_answer(["mine"], "ties", "BertForMaskedLM", config)
    assert kept_answer("ties", "BertForMaskedLM", {**config, "dtype": "float16"}) == ["mine"]
    for other in (
        ("layout", "BertForMaskedLM", config),
        ("ties", "BertModel", config),
        ("ties", "BertForMaskedLM", {**config, "tie_word_embeddings": False}),
        ("ties", "BertForMaskedLM", config, ["a.weight"]),
    ):
        assert kept_answer(*other) is None


def test_many_processes_may_ask_at_once(pair, tmp_path):
    environment = {**os.environ, "HF_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PLAN, str(pair[0]), "--base-model", str(pair[1])]
    running = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = [json.loads(process.communicate()[0].rsplit("[", 1)[0])["rules"] for process in running]
    assert printed[0] == printed[1]
    assert [process.returncode for process in running] == [0, 0]
    assert plan(pair, tmp_path)[1] == "[]"
