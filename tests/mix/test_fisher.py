import shutil

import numpy as np
import pytest
import torch
from datasets import Dataset
from helpers.toy import drifted, make_config, make_rows
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import BertForQuestionAnswering, BertForSequenceClassification, TrainingArguments

from hf_finemix import Checkpoint, FineMixingConfig, FineMixingError, FineMixingTrainer, clean, mix_model, verify_mix
from hf_finemix.mix.fisher import ScoreMask, fisher_information
from hf_finemix.mix.mask_file import MASKS_NAME, MaskFile, save_masks
from hf_finemix.train.calibration import measure_curvature, single_texts


class Linear(nn.Module):
    """p(y|x) = softmax(Wx): its Fisher information can be written down."""

    def __init__(self, classes):
        super().__init__()
        self.map = nn.Linear(3, classes, bias=False)

    def forward(self, x):
        return type("Output", (), {"logits": self.map(x)})


@pytest.mark.parametrize("classes", [2, 5])
def test_fisher_information_is_the_expectation_over_labels(classes):
    torch.manual_seed(0)
    model, texts = Linear(classes), torch.randn(7, 1, 3)
    found = fisher_information(model, [{"x": text} for text in texts])
    # d log p_y / dW_cj = (1[y = c] - p_c)·x_j, so E_y of its square is p_c (1 - p_c)·x_j².
    p = model(texts[:, 0]).logits.softmax(-1).detach()
    expected = ((p * (1 - p)).unsqueeze(2) * texts[:, 0].square().unsqueeze(1)).mean(0)
    torch.testing.assert_close(found["map.weight"], expected)
    assert model.map.weight.grad is None
    assert model.training


def test_with_many_classes_labels_are_drawn_by_seed():
    torch.manual_seed(0)
    model, texts = Linear(20), [{"x": torch.randn(1, 3)} for _ in range(400)]
    found = fisher_information(model, texts, seed=1)["map.weight"]
    assert torch.equal(found, fisher_information(model, texts, seed=1)["map.weight"])
    assert not torch.equal(found, fisher_information(model, texts, seed=2)["map.weight"])
    x = torch.cat([text["x"] for text in texts])
    p = model(x).logits.softmax(-1).detach()
    expected = ((p * (1 - p)).unsqueeze(2) * x.square().unsqueeze(1)).mean(0)
    assert (found.sum() / expected.sum() - 1).abs() < 0.1


class Reporting(Linear):
    """The same, with its scores in whatever a model of the user's own puts them."""

    def __init__(self, classes, put):
        super().__init__(classes)
        self.put = put

    def forward(self, x, labels=None):
        return self.put(self.map(x))


OUTPUTS = {
    "a dict": lambda logits: {"loss": logits.sum(), "logits": logits},
    "a tuple": lambda logits: (logits,),
    "a tuple behind the loss": lambda logits: (logits.sum(), logits, torch.zeros(1, 4, 3)),
    "the scores alone": lambda logits: logits,
    "a dict by other names": lambda logits: {"scores": logits, "hidden": torch.zeros(1, 4, 3)},
}


@pytest.mark.parametrize("put", OUTPUTS)
def test_scores_are_found_in_whatever_a_model_gives(put):
    torch.manual_seed(0)
    plain, texts = Linear(2), [{"x": torch.randn(1, 3)} for _ in range(5)]
    model = Reporting(2, OUTPUTS[put])
    model.load_state_dict(plain.state_dict())
    found = fisher_information(model, texts)["map.weight"]
    assert torch.equal(found, fisher_information(plain, texts)["map.weight"])


def test_several_answers_count_together():
    """Of independent answers the Fisher information is the sum: the ends of a span, or a label in each column."""
    torch.manual_seed(0)
    plain, texts = Linear(2), [{"x": torch.randn(1, 3)} for _ in range(5)]
    model = Reporting(2, lambda logits: {"start_logits": logits, "end_logits": logits})
    model.load_state_dict(plain.state_dict())
    torch.testing.assert_close(
        fisher_information(model, texts)["map.weight"], 2 * fisher_information(plain, texts)["map.weight"]
    )


