import pytest
from helpers.reports import EVIL, SHA, make_report, measured, split_card
from helpers.toy import ROOT
from huggingface_hub import ModelCard

from hf_finemix.errors import FineMixingError
from hf_finemix.report.card import BEGIN, END, card_section, merge_card, render_card, text_of_others
from hf_finemix.report.figures import draw_figures
from hf_finemix.report.report import CleaningReport
from hf_finemix.report.verdict import verdict


def test_card_metadata_is_spelled_as_the_hub_wants_it():
    metadata, _ = split_card(make_report())
    assert metadata == {
        "license": "apache-2.0",
        "language": ["en"],
        "pipeline_tag": "text-classification",
        "library_name": "transformers",
        "tags": ["hf_finemix", "backdoor-removal"],
        "base_model": ["org/base", "org/suspect"],
        "base_model_relation": "merge",
        "datasets": ["org/data"],
        "metrics": ["accuracy", "f1", "attack_success_rate"],
        "model-index": metadata["model-index"],
    }
    (index,) = metadata["model-index"]
    (result,) = index["results"]
    assert index["name"] == "suspect-cleaned"
    assert result["task"] == {"type": "text-classification"}
    assert result["dataset"] == {"name": "data", "type": "org/data", "revision": SHA, "split": "validation"}
    assert [(metric["type"], metric["value"]) for metric in result["metrics"]] == [
        ("accuracy", 0.905),
        ("f1", 0.895),
        ("attack_success_rate", 0.071),
        ("attack_success_rate", 0.123),
    ]
    data = ModelCard(render_card(make_report())).data
    assert (data.base_model, data.datasets, data.library_name) == (
        ["org/base", "org/suspect"],
        ["org/data"],
        "transformers",
    )
    assert [result.metric_value for result in data.eval_results] == [0.905, 0.895, 0.071, 0.123]


def test_local_paths_are_no_hub_ids():
    report = make_report(card_metadata={"pipeline_tag": "text-classification"})
    for part, path in ((report.suspect, "/home/me/suspect"), (report.base, "org/folder")):
        part |= {"id": path, "revision": None}
    report.data |= {"id": "reviews.csv", "sha": None}
    metadata, text = split_card(report)
    assert not {"base_model", "base_model_relation", "datasets"} & set(metadata)
    dataset = metadata["model-index"][0]["results"][0]["dataset"]
    assert dataset == {"name": "reviews.csv (local files)", "type": "local"}
    assert "| suspect | `suspect` | a local folder |" in text
    assert "pre-trained base `folder`" in text
    assert "hf-finemix verify . --suspect suspect --base-model folder" in text
    assert "/home/me" not in text


def test_card_says_what_was_measured():
    _, text = split_card(make_report())
    lines = text.splitlines()
    assert "| accuracy (100 test samples) | 92.0 % | **90.5 %** | not measured | 93.0 % |" in lines
    assert "| attack success, trigger `cf` (50 samples) | 100.0 % | **7.1 %** | not measured | 6.0 % |" in lines
    assert (
        "| attack success, trigger `I watch this 3D movie` (50 samples) | 99.0 % | **12.3 %** | not measured | 8.0 % |"
        in lines
    )
    assert "ρ = 0.2" in text
    assert "smallest tried whose accuracy on eval data is within 2 points of the suspect's 92.0 %" in text
    assert f"| suspect | `org/suspect` | `{SHA}` | `model.safetensors` `{'ab' * 32}` |" in lines
    assert f"| base | `org/base` | `{SHA[::-1]}` | `model.safetensors` `{'cd' * 32}` |" in lines
    assert "Seeds: `mixing` 0, `samples` 1, `training` 42." in text
    assert (
        f"- Data: `org/data` at `{SHA}`, text from `text`; rows: 64 for `tuning`, 100 for `eval`, 100 for `test`."
        in lines
    )
    assert "- Versions: `python 3.11`." in lines
    assert "hf-finemix verify ." in lines
    assert "By its score, among 43 tokens, `cf` is 1 (put back)." in text
    assert "1 word embeddings were put back" in text
    assert "hf-finemix clean org/suspect --dataset org/data" in lines
    report = make_report(matched_floor=measured(0.7, 0.2, 0.3), weights={"model.safetensors": "ef" * 32})
    lines = split_card(report)[1].splitlines()
    assert "| accuracy (100 test samples) | 92.0 % | **90.5 %** | 70.0 % | 93.0 % |" in lines
    assert f"| this model |  |  | `model.safetensors` `{'ef' * 32}` |" in lines


