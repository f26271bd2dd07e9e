"""Repos and folders of models, and what refuses them."""

import pytest

from helpers.toy import WRITE
from hf_finemix import FineMixingError, push_cleaned
from hf_finemix.hub.fetch import fetch_model
from hf_finemix.io.checkpoint import sha256_of_file
from hf_finemix.report.card import render_card
from hf_finemix.report.figures import draw_figures

CARD = b"---\nbase_model: trusted/base\nlicense: mit\n---\n# A suspect\n"
FILES = {
    "README.md",
    "cleaning_report.json",
    "config.json",
    "figures/before_after.png",
    "figures/drift_by_layer.png",
    "figures/embedding_drift.png",
    "figures/ratio_search.png",
    "fine_mixing_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}


def files_of(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def not_fetched(name="org/suspect", **settings) -> str:
    with pytest.raises(FineMixingError) as error:
        fetch_model(name, role="suspect", **settings)
    assert "\n" not in str(error.value)
    return str(error.value)


def not_published(folder, repo="me/cleaned", **settings) -> str:
    with pytest.raises(FineMixingError) as error:
        push_cleaned(folder, repo, **settings)
    assert "\n" not in str(error.value)
    assert WRITE not in str(error.value)
    return str(error.value)


def write_report(folder, report):
    weights = sorted(folder.glob("*.safetensors"))
    report.weights = {file.name: sha256_of_file(file) for file in weights}
    report.figures = draw_figures(report, folder)
    report.save(folder)
    (folder / "README.md").write_text(render_card(report), encoding="utf-8")
