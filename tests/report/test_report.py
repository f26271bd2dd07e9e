import dataclasses
import json

import pytest

from hf_finemix.errors import FineMixingError
from hf_finemix.report.report import CleaningReport, percent

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


# The report


def test_round_trip(tmp_path):
    report = make_report(figures=["figures/a.png"])
    report.save(tmp_path)
    assert CleaningReport.load(tmp_path) == CleaningReport.load(str(tmp_path)) == report
    assert json.loads((tmp_path / "cleaning_report.json").read_text(encoding="utf-8")) == dataclasses.asdict(report)


def test_keys_are_the_documented_ones():
    expected = (
        "schema_version command suspect base tokenizer mixing purified_tokens data seeds before after benign_floor "
        "matched_floor drift_by_layer ratio_search training probe card_metadata figures timings_s peak_memory_bytes "
        "versions"
    )
    values = json.loads(CleaningReport().to_json())
    assert set(expected.split()) <= set(values)
    assert values["schema_version"] == 1
    assert [values[key] for key in ("benign_floor", "ratio_search", "probe")] == [None, None, None]


def test_keys_of_a_later_version_are_left_out(tmp_path):
    values = dataclasses.asdict(make_report()) | {"schema_version": 2, "of_the_future": 1}
    (tmp_path / "cleaning_report.json").write_text(json.dumps(values))
    assert CleaningReport.load(tmp_path) == make_report(schema_version=2)


@pytest.mark.parametrize("content", [None, "", "{nope", "5", "[1]", "null"])
def test_a_report_that_is_none(tmp_path, content):
    if content is not None:
        (tmp_path / "cleaning_report.json").write_text(content)
    with pytest.raises(FineMixingError, match=r"cleaning_report.json (cannot be read as|is missing)") as error:
        CleaningReport.load(tmp_path)
    assert str(tmp_path / "cleaning_report.json") in str(error.value)


def test_json_has_no_nan():
    with pytest.raises(ValueError, match="JSON"):
        make_report(training={"loss": float("nan")}).to_json()


def test_percent():
    assert [percent(x) for x in (None, 0.0, 0.0714, 1.0)] == ["not measured", "0.0 %", "7.1 %", "100.0 %"]


def test_summary():
    assert make_report().summary().splitlines() == [
        "                                               before         after  benign floor",
        "accuracy                                       92.0 %        90.5 %        93.0 %",
        "attack success, 'cf'                          100.0 %         7.1 %         6.0 %",
        "attack success, 'I watch this 3D movie'        99.0 %        12.3 %         8.0 %",
    ]
    nothing = make_report(before=measured(0.9), after=measured(0.8), benign_floor=None).summary().splitlines()
    assert nothing[1].split() == ["accuracy", "90.0", "%", "80.0", "%", "not", "measured"]
    assert nothing[2].split() == ["attack", "success"] + 3 * ["not", "measured"]
    # What is written to a terminal controls it no longer.
    parts = {part: measured(0.9, 0.5, triggers=[EVIL]) for part in ("before", "after", "benign_floor")}
    summary = make_report(**parts).summary()
    assert "\x1b" not in summary
    assert len(summary.splitlines()) == 3