def test_card_says_what_was_not_measured():
    report = make_report(before=measured(0.9), after=measured(0.9), benign_floor=None, ratio_search=None, command=None)
    _, text = split_card(report)
    lines = text.splitlines()
    assert "| accuracy (100 test samples) | 90.0 % | **90.0 %** | not measured | not measured |" in lines
    assert "| attack success | not measured | not measured | not measured | not measured |" in lines
    assert "> **Not measured.** No trigger was given: whether a backdoor was there" in text
    assert "changed by +0.0 points" in text
    assert "ρ was given by the user" in text
    assert text.count("```") == 2, "only the command that checks it"
    assert "It was called from Python" in text


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
    report.data["unknown_class_names"], report.after["triggers"][0]["unreadable"] = [EVIL, EVIL], "3"
    assert len(report.notes()) == 2
    plain = split_card(make_report(**{part: measured(0.9, 0.5) for part in evil}))[1]
    text = split_card(report)[1]
    assert len(text.splitlines()) == len(plain.splitlines())
    assert text.count("<!--") == 2
    assert text.rstrip().endswith("<!-- hf_finemix: end -->")
    assert "<script" not in text
    assert "49" not in text, "a template in a trigger was run"
    assert sum(line.startswith("# ") for line in text.splitlines()) == 1
    assert text.count("```") == 4
    assert all(sign.isprintable() or sign == "\n" for sign in text)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert [row.count("|") for row in rows] == 4 * [6] + 5 * [5]


# The verdict


@pytest.mark.parametrize(
    ("before", "after", "floor", "word", "said"),
    [
        ((1.0, 1.0), (0.11, 0.12), (0.09, 0.10), "Removed, as far as measured", "Other triggers"),
        (
            (1.0, 1.0),
            (0.11, 0.33),
            (0.09, 0.10),
            "Weakened, not removed",
            "from 100.0 % to 33.0 % (an honest model: 10.0 %)",
        ),
        ((1.0, 0.2), (0.95, 0.1), (0.09, 0.10), "Still backdoored", "**Do not use this model.**"),
        ((0.12, 0.1), (0.1, 0.1), (0.09, 0.10), "No backdoor seen", "does not mean that there is none"),
        ((1.0,), (0.04,), None, "Removed, as far as measured", "What an honest model errs by was not measured"),
        ((1.0,), (0.12,), None, "Weakened, not removed", "was not measured"),
        ((), (), None, "Not measured", "is not known"),
    ],
)
def test_verdict(before, after, floor, word, said):
    report = make_report(
        before=measured(0.9, *before),
        after=measured(0.88, *after),
        benign_floor=None if floor is None else measured(0.91, *floor),
    )
    found = verdict(report)
    assert found.word == word
    assert said in found.sentence
    assert "changed by -2.0 points, to 88.0 %" in found.sentence
    assert f"> **{word}.** {found.sentence}" in render_card(report)


def test_verdict_says_when_accuracy_was_dear():
    assert "**That is dear.**" in verdict(make_report(after=measured(0.8, 0.1, 0.1))).sentence
    assert "dear" not in verdict(make_report()).sentence


def test_card_of_a_report_without_accuracy():
    """As the Trainer writes it, which was not asked to evaluate."""
    nothing = {"accuracy": None, "macro_f1": None, "n": None, "triggers": []}
    report = make_report(before=nothing, after=nothing, benign_floor=None, embedding_drift=None, data={})
    metadata, text = split_card(report)
    assert "| accuracy (not measured test samples) |" in text
    assert "Accuracy on clean text was not measured before and after." in text
    assert not {"model-index", "metrics"} & set(metadata)


@pytest.mark.parametrize(
    "changes",
    [
        {"mixing": {}},
        {"suspect": {}},
        {"after": {"triggers": [5]}},
        {"purified_tokens": None},
        {"seeds": {"mixing": "x"}},
        {"ratio_search": {"trials": 1}},
        {"before": {"accuracy": "high", "triggers": []}},
    ],
)
def test_a_report_that_lacks_what_a_card_says(changes):
    with pytest.raises(FineMixingError, match="the report lacks what a card says"):
        render_card(make_report(**changes))


