import dataclasses
import json

import pytest
from helpers.reports import EVIL, make_report, measured

from hf_finemix.errors import FineMixingError
from hf_finemix.report.report import CleaningReport, percent

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
