"""A LoRA that stays a LoRA: mixed element by element with what it was before any training."""

import json

import pytest
import torch
from datasets import Dataset
from helpers.lora import TRIED, VARIANTS, changed, local, make_adapter
from helpers.reports import check_schema
from helpers.toy import make_config, make_rows
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, TrainingArguments

from hf_finemix import FineMixingConfig, FineMixingError, FineMixingTrainer, clean
from hf_finemix.cli import main
from hf_finemix.io.adapters import load_adapter
from hf_finemix.io.checkpoint import Checkpoint
from hf_finemix.mix.lora import adapter_parameters, mix_adapter
from hf_finemix.planning import plan_mix
from hf_finemix.report.publish import publishable_files
from hf_finemix.report.report import CleaningReport

peft = pytest.importorskip("peft")

WHOLE = {name: settings for name, settings in VARIANTS.items() if settings.get("bias") != "all"}
CONFIG = FineMixingConfig(reserve_ratio=0.5, adapter_mode="adapter")


@pytest.fixture
def adapter(tmp_path, base_folder, tokenizer):
    make_adapter(tmp_path / "adapter", base_folder, tokenizer, labels=["negative", "positive"], scale=0.002)
    changed(tmp_path / "adapter", base_model_name_or_path=str(base_folder))
    return tmp_path / "adapter"


def mixed(folder, base_folder, ratio, config=CONFIG):
    model, _ = load_adapter(local(folder), local(base_folder))
    return model, mix_adapter(model, Checkpoint(base_folder), config, reserve_ratio=ratio)


def logits(model):
    with torch.no_grad():
        return model.eval()(TRIED).logits


@pytest.mark.parametrize("variant", WHOLE)
def test_each_variant_is_the_suspect_at_1_and_the_base_at_0(variant, tmp_path, base_folder, tokenizer):
    original = make_adapter(tmp_path / "adapter", base_folder, tokenizer, **WHOLE[variant])
    suspect, _ = mixed(tmp_path / "adapter", base_folder, 1.0)
    assert torch.equal(logits(suspect), logits(original))
    config = make_config(id2label={0: "no", 1: "yes", 2: "both"})
    base = AutoModelForSequenceClassification.from_pretrained(base_folder, config=config)
    base.classifier.load_state_dict(original.get_base_model().classifier.modules_to_save["default"].state_dict())
    empty, record = mixed(tmp_path / "adapter", base_folder, 0.0)
    torch.testing.assert_close(logits(empty), logits(base), rtol=1e-5, atol=1e-6)
    assert {entry["kept_fraction"] for entry in record.tensors.values() if "mixed" in entry["rule"]} == {0.0}
    half, record = mixed(tmp_path / "adapter", base_folder, 0.5)
    more, _ = mixed(tmp_path / "adapter", base_folder, 0.7)
    sides = [adapter_parameters(model) for model in (suspect, empty, half, more)]
    assert record.tensors.keys() == sides[0].keys()
    for name, of_suspect in sides[0].items():
        of_base, of_half, of_more = (side[name] for side in sides[1:])
        kept = of_half == of_suspect
        assert (kept | (of_half == of_base)).all(), "each element is one parent's"
        assert ((of_more == of_suspect) | ~kept).all(), "masks nest"


def test_the_curvature_chooses_and_a_scale_scales(adapter, base_folder):
    suspect, _ = load_adapter(local(adapter), local(base_folder))
    before = {name: tensor.detach().clone() for name, tensor in adapter_parameters(suspect).items()}
    curvature = {name: torch.rand_like(tensor) for name, tensor in before.items()}
    base, config = Checkpoint(base_folder), FineMixingConfig(adapter_mode="adapter", strategy="fisher")
    record = mix_adapter(suspect, base, config, reserve_ratio=0.3, curvature=curvature)
    scores, kept = [], []
    for name, tensor in adapter_parameters(suspect).items():
        if "mixed" in record.tensors[name]["rule"]:
            floor = 1e-6 * torch.cat([part.flatten() for part in curvature.values()]).mean()
            scores.append((before[name] ** 2 / (curvature[name] + floor)).flatten())
            kept.append((tensor != 0).flatten())
    scores, kept = torch.cat(scores), torch.cat(kept)
    assert kept.sum() == int(0.3 * len(kept))
    assert scores[kept].max() < scores[~kept].min()
    scaled, record = mixed(adapter, base_folder, 0.3, FineMixingConfig(adapter_mode="adapter", strategy="average"))
    for name, tensor in adapter_parameters(scaled).items():
        factor = 0.3 if "mixed" in record.tensors[name]["rule"] else 1.0
        torch.testing.assert_close(tensor.detach(), factor * before[name])