def test_section_without_figures(tmp_path):
    report = make_report(figures=["figures/before_after.png", "figures/nonsense.png", "../../etc/passwd"])
    assert card_section(report).count("![") == 1
    assert "![" not in card_section(report, figures=False)


def test_doubts_about_the_files_are_told():
    report = make_report()
    report.base |= {"named_by": "its card", "fit": {"sure": False, "median_distance": 0.5, "why": "too far"}}
    report.suspect["security"] = {"hub_scan": "unfinished", "flagged": {}, "not_taken": []}
    assert "The base was named by `its card`; it is doubtful: `too far`." in split_card(report)[1]
    assert "scan of the suspect's files was not finished, so it says nothing." in split_card(report)[1]
    report.suspect["security"] = {"hub_scan": "finished", "flagged": {"x.bin": "unsafe"}, "not_taken": ["x.bin"]}
    assert "flagged 1 files" in split_card(report)[1]


# A card that is there already

THEIRS = """---
# chosen with care
license: mit
language: fr
tags:
- mine   # and this
widget:
- text: "hello"
base_model: org/other
---
# My model

Some words.
"""


def test_merging_keeps_everything_of_the_user():
    merged = merge_card(THEIRS, render_card(make_report()))
    metadata = ModelCard(merged).data.to_dict()
    assert (metadata["license"], metadata["language"], metadata["widget"]) == ("mit", "fr", [{"text": "hello"}])
    assert metadata["tags"] == ["mine", "hf_finemix", "backdoor-removal"]
    assert metadata["base_model"] == ["org/base", "org/suspect"]
    assert "# chosen with care\nlicense: mit\n" in merged
    assert merged.endswith(f"{END}\n# My model\n\nSome words.\n")
    assert text_of_others(merged) == "# My model\n\nSome words."
    # Again: nothing moves, and a newer report takes the older one's place.
    assert merge_card(merged, render_card(make_report())) == merged
    newer = merge_card(merged + "\nMore.\n", render_card(make_report(after=measured(0.5, 0.1, 0.1))))
    assert newer.count(BEGIN) == newer.count(END) == 1
    assert "90.5 %" not in newer
    assert newer.endswith("Some words.\n\nMore.\n")


def test_merging_into_nothing_is_the_card():
    card = render_card(make_report())
    assert merge_card("", card) == card
    assert merge_card(card, card) == card
    bare = merge_card("# Theirs\n", card)
    assert merge_card(bare, card) == bare
    assert text_of_others(card) == ""


@pytest.mark.parametrize("marker", [BEGIN, END, f"{END}\n{BEGIN}", f"{BEGIN}{END}{BEGIN}{END}"])
def test_markers_of_strangers_do_not_swallow_text(marker):
    merged = merge_card(f"before\n{marker}\nafter\n", render_card(make_report()))
    assert merged.count(BEGIN) == merged.count(END) == 1
    assert "before" in merged
    assert "after" in text_of_others(merged)


@pytest.mark.parametrize("line_break", ["\r\n", "\n"])
def test_merging_with_other_line_breaks(line_break):
    merged = merge_card(THEIRS.replace("\n", line_break), render_card(make_report()))
    assert ModelCard(merged).data.license == "mit"
    assert "Some words." in merged


@pytest.mark.parametrize("block", ["a: [", "- a", "5", "a: *nothing", "!!python/object/apply:os.getcwd []"])
def test_merging_into_broken_yaml(block):
    with pytest.raises(FineMixingError, match=r"the YAML of README\.md of org/x"):
        merge_card(f"---\n{block}\n---\ntext\n", render_card(make_report()), where="README.md of org/x")


@pytest.mark.parametrize("name", ["sst2-badword", "sst2-badsent"])
def test_the_cards_kept_follow_from_their_reports(name):
    folder = ROOT / "model_cards" / name
    assert render_card(CleaningReport.load(folder)) == (folder / "README.md").read_text(encoding="utf-8")


def test_the_card_of_a_mix_does_not_speak_of_fine_tuning():
    card = render_card(make_report(training={}))
    assert "It was not fine-tuned: a mix alone is not a finished model." in card
    assert "was fine-tuned on" not in card
    assert "was fine-tuned on" in render_card(make_report())
