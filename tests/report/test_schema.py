"""What the schema declares is what reports hold; reports of clean, mix and the Trainer are checked in their tests."""

import pytest
from helpers.reports import check_schema
from helpers.repos import files_of
from safetensors.torch import load_file

from hf_finemix import FineMixingConfig, mix_checkpoints
from hf_finemix.hub.fetch import TrustArguments
from hf_finemix.report.report import CleaningReport


def test_a_report_of_nothing():
    check_schema(CleaningReport())


@pytest.mark.parametrize(
    "changes",
    [
        {"suspect": {"id": "org/suspect"}},
        {"tokenizer": {"source": "base", "differences": [], "of_nobody": 1}},
        {"tokenizer": {"source": "base", "differences": [1]}},
        {"after": {"accuracy": "high", "macro_f1": None, "n": 1, "triggers": []}},
        {"purified_tokens": [{"token": "cf", "id": 7}]},
    ],
)
def test_what_is_not_declared_is_found(changes):
    with pytest.raises(AssertionError, match=next(iter(changes))):
        check_schema(CleaningReport(**changes))


def test_a_report_of_pickled_weights_from_the_hub(world, suspect_folder, tmp_path):
    import torch

    torch.save(load_file(suspect_folder / "model.safetensors"), tmp_path / "pytorch_model.bin")
    files = files_of(suspect_folder) | files_of(tmp_path)
    world.commit("org/pickled", {name: content for name, content in files.items() if name != "model.safetensors"})
    config = FineMixingConfig(reserve_ratio=0.5, purify_embeddings=False)
    trust = TrustArguments(allow_pickle=True)
    report = mix_checkpoints("org/pickled", "trusted/base", tmp_path / "out", config, trust=trust)
    check_schema(report)
    assert report.suspect["security"]["pickles"]["files"].keys() == {"pytorch_model.bin"}
    assert report.base["security"]["flagged"] == {}
    assert report.base["sha256"].keys() == {"model.safetensors"}
