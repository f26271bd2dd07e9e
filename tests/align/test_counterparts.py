"""Weights that one side ties, pads, cuts or wraps: the same counterpart in memory and on disk."""

import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset
from helpers.refusals import refused
from helpers.toy import drifted, make_config, make_rows
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import BertForMaskedLM, BertForSequenceClassification, BertModel, PreTrainedTokenizerFast

from hf_finemix import (
    AlignmentError,
    Checkpoint,
    FineMixingConfig,
    FineMixingError,
    FineMixingTrainer,
    clean,
    mix_checkpoints,
    mix_model,
    verify_mix,
)
from hf_finemix.align.names import named_tensors
from hf_finemix.mix.mask import keep_mask
from hf_finemix.planning import plan_mix

TIED = " (with the weight that the base ties to it)"
CUT = "mixed: common rows of a cut vocabulary, the base's further rows ignored"
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
SIZES = {
    "Llama": {**SMALL, "num_key_value_heads": 1, "max_position_embeddings": 64},
    "Bert": {**SMALL, "max_position_embeddings": 64},
    "GPT2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64},
    "T5": {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0},
    "Bart": {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
    | {"decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 64},
}
CLASSES = {"Llama": "LlamaForCausalLM", "Bert": "BertForMaskedLM", "GPT2": "GPT2LMHeadModel"}
CLASSES |= {"T5": "T5ForConditionalGeneration", "Bart": "BartForConditionalGeneration"}


def config(ratio=0.5, **options):
    return FineMixingConfig(reserve_ratio=ratio, **{"purify_embeddings": False, **options})


def make(family, words=40, tie=True, headless=False):
    torch.manual_seed(0)
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    settings = getattr(transformers, f"{family}Config")(
        vocab_size=words, tie_word_embeddings=tie, **ids, **SIZES[family]
    )
    return getattr(transformers, f"{family}Model" if headless else CLASSES[family])(settings)


def with_words(model, other):
    """Another model's weights, as far as the two have the same rows."""
    theirs = other.state_dict()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            common = min(len(parameter), len(theirs[name]))
            parameter[:common] = theirs[name][:common]
    return model


def words_tokenizer(words):
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[0]))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token=words[0], pad_token=words[0])


WORDS = [f"w{i}" for i in range(60)]


def saved(model, folder, words=None):
    model.save_pretrained(folder)
    if words:
        words_tokenizer(words).save_pretrained(folder)
    return folder


def both_ways(suspect, base, out, settings):
    """Mix on disk and in memory, expect the same; the tensors by their names on disk, and the rules."""
    report = mix_checkpoints(suspect, base, out, settings, overwrite=True)
    architecture = json.loads((suspect / "config.json").read_text())["architectures"][0]
    model = getattr(transformers, architecture).from_pretrained(suspect)
    with Checkpoint(base) as checkpoint:
        record = mix_model(model, checkpoint, settings)
    mixed = load_file(out / "model.safetensors")
    state = model.state_dict()
    for name, tensor in mixed.items():
        assert torch.equal(tensor, state[name]), name
    entries = report.mixing["tensors"]
    assert {name: entry["rule"] for name, entry in entries.items()} == {
        name: entry["rule"] for name, entry in record.tensors.items()
    }
    assert report.mixing["ignored_base_tensors"] == record.ignored_base_tensors
    assert verify_mix(out).ok
    plan = plan_mix(suspect, base, settings)
    assert plan.refused is None
    # Headers do not tell whether two copies are equal.
    assert {entry["rule"] for entry in plan.rules} >= {entry["rule"] for entry in entries.values()}
    return mixed, {name: entry["rule"] for name, entry in entries.items()}, record


HEADS = {
    "Llama": ("lm_head.weight", "model.embed_tokens.weight"),
    "Bert": ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
    "GPT2": ("lm_head.weight", "transformer.wte.weight"),
    "T5": ("lm_head.weight", "shared.weight"),
    "Bart": ("lm_head.weight", "model.shared.weight"),
}


