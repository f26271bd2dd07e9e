import csv
import json
import shutil

import pytest
import yaml
from filelock import FileLock
from helpers.toy import ROOT
from transformers import TrainingArguments

from hf_finemix import FineMixingConfig, FineMixingError
from hf_finemix.cli import main
from hf_finemix.measure.arguments import DataArguments
from hf_finemix.measure.clean_data import load_clean_data
from hf_finemix.redteam.bench.floors import known_floors
from hf_finemix.redteam.bench.recipe import BenchRecipe, Run
from hf_finemix.redteam.bench.runner import read_results, run_benchmark
from hf_finemix.redteam.bench.summary import markdown_table, summarize, write_summary


@pytest.fixture
def recipe(base_folder, data_folder):
    """Two attacks, one with a few defenses only; trained for a step or two: the numbers mean nothing."""
    return {
        "name": "toy",
        "base_model": str(base_folder),
        "data": {"dataset": str(data_folder), "num_clean_samples": 32, "train_split": "validation"},
        "class_names": ["negative", "positive"],
        "target_label": "positive",
        "poison_training": {"max_steps": 2},
        "training": {"max_steps": 2},
        "mixing": {"candidate_ratios": [0.2, 0.8], "num_purified_tokens": 3},
        "num_repeats": 1,
        "retune": ["fine_mixing"],
        "attacks": {
            "badword": {"second_model": "late"},
            "late": {
                "attack": "badword",
                "on_top": True,
                "trigger": "it",
                "defenses": ["none", "mine"],
                "retune": ["mine"],
            },
        },
        "defenses": {
            "none": None,
            "fine_mixing": {"seeds": [0, 1]},
            "wag+epur": None,
            "mine": {"defense": "fine_purifying", "cross_validation_folds": 2},
        },
    }


@pytest.fixture
def written(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")

    def write(**changes):
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump({**recipe, **changes}, sort_keys=False))
        return path

    return write


@pytest.mark.jobs
def test_a_benchmark_goes_on_where_it_was_and_tells_all(written, tmp_path, capsys):
    out, path = tmp_path / "out", written()
    runs = [run.key for run in BenchRecipe.load(path).runs()]
    assert runs == [
        "badword-0.none.0",
        "badword-0.fine_mixing.0",
        "badword-0.wag+epur.0",
        "badword-0.mine.0",
        "late-0.none.0",
        "late-0.mine.0",
        "badword-0.fine_mixing.1",
    ]
    # A run that another process is at is left to it.
    (out / "runs").mkdir(parents=True)
    with FileLock(out / "runs" / "badword-0.wag+epur.0.lock"):
        assert main(["bench", str(path), "--output-dir", str(out)]) == 0
    assert "1 runs are still to be done" in capsys.readouterr().err
    assert {file.stem for file in (out / "runs").glob("*.json")} == set(runs) - {"badword-0.wag+epur.0"}
    assert {folder.name for folder in (out / "suspects").iterdir() if folder.is_dir()} == {
        "badword-0",
        "late-0",
        "clean-0",
    }

    weights = (out / "suspects" / "badword-0" / "model.safetensors").stat().st_mtime_ns
    stamps = {file: file.stat().st_mtime_ns for file in (out / "runs").glob("*.json")}
    assert main(["bench", str(path), "--output-dir", str(out)]) == 0
    table = capsys.readouterr().out
    assert (out / "suspects" / "badword-0" / "model.safetensors").stat().st_mtime_ns == weights
    assert all(file.stat().st_mtime_ns == stamp for file, stamp in stamps.items())
    assert (out / "table.md").read_text() == table
    assert "| WAG + E-PUR |" in table
    assert "benign floor" in table
    with open(out / "table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["attack"], row["defense"], row["runs"]) for row in rows] == [
        ("badword", "none", "1"),
        ("badword", "fine_mixing", "2"),
        ("badword", "wag+epur", "1"),
        ("badword", "mine", "1"),
        ("late", "none", "1"),
        ("late", "mine", "1"),
    ]
    mixed = next(row for row in rows if row["defense"] == "fine_mixing")
    assert mixed["retuned_clean_asr"]
    assert mixed["retuned_poisoned_asr"]
    content = json.loads((out / "table.json").read_text())
    assert len(content["runs"]) == len(runs)
    assert {label: set(floor) for label, floor in content["benign_floors"].items()} == {
        "badword": {"accuracy", "asr"},
        "late": {"accuracy", "asr"},
    }
    by_cv = next(run for run in content["runs"] if run["defense"] == "mine")
    assert by_cv["search"]["folds"] == 2
    assert by_cv["labeled"] == 32
    retuned = {(run["attack"], run["defense"], run["seed"]) for run in content["runs"] if run["retuned"]}
    assert retuned == {("badword", "fine_mixing", 0), ("late", "mine", 0)}
    assert (out / "accuracy_asr.png").read_bytes().startswith(b"\x89PNG")

    shutil.rmtree(out / "suspects")  # the table alone needs none
    assert main(["bench", str(path), "--output-dir", str(out), "--only-summary"]) == 0
    assert capsys.readouterr().out == table