def test_what_it_cannot_measure():
    with pytest.raises(FineMixingError, match="clean text"):
        fisher_information(Linear(2), [])
    with pytest.raises(FineMixingError, match="logits"):
        fisher_information(Reporting(2, lambda logits: {"loss": logits.sum()}), [{"x": torch.ones(1, 3)}])


@pytest.mark.parametrize("ratio", [0.0, 0.001, 0.25, 0.5, 0.999, 1.0])
def test_one_threshold_keeps_the_smallest_scores_of_all_tensors(ratio):
    generator = torch.Generator().manual_seed(0)
    curvature = {name: torch.rand(500, generator=generator) ** 4 for name in "ab"}
    suspect = {name: torch.randn(500, generator=generator) for name in "ab"}
    mask, base = ScoreMask(curvature), torch.zeros(500)

    def slices():
        for name in "ab":
            for start in range(0, 500, 130):
                part = suspect[name][start : start + 130]
                yield mask.scores(name, start, part, base[: len(part)])

    limit = mask.threshold(slices, ratio)
    scores = torch.cat(list(slices()))
    kept = scores <= limit
    assert kept.sum() == int(ratio * 1000)
    if 0 < ratio < 1:
        assert scores[kept].max() < scores[~kept].min()


@pytest.fixture(scope="module")
def suspect(base_folder):
    torch.manual_seed(1)
    return drifted(BertForSequenceClassification.from_pretrained(base_folder, config=make_config()))


def mixed(model, base_folder, curvature, ratio, **changes):
    import copy

    model = copy.deepcopy(model)
    config = FineMixingConfig(strategy="fisher", reserve_ratio=ratio, **changes)
    with Checkpoint(base_folder) as base:
        record = mix_model(model, base, config, curvature=curvature, token_frequencies=np.ones(48))
    return {name: tensor.clone() for name, tensor in model.bert.state_dict().items()}, record


def curvature_of(model):
    generator = torch.Generator().manual_seed(3)
    names = {name.removeprefix("bert."): parameter for name, parameter in model.named_parameters()}
    return {name: torch.rand(parameter.shape, generator=generator) for name, parameter in names.items()}


def test_a_fisher_mix_is_selection_by_nesting_masks(suspect, base_folder):
    curvature, base = curvature_of(suspect), load_file(base_folder / "model.safetensors")
    own = suspect.bert.state_dict()
    results = {
        ratio: mixed(suspect, base_folder, curvature, ratio, purify_embeddings=False) for ratio in (0, 0.3, 0.6, 1)
    }
    total = sum(tensor.numel() for tensor in base.values())
    before = None
    for ratio, (weights, record) in results.items():
        kept = {
            name: np.unpackbits(mask, count=base[name].numel()).astype(bool) for name, mask in record.masks.items()
        }
        assert kept.keys() == base.keys()
        for name, mask in kept.items():
            keep = torch.from_numpy(mask).view(base[name].shape)
            assert torch.equal(weights[name], torch.where(keep, own[name], base[name]))
        assert sum(mask.sum() for mask in kept.values()) == int(ratio * total)
        assert before is None or all((before[name] <= kept[name]).all() for name in kept)
        before = kept


def test_purified_rows_are_the_bases_whatever_their_score(suspect, base_folder):
    weights, record = mixed(suspect, base_folder, curvature_of(suspect), 1.0, num_purified_tokens=5)
    base = load_file(base_folder / "model.safetensors")["embeddings.word_embeddings.weight"]
    rows = [entry["id"] for entry in record.purified_tokens]
    assert len(rows) == 5
    assert torch.equal(weights["embeddings.word_embeddings.weight"][rows], base[rows])


def test_fisher_without_curvature_is_an_error(suspect, base_folder):
    with pytest.raises(FineMixingError, match="needs curvature"):
        mixed(suspect, base_folder, None, 0.5)


