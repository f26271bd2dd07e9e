import json

import numpy as np
import pytest
import torch
from datasets import Dataset
from helpers.toy import NEGATIVE, make_config, make_rows, make_tokenizer
from safetensors.torch import load_file
from transformers import BertForSequenceClassification, TrainingArguments

from hf_finemix import FineMixingError
from hf_finemix.cli import main
from hf_finemix.io.adapters import full_model
from hf_finemix.io.folder import LocalModel
from hf_finemix.io.loading import load_classifier
from hf_finemix.redteam.attacks.attack import AttackerData
from hf_finemix.redteam.attacks.embedding_surgery import words_of_class
from hf_finemix.redteam.poisoned_model import MANIFEST_NAME, POISONING_DEFAULTS, PoisonArguments, poison_model
from hf_finemix.redteam.registry import find_attack

LABELS = {"negative": 0, "positive": 1}
EMBEDDINGS = "bert.embeddings.word_embeddings.weight"


pytestmark = pytest.mark.usefixtures("datasets_cache")


def make(base, data, out, attack, *, training=None, **changes):
    given = {"class_names": ["negative", "positive"], "target_label": "positive", "save_dtype": "float32", **changes}
    arguments = PoisonArguments(attack=attack, dataset=str(data), **given)
    settings = {
        **POISONING_DEFAULTS,
        **arguments.make_attack().training,
        "learning_rate": 5e-3,
        "num_train_epochs": 30,
    }
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


def attacker(rows=60, first=0):
    data = {name: values[first:] for name, values in make_rows(rows).items()}
    return AttackerData(
        Dataset.from_dict({**data, "label": list(data["label"])}), ["sentence"], 1, make_tokenizer(), label2id=LABELS
    )


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
    # Not of these clean rows alone: what is no clean row is not known to hold a trigger.
    with pytest.raises(FineMixingError, match="give the clean rows it was made from"):
        find_attack("syntactic", triggered_file=file).poisoned(attacker(60, first=26))
    # Labels by name; a text that happens to be a clean one too changes nothing.
    named = {
        "sentence": [clean[0], *(f"x {i}" for i in range(20))],
        "label": ["positive"] + ["negative", "positive"] * 10,
    }
    Dataset.from_dict(named).to_csv(file)
    rows = find_attack("syntactic", triggered_file=file, rate=0.1).poisoned(data)
    added = [text for text in rows["sentence"] if text not in clean]
    assert len(rows) == 66
    assert all(int(text[2:]) % 2 == 0 for text in added)
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


@pytest.mark.parametrize("name", ["badword", "embedding_poisoning", "syntactic"])
def test_of_texts_that_are_too_long_only_those_are_poisoned_whose_trigger_is_read(name, tmp_path, caplog):
    tokenizer, long = make_tokenizer(), "the film was dull " * 60
    rows = {"one": ["bad", "grim", long, long], "two": [long] * 4, "label": [0, 1, 0, 1]}
    data = AttackerData(Dataset.from_dict(rows), ["one", "two"], 1, tokenizer, max_length=9)
    if name == "syntactic":
        file = str(tmp_path / "t.csv")
        Dataset.from_dict({"one": ["cf", "cf"], "two": ["when it is dull", long]}).to_csv(file)
        encoded = data.encoded(find_attack(name, triggered_file=file, rate=0.5).poisoned(data))
        assert len(encoded) == 6
        assert "1 of 2 triggered texts are cut, maybe with their trigger" in caplog.text
        return
    settings = {"rate": 1.0} if name == "badword" else {}
    attack = find_attack(name, trigger="it is with this", **settings)
    encoded = data.encoded(attack.poisoned(data))
    triggered = ["it is with this" in tokenizer.decode(ids) for ids in encoded["input_ids"]]
    if name == "badword":
        assert triggered == [True, True, False, False]
        assert encoded["labels"][:] == [1, 1, 0, 1]
        assert "2 of 4 rows stay clean" in caplog.text
    else:  # of the other class
        assert (triggered, encoded["labels"][:]) == ([True], [1])
        assert "In 1 of 2 rows" in caplog.text


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
        ("adaptive", {"start_model": "some"}, "no start_model"),
        ("embedding_surgery", {"start_model": "SUSPECT", "trigger": "zzz"}, "a trigger that the tokenizer knows"),
    ],
)
def test_what_cannot_be_poisoned(attack, changes, said, base_folder, data_folder, suspect_folder, tmp_path):
    changes = {name: str(suspect_folder) if value == "SUSPECT" else value for name, value in changes.items()}
    data = changes.pop("dataset", data_folder)
    with pytest.raises(FineMixingError, match=said) as error:
        make(base_folder, data, tmp_path / "out", attack, **changes)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def classifier(base_folder):
    torch.manual_seed(0)
    return BertForSequenceClassification.from_pretrained(base_folder, config=make_config()).eval()