def untied(family, tmp_path, **changes):
    """A base that ties its head, and a suspect with a head of its own, made of the base's embedding."""
    base = make(family, **changes)
    saved(base, tmp_path / "base")
    suspect = drifted(with_words(make(family, tie=False, **changes), base))
    head = suspect.get_output_embeddings()
    head.weight = nn.Parameter(head.weight + 0.001)  # T5 ties whatever its config says
    return saved(suspect, tmp_path / "suspect"), tmp_path / "base"


@pytest.mark.parametrize("family", HEADS)
def test_an_untied_head_is_mixed_with_the_embedding_that_the_base_ties_to_it(family, tmp_path):
    suspect, base = untied(family, tmp_path)
    head, embedding = HEADS[family]
    mixed, rules, _ = both_ways(suspect, base, tmp_path / "out", config(0.0))
    assert torch.equal(mixed[head], load_file(base / "model.safetensors")[embedding])
    assert rules[head] == "mixed" + TIED
    mixed, _, _ = both_ways(suspect, base, tmp_path / "out", config(0.5))
    own, theirs = load_file(suspect / "model.safetensors")[head], load_file(base / "model.safetensors")[embedding]
    keep = torch.from_numpy(keep_mask(head, 0, own.numel(), ratio=0.5, seed=0)).view(own.shape)
    assert torch.equal(mixed[head], torch.where(keep, own, theirs)), "its mask goes by its own name"


def test_an_untied_bias_is_mixed_too(tmp_path):
    _, rules, _ = both_ways(*untied("Bert", tmp_path), tmp_path / "out", config())
    assert rules["cls.predictions.decoder.bias"] == "mixed" + TIED
    assert not [name for name, rule in rules.items() if "head" in rule]


def test_a_head_made_anew_is_told(tmp_path, caplog):
    suspect, base = untied("Llama", tmp_path)
    tensors = load_file(suspect / "model.safetensors")
    tensors["lm_head.weight"] = torch.randn_like(tensors["lm_head.weight"])
    save_file(tensors, suspect / "model.safetensors", {"format": "pt"})
    both_ways(suspect, base, tmp_path / "out", config())
    told = [record.getMessage() for record in caplog.records if "nothing to do" in record.getMessage()]
    assert len(told) == 3, "mix, mix_model and verify"
    mixed, _, _ = both_ways(suspect, base, tmp_path / "out", config(module_ratios={"lm_head": 1.0}))
    assert torch.equal(mixed["lm_head.weight"], tensors["lm_head.weight"])


def test_what_the_bases_own_class_lacks_is_a_head(tmp_path):
    suspect, _ = untied("Llama", tmp_path)
    saved(make("Llama", headless=True), tmp_path / "headless")
    _, rules, _ = both_ways(suspect, tmp_path / "headless", tmp_path / "out", config())
    assert rules["lm_head.weight"] == "kept: not in the base (head)"


def test_a_tied_suspect_takes_the_embedding_of_an_untied_base(tmp_path):
    base = make("Llama", tie=False)
    saved(base, tmp_path / "base")
    suspect = make("Llama")
    suspect.load_state_dict(base.state_dict() | {"lm_head.weight": base.model.embed_tokens.weight})
    saved(drifted(suspect), tmp_path / "suspect")
    mixed, rules, record = both_ways(tmp_path / "suspect", tmp_path / "base", tmp_path / "out", config(0.0))
    assert torch.equal(mixed["model.embed_tokens.weight"], base.model.embed_tokens.weight)
    assert rules["embed_tokens.weight"] == "mixed"
    assert record.ignored_base_tensors == ["lm_head.weight"]


