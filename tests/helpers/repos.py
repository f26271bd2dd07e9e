"""Repos and folders of models, and what refuses them."""

from helpers.refusals import refused
from hf_finemix import push_cleaned
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


def fetched(hub):
    """The names of the files that were asked for."""
    return {
        request.rsplit("/", 1)[-1] for request in hub.requests if request.startswith("GET") and "/resolve/" in request
    }


def not_fetched(name="org/suspect", **settings) -> str:
    return refused(fetch_model, name, role="suspect", **settings)


def not_published(folder, repo="me/cleaned", **settings) -> str:
    return refused(push_cleaned, folder, repo, **settings)


def write_report(folder, report):
    weights = sorted(folder.glob("*.safetensors"))
    report.weights = {file.name: sha256_of_file(file) for file in weights}
    report.figures = draw_figures(report, folder)
    report.save(folder)
    (folder / "README.md").write_text(render_card(report), encoding="utf-8")
