"""The snippets of README and docs, run as they stand but for the ids."""

import re

import pytest
from helpers.toy import ROOT, make_rows

README = (ROOT / "README.md").read_text(encoding="utf-8")
CLEAN, ON_DISK = ((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("clean.md", "disk_mixing.md"))
SNIPPETS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture
def local(suspect_folder, base_folder, data_folder):
    """Local folders in place of the Hub ids, few steps in place of many."""
    names = {"org/suspect": suspect_folder, "org/base": base_folder, "org/clean-data": data_folder}

    def replace(text):
        for name, folder in names.items():
            text = text.replace(name, str(folder))
        return text.replace("max_steps=100", "max_steps=2")

    return replace


@pytest.fixture
def in_tmp(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_there_are_snippets_to_run():
    assert len(SNIPPETS) == 2


def test_trainer_snippet(local, in_tmp, tokenizer):
    from datasets import Dataset

    from hf_finemix.measure.clean_data import tokenize

    rows = tokenize(Dataset.from_dict(make_rows(16)), tokenizer, ["sentence"], None)
    names = {"train_dataset": rows, "eval_dataset": rows}
    exec(local(SNIPPETS[1]), names)
    assert names["trainer"].mixing_record.reserve_ratio == 0.4
    assert names["trainer"].state.global_step == 2


def test_clean_snippet(local, in_tmp, tmp_path, capsys):
    exec(local(SNIPPETS[0]), {})
    assert "attack success, 'cf'" in capsys.readouterr().out
    assert (tmp_path / "cleaned" / "cleaning_report.json").is_file()


def test_command_lines_by_ids(hub, suspect_folder, base_folder, data_folder, in_tmp, tmp_path, capsys, monkeypatch):
    """As they stand, on a Hub with these ids and an account called me: cleaned and published, again, and proposed."""
    from hf_finemix.cli import main

    token = "hf_" + "w" * 34
    hub.tokens[token] = ("me", "write")
    monkeypatch.setenv("HF_TOKEN", token)
    card = {"README.md": b"---\nbase_model: trusted/base\n---\n"}
    hub.commit("org/suspect", {**{path.name: path.read_bytes() for path in suspect_folder.iterdir()}, **card})
    hub.commit("trusted/base", {path.name: path.read_bytes() for path in base_folder.iterdir()})
    hub.repos["datasets", "org/clean-data"] = data_folder
    command = re.search(r"hf-finemix (clean org/.*?)\n```", README, flags=re.DOTALL)[1].replace("\\\n", " ")
    assert main([*command.split(), "--max-steps", "2", "--reserve-ratio", "0.5", "--use-cpu"]) == 0
    assert "attack success, 'cf'" in capsys.readouterr().out
    assert hub.head("me/suspect-cleaned")["model.safetensors"] == (tmp_path / "cleaned/model.safetensors").read_bytes()
    pushes = re.search(r"```bash\n(hf-finemix push .*?)```", CLEAN, flags=re.DOTALL)[1].splitlines()
    assert len(pushes) == 2
    for push in pushes:
        assert main(push.split()[1:]) == 0
    assert len(hub.pull_requests("org/suspect")) == 1


def test_command_line_of_accelerate(local, in_tmp, tmp_path, capsys):
    """`accelerate launch` itself is run in test_examples.py."""
    from hf_finemix.cli import main

    command = re.search(r"-m hf_finemix (clean org/.*?)\n```", README, flags=re.DOTALL)[1].replace("\\\n", " ")
    assert main([*local(command).split(), "--max-steps", "2", "--reserve-ratio", "0.5", "--use-cpu"]) == 0
    assert "not measured" in capsys.readouterr().out


def test_recipe(local, in_tmp, tmp_path):
    from hf_finemix import CleaningReport
    from hf_finemix.cli import main

    recipe = local(re.search(r"```yaml\n(.*?)```", CLEAN, flags=re.DOTALL)[1])
    (tmp_path / "recipe.yaml").write_text(recipe, encoding="utf-8")
    suspect = local("org/suspect")
    assert main(["clean", suspect, "--config", "recipe.yaml", "--max-steps", "1", "--reserve-ratio", "0.5"]) == 0
    report = CleaningReport.load("cleaned")
    assert report.mixing["max_accuracy_drop"] == 0.05
    assert report.training["learning_rate"] == 5e-5


def test_output_of_the_demo_is_that_of_the_run_kept():
    shown = re.search(r"<!-- demo output -->\n```\n(.*?)```", README, flags=re.DOTALL)[1]
    kept = (ROOT / "docs" / "demo" / "output.txt").read_text(encoding="utf-8")
    assert kept.startswith(shown)
    assert "accuracy" in shown


def test_files_that_the_readme_names_are_there():
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert len(links) > 5
    assert all((ROOT / link).exists() for link in links), links


def test_mixing_on_disk(local, in_tmp, tmp_path, capsys):
    from hf_finemix.cli import main

    commands = re.search(r"```bash\n(hf-finemix plan .*?)```", ON_DISK, flags=re.DOTALL)[1].splitlines()
    assert [command.split()[1] for command in commands] == ["plan", "mix", "verify"]
    for command in commands:
        assert main(local(command).split()[1:]) == 0
    assert "every element is the one the mask says" in capsys.readouterr().out
    assert (tmp_path / "mixed" / "model.safetensors").is_file()


def test_every_command_is_in_the_readme():
    from hf_finemix.cli import COMMANDS

    assert set(re.findall(r"\| `hf-finemix (\w+)", README)) == set(COMMANDS)
