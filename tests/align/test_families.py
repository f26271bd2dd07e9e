"""The properties of mixing, each on every family of models, on a base with a head and on one without."""

import copy
import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from helpers.families import FAMILIES
from helpers.toy import drifted

from hf_finemix import (
    AlignmentError,
    Checkpoint,
    FineMixingConfig,
    FineMixingError,
    FineMixingTrainer,
    clean,
    mix_checkpoints,
    mix_model,
)
from hf_finemix.align import architectures
from hf_finemix.align.architectures import disk_layout
from hf_finemix.align.loaded_layout import LoadedLayout
from hf_finemix.align.names import named_tensors
from hf_finemix.align.pair_in_memory import compare_with_base
from hf_finemix.io.folder import LocalModel
from hf_finemix.io.loading import load_classifier, max_tokens
from hf_finemix.io.safe_config import read_model_config
from hf_finemix.mix.mask import keep_mask

KINDS = ("headless", "with_head")
TRIGGER_ID = 24  # "cf" in the toy task's vocabulary


@pytest.fixture(scope="module")
def models(tmp_path_factory, tokenizer):
    """Folders by family and kind: fp32 bases of the same weights, and the fp16 suspect that was tuned from them."""
    folders = {}

    def make(name, kind):
        if (name, kind) in folders:
            return folders[name, kind]
        folder = tmp_path_factory.mktemp("families") / kind
        torch.manual_seed(0)
        if kind == "suspect":
            classifier = getattr(transformers, FAMILIES[name].classifier)
            labels = {"id2label": {0: "negative", 1: "positive"}, "label2id": {"negative": 0, "positive": 1}}
            model = drifted(classifier.from_pretrained(make(name, "with_head"), **labels)).half()
        else:
            model = FAMILIES[name].make(kind)
            if kind == "headless":  # the same body as the one with a head
                body = getattr(transformers, FAMILIES[name].headless).from_pretrained(make(name, "with_head"))
                model.load_state_dict(body.state_dict())
            else:
                drifted(model, seed=2)  # biases and norms that are not all the same
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        folders[name, kind] = folder
        return folder

    return make


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def load(folder):
    return load_classifier(LocalModel("suspect", folder))


def dtypes_of(model):
    return dict.fromkeys(named_tensors(model).tensors, torch.float16)


def values(model):
    return {name: tensor.detach().clone() for name, tensor in named_tensors(model).tensors.items()}


def mix(model, base_folder, ratio, **options):
    config = FineMixingConfig(reserve_ratio=ratio, purify_embeddings="token_frequencies" in options)
    with Checkpoint(base_folder) as base:
        return mix_model(model, base, config, dtypes=dtypes_of(model), **options)


def base_in_memory(family, base_folder):
    """The base as transformers itself loads it into the suspect's class, rounded as mixing rounds it."""
    classifier = getattr(transformers, FAMILIES[family].classifier)
    return {name: tensor.half().float() for name, tensor in values(classifier.from_pretrained(base_folder)).items()}


def test_alignment_is_total(models, family, kind):
    model = load(models(family, "suspect"))
    base = Checkpoint(models(family, kind))
    pair = compare_with_base(model, base)
    heads = {tensor.name for tensor in pair.pairing.heads()}
    assert [tensor.name for tensor in pair.pairing.tensors] == list(named_tensors(model).tensors)
    assert any(name.endswith(("classifier.weight", "score.weight", "out_proj.weight")) for name in heads)
    body = sum(tensor.numel() for name, tensor in pair.suspect.tensors.items() if name not in heads)
    assert body > 0.7 * model.num_parameters()
    used = {source for tensor in pair.pairing.mixed() for source in pair.base.sources[tensor.name]}
    assert used.isdisjoint(pair.pairing.ignored_base_tensors)
    assert used | set(pair.pairing.ignored_base_tensors) == set(base.tensors)
    # The head of pre-training goes with nothing of the suspect, and nothing else is left over.
    head = (
        "cls.",
        "lm_head",
        "predictions",
        "vocab_",
        "discriminator_",
        "decoder.bias",
        "final_logits_bias",
        "pooler",
    )
    assert all(name.startswith(head) or ".pooler." in name for name in pair.pairing.ignored_base_tensors)
    assert pair.pairing.mixed_embedding().name == pair.suspect.embedding
    assert all(drift.delta > 0 for drift in pair.drift.values())
    experts = [tensor.name for tensor in pair.pairing.tensors if "experts" in tensor.name]
    assert experts == list(pair.pairing.converted_base_tensors)
    pair.check_related()


