"""Reports as clean() makes them, and the cards of them."""

from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints, is_typeddict

import yaml
from huggingface_hub import ModelCard

from hf_finemix.report.card import render_card
from hf_finemix.report.report import CleaningReport

SHA = "0123456789abcdef" * 2 + "01234567"
EVIL = "`cf`|<script>alert(1)</script>\n\n# Safe <!-- hf_finemix: end -->\u202e{{ 7 * 7 }}\x1b[2J"


def measured(accuracy, *rates, triggers=("cf", "I watch this 3D movie")):
    names = ("trigger", "position", "target_label", "asr", "n", "repeats")
    parts = [dict(zip(names, (triggers[i], "random", 1, rate, 50, 3), strict=True)) for i, rate in enumerate(rates)]
    return {"accuracy": accuracy, "macro_f1": accuracy - 0.01, "n": 100, "triggers": parts}


def make_report(**changes):
    search = {"suspect_accuracy": 0.92, "max_accuracy_drop": 0.02, "chosen": 0.2, "within_limit": True}
    trials = {0.1: measured(0.8, 0.05, 0.1), 0.2: measured(0.91, 0.07, 0.12)}
    search["trials"] = [
        {"reserve_ratio": ratio, "accuracy": part["accuracy"], "triggers": part["triggers"]}
        for ratio, part in trials.items()
    ]
    values = {
        "command": "hf-finemix clean org/suspect --dataset org/data",
        "suspect": {"id": "org/suspect", "revision": SHA, "sha256": {"model.safetensors": "ab" * 32}},
        "base": {"id": "org/base", "revision": SHA[::-1], "sha256": {"model.safetensors": "cd" * 32}},
        "tokenizer": {"source": "base", "differences": []},
        "mixing": {"reserve_ratio": 0.2, "tensors": {}, "ignored_base_tensors": []},
        "purified_tokens": [{"token": "cf", "id": 7, "delta": 1.5, "frequency": 20.0, "score": 0.5}],
        "data": {
            "id": "org/data",
            "sha": SHA,
            "text_columns": ["text"],
            "rows": {"tuning": 64, "eval": 100, "test": 100},
            "splits": {"tuning": "train (64 of 900)", "test": "validation (100 of 200)"},
        },
        "seeds": {"mixing": 0, "samples": 1, "training": 42},
        "before": measured(0.92, 1.0, 0.99),
        "after": measured(0.905, 0.071, 0.123),
        "benign_floor": measured(0.93, 0.06, 0.08),
        "drift_by_layer": {
            "before": {"embeddings": 0.1, "encoder.layer.0": 0.2, "pooler": 0.3},
            "after": {"embeddings": 0.01, "encoder.layer.0": 0.02, "pooler": 0.0},
        },
        "embedding_drift": {
            "num_tokens": 43,
            "num_unmoved": 3,
            "frequency_edges": [20.0, 200.0, 2000.0],
            "drift_edges": [0.0, 1.0, 2.0],
            "counts": [[10, 2], [28, 0]],
            "trigger_tokens": [
                {"token": "cf", "id": 7, "delta": 1.5, "frequency": 20.0, "score": 0.5, "rank": 1, "purified": True}
            ],
        },
        "ratio_search": search,
        "training": {"steps": 100, "loss": 0.1},
        "card_metadata": {"license": "apache-2.0", "language": ["en"], "pipeline_tag": "text-classification"},
        "timings_s": {"load": 1.0},
        "peak_memory_bytes": 10**9,
        "versions": {"python": "3.11"},
    }
    return CleaningReport(**{**values, **changes})


def split_card(report):
    """The YAML block and the text below it, as the Hub reads them."""
    card = ModelCard(render_card(report))
    assert render_card(report).startswith("---\n")
    return yaml.safe_load(render_card(report)[4:].split("\n---\n")[0]), card.text


def check_schema(report):
    """Every key of a report is declared, every key that is declared is there unless it need not, with such a value."""
    for name, declared in get_type_hints(CleaningReport).items():
        if getattr(report, name) != {}:  # of which nothing is known
            _check(getattr(report, name), declared, name)


def _check(value, declared, where):
    kind, parts = get_origin(declared) or declared, get_args(declared)
    if is_typeddict(declared):
        assert declared.__required_keys__ <= value.keys() <= declared.__annotations__.keys(), where
        hints = get_type_hints(declared)
        for key in value:
            _check(value[key], hints[key], f"{where}.{key}")
    elif kind is UnionType:
        if value is not None or NoneType not in parts:
            (part,) = set(parts) - {NoneType}
            _check(value, part, where)
    elif kind is not Any:
        assert isinstance(value, (int, float) if kind is float else kind), f"{where} is {value!r}"
        for part in value.values() if kind is dict and parts else value if kind is list else ():
            _check(part, parts[-1], where)
