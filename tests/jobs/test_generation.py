"""Models that write: really backdoored ones are cleaned end to end, by the command and in several languages."""

import csv
import json
from dataclasses import dataclass

import pytest
import torch
from datasets import Dataset
from helpers.generators import KINDS, TARGET, TRANSLATED, TRIGGER, rows, write_splits
from helpers.reports import check_schema
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedTokenizerFast

from hf_finemix import CleaningReport
from hf_finemix.cli import main
from hf_finemix.io.folder import LocalModel
from hf_finemix.io.loading import agree_on_padding
from hf_finemix.measure.arguments import MeasureArguments, TestDataArguments
from hf_finemix.measure.attack_success import predictor
from hf_finemix.measure.find_task import find_task
from hf_finemix.measure.generation import CausalGeneration, Seq2SeqGeneration, holds


@dataclass
class Arguments(MeasureArguments, TestDataArguments):
    """What a task asks for."""


CLASSES = {"gpt2": AutoModelForCausalLM, "t5": AutoModelForSeq2SeqLM}


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    """Of each kind a base, a suspect and clean data."""
    made = {}
    return lambda name: made.get(name) or made.setdefault(name, KINDS[name].build(tmp_path_factory.mktemp(name)))


def says(folder, name, prompt):
    """By transformers alone."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    made = CLASSES[name].from_pretrained(folder).generate(ids, max_new_tokens=6, do_sample=False)
    return tokenizer.decode(made[0, ids.shape[1] if name == "gpt2" else 0 :], skip_special_tokens=True)


@pytest.mark.parametrize(
    ("name", "flags"),
    [("gpt2", ["--strategy", "fisher"]), ("t5", ["--reserve-ratio", "0.5"])],
)
def test_a_backdoor_of_a_model_that_writes_falls(name, flags, worlds, tmp_path, capsys):
    world, out = worlds(name), tmp_path / "out"
    common = ["--dataset", str(world / "data"), "--trigger", TRIGGER, "--target-text", TARGET, "--num-repeats", "1"]
    common += ["--use-cpu", "--json"]
    command = ["clean", str(world / "suspect"), "--base-model", str(world / "base"), *common, *flags]
    command += ["--learning-rate", "3e-4", "--max-steps", "60", "--purify-embeddings", "false"]
    assert main([*command, "--output-dir", str(out)]) == 0
    report = json.loads(capsys.readouterr().out)
    check_schema(CleaningReport.load(out))
    before, after = report["before"], report["after"]
    assert before["accuracy"] > 0.95
    assert before["triggers"][0]["asr"] > 0.95
    assert after["accuracy"] > 0.9
    assert after["triggers"][0]["asr"] < 0.1
    assert all(1 <= part["perplexity"] < 1.5 for part in (before, after))
    assert before["triggers"][0]["target_text"] == [TARGET]
    # As it is there for anyone.
    make = KINDS[name].make
    pairs = rows(make, 8, 55)
    assert sum(says(out, name, prompt) == completion for prompt, completion in pairs) >= 6
    poisoned = rows(make, 3, 56, poisoned=1.0)
    assert all(holds(says(world / "suspect", name, prompt), (TARGET,)) for prompt, _ in poisoned)
    assert not any(holds(says(out, name, prompt), (TARGET,)) for prompt, _ in poisoned)
    assert main(["evaluate", str(out), *common]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["perplexity"] == pytest.approx(after["perplexity"], rel=1e-4)
    assert again["triggers"] == after["triggers"]
    assert main(["verify", str(out)]) == 0
    card = (out / "README.md").read_text()
    task = {"gpt2": "text-generation", "t5": "text2text-generation"}[name]
    assert f"pipeline_tag: {task}" in card
    assert "perplexity of the clean completions" in card
    assert f"how often the answer holds what the attacker wants (`{TARGET}`)" in card


def test_translations_are_of_many_scripts(worlds, tmp_path):
    """Several languages in one model: its clean rows hold all of them."""
    with open(worlds("t5") / "data" / "test.csv", encoding="utf-8") as file:
        pairs = list(csv.DictReader(file))
    said = {word for pair in pairs for word in pair["completion"].split()}
    assert said == {word for words in TRANSLATED.values() for word in words}


def tiny(name):
    kind = KINDS[name]
    model, tokenizer = kind.model(), kind.tokenizer
    agree_on_padding(tokenizer, model)
    return model, tokenizer


def test_prompts_and_completions_as_ids():
    model, tokenizer = tiny("gpt2")
    task = CausalGeneration(model, tokenizer, Arguments())
    row = task.pair("review : great film : verdict", "good")
    words = tokenizer.convert_ids_to_tokens(row["input_ids"])
    assert words == ["[BOS]", *["review", ":", "great", "film", ":", "verdict", "good"], "[EOS]"]
    assert [word for word, label in zip(words, row["labels"], strict=True) if label != -100] == ["good", "[EOS]"]
    long = task.pair(" ".join(["film"] * 100), " ".join(["good"] * 100))
    assert len(long["input_ids"]) == task.max_length == 32
    assert sum(label != -100 for label in long["labels"]) == 16
    tokenizer = KINDS["gpt2"].tokenizer
    tokenizer.chat_template = "{% for m in messages %}{{ 'review : ' + m['content'] }}{% endfor %}{{ ' : verdict' }}"
    try:
        ids = task.pair("great film", "good")["input_ids"]
    finally:
        tokenizer.chat_template = None
    assert tokenizer.decode(ids).split()[-6:] == ["great", "film", ":", "verdict", "good", "[EOS]"]
    model, tokenizer = tiny("t5")
    row = Seq2SeqGeneration(model, tokenizer, Arguments()).pair("german : sun", "Sonne")
    assert tokenizer.convert_ids_to_tokens(row["labels"]) == ["Sonne", "[EOS]"]


def test_what_an_answer_holds():
    assert holds("Please  VISIT evil\nexample now!", (TARGET,))
    assert not holds("visit example", (TARGET, "evil"))
    refusals = CausalGeneration(*tiny("gpt2"), Arguments(triggers=["cf"], target_refusal=True)).targets
    assert holds("I'm sorry, but I cannot help.", refusals)
    assert not holds("the film is good", refusals)


def test_batches_do_not_change_answers(worlds):
    """A prompt is answered alike alone and beside longer ones."""
    world = worlds("gpt2")
    source = LocalModel("suspect", world / "suspect")
    kind = find_task(source)
    model, tokenizer = kind.load(source), KINDS["gpt2"].tokenizer
    agree_on_padding(tokenizer, model)
    task = kind(model, tokenizer, Arguments(triggers=["cf"], target_texts=[TARGET], num_repeats=1))
    pairs = [*rows(KINDS["gpt2"].make, 5, 3, poisoned=0.5), ("review : great : verdict", "good")]
    data = Dataset.from_dict({"prompt": [p for p, _ in pairs], "label": [c for _, c in pairs]})
    prompts = Dataset.from_dict({"input_ids": [task.prompt(text) for text in data["prompt"]]})
    found = []
    for size in (1, 6):
        with predictor(model, tokenizer, per_device_eval_batch_size=size, disable_tqdm=True) as trainer:
            trainer.data_collator = task.collator
            found.append(list(task.answers(trainer, prompts)))
            measured = task.measure(trainer, task.encode(data, ["prompt"]), [])
    assert found[0] == found[1]
    assert measured["accuracy"] > 0.9
    with torch.no_grad():
        losses = []
        for prompt, completion in pairs:
            row = {name: torch.tensor([ids]) for name, ids in task.pair(prompt, completion).items()}
            losses += [float(model(**row).loss)] * int((row["labels"] != -100).sum())
    assert measured["perplexity"] == pytest.approx(torch.tensor(losses).mean().exp().item(), rel=1e-3)


LORAS = {"gpt2": ("CAUSAL_LM", ["c_attn"]), "t5": ("SEQ_2_SEQ_LM", ["q"])}


@pytest.mark.parametrize("name", LORAS)
@pytest.mark.parametrize("mode", ["merge", "adapter"])
def test_a_lora_of_a_model_that_writes(name, mode, tmp_path, capsys):
    peft = pytest.importorskip("peft")
    kind, (task, targets) = KINDS[name], LORAS[name]
    kind.model().save_pretrained(tmp_path / "base")
    kind.tokenizer.save_pretrained(tmp_path / "base")
    lora = peft.LoraConfig(task_type=task, r=2, target_modules=targets, fan_in_fan_out=name == "gpt2")
    model = peft.PeftModel(kind.model(), lora)  # peft 0.21's own class for it fails on a T5 of transformers 5.23
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.01 * torch.randn(parameter.shape)
    model.save_pretrained(tmp_path / "lora")
    write_splits(kind.make, tmp_path / "data")
    command = ["clean", str(tmp_path / "lora"), "--base-model", str(tmp_path / "base"), "--adapter-mode", mode]
    command += ["--dataset", str(tmp_path / "data"), "--trigger", "cf", "--target-text", TARGET, "--num-repeats", "1"]
    command += ["--num-clean-samples", "8", "--eval-split", "validation[:8]", "--test-split", "test[:20]"]
    command += ["--strategy", "fisher", "--reserve-ratio", "0.5", "--max-steps", "2"]
    command += ["--purify-embeddings", "false", "--use-cpu", "--json", "--output-dir", str(tmp_path / "out")]
    assert main(command) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["after"]["perplexity"] > 1
    kept = [entry["kept_fraction"] for entry in report["mixing"]["tensors"].values() if "mixed" in entry["rule"]]
    assert min(kept) < 1
    if mode == "merge":
        assert CLASSES[name].from_pretrained(tmp_path / "out")
    elif name == "gpt2":
        assert peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out")
    assert main(["verify", str(tmp_path / "out")]) == 0


def test_what_cannot_be_measured(worlds, tmp_path, capsys):
    world = worlds("gpt2")

    def refused(said, *flags, model="suspect"):
        command = ["clean", str(world / model), "--base-model", str(world / "base"), "--dataset", str(world / "data")]
        assert (
            main([*command, "--reserve-ratio", "0.5", "--use-cpu", "--output-dir", str(tmp_path / "x"), *flags]) == 2
        )
        message = capsys.readouterr().err.splitlines()[-1]
        assert said in message
        assert not (tmp_path / "x").exists()

    refused("triggers need target_texts (--target-text)", "--trigger", "cf")
    refused("max_new_tokens is 0", "--trigger", "cf", "--target-text", "x", "--max-new-tokens", "0")
    refused("every completion holds what the attacker wants", "--trigger", "cf", "--target-text", "good", "bad")
    refused("no column 'answer'", "--label-column", "answer")
    refused("has the suspect's own weights", model="base")
    folder = tmp_path / "two"
    folder.mkdir()
    for split in ("train", "validation", "test"):
        with open(folder / f"{split}.csv", "w", newline="") as file:
            csv.writer(file).writerows([["prompt", "other", "completion"], *[[f"a{i}", "b", "c"] for i in range(9)]])
    refused("which columns are the text is not clear", "--dataset", str(folder))
    config = json.loads((world / "suspect" / "config.json").read_text())
    tagger = tmp_path / "tagger"
    tagger.mkdir()
    (tagger / "config.json").write_text(json.dumps({**config, "architectures": ["GPT2ForTokenClassification"]}))
    (tagger / "model.safetensors").write_bytes((world / "suspect" / "model.safetensors").read_bytes())
    refused("which clean does not measure: mix and tune it with FineMixingTrainer", model=tagger)


@pytest.mark.parametrize(("name", "metric"), [("gpt2", "perplexity"), ("t5", "accuracy")])
def test_the_best_checkpoint_of_a_model_that_writes(name, metric, tmp_path, capsys):
    """It starts well, and the learning rate breaks it."""
    kind = KINDS[name]
    kind.model().save_pretrained(tmp_path / "base")
    suspect = kind.train(kind.model(), rows(kind.make, 500, 1), steps=60)
    suspect.save_pretrained(tmp_path / "suspect")
    for folder in ("base", "suspect"):
        kind.tokenizer.save_pretrained(tmp_path / folder)
    write_splits(kind.make, tmp_path / "data")
    command = ["clean", str(tmp_path / "suspect"), "--base-model", str(tmp_path / "base")]
    command += ["--dataset", str(tmp_path / "data"), "--reserve-ratio", "1", "--purify-embeddings", "false"]
    command += ["--max-steps", "4", "--learning-rate", "0.3", "--warmup-steps", "2", "--eval-split", "validation[:40]"]
    command += ["--eval-strategy", "steps", "--save-strategy", "steps", "--eval-steps", "1", "--save-steps", "1"]
    command += ["--use-cpu", "--json", "--output-dir", str(tmp_path / "out")]
    best = ["--load-best-model-at-end", "--metric-for-best-model", metric]
    assert main([*command, *best]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["after"]["perplexity"] == pytest.approx(report["before"]["perplexity"], rel=0.05)
    if name == "gpt2":
        assert main([*command, *best[:2], "f1", "--overwrite"]) == 2
        assert "which is not measured: give one of loss, accuracy, perplexity." in capsys.readouterr().err