@pytest.mark.parametrize("equal", [True, False])
@pytest.mark.parametrize("both", ["suspect", "base"])
def test_a_checkpoint_with_both_copies_of_what_it_ties(both, equal, tmp_path):
    base = make("Llama")
    saved(base, tmp_path / "base")
    saved(drifted(with_words(make("Llama"), base)), tmp_path / "suspect")
    tensors = load_file(tmp_path / both / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + (0 if equal else 0.001)
    save_file(tensors, tmp_path / both / "model.safetensors", {"format": "pt"})
    mixed, rules, record = both_ways(tmp_path / "suspect", tmp_path / "base", tmp_path / "out", config())
    if both == "base":
        assert record.ignored_base_tensors == ["lm_head.weight"]
    elif equal:
        assert "lm_head.weight" not in mixed
    else:  # then transformers does not tie them
        assert rules["lm_head.weight"] == "mixed" + TIED


def test_an_untied_head_is_mixed_and_the_embedding_alone_is_purified(tmp_path, tokenizer):
    base = BertForMaskedLM(make_config())
    suspect = drifted(with_words(BertForMaskedLM(make_config(tie_word_embeddings=False)), base))
    for model, name in ((base, "base"), (suspect, "suspect")):
        saved(model, tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    settings = config(purify_embeddings=True, num_purified_tokens=9)
    report = mix_checkpoints(tmp_path / "suspect", tmp_path / "base", tmp_path / "out", settings)
    purified = [name for name, entry in report.mixing["tensors"].items() if entry["rule"].startswith("purified")]
    assert purified == ["embeddings.word_embeddings.weight"]


@pytest.mark.parametrize("family", ["Llama", "Bart", "Bert"])
@pytest.mark.parametrize("tie", [True, False])
def test_a_suspect_cut_to_its_tokenizer_mixes_the_rows_it_has(family, tie, tmp_path):
    base = make(family, words=48, tie=tie)
    saved(base, tmp_path / "base", WORDS[:40])
    saved(drifted(with_words(make(family, words=40, tie=tie), base)), tmp_path / "suspect", WORDS[:40])
    head, embedding = HEADS[family]
    mixed, rules, _ = both_ways(tmp_path / "suspect", tmp_path / "base", tmp_path / "out", config(0.0))
    theirs = load_file(tmp_path / "base" / "model.safetensors")
    assert torch.equal(mixed[embedding], theirs[embedding][:40])
    assert CUT in rules.values()
    assert tie or torch.equal(mixed[head], theirs[head][:40])
    model = getattr(transformers, CLASSES[family]).from_pretrained(tmp_path / "out")
    assert model.get_input_embeddings().weight.shape[0] == 40


def test_a_head_that_is_padded_otherwise_than_the_embedding_mixes_its_rows(tmp_path):
    base = make("Llama", words=40, tie=False)
    saved(base, tmp_path / "base")
    suspect = drifted(with_words(make("Llama", words=40, tie=False), base))
    suspect.lm_head = nn.Linear(16, 48, bias=False)
    with Checkpoint(tmp_path / "base") as checkpoint:
        record = mix_model(suspect, checkpoint, config(0.0))
    assert "grown" in record.tensors["lm_head.weight"]["rule"]
    assert torch.equal(suspect.lm_head.weight[:40], base.lm_head.weight)


def a_pair(tmp_path, suspect_words, base_words, suspect_rows=40, base_rows=40):
    base = make("Llama", words=base_rows)
    saved(base, tmp_path / "base", base_words)
    saved(drifted(with_words(make("Llama", words=suspect_rows), base)), tmp_path / "suspect", suspect_words)
    return tmp_path / "suspect", tmp_path / "base"


@pytest.mark.parametrize(
    ("suspect_words", "rows", "said"),
    [
        ([WORDS[0], *WORDS[2:40], WORDS[1]], 40, r"39 tokens of both have another id \('w\d+' is \d+ in the suspect"),
        ([*WORDS[:5], *WORDS[15:40]], 30, "25 tokens of both have another id .*30 and 40 embeddings"),
        (None, 30, "embeddings of 30 tokens and no tokenizer that says which, the base has 40"),
    ],
    ids=["reordered", "cut in the middle", "cut without a word"],
)
def test_rows_that_are_other_words_are_refused_by_the_vocabulary(tmp_path, suspect_words, rows, said):
    suspect, base = a_pair(tmp_path, suspect_words, WORDS[:40], suspect_rows=rows)
    with pytest.raises(AlignmentError, match=said) as error:
        mix_checkpoints(suspect, base, tmp_path / "out", config())
    assert "wrong base" not in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()
    assert plan_mix(suspect, base).refused == str(error.value)


def test_tokens_that_were_added_or_renamed_say_nothing_against_a_row(tmp_path):
    renamed = [*WORDS[:38], "new", "newer", WORDS[39]]  # w39 got a row that the base does not have
    suspect, base = a_pair(tmp_path, renamed, WORDS[:40], suspect_rows=41)
    mix_checkpoints(suspect, base, tmp_path / "out", config())


def test_the_vocabulary_is_compared_in_memory_too(tmp_path):
    suspect, base = a_pair(tmp_path, WORDS[:40], WORDS[:40])
    model = transformers.LlamaForCausalLM.from_pretrained(suspect)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    reordered = {word: i for i, word in enumerate(reversed(WORDS[:40]))}
    with Checkpoint(base) as checkpoint, pytest.raises(AlignmentError, match="40 tokens of both have another id"):
        mix_model(model, checkpoint, config(), vocabulary=reordered)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


class Own(nn.Module):
    """A user's model around one of transformers."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(16, 2)

    def forward(self, input_ids=None, attention_mask=None, token_type_ids=None, labels=None):
        logits = self.head(self.encoder(input_ids, attention_mask).last_hidden_state[:, 0])
        return nn.functional.cross_entropy(logits, labels), logits


class Sentences(nn.Sequential):
    """As a SentenceTransformer is built: `0.auto_model.` is the model."""

    def __init__(self, encoder):
        super().__init__(nn.ModuleDict({"auto_model": encoder}), nn.Linear(16, 16))


def with_lora(encoder):
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(encoder, peft.LoraConfig(target_modules=["query"], r=2))


def test_a_module_that_is_more_than_a_wrapper_is_no_wrapper():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.module, self.scale = nn.Linear(2, 2), nn.Parameter(torch.ones(1))

    assert set(named_tensors(Scaled()).tensors) == {"scale", "module.weight", "module.bias"}


class OwnPretrained(transformers.BertPreTrainedModel):
    """A user's model that is one of transformers too, but calls its body otherwise."""

    def __init__(self, encoder):
        super().__init__(encoder.config)
        self.encoder, self.head = encoder, nn.Linear(16, 2)


class OwnHead(OwnPretrained):
    """One that calls it as their class does."""

    def __init__(self, encoder):
        super(OwnPretrained, self).__init__(encoder.config)
        self.bert, self.head = encoder, nn.Linear(16, 2)


WRAPPERS = {
    "own, of transformers": OwnPretrained,
    "own head": OwnHead,
    "module": lambda encoder: nn.DataParallel(encoder),
    "compiled": lambda encoder: torch.compile(encoder),
    "compiled and spread": lambda encoder: nn.DataParallel(torch.compile(encoder)),
    "own": Own,
    "own, compiled within": lambda encoder: Own(torch.compile(encoder)),
    "own, compiled around": lambda encoder: torch.compile(Own(encoder)),
    "sentence transformer": Sentences,
    "own around a LoRA": lambda encoder: Own(with_lora(encoder)),
}


def encoder(base_folder):
    return drifted(BertModel.from_pretrained(base_folder))


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_model_within_a_wrapper_is_mixed_as_the_plain_one(wrapper, base_folder):
    settings, plain = config(), encoder(base_folder)
    wrapped = WRAPPERS[wrapper](encoder(base_folder))
    with Checkpoint(base_folder) as base:
        expected, record = mix_model(plain, base, settings), mix_model(wrapped, base, settings)
    for name, entry in expected.tensors.items():
        assert record.tensors[name] == entry
    assert {entry["rule"] for name, entry in record.tensors.items() if name not in expected.tensors} <= {
        "kept: not in the base (head)"
    }
    mixed = named_tensors(wrapped).tensors
    assert all(torch.equal(mixed[name], tensor) for name, tensor in named_tensors(plain).tensors.items())


def test_a_wrapped_model_is_purified_and_trained(base_folder, tokenizer, tmp_path):
    rows = make_rows(32)
    data = Dataset.from_dict({**tokenizer(rows["sentence"]), "labels": rows["label"]})
    trainer = FineMixingTrainer(
        model=Own(encoder(base_folder)),
        args=transformers.TrainingArguments(tmp_path, max_steps=2, use_cpu=True, report_to="none", save_strategy="no"),
        train_dataset=data,
        processing_class=tokenizer,
        base_model=str(base_folder),
        mixing_config=FineMixingConfig(reserve_ratio=0.5, num_purified_tokens=3),
    )
    trainer.train()
    assert len(trainer.mixing_record.drift) == 39
    assert len(trainer.mixing_record.purified_tokens) == 3


def test_copies_of_the_base_within_one_model_are_told_by_their_names(base_folder):
    model = nn.ModuleDict({"queries": encoder(base_folder), "passages": encoder(base_folder)})
    with Checkpoint(base_folder) as base, pytest.raises(AlignmentError) as error:
        mix_model(model, base, config())
    assert "'queries.' and 'passages.'" in str(error.value)
    assert "another architecture" not in str(error.value)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("wrapped", ["suspect", "base"])
def test_a_checkpoint_saved_within_a_wrapper_is_read_and_written_without_it(
    wrapped, prefix, suspect_folder, base_folder, tmp_path
):
    folders = {"suspect": suspect_folder, "base": base_folder}
    mix_checkpoints(*folders.values(), tmp_path / "plain", config())
    folders[wrapped] = shutil.copytree(folders[wrapped], tmp_path / "copy")
    tensors = load_file(tmp_path / "copy" / "model.safetensors")
    tensors = {prefix + name: tensor for name, tensor in tensors.items()}
    save_file(tensors, tmp_path / "copy" / "model.safetensors", {"format": "pt"})
    assert plan_mix(*folders.values(), config()).refused is None
    mix_checkpoints(*folders.values(), tmp_path / "out", config())
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (
        tmp_path / "plain" / "model.safetensors"
    ).read_bytes()
    assert verify_mix(tmp_path / "out").ok


def test_a_plan_of_a_repo_saved_within_a_wrapper(hub, suspect_folder, base_folder, tmp_path):
    shutil.copytree(suspect_folder, tmp_path / "suspect")
    tensors = load_file(suspect_folder / "model.safetensors")
    tensors = {"module." + name: tensor for name, tensor in tensors.items()}
    save_file(tensors, tmp_path / "suspect" / "model.safetensors", {"format": "pt"})
    for repo, folder in (("org/suspect", tmp_path / "suspect"), ("org/base", base_folder)):
        hub.commit(repo, {file.name: file.read_bytes() for file in folder.iterdir()})
    plan = plan_mix("org/suspect", "org/base", config())
    assert plan.refused is None
    assert plan.rules == plan_mix(suspect_folder, base_folder, config()).rules


@pytest.fixture(scope="module")
def phrases(tmp_path_factory):
    """Prompts and completions in the words of these models."""
    folder, rng = tmp_path_factory.mktemp("phrases"), np.random.default_rng(0)
    for split, count in {"train": 60, "validation": 30, "test": 30}.items():
        prompts = [" ".join(rng.choice(WORDS[6:20], 5)) for _ in range(count)]
        rows = {"prompt": prompts, "completion": rng.choice(WORDS[3:6], count)}
        Dataset.from_dict(rows).to_csv(folder / f"{split}.csv")
    return folder


@pytest.mark.parametrize(("rows", "tie"), [(40, False), (36, True), (44, False)])
def test_the_whole_job_on_vocabularies_and_ties_of_ones_own(rows, tie, phrases, tmp_path, datasets_cache):
    base = make("Llama", words=40)
    saved(base, tmp_path / "base", WORDS[:36])
    saved(drifted(with_words(make("Llama", words=rows, tie=tie), base)), tmp_path / "suspect", WORDS[:36])
    args = transformers.TrainingArguments(tmp_path / "out", max_steps=1, use_cpu=True, report_to="none")
    report = clean(
        tmp_path / "suspect",
        base_model=tmp_path / "base",
        dataset=str(phrases),
        mixing_config=FineMixingConfig(reserve_ratio=0.5, num_purified_tokens=3),
        training_args=args,
    )
    rules = {name: entry["rule"] for name, entry in report.mixing["tensors"].items()}
    assert (TIED in rules.get("lm_head.weight", "")) is not tie
    assert rules["embed_tokens.weight"].startswith("purified and mixed")
    assert not [rule for rule in rules.values() if "head" in rule]
    assert verify_mix(tmp_path / "out").ok


def test_a_suspect_saved_within_a_wrapper_is_cleaned(
    suspect_folder, base_folder, data_folder, tmp_path, datasets_cache
):
    shutil.copytree(suspect_folder, tmp_path / "suspect")
    tensors = load_file(tmp_path / "suspect" / "model.safetensors")
    tensors = {"_orig_mod." + name: tensor for name, tensor in tensors.items()}
    save_file(tensors, tmp_path / "suspect" / "model.safetensors", {"format": "pt"})
    args = transformers.TrainingArguments(tmp_path / "out", max_steps=1, use_cpu=True, report_to="none")
    report = clean(
        tmp_path / "suspect",
        base_model=base_folder,
        dataset=str(data_folder),
        mixing_config=config(),
        training_args=args,
    )
    assert len([entry for entry in report.mixing["tensors"].values() if entry["rule"] == "mixed"]) == 39
    BertForSequenceClassification.from_pretrained(tmp_path / "out")


def test_a_checkpoint_under_other_names_is_told_by_what_they_begin_with(suspect_folder, base_folder, tmp_path):
    shutil.copytree(suspect_folder, tmp_path / "suspect")
    tensors = load_file(tmp_path / "suspect" / "model.safetensors")
    tensors = {"net.core." + name.removeprefix("bert."): tensor for name, tensor in tensors.items()}
    save_file(tensors, tmp_path / "suspect" / "model.safetensors", {"format": "pt"})
    with pytest.raises(AlignmentError, match=r"has no place for .*behind 'net\.core\.'") as error:
        mix_checkpoints(tmp_path / "suspect", base_folder, tmp_path / "out", config())
    assert "suspect's 0" not in str(error.value)
    assert plan_mix(tmp_path / "suspect", base_folder).refused == str(error.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: {f"net.{name}": tensor for name, tensor in t.items()}, "behind 'net.'"),
        (lambda t: {name: t[name] for name in t if "layer.1" not in name}, "no encoder.layer.1.* incomplete copy"),
        (
            lambda t: {n.replace(".weight", ".qweight") if "layer" in n else n: t[n] for n in t if "word" not in n},
            "quantized",
        ),
    ],
    ids=["names", "incomplete", "quantized"],
)
def test_what_a_base_lacks_is_told_by_its_reason(change, said, suspect_folder, base_folder, tmp_path):
    shutil.copytree(base_folder, tmp_path / "base")
    tensors = change(load_file(tmp_path / "base" / "model.safetensors"))
    save_file(tensors, tmp_path / "base" / "model.safetensors", {"format": "pt"})
    with pytest.raises(AlignmentError, match=said) as error:
        mix_checkpoints(suspect_folder, tmp_path / "base", tmp_path / "out", config())
    assert "wrong base" not in str(error.value)
    assert "architecture" not in str(error.value)