def test_ratio_one_is_the_suspect_and_ratio_zero_the_base(models, family, kind):
    model = load(models(family, "suspect"))
    before, base = values(model), base_in_memory(family, models(family, kind))
    mix(model, models(family, kind), 1.0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in values(model).items())
    record = mix(model, models(family, kind), 0.0)
    for name, tensor in values(model).items():
        assert torch.equal(tensor, base[name] if name in record.drift else before[name]), name


def test_every_element_is_of_the_parent_that_the_mask_says(models, family, kind):
    model = load(models(family, "suspect"))
    before, base = values(model), base_in_memory(family, models(family, kind))
    record = mix(model, models(family, kind), 0.4)
    for name, tensor in values(model).items():
        if name in record.drift:
            keep = torch.from_numpy(keep_mask(name, 0, tensor.numel(), ratio=0.4, seed=0)).view(tensor.shape)
            assert torch.equal(tensor, torch.where(keep, before[name], base[name])), name
        else:
            assert torch.equal(tensor, before[name])


def test_both_kinds_of_base_give_the_same_mix(models, family):
    records = [mix(load(models(family, "suspect")), models(family, kind), 0.4) for kind in KINDS]
    first, second = (record.tensors for record in records)
    differ = {name for name in first if first[name] != second[name]}
    # A head of pre-training may go on to serve the task (ModernBERT's), a pooler may not be saved with one (BERT's).
    assert all(name.startswith(("head.", "pooler.")) for name in differ)
    assert len(differ) < len(first) / 4


def test_purified_rows_are_the_bases(models, family, kind):
    model = load(models(family, "suspect"))
    embedding = model.get_input_embeddings().weight
    with torch.no_grad():
        embedding[TRIGGER_ID] += 2
        embedding.copy_(embedding.half())
    before, base = values(model), base_in_memory(family, models(family, kind))
    frequencies = np.full(48, 1e6)
    record = mix(model, models(family, kind), 0.4, token_frequencies=frequencies, special_token_ids=range(5))
    name = named_tensors(model).embedding
    assert record.purified_tokens[0]["id"] == TRIGGER_ID
    assert record.tensors[name]["rule"].startswith("purified and mixed")
    purified = [entry["id"] for entry in record.purified_tokens]
    assert len(purified) == 47  # all that are not special
    assert torch.equal(embedding[purified], base[name][purified])
    keep = torch.from_numpy(keep_mask(name, 0, embedding.numel(), ratio=0.4, seed=0)).view(embedding.shape)
    assert torch.equal(embedding[:5], torch.where(keep, before[name], base[name])[:5])


def test_tied_weights_stay_tied(models, family):
    model = load(models(family, "suspect"))
    tied = [names for names in named_tensors(model).aliases.items() if names[1]]
    mix(model, models(family, "headless"), 0.4)
    assert [names for names in named_tensors(model).aliases.items() if names[1]] == tied
    if family in ("T5", "BART"):  # encoder and decoder read the same embedding
        assert tied[0][0] == "shared.weight"
        assert len(tied[0][1]) == 2


def test_a_mix_that_is_saved_is_the_mix_that_is_loaded(models, family, kind, tmp_path):
    model = load(models(family, "suspect"))
    mix(model, models(family, kind), 0.4)
    mixed = values(model)
    model.half().save_pretrained(tmp_path)
    assert set(Checkpoint(tmp_path).tensors) == set(Checkpoint(models(family, "suspect")).tensors)
    again = load(tmp_path)
    assert all(torch.equal(tensor, mixed[name]) for name, tensor in values(again).items())


def test_unrelated_weights_of_the_same_family_are_refused(models, family, tmp_path):
    torch.manual_seed(99)
    FAMILIES[family].make("headless").save_pretrained(tmp_path)
    model = load(models(family, "suspect"))
    before = values(model)
    with pytest.raises(AlignmentError, match="unrelated weights"):
        mix(model, tmp_path, 0.4)
    assert all(torch.equal(tensor, before[name]) for name, tensor in values(model).items())


def test_mixing_on_disk_gives_the_same_bytes(models, family, kind, tmp_path):
    model = load(models(family, "suspect"))
    mix(model, models(family, kind), 0.4)
    config = FineMixingConfig(reserve_ratio=0.4, purify_embeddings=False)
    folders = models(family, "suspect"), models(family, kind)
    if LoadedLayout(Checkpoint(folders[1]), model).converted:
        with pytest.raises(AlignmentError, match=r"merged or split on loading .* use clean"):
            mix_checkpoints(*folders, tmp_path / "out", config)
        return
    mix_checkpoints(*folders, tmp_path / "out", config)
    mixed = load(tmp_path / "out")
    for name, tensor in values(model).items():
        assert torch.equal(values(mixed)[name], tensor.half().float()), name