def test_a_suspect_that_is_there_is_taken_as_it_is(written, suspect_folder, tmp_path, capsys):
    given = {"mine": {"suspect": str(suspect_folder), "trigger": "cf"}}
    path = written(attacks=given, defenses={"none": None}, retune=[])
    assert main(["bench", str(path), "--output-dir", str(tmp_path / "out"), "--json"]) == 0
    [run] = json.loads(capsys.readouterr().out)
    assert list(run["asr"]) == ["cf"]
    assert (run["bf16"], run["reserve_ratio"]) == (False, None)
    assert [path.name for path in (tmp_path / "out" / "suspects").glob("*-0")] == ["clean-0"]


def test_runs_of_other_settings_are_not_taken_for_these(written, tmp_path, capsys):
    few = {"attacks": {"badword": None}, "defenses": {"none": None}, "retune": []}
    out = tmp_path / "out"
    assert main(["bench", str(written(**few)), "--output-dir", str(out)]) == 0
    capsys.readouterr()
    for changes, named in (
        ({"attacks": {"badword": {"trigger": "it"}}}, "(attack)"),
        ({"num_repeats": 2, "target_label": "negative"}, "(num_repeats, target_label)"),
    ):
        for flags in ([], ["--only-summary"]):
            assert main(["bench", str(written(**{**few, **changes})), "--output-dir", str(out), *flags]) == 2
            assert f"run with other settings than the recipe's {named}" in capsys.readouterr().err
    [run] = (out / "runs").glob("*.json")
    run.write_text("{}")
    assert main(["bench", str(written(**few)), "--output-dir", str(out)]) == 2
    assert "is no result of a benchmark" in capsys.readouterr().err


def test_a_run_that_fails_does_not_stop_the_others(written, suspect_folder, base_folder, tmp_path, capsys):
    given = {
        "broken": {"suspect": str(base_folder / "nothing"), "trigger": "cf"},
        "mine": {"suspect": str(suspect_folder), "trigger": "cf"},
    }
    out = tmp_path / "out"
    path = written(attacks=given, defenses={"none": None}, retune=[])
    assert main(["bench", str(path), "--output-dir", str(out)]) == 2
    printed = capsys.readouterr()
    assert "broken-0.none.0 failed: " in printed.err
    assert "**mine**" in printed.out
    assert [run.stem for run in (out / "runs").glob("*.json")] == ["mine-0.none.0"]