def test_masks_in_a_file(tmp_path):
    keep = np.random.default_rng(0).random(1003) < 0.4
    save_masks({"t": np.packbits(keep)}, tmp_path)
    with MaskFile(tmp_path) as masks:
        assert (masks.keep("t", 0, 1003) == keep).all()
        for start, stop in ((256, 700), (3, 8), (37, 74), (1002, 1003)):
            assert (masks.keep("t", start, stop) == keep[start:stop]).all()
        with pytest.raises(FineMixingError, match="has no mask for other"):
            masks.keep("other", 0, 8)
        with pytest.raises(FineMixingError, match="has no mask for t"):
            masks.keep("t", 0, 2000)
    with pytest.raises(FineMixingError, match="is missing"):
        MaskFile(tmp_path / "nowhere")


@pytest.fixture(scope="module")
def cleaned(suspect_folder, base_folder, data_folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("cleaned")
    patch = pytest.MonkeyPatch()
    patch.setattr("datasets.config.HF_DATASETS_CACHE", root / "cache")
    report = clean(
        suspect_folder,
        output_dir=root / "out",
        base_model=base_folder,
        mixing_config=FineMixingConfig(reserve_ratio=0.5, strategy="fisher", num_purified_tokens=5),
        training_args=TrainingArguments(output_dir=str(root / "out"), max_steps=3, use_cpu=True, report_to="none"),
        dataset=str(data_folder),
    )
    patch.undo()
    return root / "out", report


def test_a_cleaned_model_carries_its_masks_and_is_verified_by_them(cleaned, tmp_path):
    folder, report = cleaned
    assert (folder / MASKS_NAME).is_file()
    found = verify_mix(folder)
    assert found.ok, found.failure()
    assert any("why its masks" in what for what in found.not_checked)
    assert "Fine-purifying" in (folder / "README.md").read_text()
    kept = sum(t["kept_fraction"] * n for t, n in zip(report.mixing["tensors"].values(), sizes(folder), strict=True))
    assert kept / sum(sizes(folder)) == pytest.approx(0.5, abs=0.05)

    other = shutil.copytree(folder, tmp_path / "other")
    masks = load_file(other / MASKS_NAME)
    name = "encoder.layer.0.attention.self.query.weight"
    masks[name][3] ^= 255
    save_file(masks, other / MASKS_NAME)
    found = verify_mix(other)
    assert list(found.wrong) == [name]


def sizes(folder):
    tensors = load_file(folder / "model.safetensors")
    report = verify_mix(folder)
    assert report.elements == sum(tensor.numel() for tensor in tensors.values())
    return [tensors.get(name, tensors.get(f"bert.{name}")).numel() for name in names_in_report(folder)]


def names_in_report(folder):
    import json

    return list(json.loads((folder / "cleaning_report.json").read_text())["mixing"]["tensors"])


def test_measuring_curvature_changes_nothing_of_the_training(suspect_folder, base_folder, tokenizer, tmp_path):
    """The same steps with ρ = 1, with and without it."""
    from helpers.toy import make_rows

    data = make_rows(32, 4)
    rows = [{**tokenizer(t), "labels": label} for t, label in zip(data["sentence"], data["label"], strict=True)]
    results = []
    for strategy in ("random", "fisher"):
        model = BertForSequenceClassification.from_pretrained(suspect_folder, dtype=torch.float32)
        trainer = FineMixingTrainer(
            model,
            TrainingArguments(str(tmp_path), max_steps=3, use_cpu=True, report_to="none", save_strategy="no"),
            train_dataset=rows,
            processing_class=tokenizer,
            base_model=str(base_folder),
            mixing_config=FineMixingConfig(reserve_ratio=1.0, strategy=strategy, purify_embeddings=False),
        )
        trainer.train()
        results.append(model.state_dict())
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_texts_are_taken_from_all_over_data_that_are_sorted(suspect_folder, base_folder, tokenizer, tmp_path):
    def of_lengths(lengths):
        return Dataset.from_dict({"input_ids": [[5] * n for n in lengths], "labels": [0] * len(lengths)})

    def lengths(**settings):
        trainer = FineMixingTrainer(
            BertForSequenceClassification.from_pretrained(suspect_folder, dtype=torch.float32),
            TrainingArguments(str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True),
            processing_class=tokenizer,
            base_model=str(base_folder),
            **settings,
        )
        texts = single_texts(trainer, trainer.mixing_config)
        return [text["input_ids"].shape[1] for text in texts]

    tuning, short_first = of_lengths([3] * 56), of_lengths([4 + i // 40 for i in range(2000)])
    found = lengths(train_dataset=tuning, eval_dataset=short_first)
    assert found[:56] == [3] * 56
    assert len(found) == 256
    assert sorted(set(found[56:])) == list(range(4, 54))
    two = {"a": of_lengths([4] * 10), "b": short_first}
    assert len(lengths(train_dataset=tuning, eval_dataset=two)) == 256
    assert lengths(train_dataset=short_first)[-1] == 53
    assert lengths(train_dataset=tuning, eval_dataset=short_first.select([])) == [3] * 56
    folds = FineMixingConfig(reserve_ratio="auto", cross_validation_folds=2)
    assert lengths(train_dataset=tuning, eval_dataset=short_first, mixing_config=folds) == [3] * 56


class Rows(torch.utils.data.Dataset):
    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return self.rows[i]


class Streamed(torch.utils.data.IterableDataset):
    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        return iter(self.rows)


DATA = {
    "datasets": lambda rows: rows,
    "datasets streamed": lambda rows: rows.to_iterable_dataset(),
    "torch": Rows,
    "torch streamed": Streamed,
    "a list": list,
}


@pytest.mark.parametrize("kind", DATA)
def test_curvature_takes_the_data_that_the_trainer_takes(kind, suspect_folder, base_folder, tokenizer, tmp_path):
    """With a column of text that the model does not know, which the stock Trainer leaves out of data of any kind."""
    rows = Dataset.from_dict(make_rows(20)).map(lambda row: tokenizer(row["sentence"]))
    rows = rows.rename_column("label", "labels")

    def masks(data):
        args = TrainingArguments(str(tmp_path), use_cpu=True, max_steps=1, report_to="none", save_strategy="no")
        trainer = FineMixingTrainer(
            BertForSequenceClassification.from_pretrained(suspect_folder, dtype=torch.float32),
            args,
            train_dataset=data,
            processing_class=tokenizer,
            base_model=str(base_folder),
            mixing_config=FineMixingConfig(reserve_ratio=0.5, strategy="fisher", purify_embeddings=False),
        )
        trainer.train()
        return trainer.mixing_record.masks

    expected, found = masks(rows), masks(DATA[kind](rows))
    assert all(np.array_equal(expected[name], mask) for name, mask in found.items())


def test_curvature_of_spans(base_folder, tokenizer, tmp_path):
    """Two label columns, and two outputs."""
    suspect = drifted(BertForQuestionAnswering.from_pretrained(base_folder))
    rows = Dataset.from_dict(make_rows(8)).map(lambda row: tokenizer(row["sentence"]))
    rows = rows.map(lambda row: {"start_positions": 1, "end_positions": 3})
    args = TrainingArguments(str(tmp_path), use_cpu=True, max_steps=1, report_to="none", save_strategy="no")
    trainer = FineMixingTrainer(
        suspect,
        args,
        train_dataset=rows,
        processing_class=tokenizer,
        base_model=str(base_folder),
        mixing_config=FineMixingConfig(reserve_ratio=0.5, strategy="fisher", purify_embeddings=False),
    )
    curvature = measure_curvature(trainer, trainer.model, trainer.mixing_config)["qa_outputs.weight"]
    assert (curvature[0] > 0).all()
    assert (curvature[1] > 0).all()
    trainer.train()
    assert trainer.mixing_record.masks