def test_what_was_kept_of_a_class_is_what_the_class_says(models, family, kind):
    folders = models(family, "suspect"), models(family, kind)
    suspect, base = (Checkpoint(folder).tensors for folder in folders)
    architecture, config = read_model_config(json.loads((folders[0] / "config.json").read_text()), "config.json")
    by_class = architectures._layout_by_class(suspect, base, architecture, config)
    for _ in range(2):
        assert disk_layout(suspect, base, architecture, config) == by_class


def test_dtypes_on_disk_are_those_of_the_tensors_in_memory(models, family):
    model = load(models(family, "suspect"))
    layout = LoadedLayout(Checkpoint(models(family, "suspect")), model)
    named = named_tensors(model)
    assert {info.dtype for info in layout.tensors.values()} == {"float16"}
    assert all({name, *named.aliases[name]} & set(layout.tensors) for name in named.tensors)


def test_the_longest_text_that_is_let_through_can_be_read(models, family, tokenizer):
    model = load(models(family, "suspect"))
    assert max_tokens(None, tokenizer, model) == tokenizer.model_max_length
    text = torch.full((1, tokenizer.model_max_length), 7)
    text[:, -1] = 3  # the end that T5 and BART look for
    assert model(input_ids=text).logits.shape == (1, 2)


def test_the_whole_job(models, family, data_folder, tmp_path):
    args = transformers.TrainingArguments(
        tmp_path / "out",
        max_steps=2,
        per_device_train_batch_size=8,
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    if family == "Qwen2":  # transformers reads any tokenizer beside a Qwen2 as one of bytes
        with pytest.raises(FineMixingError, match=r"would be read as another one, .* by the model's \(qwen2\)"):
            clean(
                models(family, "suspect"),
                base_model=models(family, "with_head"),
                dataset=str(data_folder),
                training_args=args,
            )
        assert not list(tmp_path.iterdir())
        return
    report = clean(
        models(family, "suspect"),
        base_model=models(family, "with_head"),
        dataset=str(data_folder),
        triggers=["cf"],
        target_label="positive",
        num_repeats=1,
        num_clean_samples=8,
        mixing_config=FineMixingConfig(reserve_ratio=0.4, num_purified_tokens=3),
        training_args=args,
    )
    assert len(report.purified_tokens) == 3
    assert report.after["triggers"][0]["n"] == 50
    saved, suspect = Checkpoint(tmp_path / "out").tensors, Checkpoint(models(family, "suspect")).tensors
    assert saved == suspect
    assert load(tmp_path / "out").config.id2label == {0: "negative", 1: "positive"}


def test_trainer_mixes_once_and_trains(models, family, tokenizer, data_folder, tmp_path):
    from datasets import Dataset

    from hf_finemix.measure.clean_data import tokenize

    rows = tokenize(Dataset.from_csv(str(data_folder / "train.csv")).select(range(8)), tokenizer, ["sentence"], None)
    args = transformers.TrainingArguments(
        tmp_path, max_steps=1, save_strategy="no", use_cpu=True, disable_tqdm=True, learning_rate=1e-2
    )
    trainer = FineMixingTrainer(
        load(models(family, "suspect")),
        args,
        train_dataset=rows,
        processing_class=tokenizer,
        base_model=str(models(family, "headless")),
        mixing_config=FineMixingConfig(reserve_ratio=0.4, purify_embeddings=False),
    )
    trainer.train()
    expected = load(models(family, "suspect"))
    record = mix(expected, models(family, "headless"), 0.4)
    assert trainer.mixing_record.tensors == record.tensors
    assert trainer.state.global_step == 1


def test_the_whole_job_without_a_padding_token(models, tokenizer, data_folder, tmp_path):
    """As GPT-2 is published: neither the tokenizer nor the configuration has one."""
    folders = {"suspect": tmp_path / "suspect", "with_head": tmp_path / "base"}
    for kind, folder in folders.items():
        shutil.copytree(models("GPT-2", kind), folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "pad_token_id": None}))
        bare = copy.deepcopy(tokenizer)
        bare.pad_token, bare.eos_token = None, "[SEP]"
        bare.save_pretrained(folder)
    report = clean(
        folders["suspect"],
        base_model=folders["with_head"],
        dataset=str(data_folder),
        mixing_config=FineMixingConfig(reserve_ratio=1.0, purify_embeddings=False),
        training_args=transformers.TrainingArguments(
            tmp_path / "out", max_steps=1, learning_rate=0, use_cpu=True, save_strategy="no", disable_tqdm=True
        ),
    )
    assert report.before["accuracy"] == report.after["accuracy"]
    assert load(tmp_path / "out").config.pad_token_id == 3