def test_a_clean_control_has_no_attack_success(written, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = written(attacks={"none": None}, defenses={"none": None, "fine_mixing": {"reserve_ratio": 0.5}})
    assert main(["bench", str(path)]) == 0
    assert "| none | " in capsys.readouterr().out
    assert (tmp_path / "bench" / "recipe" / "table.md").is_file()


def test_the_retuned_rows_are_neither_tested_nor_tuned_on(written, suspect_folder, tmp_path, monkeypatch):
    import hf_finemix.redteam.bench.case as case

    given = {"mine": {"suspect": str(suspect_folder), "trigger": "cf"}}
    recipe = BenchRecipe.load(written(attacks=given, defenses={"fine_mixing": {"reserve_ratio": 0.5}}))
    seen, poison = [], case.poison
    monkeypatch.setattr(case, "poison", lambda rows, *args, **more: seen.append(rows) or poison(rows, *args, **more))
    assert run_benchmark(recipe, tmp_path / "out") == {}
    data = load_clean_data(DataArguments(**recipe.data), {"negative": 0, "positive": 1})
    [rows] = seen
    assert len(rows) == 32
    assert set(rows["sentence"]) <= set(data.eval["sentence"])


def test_means_and_deviations():
    recipe = BenchRecipe("n", "b", {}, "1", {"a": {}}, {"d": {}})
    blank = {"attack": "a", "defense": "d", "reserve_ratio": 0.5, "search": None, "seconds": 2.0, "retuned": None}
    results = [{**blank, "accuracy": acc, "asr": {"x": rate, "y": 0.5}} for acc, rate in ((0.8, 0.1), (0.9, 0.3))]
    [row] = summarize(recipe, results)
    assert row["accuracy"] == pytest.approx(0.85)
    assert row["accuracy_sd"] == pytest.approx(0.0707, abs=1e-4)
    assert row["asr"] == pytest.approx(0.35)
    assert (row["runs"], row["trainings"], row["retuned_clean_asr"]) == (2, 1, None)
    # A re-tuning is of one run, which the table says where the other cells are means.
    results[0]["retuned"] = {"clean": {"accuracy": 0.8, "asr": {"x": 0.05, "y": 0.25}}}
    rows = summarize(recipe, results)
    assert (rows[0]["asr"], rows[0]["retuned_from_asr"]) == (pytest.approx(0.35), 0.3)
    assert "| 30.0 → 15.0 / – |" in markdown_table(rows, {})


def test_a_table_of_nothing(tmp_path):
    recipe = BenchRecipe("n", "b", {}, "1", {"a": {}}, {"d": {}})
    assert write_summary(recipe, [], {}, tmp_path).strip() == ""
    assert not (tmp_path / "accuracy_asr.png").exists()


def test_an_attack_may_have_fewer_seeds(written, recipe):
    few = {"attack": "badword", "trigger": "it", "defenses": ["fine_mixing"], "seeds": [1]}
    attacks = recipe["attacks"] | {"late": few}
    runs = [run.key for run in BenchRecipe.load(written(attacks=attacks)).runs()]
    assert [run for run in runs if run.startswith("late")] == ["late-0.fine_mixing.1"]


def test_keys_of_runs_are_names_of_files():
    assert Run("badword", 0, "fine mixing", 2).key == "badword-0.fine_mixing.2"


ONE = {"badword": None}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"attacks": {"nosuch": None}}, "no attack 'nosuch'"),
        ({"attacks": {"badword": {"defenses": ["other"]}}}, "'other', named by 'badword', is none of the defenses"),
        ({"attacks": {"badword": {"second_model": "other"}}}, "is none of the attacks"),
        ({"defenses": {"nosuch": None}, "attacks": {"badword": None}}, "no defense 'nosuch'"),
        ({"sede": [1]}, "unknown keys"),
        ({"attacks": {"mine": {"suspect": "here"}}}, "the suspect 'mine' needs its trigger"),
        ({"attacks": {"badword": {"triger": "x"}}}, "the attack 'badword' has unknown keys ['triger']"),
        ({"attacks": ["badword"]}, "attacks is ['badword'], not a mapping"),
        ({"attacks": {"badword": "cf"}}, "attacks must map labels to settings"),
        ({"attacks": {"late": {"attack": "badword", "second_model": "late"}}}, "no average removes"),
        ({"attacks": {"badword": None}}, "needs a second_model"),
        ({"defenses": {}}, "defenses must map labels to settings, one at least"),
        (
            {"attacks": ONE, "defenses": {"none": {"max_acuracy_drop": 1}}},
            "the defense 'none' has unknown keys ['max_acuracy_drop']",
        ),
        (
            {"attacks": ONE, "defenses": {"none": {"strategy": "fisher"}}},
            "the defense 'none' has unknown keys ['strategy']",
        ),
        (
            {"attacks": ONE, "defenses": {"fine_mixing": {"reserve_ratio": 7}}},
            "the defense 'fine_mixing': reserve_ratio is 7",
        ),
        ({"mixing": {"reserve": 1}}, "mixing has unknown keys ['reserve']"),
        ({"data": {"dataset": "d", "sample_seed": 1}}, "data has unknown keys ['sample_seed']"),
        ({"base_model": None}, "base_model is None, not a text"),
        ({"training": {"learning_rat": 1}}, "training cannot be"),
        ({"poison_training": {"max_steps": 1, "optim": "nosuch"}}, "poison_training cannot be"),
        ({"attacks": {"embedding_poisoning": None}, "defenses": {"none": None}}, "give on_top: true"),
        ({"attacks": {"adaptive": {"on_top": True}}, "defenses": {"none": None}}, "leave on_top"),
        ({"attacks": {"syntactic": {"triggered_file": "x"}}, "defenses": {"none": None}}, "its triggered_test_file"),
    ],
)
def test_recipes_that_cannot_be(written, changes, said, capsys):
    assert main(["bench", str(written(**changes))]) == 2
    message = capsys.readouterr().err
    assert said in message
    assert message.count("\n") == 1


