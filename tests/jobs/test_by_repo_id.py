"""The commands by repo id over HTTP with the real client: the base is found, and what is cleaned is published."""

import json
import shutil

import pytest
from helpers.hub_server import Fault
from helpers.repos import fetched, files_of
from safetensors.torch import load_file, save_file

from hf_finemix import FineMixingError, plan_mix
from hf_finemix.cli import main


def commands(data_folder):
    training = f"--dataset {data_folder} --num-clean-samples 4 --max-steps 1 --use-cpu"
    return {"clean": f"clean org/suspect --reserve-ratio 0.5 {training}", "mix": "mix org/suspect --reserve-ratio 0.5"}


@pytest.mark.parametrize("command", ["clean", "mix"])
def test_commands_find_the_base(world, command, data_folder, tmp_path, capsys):
    argv = [*commands(data_folder)[command].split(), "--output-dir", str(tmp_path / "out")]
    assert main([*argv, "--json"]) == 0, capsys.readouterr().err
    report = json.loads(capsys.readouterr().out)
    assert report["base"]["id"] == report["mixing"]["base_model_name_or_path"] == "trusted/base"
    assert report["base"]["named_by"] == "the suspect's card (base_model)"
    assert report["base"]["fit"]["sure"]
    assert report["base"]["revision"] == report["mixing"]["base_model_revision"] == world.history("trusted/base")[0]
    assert main(["verify", str(tmp_path / "out")]) == 0, capsys.readouterr().err


def test_plan_finds_the_base(world):
    plan = plan_mix("org/suspect")
    assert plan.base["id"] == "trusted/base"
    assert plan.refused is None
    assert plan.suspect["download"] > len(world.head("org/suspect")["model.safetensors"])
    world.commit("org/suspect", {"README.md": b"# No YAML\n"})
    with pytest.raises(FineMixingError, match="is not known, it names none: give --base-model"):
        plan_mix("org/suspect")
    world.settings["org/suspect"] = {"tags": []}
    config = json.loads(world.head("org/suspect")["config.json"]) | {"auto_map": {"AutoModel": "x.Y"}}
    world.commit("org/suspect", {"config.json": json.dumps(config).encode()})
    assert "asks for code of its own" in plan_mix("org/suspect", "trusted/base").refused


@pytest.mark.parametrize("command", ["clean", "mix"])
def test_a_base_that_does_not_fit(world, base_folder, command, data_folder, tmp_path, capsys):
    """Refused where only the suspect names it; the user may insist."""
    shutil.copytree(base_folder, tmp_path / "relative")
    tensors = load_file(base_folder / "model.safetensors")
    tensors = {name: tensor + 0.5 * tensor.roll(1, -1) for name, tensor in tensors.items()}
    save_file(tensors, tmp_path / "relative" / "model.safetensors", metadata={"format": "pt"})
    world.commit("trusted/base", files_of(tmp_path / "relative"))
    argv = [*commands(data_folder)[command].split(), "--output-dir", str(tmp_path / "out")]
    assert main(argv) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "the base trusted/base, named by the suspect's card (base_model), is doubtful" in last
    assert not (tmp_path / "out").exists()
    assert main([*argv, "--base-model", "trusted/base"]) == 0
    assert "Is it the one that was fine-tuned?" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["clean", "mix"])
def test_the_suspect_under_another_name_as_its_base(world, suspect_folder, command, data_folder, tmp_path, capsys):
    world.commit("trusted/base", files_of(suspect_folder))
    argv = [*commands(data_folder)[command].split(), "--output-dir", str(tmp_path / "out")]
    assert main(argv) == 2
    assert "is the suspect itself" in capsys.readouterr().err


# All of it


def test_clean_and_publish(world, data_folder, tmp_path, capsys, monkeypatch):
    """The one command: pulled, its base found, cleaned, published; the card on the Hub; and as a pull request."""
    token = "hf_" + "w" * 34
    world.tokens[token] = ("me", "write")
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.chdir(tmp_path)
    argv = [*commands(data_folder)["clean"].split(), "--trigger", "cf", "--target-label", "positive"]
    argv += ["--hub-token", token, "--measure-matched-floor"]
    assert main([*argv, "--push-to-hub", "--hub-model-id", "me/cured", "--hub-private-repo", "True"]) == 0
    there = world.head("me/cured")
    assert {name for name in there if not name.startswith("figures/")} == {
        ".gitattributes",
        "README.md",
        "cleaning_report.json",
        "config.json",
        "fine_mixing_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert world.settings["me/cured"]["private"]
    rewritten = {".gitattributes", "README.md", "cleaning_report.json"}  # which name the folder of the data
    assert all(there[name] == (tmp_path / "cleaned" / name).read_bytes() for name in there.keys() - rewritten)
    assert not [name for name, content in there.items() if str(data_folder).encode() in content]
    card = there["README.md"].decode()
    assert "base_model:\n- trusted/base\n- org/suspect\n" in card
    assert "base_model_relation: merge\n" in card
    assert "license: mit" in card
    report = json.loads(there["cleaning_report.json"])
    assert report["matched_floor"]["accuracy"] is not None
    assert token not in capsys.readouterr().err
    bodies = [*world.uploads, *there.items()]  # as sent, and as stored: small files are sent in base64
    assert not [path for path, body in bodies if token.encode() in body]
    assert main(["verify", "me/cured"]) == 0

    assert main([*argv, "--create-pr", "--output-dir", "again"]) == 0
    (request,) = world.pull_requests("org/suspect")
    assert "A cleaned copy of `org/suspect`" in request["description"]
    assert request["files"]["README.md"].decode().endswith("# A suspect\n")


def test_what_cannot_be_published_is_told_before_the_work(world, data_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = [*commands(data_folder)["clean"].split(), "--push-to-hub"]
    assert main([*argv, "--hub-model-id", "me/cured"]) == 2  # nobody is logged in
    assert "model.safetensors" in fetched(world)
    assert not list(tmp_path.glob("cleaned*"))
    assert main(argv) == 2
    assert "push_to_hub needs a name" in capsys.readouterr().err


def test_a_push_that_fails_leaves_the_cleaned_model(world, data_folder, tmp_path, capsys, monkeypatch):
    token = "hf_" + "w" * 34
    world.tokens[token] = ("me", "write")
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.chdir(tmp_path)
    world.faults.append(Fault("POST", "/commit/", 500, times=None))
    assert main([*commands(data_folder)["clean"].split(), "--push-to-hub", "--hub-model-id", "me/cured"]) == 2
    assert "answered 500" in capsys.readouterr().err
    assert (tmp_path / "cleaned" / "cleaning_report.json").is_file()
    world.faults.clear()
    assert main(["push", "cleaned", "me/cured"]) == 0