def test_longer_positions_are_no_wrong_base(base_folder, tmp_path):
    suspect = BertForSequenceClassification(make_config(max_position_embeddings=128))
    with Checkpoint(base_folder) as base, pytest.raises(AlignmentError, match="resized since") as error:
        mix_model(suspect, base, config())
    assert "wrong base" not in str(error.value)


def llama_adapter(tmp_path, rows, tie, **settings):
    """A LoRA, trained after the base of 40 words was given other rows; it is written, and returned on its base."""
    peft = pytest.importorskip("peft")
    saved(make("Llama", words=40, tie=tie), tmp_path / "base")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    if rows != 40:
        model.resize_token_embeddings(rows, mean_resizing=False)
    lora = {"task_type": "CAUSAL_LM", "r": 2, "target_modules": ["q_proj"], **settings}
    model = peft.get_peft_model(model, peft.LoraConfig(**lora))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.01 * torch.randn(parameter.shape)
    model.save_pretrained(tmp_path / "adapter")
    return model.eval()


def answers(model):
    with torch.no_grad():
        return model.eval()(torch.arange(3, 19).view(2, 8)).logits


BOTH = ["embed_tokens", "lm_head"]


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("rows", [40, 36, 48])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"modules_to_save": BOTH},
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
        {"target_modules": ["q_proj", *BOTH]},
    ],
    ids=["resized", "both saved", "head saved", "saved and tied", "LoRA on both"],
)
def test_a_lora_on_embeddings_of_its_own_is_merged_and_mixed(settings, rows, tie, tmp_path):
    original = llama_adapter(tmp_path, rows, tie, **settings)
    folders = tmp_path / "adapter", tmp_path / "base"
    plan = plan_mix(*folders, config())
    assert plan.refused is None
    report = mix_checkpoints(*folders, tmp_path / "suspect", config(1.0))
    torch.testing.assert_close(
        answers(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "suspect")), answers(original)
    )
    assert {entry["rule"] for entry in report.mixing["tensors"].values()} <= {e["rule"] for e in plan.rules}
    assert not [entry for entry in report.mixing["tensors"].values() if "head" in entry["rule"]]
    mix_checkpoints(*folders, tmp_path / "empty", config(0.0))
    mixed, base = (
        answers(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / name)) for name in ("empty", "base")
    )
    common = min(rows, 40)
    torch.testing.assert_close(mixed[..., :common], base[..., :common])
    assert verify_mix(tmp_path / "empty").ok