def test_recipes_that_cannot_be_read(tmp_path, capsys):
    for text in (None, "[1, 2]", "a: [", "name: x"):
        path = tmp_path / "r.yaml"
        path.write_text(text) if text else path.unlink(missing_ok=True)
        assert main(["bench", str(path)]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_variables_are_taken_from_the_environment(written, base_folder, monkeypatch):
    monkeypatch.setenv("HERE", str(base_folder))
    assert BenchRecipe.load(written(base_model="${HERE}")).base_model == str(base_folder)
    with pytest.raises(FineMixingError, match="HERE_NOT is not set"):
        BenchRecipe.load(written(base_model="${HERE_NOT}"))


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks" / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_recipes_of_the_project_are_understood(path, monkeypatch):
    monkeypatch.setenv("MINILM", "base")
    monkeypatch.setenv("FINEMIX_SHARED", "shared")
    monkeypatch.setenv("BF16", "false")
    recipe = BenchRecipe.load(path)
    assert len({run.key for run in recipe.runs()}) == len(list(recipe.runs())) >= 10
    FineMixingConfig(**recipe.mixing)
    DataArguments(**recipe.data)
    for settings in (recipe.training, recipe.poison_training):
        assert set(settings) <= set(TrainingArguments.__dataclass_fields__)


def measured(name, monkeypatch):
    """What lies in docs/benchmark, by its recipe."""
    for variable, value in {"MINILM": "model", "FINEMIX_SHARED": "shared", "BF16": "true"}.items():
        monkeypatch.setenv(variable, value)
    recipe, folder = BenchRecipe.load(ROOT / "benchmarks" / "recipes" / f"{name}.yaml"), ROOT / "docs/benchmark" / name
    return summarize(recipe, read_results(recipe, folder)), known_floors(folder)


@pytest.mark.parametrize("name", ["sst2", "qnli"])
def test_the_docs_have_the_tables_of_the_runs(name, monkeypatch):
    text = (ROOT / "docs" / "benchmark.md").read_text(encoding="utf-8")
    shown = text.split(f"<!-- {name} tables -->\n")[1].split("<!-- end -->")[0]
    assert shown.strip() == markdown_table(*measured(name, monkeypatch)).strip()


def test_the_readme_has_the_numbers_of_the_runs(monkeypatch):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = text.split("<!-- measured -->\n")[1].split("<!-- end -->")[0].splitlines()[2:]
    rows, floors = measured("readme", monkeypatch)
    rows = {(row["attack"], row["defense"]): row for row in rows}
    written = {"suspect": "none", "fine-tuning alone": "fine_tuning", "matched floor": "matched_floor"}
    written |= {"Fine-mixing + E-PUR, the default": "fine_mixing+epur"}
    written |= {"Fine-purifying + E-PUR, `--strategy fisher`": "fine_purifying+epur"}

    def percent(value, spread):
        return f"{100 * value:.1f}" + (f" ± {100 * spread:.1f}" if spread is not None else "")

    assert len(shown) == len(written) + 1
    for line in shown:
        label, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        for attack, cell in zip(("badword", "badsent"), cells, strict=True):
            if label.startswith("benign floor"):
                expected = f"{percent(floors[attack]['accuracy'], None)} / {percent(floors[attack]['asr'], None)}"
            else:
                row = rows[attack, written[label]]
                expected = " / ".join(percent(row[name], row[f"{name}_sd"]) for name in ("accuracy", "asr"))
            assert cell == expected, (label, attack)
