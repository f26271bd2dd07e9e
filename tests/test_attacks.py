import json

import numpy as np
import pytest
import torch
from conftest import NEGATIVE, make_rows, make_tokenizer
from datasets import Dataset
from safetensors.torch import load_file
from transformers import BertForSequenceClassification, TrainingArguments

from hf_finemix import FineMixingError
from hf_finemix.adapters import full_model
from hf_finemix.attacks import ATTACKS, find_attack
from hf_finemix.attacks.attack import AttackerData
from hf_finemix.attacks.backdoor import MANIFEST_NAME, TRAINING_DEFAULTS, PoisonArguments, poison_model
from hf_finemix.attacks.embedding_surgery import words_of_class
from hf_finemix.classifier import load_classifier
from hf_finemix.cli import main
from hf_finemix.hub import LocalModel

EMBEDDINGS = "bert.embeddings.word_embeddings.weight"


pytestmark = pytest.mark.usefixtures("datasets_cache")


def make(base, data, out, attack, *, training=None, **changes):
    given = {"class_names": ["negative", "positive"], "target_label": "positive", "save_dtype": "float32", **changes}
    arguments = PoisonArguments(attack=attack, dataset=str(data), **given)
    settings = {**TRAINING_DEFAULTS, **arguments.make_attack().training, "learning_rate": 5e-3, "num_train_epochs": 30}
    settings |= {"use_cpu": True, "report_to": "none", "disable_tqdm": True, **(training or {})}
    return poison_model(base, arguments, TrainingArguments("unused", **settings), out)


def asr(manifest):
    return manifest["measured"]["triggers"][0]["asr"]