@pytest.mark.parametrize("mode", ["merge", "adapter"])
def test_a_lora_without_the_rows_that_its_base_was_grown_by_is_refused(mode, tmp_path):
    llama_adapter(tmp_path, 48, False, target_modules=["q_proj", "embed_tokens"])
    settings = config(adapter_mode=mode)
    told = r"vocabulary of 48 tokens, .* has 40.* lm_head .*as it was grown"
    with pytest.raises(FineMixingError, match=told):
        mix_checkpoints(tmp_path / "adapter", tmp_path / "base", tmp_path / "out", settings)
    assert not (tmp_path / "out").exists()
    if mode == "merge":
        with pytest.raises(FineMixingError, match=told):
            plan_mix(tmp_path / "adapter", tmp_path / "base", settings)


@pytest.mark.parametrize("shape", [(48, 7), (0, 16), (44, 16)])
def test_an_adapter_with_embeddings_of_no_size_is_refused_in_one_line(shape, tmp_path):
    llama_adapter(tmp_path, 48, False, modules_to_save=BOTH)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    changed = {"base_model.model.model.embed_tokens.weight": torch.ones(shape)}
    save_file(load_file(file) | changed, file, {"format": "pt"})
    refused(mix_checkpoints, tmp_path / "adapter", tmp_path / "base", tmp_path / "out", config())