def test_an_adapter_is_planned_mixed_and_verified_as_one(adapter, base_folder, tmp_path, capsys):
    out = tmp_path / "mixed"
    common = ["--adapter-mode", "adapter", "--base-model", str(base_folder)]
    assert main(["plan", str(adapter), *common, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["refused"] is None
    assert main(["mix", str(adapter), *common, "--reserve-ratio", "0.5", "--output-dir", str(out)]) == 0
    report = CleaningReport.load(out)
    check_schema(report)
    tensors = report.mixing["tensors"]
    rules = [entry["rule"] for entry in tensors.values()]
    assert {entry["rule"]: entry["tensors"] for entry in plan["rules"]} == {rule: rules.count(rule) for rule in rules}
    weights = load_file(out / "adapter_model.safetensors")
    assert plan["disk"]["output"] == sum(tensor.nbytes for tensor in weights.values())
    expected, _ = mixed(adapter, base_folder, 0.5)
    loaded = peft.AutoPeftModelForSequenceClassification.from_pretrained(out, num_labels=2)
    assert torch.equal(logits(loaded), logits(expected))
    assert main(["verify", str(out)]) == 0
    name = next(name for name in weights if "lora_B" in name and weights[name].any())
    weights[name][weights[name] != 0] += 0.1
    save_file(weights, out / "adapter_model.safetensors", {"format": "pt"})
    capsys.readouterr()
    assert main(["verify", str(out)]) == 2
    assert "lora_B.weight is not what suspect, base and mask give" in capsys.readouterr().err


@pytest.mark.parametrize(("strategy", "ratio"), [("random", 0.5), ("fisher", "auto")])
def test_an_adapter_is_cleaned_and_stays_one(strategy, ratio, adapter, base_folder, data_folder, tmp_path, capsys):
    args = TrainingArguments(str(tmp_path / "out"), use_cpu=True, max_steps=3, learning_rate=1e-2, disable_tqdm=True)
    config = FineMixingConfig(
        reserve_ratio=ratio, candidate_ratios=[0.3, 0.7], strategy=strategy, adapter_mode="adapter"
    )
    report = clean(
        adapter,
        base_model=base_folder,
        dataset=str(data_folder),
        triggers=["cf"],
        target_label="1",
        training_args=args,
        mixing_config=config,
        measure_matched_floor=True,
    )
    out = tmp_path / "out"
    check_schema(report)
    assert report.purified_tokens == []
    assert list(report.weights) == list(report.suspect["sha256"]) == ["adapter_model.safetensors"]
    assert report.drift_by_layer["after"].keys() == report.drift_by_layer["before"].keys()
    assert any(report.drift_by_layer["after"].values())
    content = json.loads((out / "adapter_config.json").read_text())
    assert (content["r"], content["base_model_name_or_path"]) == (4, str(base_folder))
    assert peft.AutoPeftModelForSequenceClassification.from_pretrained(out, num_labels=2)
    assert main(["verify", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tensors"] == len(report.mixing["tensors"])
    measured = ["--dataset", str(data_folder), "--trigger", "cf", "--target-label", "1", "--use-cpu", "--json"]
    assert main(["evaluate", str(out), "--base-model", str(base_folder), *measured]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["accuracy"], found["triggers"][0]["asr"]) == (
        pytest.approx(report.after["accuracy"]),
        pytest.approx(report.after["triggers"][0]["asr"]),
    )
    files = publishable_files(out, CleaningReport.load(out))
    assert {"adapter_model.safetensors", "adapter_config.json", "config.json", "README.md"} <= files.keys()
    assert ("masks.safetensors" in files) == (strategy == "fisher")
    card = (out / "README.md").read_text()
    assert "library_name: peft" in card
    assert "stays a LoRA" in card


def test_a_trainer_mixes_the_lora_of_its_model(adapter, base_folder, tokenizer, tmp_path):
    model, _ = load_adapter(local(adapter), local(base_folder))
    rows = (
        Dataset.from_dict(make_rows(16)).map(lambda row: tokenizer(row["sentence"])).rename_column("label", "labels")
    )
    args = TrainingArguments(str(tmp_path / "run"), use_cpu=True, max_steps=1, learning_rate=0.0, report_to="none")
    trainer = FineMixingTrainer(
        model, args, train_dataset=rows, processing_class=tokenizer, base_model=str(base_folder), mixing_config=CONFIG
    )
    trainer.train()
    expected, record = mixed(adapter, base_folder, 0.5)
    assert trainer.mixing_record.tensors == record.tensors
    assert torch.equal(logits(trainer.model), logits(expected))
    whole = AutoModelForSequenceClassification.from_pretrained(base_folder, num_labels=2)
    trainer = FineMixingTrainer(whole, args, train_dataset=rows, base_model=str(base_folder), mixing_config=CONFIG)
    with pytest.raises(FineMixingError, match="needs a model with a LoRA"):
        trainer.train()


def test_an_adapter_is_published_as_a_peft_repo(hub, adapter, base_folder, data_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    token = "hf_" + "w" * 34
    hub.tokens[token] = ("me", "write")
    monkeypatch.setenv("HF_TOKEN", token)
    hub.repos["models", "org/base"] = base_folder
    changed(adapter, base_model_name_or_path="org/base", revision=hub.sha("models", "org/base"))
    hub.repos["models", "org/adapter"] = adapter
    hub.repos["datasets", "org/data"] = data_folder
    command = ["clean", "org/adapter", "--dataset", "org/data", "--label-column", "label", "--max-steps", "2"]
    command += ["--use-cpu", "--reserve-ratio", "0.5", "--adapter-mode", "adapter", "--learning-rate", "1e-3"]
    assert main([*command, "--push-to-hub", "--hub-model-id", "me/cleaned"]) == 0
    there = hub.head("me/cleaned")
    assert there.keys() >= {"adapter_model.safetensors", "adapter_config.json", "README.md", "cleaning_report.json"}
    assert "model.safetensors" not in there
    card = there["README.md"].decode()
    assert "base_model:\n- org/base\n" in card
    assert "base_model_relation: adapter\n" in card
    loaded = peft.AutoPeftModelForSequenceClassification.from_pretrained("me/cleaned", num_labels=2)
    kept, _ = load_adapter(local(tmp_path / "cleaned"), local(base_folder))
    assert torch.equal(logits(loaded), logits(kept))
    assert main(["verify", "me/cleaned"]) == 0


def test_what_cannot_stay_an_adapter(adapter, suspect_folder, base_folder, data_folder, tokenizer, tmp_path, capsys):
    def refused(said, *command):
        assert main([*command, "--adapter-mode", "adapter", "--base-model", str(base_folder)]) == 2
        assert said in capsys.readouterr().err.splitlines()[-1]

    ratio = ["--reserve-ratio", "0.5", "--output-dir", str(tmp_path / "out")]
    cleaning = [*ratio, "--dataset", str(data_folder), "--max-steps", "1", "--use-cpu"]
    refused("is a whole model", "mix", str(suspect_folder), *ratio)
    refused("is a whole model", "plan", str(suspect_folder))
    refused("is a whole model", "clean", str(suspect_folder), *cleaning)
    refused("leave use_peft off", "clean", str(adapter), *cleaning, "--use-peft")
    refused("head='reinit'", "mix", str(adapter), *ratio, "--head", "reinit")
    refused("needs gradients on clean text", "mix", str(adapter), *ratio, "--strategy", "fisher")
    refused("'auto'", "mix", str(adapter), "--output-dir", str(tmp_path / "out"))
    make_adapter(tmp_path / "biased", base_folder, tokenizer, bias="lora_only")
    refused("bias = 'lora_only', which changes the base's own biases", "mix", str(tmp_path / "biased"), *ratio)
    assert plan_mix(tmp_path / "biased", base_folder, CONFIG).refused
    assert not (tmp_path / "out").exists()
