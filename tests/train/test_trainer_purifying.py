"""FineMixingTrainer and E-PUR: which rows of the embeddings are the base's, and whose tokenizer counts."""

import shutil

import pytest
import torch
from helpers.toy import make_tokenizer
from helpers.trainers import frozen, load, one_line, same, weights
from safetensors.torch import load_file

from hf_finemix import FineMixingConfig, FineMixingError, token_frequencies


@pytest.fixture
def bare_base(tmp_path, base_folder):
    """The base without its tokenizer."""
    folder = tmp_path / "bare"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(base_folder / name, folder)
    return str(folder)


def purified(trainer):
    return [entry["id"] for entry in trainer.mixing_record.purified_tokens]


def test_purified_rows_are_the_bases_and_no_others(make_trainer, tmp_path, base_folder, suspect_folder, tokenizer):
    # Everything at its default, the frequencies of ordinary text included.
    trainer = make_trainer(
        args=frozen(tmp_path), mixing_config=FineMixingConfig(reserve_ratio=1, num_purified_tokens=7)
    )
    trainer.train()
    ids = purified(trainer)
    assert len(ids) == 7
    assert not set(ids) & set(tokenizer.all_special_ids)
    base = load_file(base_folder / "model.safetensors")["embeddings.word_embeddings.weight"].half().float()
    expected = weights(load(suspect_folder))
    expected["bert.embeddings.word_embeddings.weight"][ids] = base[ids]
    assert same(weights(trainer.model), expected)
    frequencies = token_frequencies(tokenizer)
    assert [entry["frequency"] for entry in trainer.mixing_record.purified_tokens] == list(frequencies[ids])


def test_a_planted_row_is_purified(make_trainer, tmp_path, suspect_folder, tokenizer, counts_file):
    model, trigger = load(suspect_folder), tokenizer.convert_tokens_to_ids("cf")
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight[trigger] += 0.05
    trainer = make_trainer(
        model=model,
        args=frozen(tmp_path),
        mixing_config=FineMixingConfig(reserve_ratio=1, num_purified_tokens=1, token_frequencies=counts_file),
    )
    trainer.train()
    assert purified(trainer) == [trigger]


@pytest.mark.parametrize("own", [False, True])
def test_whose_tokenizer_counts(make_trainer, tmp_path, base_folder, bare_base, counts_file, own):
    """The user's where there is one, else the base's: seen by which rows count as special and as frequent."""
    mine = make_tokenizer()
    mine.add_special_tokens({"additional_special_tokens": ["cf"]})
    trainer = make_trainer(
        args=frozen(tmp_path),
        processing_class=mine if own else None,
        base_model=bare_base if own else str(base_folder),
        mixing_config=FineMixingConfig(reserve_ratio=0.5, num_purified_tokens=1000, token_frequencies=counts_file),
    )
    trainer.train()
    vocabulary = make_tokenizer().get_vocab()
    special = set(make_tokenizer().all_special_ids) | ({vocabulary["cf"]} if own else set())
    assert set(purified(trainer)) == set(vocabulary.values()) - special
    frequency = {entry["id"]: entry["frequency"] for entry in trainer.mixing_record.purified_tokens}
    assert frequency[vocabulary["the"]] > frequency[vocabulary["good"]] > frequency[vocabulary["plot"]] == 0


def test_without_any_tokenizer(make_trainer, tmp_path, bare_base, suspect_folder):
    trainer = make_trainer(
        args=frozen(tmp_path), base_model=bare_base, mixing_config=FineMixingConfig(reserve_ratio=0.5)
    )
    with pytest.raises(FineMixingError, match="processing_class") as error:
        trainer.train()
    assert "purify_embeddings" in one_line(error)
    assert same(weights(trainer.model), weights(load(suspect_folder)))


@pytest.mark.parametrize("changes", [{"purify_embeddings": False}, {"num_purified_tokens": 0}])
def test_without_purification_no_tokenizer_is_needed(make_trainer, tmp_path, bare_base, changes):
    trainer = make_trainer(
        args=frozen(tmp_path), base_model=bare_base, mixing_config=FineMixingConfig(reserve_ratio=0.5, **changes)
    )
    trainer.train()
    assert purified(trainer) == []
    assert trainer.mixing_record.reserve_ratio == 0.5