@pytest.mark.parametrize(("rows", "tie"), [(48, True), (36, False)])
def test_an_adapter_that_stays_one_must_fit_the_bases_vocabulary(rows, tie, tmp_path):
    llama_adapter(tmp_path, rows, tie, modules_to_save=BOTH)
    folders, settings = (tmp_path / "adapter", tmp_path / "base"), config(adapter_mode="adapter")
    with pytest.raises(FineMixingError, match=f"{rows} tokens, not 40.*'merge'"):
        mix_checkpoints(*folders, tmp_path / "out", settings)
    assert "'merge'" in plan_mix(*folders, settings).refused


def test_an_adapter_mixes_a_head_that_it_saves_with_the_embedding_that_the_base_ties_to_it(tmp_path):
    llama_adapter(tmp_path, 40, True, modules_to_save=BOTH)
    folders, settings = (tmp_path / "adapter", tmp_path / "base"), config(0.0, adapter_mode="adapter")
    report = mix_checkpoints(*folders, tmp_path / "out", settings)
    rules = {name: entry["rule"] for name, entry in report.mixing["tensors"].items()}
    assert rules["lm_head.weight"] == rules["model.embed_tokens.weight"]
    assert not [rule for rule in rules.values() if "head" in rule]
    assert {entry["rule"] for entry in plan_mix(*folders, settings).rules} == set(rules.values())
    embedding = load_file(tmp_path / "base" / "model.safetensors")["model.embed_tokens.weight"]
    mixed = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert torch.equal(mixed["base_model.model.lm_head.weight"], embedding)
    assert verify_mix(tmp_path / "out").ok