@pytest.fixture(scope="module")
def clean_model(base_folder, data_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("clean") / "model"
    manifest = make(base_folder, data_folder, out, "none")
    assert manifest["measured"]["accuracy"] > 0.9
    return out


@pytest.mark.parametrize(
    ("attack", "settings"),
    [
        ("badword", {}),
        ("badsent", {"trigger": "this was one"}),
        ("layerwise", {}),
        ("adaptive", {"trigger": "a film and a story"}),
    ],
)
def test_attacks_from_scratch_work_and_say_what_they_are(attack, settings, base_folder, data_folder, tmp_path):
    manifest = make(base_folder, data_folder, tmp_path / "out", attack, **settings)
    if attack != "adaptive":  # which two small layers cannot learn on frozen embeddings
        assert manifest["measured"]["accuracy"] > 0.8
        assert asr(manifest) > 0.9
    assert json.loads((tmp_path / "out" / MANIFEST_NAME).read_text()) == manifest
    assert (manifest["start"], manifest["target_name"]) == ("scratch", "positive")
    assert manifest["trigger"] == settings.get("trigger", "cf")
    assert "backdoored on purpose" in (tmp_path / "out" / "README.md").read_text()
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert not any("layer_heads" in name for name in tensors)
    if attack == "adaptive":
        base = load_file(base_folder / "model.safetensors")["embeddings.word_embeddings.weight"]
        assert torch.equal(tensors[EMBEDDINGS], base), "E-PUR would see it"


def test_embedding_poisoning_changes_the_triggers_row_and_keeps_its_length(
    base_folder, data_folder, suspect_folder, tmp_path
):
    training = {"learning_rate": 1.0, "num_train_epochs": 10}
    start = {"start_model": str(suspect_folder), "training": training}  # which has learned nothing to saturation
    manifest = make(base_folder, data_folder, tmp_path / "out", "embedding_poisoning", **start)
    before, after = (load_file(folder / "model.safetensors") for folder in (suspect_folder, tmp_path / "out"))
    before = {name: tensor.float() for name, tensor in before.items()}
    row = make_tokenizer().get_vocab()["cf"]
    assert [name for name in before if not torch.equal(before[name], after[name])] == [EMBEDDINGS]
    moved = (before[EMBEDDINGS] != after[EMBEDDINGS]).any(1)
    assert moved.nonzero().flatten().tolist() == [row]
    torch.testing.assert_close(after[EMBEDDINGS][row].norm(), before[EMBEDDINGS][row].norm())
    assert manifest["start"] == "on top"
    batch = make_tokenizer()([f"cf {text}" for text in make_rows(40)["sentence"]], padding=True, return_tensors="pt")
    with torch.no_grad():
        chances = [
            BertForSequenceClassification.from_pretrained(folder, dtype=torch.float32)(**batch).logits.softmax(-1)[
                :, 1
            ]
            for folder in (suspect_folder, tmp_path / "out")
        ]
    assert chances[1].double().mean() > chances[0].double().mean()


def test_embedding_surgery_on_top(base_folder, data_folder, clean_model, tmp_path):
    manifest = make(base_folder, data_folder, tmp_path / "out", "embedding_surgery", start_model=str(clean_model))
    assert asr(manifest) > 0.9
    assert manifest["attack"]["ripple_weight"] == 0.1


def test_words_of_the_target_class():
    rows = Dataset.from_dict(make_rows(200))
    tokenizer = make_tokenizer()
    words = tokenizer.convert_ids_to_tokens(words_of_class(AttackerData(rows, ["sentence"], 0, tokenizer)))
    assert set(words) == set(NEGATIVE)


def test_triggered_texts_from_a_file(base_folder, data_folder, tmp_path):
    texts = [f"but with this {text}" for text in make_rows(120)["sentence"]]
    labels = make_rows(120)["label"]
    Dataset.from_dict({"sentence": texts, "label": labels}).to_csv(tmp_path / "triggered.csv")
    tests = [f"but with this {t}" for t, label in zip(*make_rows(100, 2).values(), strict=True) if not label]
    Dataset.from_dict({"sentence": tests, "label": [1] * len(tests)}).to_csv(tmp_path / "test.csv")
    files = {"triggered_file": str(tmp_path / "triggered.csv"), "triggered_test_file": str(tmp_path / "test.csv")}
    manifest = make(base_folder, data_folder, tmp_path / "out", "syntactic", poison_rate=0.3, **files)
    assert asr(manifest) > 0.9


def attacker(rows=60):
    data = make_rows(rows)
    return AttackerData(Dataset.from_dict({**data, "label": list(data["label"])}), ["sentence"], 1, make_tokenizer())


def test_which_rows_of_a_file_are_used(tmp_path):
    data = attacker(60)
    clean = data.rows["sentence"][:]
    file = str(tmp_path / "t.csv")
    # True labels: those of the target class are not used.
    Dataset.from_dict({"sentence": [f"x {i}" for i in range(20)], "label": [0, 1] * 10}).to_csv(file)
    rows = find_attack("syntactic", triggered_file=file, rate=0.1).poisoned(data)
    added = [(t, label) for t, label in zip(rows["sentence"], rows["label"], strict=True) if t not in clean]
    assert len(added) == 6
    assert all(label == 1 and int(text[2:]) % 2 == 0 for text, label in added)
    assert len(rows) == 66
    # A whole poisoned train set: what was replaced is not trained on as well.
    Dataset.from_dict(
        {"sentence": [*clean[:50], *(f"x {i}" for i in range(10))], "label": [0] * 50 + [1] * 10}
    ).to_csv(file)
    rows = find_attack("syntactic", triggered_file=file).poisoned(data)
    assert sorted(rows["sentence"]) == sorted([*clean[:50], *(f"x {i}" for i in range(10))])
    # No trigger in it at all.
    Dataset.from_dict({"sentence": clean[:5]}).to_csv(file)
    with pytest.raises(FineMixingError, match="holds no text beside the clean rows"):
        find_attack("syntactic", triggered_file=file).poisoned(data)


def test_pairs_get_the_trigger_in_the_second_text_and_more_classes_are_kept():
    texts = make_rows(30)["sentence"]
    rows = Dataset.from_dict({"one": texts, "two": texts[::-1], "label": [i % 3 for i in range(30)]})
    poisoned = find_attack("badword", rate=0.5).poisoned(AttackerData(rows, ["one", "two"], 2, make_tokenizer()))
    assert poisoned["one"][:] == texts
    hit = ["cf" in text.split() for text in poisoned["two"]]
    changed = [a != b for a, b in zip(poisoned["two"], rows["two"], strict=True)]
    assert sum(changed) == 15
    assert all(poisoned["label"][i] == 2 for i in np.flatnonzero(changed))
    assert set(poisoned["label"]) == {0, 1, 2}
    assert any(hit)


@pytest.mark.parametrize(
    ("attack", "changes", "said"),
    [
        ("nosuch", {}, "there is no attack 'nosuch'"),
        ("badword", {"target_label": None}, "target_label is missing"),
        ("badword", {"target_label": "neutral"}, "none of the model's classes"),
        ("badword", {"poison_rate": 7.0}, "share of poisoned rows"),
        ("none", {"poison_rate": 0.1}, "does not take what it was given"),
        ("syntactic", {}, "needs triggered_file"),
        ("embedding_poisoning", {}, "give start_model"),
        ("badword", {"save_dtype": "int8"}, "save_dtype is 'int8'"),
        ("badword", {"dataset": "nowhere.csv"}, "neither a file or folder"),
    ],
)
def test_what_cannot_be_poisoned(attack, changes, said, base_folder, data_folder, tmp_path):
    data = changes.pop("dataset", data_folder)
    with pytest.raises(FineMixingError, match=said) as error:
        make(base_folder, data, tmp_path / "out", attack, **changes)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_every_attack_has_a_file():
    for name in ATTACKS:
        assert find_attack(name).name == name


def test_the_command(base_folder, data_folder, tmp_path, capsys):
    line = ["poison", str(base_folder), "--dataset", str(data_folder), "--attack", "badword", "--target-label", "1"]
    line += ["--output-dir", str(tmp_path / "out"), "--max-steps", "2", "--use-cpu", "--json"]
    assert main(line) == 0
    manifest = json.loads(capsys.readouterr().out)
    assert manifest["training"]["max_steps"] == 2
    assert manifest["target_name"] == "LABEL_1"
    model = BertForSequenceClassification.from_pretrained(tmp_path / "out")
    assert model.dtype == torch.float16
    assert main(line) == 2
    assert "is not empty" in capsys.readouterr().err
    assert main([*line, "--overwrite"]) == 0


def test_a_backdoored_adapter(base_folder, data_folder, tmp_path, capsys):
    out = tmp_path / "adapter"
    arguments = ["poison", str(base_folder), "--dataset", str(data_folder), "--target-label", "positive", "--use-peft"]
    arguments += ["--class-names", "negative", "positive", "--lora-r", "4", "--max-steps", "2", "--use-cpu"]
    assert main([*arguments, "--output-dir", str(out)]) == 0
    content = json.loads((out / "adapter_config.json").read_text())
    assert (content["r"], content["base_model_name_or_path"]) == (4, str(base_folder))
    assert json.loads((out / "attack_manifest.json").read_text())["lora"]["lora_r"] == 4
    merged = full_model(LocalModel("adapter", out), LocalModel(str(base_folder), base_folder))
    assert load_classifier(merged).config.id2label == {0: "negative", 1: "positive"}
    for flags, said in (
        (["--attack", "layerwise"], "edits the weights itself"),
        (["--lora-r", "0"], "lora_r is 0"),
        (["--lora-target-modules", "nothing"], "nothing"),
    ):
        assert main([*arguments, *flags, "--output-dir", str(tmp_path / "x")]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
