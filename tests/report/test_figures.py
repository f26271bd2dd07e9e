"""The figures are looked at by people; here they are drawn whatever the report holds."""

import warnings

import pytest
from helpers.reports import EVIL, make_report, measured
from matplotlib.figure import Figure
from PIL import Image

from hf_finemix.report import figures
from hf_finemix.report.figures import draw_figures

ALL = ["before_after", "ratio_search", "embedding_drift", "drift_by_layer"]


@pytest.fixture
def drawn(monkeypatch):
    """Every figure that is saved, to look into."""
    kept = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *args, **kwargs: (kept.append(self), save(self, *args, **kwargs))
    )
    return kept


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({}, ALL),
        ({"ratio_search": None, "benign_floor": None, "embedding_drift": None}, ["before_after", "drift_by_layer"]),
        ({"before": measured(0.9), "after": measured(0.8), "benign_floor": None}, ALL),
    ],
)
def test_figures_are_png_files(tmp_path, changes, names):
    paths = draw_figures(make_report(**changes), tmp_path)
    assert paths == [f"figures/{name}.png" for name in names]
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == sorted(f"{name}.png" for name in names)
    for path in paths:
        with Image.open(tmp_path / path) as image:
            image.load()
            assert image.format == "PNG"
            assert image.size[0] == 921  # the same width everywhere
            assert image.size[1] > 180
            assert len(image.convert("L").getcolors()) > 10, "nothing is drawn"


def words(figure):
    from matplotlib.text import Text

    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def test_what_is_drawn_is_what_the_report_says(tmp_path, drawn):
    draw_figures(make_report(), tmp_path)
    before_after, ratio_search, embedding_drift, drift_by_layer = drawn
    assert {"92.0", "90.5", "93.0", "100.0", "7.1", "6.0"} <= set(words(before_after))
    lines = {line.get_label(): list(line.get_ydata()) for line in ratio_search.axes[0].lines}
    assert lines["accuracy, eval data"] == [80, 91]
    assert lines["limit of accuracy"] == [90, 90]
    assert lines["attack success, “cf”"] == pytest.approx([5, 7])
    assert "chosen ρ = 0.2" in lines
    assert "cf" in words(embedding_drift)
    assert "1 tokens put back" in words(embedding_drift)
    mesh = embedding_drift.axes[0].collections[0]
    assert mesh.get_array().tolist() == [[10, 28], [2, 0]]
    assert [line.get_xdata().tolist() for line in drift_by_layer.axes[0].lines] == [
        pytest.approx([10, 20, 30]),
        pytest.approx([1, 2, 0]),
    ]


def test_a_search_in_which_attacks_were_not_measured(tmp_path, drawn):
    report = make_report(before=measured(0.9), after=measured(0.9), benign_floor=None)
    for trial in report.ratio_search["trials"]:
        trial["triggers"] = []
    draw_figures(report, tmp_path)
    assert not any("attack success" in word for word in words(drawn[1]))
    assert "given up half way" not in words(drawn[1])


def test_trials_that_were_given_up_are_hollow(tmp_path, drawn):
    report = make_report()
    report.ratio_search["trials"][0]["stopped_early"] = True
    draw_figures(report, tmp_path)
    (hollow,) = (line for line in drawn[1].axes[0].lines if line.get_label() == "given up half way")
    trial = report.ratio_search["trials"][0]
    assert (list(hollow.get_xdata()), list(hollow.get_ydata())) == (
        [trial["reserve_ratio"]],
        [pytest.approx(100 * trial["accuracy"])],
    )


def test_a_row_without_a_token_is_named_by_its_number(tmp_path, drawn):
    row = {"token": None, "id": 31000, "delta": 1.0, "frequency": 0.0, "score": 0.3}
    draw_figures(make_report(purified_tokens=[row]), tmp_path)
    assert "row 31000" in words(drawn[2])


@pytest.mark.parametrize(
    ("layers", "labels"),
    [
        (
            ["embeddings", "encoder.layer.0", "encoder.layer.1", "pooler"],
            ["embeddings", "layer 0", "layer 1", "pooler"],
        ),
        (["wte", "h.0", "h.11", "ln_f"], ["wte", "layer 0", "layer 11", "ln_f"]),
        (["shared", "encoder.block.0", "decoder.block.0"], ["shared", "encoder 0", "decoder 0"]),
        (["norm"], ["norm"]),
    ],
)
def test_names_of_layers(layers, labels):
    assert figures._layer_labels(layers) == labels


def test_a_model_of_eighty_layers_stays_readable(tmp_path, drawn):
    layers = {f"layers.{i}": 0.01 + i / 1000 for i in range(80)}
    draw_figures(make_report(drift_by_layer={"before": layers, "after": dict.fromkeys(layers)}), tmp_path)
    axes = drawn[-1].axes[0]
    assert len(axes.get_yticks()) <= 30
    assert len(axes.lines[0].get_xdata()) == 80


def test_names_of_tokens_do_not_overlap(tmp_path, drawn):
    tokens = [
        {"token": f"token{i}", "id": i, "delta": 1 + i % 7 / 10, "frequency": 100.0 + i, "score": 0.2}
        for i in range(200)
    ]
    draw_figures(make_report(purified_tokens=tokens), tmp_path)
    from matplotlib.text import Annotation

    boxes = [note.get_window_extent() for note in drawn[2].axes[0].findobj(Annotation)]
    assert 2 < len(boxes) <= figures.MAX_TOKENS_NAMED
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_the_same_report_gives_the_same_figures(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        draw_figures(make_report(), tmp_path / name)
    for path in (tmp_path / "a" / "figures").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / "figures" / path.name).read_bytes()


@pytest.mark.parametrize("trigger", [EVIL, "$\\frac{1}{0$", "$x^2$", "触发器", "\U0001f525", "a" * 500])
def test_any_trigger_is_drawn_without_a_warning(tmp_path, trigger):
    parts = {part: measured(0.9, 0.5, triggers=[trigger]) for part in ("before", "after", "benign_floor")}
    drift = {"embeddings": 0.0, "encoder.layer.0": 0.0}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = draw_figures(make_report(**parts, drift_by_layer={"before": drift, "after": drift}), tmp_path)
    assert drawn
    assert all((tmp_path / file).stat().st_size for file in drawn)


def test_figures_leave_the_users_plots_alone(tmp_path):
    import matplotlib
    from matplotlib import pyplot as plt

    before, figures = dict(matplotlib.rcParams), plt.get_fignums()
    draw_figures(make_report(), tmp_path)
    assert plt.get_fignums() == figures
    assert {key: value for key, value in matplotlib.rcParams.items() if key != "backend"} == {
        key: value for key, value in before.items() if key != "backend"
    }
