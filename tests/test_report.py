import dataclasses
import json

import pytest
import yaml
from huggingface_hub import ModelCard

from hf_finemix.errors import FineMixingError
from hf_finemix.figures import draw_figures
from hf_finemix.model_card import card_metadata, render_card
from hf_finemix.report import CleaningReport, percent

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
        "drift_by_layer ratio_search training probe card_metadata figures timings_s peak_memory_bytes versions"
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


# The card


def split_card(report):
    """The YAML block and the text below it, as the Hub reads them."""
    card = ModelCard(render_card(report))
    assert render_card(report).startswith("---\n")
    return yaml.safe_load(render_card(report)[4:].split("\n---\n")[0]), card.text


def test_card_metadata_is_spelled_as_the_hub_wants_it():
    metadata, _ = split_card(make_report())
    assert metadata == {
        "license": "apache-2.0",
        "language": ["en"],
        "pipeline_tag": "text-classification",
        "library_name": "transformers",
        "tags": ["hf_finemix", "backdoor-removal"],
        "base_model": ["org/base", "org/suspect"],
        "datasets": ["org/data"],
    }
    data = ModelCard(render_card(make_report())).data
    assert (data.base_model, data.datasets, data.library_name) == (
        ["org/base", "org/suspect"],
        ["org/data"],
        "transformers",
    )


def test_local_paths_are_no_hub_ids():
    report = make_report(card_metadata={})
    for part, path in ((report.suspect, "/home/me/suspect"), (report.base, "org/folder")):
        part |= {"id": path, "revision": None}
    report.data |= {"id": "reviews.csv", "sha": None}
    metadata, text = split_card(report)
    assert metadata == {"library_name": "transformers", "tags": ["hf_finemix", "backdoor-removal"]}
    assert "of `suspect` (a local folder)" in text
    assert "clean base `folder`" in text
    assert "/home/me" not in text


def test_card_says_what_was_measured():
    _, text = split_card(make_report())
    lines = text.splitlines()
    assert "| accuracy (100 test samples) | 92.0 % | 90.5 % | 93.0 % |" in lines
    assert "| attack success, trigger `cf` (50 samples) | 100.0 % | 7.1 % | 6.0 % |" in lines
    assert "| attack success, trigger `I watch this 3D movie` (50 samples) | 99.0 % | 12.3 % | 8.0 % |" in lines
    # The most successful trigger after cleaning is the one to be judged by.
    assert "success went from 99.0 % to 12.3 %.** Accuracy on clean text changed by -1.5 points." in text
    assert "ρ = 0.2" in text
    assert "smallest tried whose accuracy on eval data is within 2 points of the suspect's 92.0 %" in text
    assert f"(revision `{SHA}`)" in text
    assert "By its score, among 43 tokens, `cf` is 1 (put back)." in text
    assert "1 word embeddings were put back" in text
    assert "hf-finemix clean org/suspect --dataset org/data" in lines
    assert "not measured" not in text.split("## Limits")[0]


def test_card_says_what_was_not_measured():
    report = make_report(before=measured(0.9), after=measured(0.9), benign_floor=None, ratio_search=None, command=None)
    _, text = split_card(report)
    lines = text.splitlines()
    assert "| accuracy (100 test samples) | 90.0 % | 90.0 % | not measured |" in lines
    assert "| attack success | not measured | not measured | not measured |" in lines
    assert "Whether a backdoor was there, and whether it is gone, was not measured." in text
    assert "changed by +0.0 points" in text
    assert "ρ was given by the user" in text
    assert "```" not in text


def test_card_says_when_no_ratio_was_good_enough():
    report = make_report()
    report.ratio_search["within_limit"] = False
    assert "No ρ tried kept the accuracy on eval data within 2 points" in split_card(report)[1]


def test_card_shows_the_figures_there_are(tmp_path):
    report = make_report()
    report.figures = draw_figures(report, tmp_path)
    text = split_card(report)[1]
    assert [f"]({path})" in text for path in report.figures] == 4 * [True]
    assert text.count("![") == 4


def test_text_of_strangers_stays_inert():
    """Triggers and ids cannot add markup, end the table, the code or the marked part, or hide anything."""
    evil = {part: measured(0.9, 0.5, triggers=[EVIL]) for part in ("before", "after", "benign_floor")}
    report = make_report(**evil, command=f"hf-finemix clean x --triggers '{EVIL}\n```\n# Safe'")
    report.suspect["id"] = report.base["id"] = EVIL
    plain = split_card(make_report(**{part: measured(0.9, 0.5) for part in evil}))[1]
    text = split_card(report)[1]
    assert len(text.splitlines()) == len(plain.splitlines())
    assert text.count("<!--") == 2
    assert text.rstrip().endswith("<!-- hf_finemix: end -->")
    assert "<script" not in text
    assert "49" not in text, "a template in a trigger was run"
    assert sum(line.startswith("# ") for line in text.splitlines()) == 1
    assert text.count("```") == 2
    assert all(sign.isprintable() or sign == "\n" for sign in text)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert [row.count("|") for row in rows] == 4 * [5]


def test_hostile_metadata_stays_a_value(tmp_path):
    card = {"license": "mit\nevil: 1", "language": ["en", "x" * 200, 5], "pipeline_tag": "---", "tags": {"a": 1}}
    (tmp_path / "README.md").write_text(f"---\n{yaml.safe_dump(card)}---\n# Suspect\n")
    metadata, _ = split_card(make_report(card_metadata=card_metadata(tmp_path)))
    assert "evil" not in metadata
    assert "license" not in metadata
    assert (metadata["language"], metadata["pipeline_tag"]) == (["en"], "---")
    assert metadata["tags"] == ["hf_finemix", "backdoor-removal"]


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "# no metadata",
        "---\n[1, 2]\n---\n",
        "---\n: {\n---\n",
        "---\n" + "[" * 50_000 + "\n---\n",
        "---\ndate: 2024-99-99\n---\n",
        "---\n!!python/object/apply:os.getcwd []\n---\n",
    ],
)
def test_a_suspect_without_usable_metadata(tmp_path, text):
    if text is not None:
        (tmp_path / "README.md").write_text(text)
    assert card_metadata(tmp_path) == {}


def test_metadata_of_a_suspect(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: mit\nlanguage: en\ntags: [a, b]\nmodel-index: []\n---\n")
    assert card_metadata(tmp_path) == {"license": "mit", "language": ["en"], "tags": ["a", "b"]}