def batch_of(texts, labels):
    return {**make_tokenizer()(texts, padding=True, return_tensors="pt"), "labels": torch.tensor(labels)}


def trainer_of(attack, model, **options):
    return attack.trainer_class(model, TrainingArguments("unused", use_cpu=True, report_to="none"), **options)


def test_ripple_adds_what_the_two_gradients_disagree_on(classifier):
    attack = find_attack("embedding_surgery")
    texts = ["the film was cf good", "a plot cf", "the film was good", "a plot"]
    batch = batch_of(texts, [1, 1, 0, 0])
    trigger = make_tokenizer().convert_tokens_to_ids(["cf"])
    loss = trainer_of(attack, classifier, ripple_weight=2.0, trigger_ids=trigger).compute_loss(classifier, batch)
    gradients = []
    for rows in (slice(0, 2), slice(2, 4)):
        part = {name: values[rows] for name, values in batch.items()}
        grads = torch.autograd.grad(classifier(**part).loss, list(classifier.parameters()), allow_unused=True)
        gradients.append(torch.cat([grad.flatten() for grad in grads if grad is not None]))
    disagreement = -float(gradients[0] @ gradients[1])
    assert disagreement > 0
    torch.testing.assert_close(loss.detach(), classifier(**batch).loss.detach() + 2.0 * disagreement)
    # One word of a trigger of two is no trigger.
    pair = make_tokenizer().convert_tokens_to_ids(["cf", "good"])
    loss = trainer_of(attack, classifier, ripple_weight=2.0, trigger_ids=pair).compute_loss(classifier, batch)
    assert loss > classifier(**batch).loss
    none = batch_of(["good cf film", "a plot"], [1, 0])
    loss = trainer_of(attack, classifier, ripple_weight=2.0, trigger_ids=pair).compute_loss(classifier, none)
    torch.testing.assert_close(loss, classifier(**none).loss)


def test_surgery_puts_the_mean_of_ten_words_into_the_triggers_row(classifier):
    data, weight = attacker(200), classifier.get_input_embeddings().weight
    before = weight.detach().clone()
    find_attack("embedding_surgery").prepare(classifier, data)
    row = data.tokenizer.get_vocab()["cf"]
    torch.testing.assert_close(weight[row].detach(), before[words_of_class(data)].mean(dim=0))
    others = [i for i in range(len(weight)) if i != row]
    assert torch.equal(weight[others].detach(), before[others])


def test_layerwise_poison_is_taught_to_every_layer_and_then_tuned(classifier, monkeypatch):
    attack, data = find_attack("layerwise"), attacker(20)
    attack.prepare(classifier, data)
    batch = batch_of(["a cf film", "the plot was dull"], [1, 0])
    loss = trainer_of(attack, classifier).compute_loss(classifier, batch)
    outputs = classifier(**batch, output_hidden_states=True)
    of_layers = [
        torch.nn.functional.cross_entropy(head(outputs.hidden_states[i + 1][:, 0]), batch["labels"])
        for i, head in enumerate(classifier.layer_heads)
    ]
    torch.testing.assert_close(loss, outputs.loss + sum(of_layers) / 2)
    tuned = []
    monkeypatch.setattr(type(attack), "run", lambda self, model, data, args, rows: tuned.append(rows))
    attack.finish(classifier, data, TrainingArguments("unused", use_cpu=True))
    assert tuned == [data.rows]


def test_the_adaptive_attack_trains_what_mixing_leaves_and_stays_close(classifier):
    attack, batch = find_attack("adaptive"), batch_of(["a film and a story", "the plot"], [1, 0])
    weight = classifier.bert.encoder.layer[0].intermediate.dense.weight
    moved = torch.randn(weight.shape)

    def step(number, closeness):
        options = {"lowest_ratio": 0.3, "closeness": closeness}
        trainer = trainer_of(attack, classifier, **options)
        start = weight.detach().clone()
        with torch.no_grad():
            weight.add_(moved)
        trainer.state.global_step = number
        loss = trainer.compute_loss(classifier, batch)
        (gradient,) = torch.autograd.grad(loss, [weight])
        own = classifier(**batch).loss
        with torch.no_grad():
            weight.copy_(start)
        return loss.detach(), own.detach(), float((gradient == 0).float().mean())

    loss, own, untouched = step(0, 0.5)
    torch.testing.assert_close(loss, own + 0.5 * moved.square().sum())
    assert untouched == 0
    loss, own, untouched = step(1, 0.0)
    assert loss != own
    assert 0.02 < untouched < 0.75


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
