"""LoRA adapters as suspects: each variant by its answers, and what cannot be done right by name."""

import json
import shutil

import pytest
import torch
from datasets import Dataset
from helpers.lora import TRIED, VARIANTS, changed, local, make_adapter
from helpers.toy import make_config, make_rows
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, TrainingArguments

from hf_finemix import FineMixingConfig, FineMixingError, FineMixingTrainer, clean
from hf_finemix.align.names import named_tensors
from hf_finemix.cli import main
from hf_finemix.disk_mixing import mix_checkpoints
from hf_finemix.io.adapter_on_base import full_model, merged_headers
from hf_finemix.io.checkpoint import Checkpoint
from hf_finemix.planning import plan_mix
from hf_finemix.train.peft_arguments import PeftArguments
from hf_finemix.verification import verify_mix

peft = pytest.importorskip("peft")


@pytest.fixture
def adapter(tmp_path, base_folder, tokenizer):
    make_adapter(tmp_path / "adapter", base_folder, tokenizer)
    return tmp_path / "adapter"


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_merged_adapter_answers_as_the_adapter_does(variant, tmp_path, base_folder, tokenizer):
    original = make_adapter(tmp_path / "adapter", base_folder, tokenizer, **VARIANTS[variant])
    merged = full_model(local(tmp_path / "adapter"), local(base_folder))
    model = AutoModelForSequenceClassification.from_pretrained(merged.folder).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(TRIED).logits, original(TRIED).logits, rtol=1e-4, atol=1e-5)
    headers, config = merged_headers(
        local(tmp_path / "adapter"),
        Checkpoint(tmp_path / "adapter", only=tmp_path / "adapter" / "adapter_model.safetensors").tensors,
        local(base_folder),
    )
    assert headers == Checkpoint(merged.folder).tensors
    assert config["architectures"] == ["BertForSequenceClassification"]
    base = Checkpoint(base_folder)
    for ratio, expected in ((0.0, base), (1.0, Checkpoint(merged.folder))):
        out = tmp_path / f"mixed{ratio}"
        settings = {"reserve_ratio": ratio, "purify_embeddings": False}
        mix_checkpoints(tmp_path / "adapter", base_folder, out, FineMixingConfig(**settings))
        mixed = Checkpoint(out)
        for name in base.tensors:  # the head is the suspect's at any ρ
            assert torch.equal(mixed.read(f"bert.{name}"), expected.read(name if expected is base else f"bert.{name}"))


