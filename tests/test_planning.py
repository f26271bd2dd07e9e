import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertForSequenceClassification

from hf_finemix import FineMixingConfig, FineMixingError, mix_checkpoints, plan_mix
from hf_finemix.cli import main


@pytest.fixture
def copied(suspect_folder, base_folder, tmp_path):
    return [shutil.copytree(f, tmp_path / n) for f, n in ((suspect_folder, "s"), (base_folder, "b"))]


def test_a_plan_says_what_mixing_does(suspect_folder, base_folder, tmp_path):
    config = FineMixingConfig(reserve_ratio=0.3, num_purified_tokens=11)
    plan = plan_mix(suspect_folder, base_folder, config, output_dir=tmp_path / "new" / "out")
    assert not list(tmp_path.iterdir())
    report = mix_checkpoints(suspect_folder, base_folder, tmp_path / "out", config)
    tensors = load_file(suspect_folder / "model.safetensors")
    mixed = {name: entry["rule"].removeprefix("purified and ") for name, entry in report.mixing["tensors"].items()}
    rules = {entry["rule"]: entry for entry in plan.rules}
    assert set(rules) == set(mixed.values())
    for rule, entry in rules.items():
        names = [name for name in mixed if mixed[name] == rule]
        there = [tensors[f"bert.{n}"] if f"bert.{n}" in tensors else tensors[n] for n in names]
        assert entry["tensors"] == len(names)
        assert entry["parameters"] == sum(tensor.numel() for tensor in there)
        assert entry["bytes"] == sum(tensor.nbytes for tensor in there)
    assert plan.purified_rows == len(report.purified_tokens) == 11
    assert plan.ignored_base_tensors == report.mixing["ignored_base_tensors"]
    assert plan.refused is None
    size = sum(tensor.nbytes for tensor in tensors.values())
    assert plan.disk["output"] == plan.disk["needed"] == size
    assert plan.disk["download"] == 0
    assert plan.suspect["dtypes"] == {"float16": sum(tensor.numel() for tensor in tensors.values())}
    assert plan.architecture == "BertForSequenceClassification"


def without_free_space(plan):
    """What does not change while other programs write."""
    return {**plan.to_dict(), "disk": {**plan.disk, "free": None}}


def test_the_default_ratio_needs_no_choosing(suspect_folder, base_folder):
    assert plan_mix(suspect_folder, base_folder).refused is None


def test_a_grown_vocabulary(suspect_folder, base_folder, tmp_path):
    model = BertForSequenceClassification.from_pretrained(suspect_folder)
    model.resize_token_embeddings(model.config.vocab_size + 3)
    model.save_pretrained(tmp_path / "s")
    rules = [entry["rule"] for entry in plan_mix(tmp_path / "s", base_folder).rules]
    assert "mixed: common rows of a grown vocabulary, new rows kept" in rules


def test_why_two_models_cannot_be_mixed(copied, capsys):
    tensors = load_file(copied[1] / "model.safetensors")
    tensors["encoder.layer.1.output.dense.weight"] = torch.zeros(3, 3)
    save_file(tensors, copied[1] / "model.safetensors")
    plan = plan_mix(*copied)
    assert "encoder.layer.1.output.dense.weight: [16, 32] in the suspect, [3, 3] in the base" in plan.refused
    assert plan.rules == []
    assert main(["plan", str(copied[0]), "--base-model", str(copied[1])]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == f"hf-finemix: error: {plan.refused}\n"
    assert main(["plan", str(copied[0]), "--base-model", str(copied[1]), "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["refused"] == plan.refused


def test_command(suspect_folder, base_folder, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["plan", str(suspect_folder), "--base-model", str(base_folder)]) == 0
    printed = capsys.readouterr().out
    for line in ("mixed", "kept: not in the base (head)", "free", "E-PUR"):
        assert line in printed
    assert main(["plan", str(suspect_folder), "--base-model", str(base_folder), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed | {"disk": {}} == without_free_space(plan_mix(suspect_folder, base_folder)) | {"disk": {}}
    assert not list(tmp_path.iterdir())


def test_headers_are_enough(copied):
    """Files of the right size with nothing in them: no weight is read."""
    for folder in copied:
        file = folder / "model.safetensors"
        content = file.read_bytes()
        header = 8 + int.from_bytes(content[:8], "little")
        file.write_bytes(content[:header])
        with file.open("r+b") as hole:
            hole.truncate(len(content))
    assert plan_mix(*copied).refused is None


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda s, b: (s / "config.json").unlink(), "config.json is missing"),
        (lambda s, b: (s / "model.safetensors").unlink(), "has no model.safetensors"),
        (lambda s, b: (s / "adapter_config.json").write_text("{}"), "adapter"),
    ],
)
def test_what_cannot_be_planned(copied, spoil, said):
    spoil(*copied)
    with pytest.raises(FineMixingError, match=said):
        plan_mix(*copied)


def test_the_base_must_be_given(suspect_folder):
    with pytest.raises(FineMixingError, match="is not known, it names none"):
        plan_mix(suspect_folder)
    with pytest.raises(FineMixingError, match="the base 'no/such/thing' is neither"):
        plan_mix(suspect_folder, "no/such/thing")


def test_a_class_of_which_nothing_is_kept(copied, monkeypatch):
    kept = [plan_mix(*copied) for _ in range(2)][1]
    monkeypatch.setenv("HF_FINEMIX_DISABLE_CACHE", "1")
    assert without_free_space(plan_mix(*copied)) == without_free_space(kept)
    config = json.loads((copied[0] / "config.json").read_text())
    (copied[0] / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 10**9}))
    assert "num_hidden_layers = 1000000000, and no model has as many" in plan_mix(*copied).refused
    (copied[0] / "config.json").write_text(json.dumps({**config, "hidden_size": "wide"}))
    assert "cannot be made from its config.json" in plan_mix(*copied).refused