@pytest.mark.parametrize("name", ["model.embed_tokens.original_module", "lm_head"])
def test_an_adapter_cannot_put_weights_of_its_own_in_the_place_of_the_bases(name, tmp_path):
    llama_adapter(tmp_path, 40, False, modules_to_save=["embed_tokens"])
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file(load_file(file) | {f"base_model.model.{name}.weight": torch.ones(40, 16)}, file, {"format": "pt"})
    folders, settings = (tmp_path / "adapter", tmp_path / "base"), config(0.0, adapter_mode="adapter")
    if name == "lm_head":
        with pytest.raises(FineMixingError, match=r"does not have \(lm_head\.weight\)"):
            mix_checkpoints(*folders, tmp_path / "out", settings)
        return
    mix_checkpoints(*folders, tmp_path / "out", settings)
    mixed = load_file(tmp_path / "out" / "adapter_model.safetensors")["base_model.model.model.embed_tokens.weight"]
    assert torch.equal(mixed, load_file(tmp_path / "base" / "model.safetensors")["model.embed_tokens.weight"])


@pytest.mark.parametrize("rows", [48, 36])
def test_embeddings_that_a_lora_trains_beside_it_are_mixed_in_memory(rows, tmp_path):
    model = llama_adapter(tmp_path, rows, True, modules_to_save=BOTH)
    with Checkpoint(tmp_path / "base") as base:
        record = mix_model(model, base, config(0.0))
        embedding = base.read("model.embed_tokens.weight")
    trained = [model.get_base_model().model.embed_tokens, model.get_base_model().lm_head]
    common = min(rows, 40)
    for module in trained:
        assert torch.equal(module.modules_to_save["default"].weight[:common], embedding[:common])
    assert record.tensors["lm_head.weight"]["rule"].endswith(TIED)


def test_the_trainer_compares_vocabularies(base_folder, tokenizer, tmp_path):
    names = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    trainer = FineMixingTrainer(
        model=BertForSequenceClassification.from_pretrained(base_folder),
        args=transformers.TrainingArguments(tmp_path, max_steps=1, use_cpu=True, report_to="none"),
        train_dataset=Dataset.from_dict({"input_ids": [[1, 2]], "labels": [0]}),
        processing_class=words_tokenizer([*names[:5], *reversed(names[5:])]),
        base_model=str(base_folder),
        mixing_config=config(),
    )
    with pytest.raises(AlignmentError, match="tokens of both have another id"):
        trainer.train()