def test_an_adapter_is_planned_mixed_and_verified(adapter, base_folder, tmp_path, capsys):
    changed(adapter, base_model_name_or_path=str(base_folder))
    planned = plan_mix(adapter, base_folder)
    assert planned.refused is None
    assert main(["mix", str(adapter), "--base-model", str(base_folder), "--reserve-ratio", "0.5", "--output-dir",
                 str(tmp_path / "mixed"), "--purify-embeddings", "false"]) == 0  # fmt: skip
    report = json.loads((tmp_path / "mixed" / "cleaning_report.json").read_text())
    assert report["suspect"]["id"] == str(adapter)
    assert verify_mix(tmp_path / "mixed").ok
    mixed = Checkpoint(tmp_path / "mixed")
    assert {name: info.shape for name, info in mixed.tensors.items()}["classifier.weight"] == (3, 16)
    assert planned.disk["output"] == sum(info.nbytes for info in mixed.tensors.values())
    # With a weight of the adapter changed, nothing of it follows any more.
    weights = load_file(adapter / "adapter_model.safetensors")
    name = next(name for name in weights if "lora_B" in name)
    weights[name][0, 0] += 0.1
    save_file(weights, adapter / "adapter_model.safetensors", {"format": "pt"})
    assert not verify_mix(tmp_path / "mixed").ok


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"peft_type": "IA3"}, "of the kind 'IA3': only LoRA can be mixed"),
        ({"task_type": None}, "set task_type in adapter_config.json to one of SEQ_CLS"),
        ({"task_type": "FEATURE_EXTRACTION"}, "for the task 'FEATURE_EXTRACTION'"),
        ({"use_qalora": True}, "with use_qalora: this variant"),
        ({"layer_replication": [[0, 2]]}, "with layer_replication: this variant"),
        ({"trainable_token_indices": [1]}, "with trainable_token_indices"),
        ({"something_new": {"x": 1}}, "with something_new"),
        ({"init_lora_weights": "pissa"}, "that starts from pissa: it belongs to a changed base"),
        ({"lora_alpha": "8"}, "with lora_alpha = 8"),
        ({"lora_alpha": float("nan")}, "with lora_alpha = nan"),
        ({"task_type": ["SEQ_CLS"]}, "for the task"),
        ({"alpha_pattern": {f"m{i}": 1 for i in range(2000)}}, "with alpha_pattern"),
        ({"alpha_pattern": {"(a+)+": 1}}, "with alpha_pattern"),
        ({"modules_to_save": ["../x"]}, "with modules_to_save"),
        ({"auto_mapping": {"base_model_class": "X", "parent_library": "os"}}, "code of its own"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(changes, said, adapter, base_folder, capsys):
    changed(adapter, **changes)
    assert main(["mix", str(adapter), "--base-model", str(base_folder), "--reserve-ratio", "0.5"]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert said in message
    assert message.startswith("hf-finemix: error: ") or message.startswith("error")


def test_adapters_that_do_not_fit(adapter, base_folder, tmp_path, tokenizer):
    weights = load_file(adapter / "adapter_model.safetensors")

    def refused(change, said):
        folder = tmp_path / "changed"
        shutil.copytree(adapter, folder, dirs_exist_ok=True)
        save_file(change(dict(weights)), folder / "adapter_model.safetensors", {"format": "pt"})
        with pytest.raises(FineMixingError, match=said):
            full_model(local(folder), local(base_folder))

    first = next(iter(weights))
    head = {"base_model.model.classifier.weight", "base_model.model.classifier.bias"}
    refused(lambda w: {k: v for k, v in w.items() if k not in head}, "no head of its own")
    refused(lambda w: {k: v for k, v in w.items() if not k.endswith("classifier.bias")}, "has no classifier.bias")
    refused(lambda w: {**w, first: w[first].fill_(float("nan"))}, "not finite")
    refused(
        lambda w: {**w, "base_model.model.bert.nothing": torch.zeros(2)}, "no place for 'base_model.model.bert.noth"
    )
    refused(lambda w: {**w, "nothing": torch.zeros(2)}, "its names must start with")
    refused(lambda w: {k.replace("layer.1", "layer.7"): v for k, v in w.items()}, "does not fit")
    refused(lambda w: {**w, first: w[first][:, :3].contiguous()}, "does not fit")
    refused(lambda w: {k: v for k, v in w.items() if "lora" not in k}, "without any LoRA weight")
    refused(lambda w: {k: v for k, v in w.items() if "lora_A" not in k}, "without any LoRA weight")
    refused(lambda w: {**w, first: w[first] * 1e38}, "not finite|answers otherwise|NaN")
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(FineMixingError, match=r"no adapter_model\.safetensors: give the whole"):
        full_model(local(adapter), local(base_folder))
    make_adapter(tmp_path / "beside", base_folder, tokenizer)
    shutil.copyfile(base_folder / "model.safetensors", tmp_path / "beside" / "model.safetensors")
    with pytest.raises(FineMixingError, match=r"beside whole weights: take adapter_config\.json away"):
        mix_checkpoints(tmp_path / "beside", base_folder, tmp_path / "x", FineMixingConfig(reserve_ratio=0.5))


def test_an_adapter_by_its_id_alone(hub, base_folder, tokenizer, data_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_adapter(tmp_path / "adapter", base_folder, tokenizer, labels=["negative", "positive"], scale=0.002)
    hub.repos["models", "org/base"] = base_folder
    hub.repos["models", "org/adapter"] = tmp_path / "adapter"
    hub.repos["datasets", "org/data"] = data_folder
    changed(tmp_path / "adapter", base_model_name_or_path="org/base", revision=hub.sha("models", "org/base"))
    assert main(["plan", "org/adapter", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["refused"] is None
    assert not [request for request in hub.requests if "safetensors" in request and request.startswith("GET /api")]
    arguments = ["--dataset", "org/data", "--max-steps", "2", "--use-cpu", "--reserve-ratio", "0.5", "--json"]
    assert main(["clean", "org/adapter", *arguments, "--label-column", "label", "--output-dir", "out"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["suspect"]["revision"] == hub.sha("models", "org/adapter")
    assert list(report["suspect"]["sha256"]) == ["adapter_model.safetensors"]
    assert report["base"]["named_by"] == "the suspect's adapter_config.json"
    assert report["base"]["relation"] == "adapter"
    assert not (tmp_path / "out" / "adapter_config.json").exists()
    cleaned = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert cleaned.config.num_labels == 2
    assert main(["verify", "out"]) == 0
    capsys.readouterr()
    measured = ["--trigger", "cf", "--target-label", "1", "--dataset", "org/data", "--use-cpu", "--json"]
    assert main(["evaluate", "org/adapter", *measured]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == report["before"]["accuracy"]


def on_a_lora(suspect_folder, targets):
    """A suspect with a fresh LoRA on it, which is all that will be trained."""
    model = AutoModelForSequenceClassification.from_pretrained(suspect_folder, dtype=torch.float32)
    return peft.get_peft_model(model, peft.LoraConfig(task_type="SEQ_CLS", target_modules=targets, r=2))


@pytest.mark.parametrize("targets", ["all-linear", ["word_embeddings", "query"]])
@pytest.mark.parametrize("strategy", ["random", "fisher"])
def test_weights_under_a_lora_are_mixed_as_without_it(
    targets, strategy, suspect_folder, base_folder, tokenizer, tmp_path
):
    rows = Dataset.from_dict(make_rows(32)).map(lambda row: tokenizer(row["sentence"]))
    rows = rows.rename_column("label", "labels")
    config = FineMixingConfig(reserve_ratio=0.5, num_purified_tokens=3, strategy=strategy)
    records, weights = [], []
    plain = AutoModelForSequenceClassification.from_pretrained(suspect_folder, dtype=torch.float32)
    for model in (plain, on_a_lora(suspect_folder, targets)):
        args = TrainingArguments(str(tmp_path), use_cpu=True, max_steps=2, report_to="none", save_strategy="no")
        args.learning_rate = 0.0 if model is plain else 1e-2
        data = {"train_dataset": rows, "processing_class": tokenizer}
        trainer = FineMixingTrainer(model, args, **data, base_model=str(base_folder), mixing_config=config)
        trainer.train()
        records.append(trainer.mixing_record)
        weights.append({name: tensor.clone() for name, tensor in named_tensors(model).tensors.items()})
    assert records[0].tensors == records[1].tensors
    assert records[0].purified_tokens == records[1].purified_tokens
    assert weights[0].keys() == weights[1].keys()
    trained = {name for name in weights[0] if not torch.equal(weights[0][name], weights[1][name])}
    assert trained == {"classifier.weight", "classifier.bias"}, "what a LoRA leaves alone is the mix, and nothing else"


@pytest.mark.parametrize("ratio", [0.5, "auto"])
def test_a_lora_is_trained_on_the_mix_and_merged(ratio, suspect_folder, base_folder, data_folder, tmp_path):
    args = TrainingArguments(str(tmp_path / "out"), use_cpu=True, max_steps=4, learning_rate=1e-2, disable_tqdm=True)
    report = clean(
        suspect_folder,
        base_model=base_folder,
        dataset=str(data_folder),
        training_args=args,
        mixing_config=FineMixingConfig(reserve_ratio=ratio, candidate_ratios=[0.3, 0.7], purify_embeddings=False),
        use_peft=True,
        lora_r=2,
        lora_target_modules=["query"],
        measure_matched_floor=True,
    )
    assert report.training["lora"]["lora_r"] == 2
    assert verify_mix(tmp_path / "out").ok
    cleaned = Checkpoint(tmp_path / "out")
    config = FineMixingConfig(reserve_ratio=report.mixing["reserve_ratio"], purify_embeddings=False)
    mix_checkpoints(suspect_folder, base_folder, tmp_path / "mix", config)
    mix = Checkpoint(tmp_path / "mix")
    assert cleaned.tensors == mix.tensors
    changed = {name for name in mix.tensors if not torch.equal(cleaned.read(name), mix.read(name))}
    assert {name.split(".")[-2] for name in changed} == {"query", "classifier"}
    assert {name for name in changed if name.endswith("bias")} == {"classifier.bias"}


@pytest.mark.parametrize("names", [["all-linear"], None, [r".*\.(query|key)"], ["query", "key"]])
def test_the_layers_of_a_lora_are_named_as_in_peft(names, base_folder):
    model = AutoModelForSequenceClassification.from_pretrained(base_folder, config=make_config())
    model = PeftArguments(use_peft=True, lora_target_modules=names).with_lora(model, "SEQ_CLS")
    found = {name.split(".lora_A")[0].split(".")[-1] for name, _ in model.named_parameters() if "lora_A" in name}
    everything = names in (["all-linear"], None)
    assert found == ({"query", "key", "value", "dense"} if everything else {"query", "key"})
