"""Which base a suspect names, and what its weights say to that. By Hub id: test_pulling.py."""

import json
import logging
import shutil

import pytest
from safetensors.torch import load_file, save_file

from hf_finemix import FineMixingConfig, FineMixingError, mix_checkpoints
from hf_finemix.align.base_fit import judge_base
from hf_finemix.align.drift import TensorDrift
from hf_finemix.hub.lineage import USER, BaseClaim, claimed_base, fetch_base
from hf_finemix.io.folder import LocalModel


def named(tmp_path, card=None, **configs):
    """A folder that names bases: in its card, and in files given as config="org/base"."""
    if card is not None:
        (tmp_path / "README.md").write_text(f"---\n{card}\n---\n# A model\n")
    keys = {"adapter_config": "base_model_name_or_path", "config": "_name_or_path"}
    for file, name in configs.items():
        (tmp_path / f"{file}.json").write_text(json.dumps({keys[file]: name}))
    return LocalModel("org/suspect", tmp_path)


@pytest.mark.parametrize(
    ("card", "configs", "base", "named_by"),
    [
        ("base_model: org/base", {}, "org/base", "the suspect's card (base_model)"),
        ("base_model: [org/base]", {"config": "org/other"}, "org/base", "the suspect's card (base_model)"),
        (
            "license: mit",
            {"config": "bert-base-uncased"},
            "bert-base-uncased",
            "the suspect's config.json (_name_or_path)",
        ),
        (None, {"adapter_config": "org/base", "config": "org/other"}, "org/base", "the suspect's adapter_config.json"),
        # What is no Hub id is passed by where there is something better.
        ("base_model: /etc", {"config": "org/base"}, "org/base", "the suspect's config.json (_name_or_path)"),
        ("base_model: org/suspect", {"config": "org/base"}, "org/base", "the suspect's config.json (_name_or_path)"),
        ("base_model: {a: b}", {"config": "org/base"}, "org/base", "the suspect's config.json (_name_or_path)"),
    ],
)
def test_the_base_that_a_suspect_names(tmp_path, card, configs, base, named_by):
    relation = "adapter" if "adapter_config" in configs else None  # it says so itself
    assert claimed_base(named(tmp_path, card, **configs)) == BaseClaim(base, named_by, relation)


def test_an_adapter_is_nothing_without_its_very_base(tmp_path):
    suspect = named(tmp_path, "base_model: org/other", adapter_config="org/base")
    content = {"base_model_name_or_path": "org/base", "revision": "v1"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(content))
    assert claimed_base(suspect) == BaseClaim("org/base", "the suspect's adapter_config.json", "adapter", "v1")
    (tmp_path / "adapter_config.json").write_text(json.dumps({**content, "revision": "a b"}))
    assert claimed_base(suspect).revision is None


def test_the_relation_that_the_card_states(tmp_path):
    claim = claimed_base(named(tmp_path, "base_model: org/base\nbase_model_relation: finetune"))
    assert claim.relation == "finetune"
    assert claimed_base(named(tmp_path, "base_model: org/base\nbase_model_relation: '<b>'")).relation is None


@pytest.mark.parametrize(
    ("card", "configs", "said"),
    [
        (None, {}, "names none"),
        (
            "base_model: https://evil.example/x",
            {},
            r"'https://evil.example/x' in the suspect's card \(base_model\), which is no",
        ),
        ("base_model: ../../etc", {}, "which is no Hub id"),
        (None, {"config": "/home/me/bert"}, r"'/home/me/bert' in the suspect's config.json"),
        (None, {"config": 5}, "names none"),
        (None, {"adapter_config": ["a", "b"]}, "names several bases"),
        ("base_model: [org/a, org/b]", {}, r"names several bases \(org/a, org/b\): choose one with --base-model"),
        ("base_model: org/suspect", {}, "names none"),
        ("base_model: [", {}, "names none"),
    ],
)
def test_bases_that_cannot_be_taken(tmp_path, card, configs, said):
    with pytest.raises(FineMixingError, match=said) as error:
        claimed_base(named(tmp_path, card, **configs))
    assert "--base-model" in str(error.value)


def test_a_stranger_names_no_path(tmp_path, base_folder, monkeypatch):
    """A folder here that is called like the base that a suspect names is not read."""
    shutil.copytree(base_folder, tmp_path / "org" / "base")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "suspect").mkdir()
    with pytest.raises(FineMixingError, match="neither here nor in the cache"):
        fetch_base(named(tmp_path / "suspect", "base_model: org/base"), FineMixingConfig())
    assert fetch_base(named(tmp_path / "suspect"), FineMixingConfig("org/base"))[0].folder.is_dir()


def drift(distance, layers=4):
    """Layers that are all as far from the base, as a fraction of their norm."""
    return {f"layer.{i}.weight": TensorDrift(distance**2, 1.0, 1.0, 1 - distance**2 / 2) for i in range(layers)}


@pytest.mark.parametrize(
    ("distance", "sure"), [(0.001, True), (0.05, True), (0.25, True), (0.26, False), (0.9, False)]
)
def test_how_sure_the_weights_make_us(distance, sure, caplog):
    weights = drift(distance)
    with caplog.at_level(logging.INFO, "hf_finemix"):
        fit = judge_base(BaseClaim("org/base", USER), weights, weights, (4, 6))
    assert (fit.sure, fit.median_distance) == (sure, pytest.approx(distance))
    assert "4 of 6 tensors fit by name and shape" in fit.why
    # Who names the base has to be told only where it is doubtful; a stranger's is always judged aloud, or refused.
    assert bool(caplog.text) != sure
    claim = BaseClaim("org/base", "its card")
    if sure:
        with caplog.at_level(logging.INFO, "hf_finemix"):
            judge_base(claim, weights, weights, (4, 6))
        assert "The base org/base fits: 4 of 6" in caplog.text
    else:
        with pytest.raises(FineMixingError, match=r"named by its card, is doubtful: 4 of 6 .* --base-model org/base"):
            judge_base(claim, weights, weights, (4, 6))


def test_the_suspect_itself_under_another_name():
    weights = drift(0.0)
    with pytest.raises(FineMixingError, match="is the suspect itself"):
        judge_base(BaseClaim("org/copy", "its card"), weights, weights, (4, 4))


def test_a_mix_tells_who_named_the_base(base_folder, suspect_folder, tmp_path):
    report = mix_checkpoints(suspect_folder, base_folder, tmp_path / "out", FineMixingConfig(reserve_ratio=0.5))
    assert report.base["named_by"] == USER
    assert report.base["fit"]["sure"]
    assert 0.05 < report.base["fit"]["median_distance"] < 0.25


def test_a_relative_of_the_base_is_doubted(base_folder, suspect_folder, tmp_path, caplog):
    """Right shapes, and weights that are half the base's."""
    shutil.copytree(base_folder, tmp_path / "relative")
    tensors = load_file(base_folder / "model.safetensors")
    for name, tensor in tensors.items():
        tensors[name] = tensor + 0.5 * tensor.roll(1, -1)
    save_file(tensors, tmp_path / "relative" / "model.safetensors", metadata={"format": "pt"})
    mix_checkpoints(suspect_folder, tmp_path / "relative", tmp_path / "out", FineMixingConfig(reserve_ratio=0.5))
    assert "is doubtful" in caplog.text
    assert "Is it the one that was fine-tuned?" in caplog.text
