"""YAML recipes: what is written is text where a text is meant."""

import pytest
import yaml

from hf_finemix.cleaning.arguments import CleaningArguments
from hf_finemix.cli.parsing import CommandParser
from hf_finemix.config import FineMixingConfig
from hf_finemix.errors import FineMixingError
from hf_finemix.io.recipe_file import read_recipe, typed
from hf_finemix.redteam.bench.recipe import BenchRecipe

WORDS = ["no", "on", "Yes", "off", "true", "1_000", "0123", "0x1F", "12:30", "2024-01-31", "1.10", "1e3", ".5", "~x"]


@pytest.fixture
def recipe(tmp_path):
    def write(text):
        (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
        return tmp_path / "recipe.yaml"

    return write


def parsed(path, kinds=(CleaningArguments, FineMixingConfig)):
    return CommandParser("clean", "suspect", kinds).parse(["suspect", "--config", str(path)])


@pytest.mark.parametrize("word", WORDS)
def test_words_stay_as_they_are_written_where_a_text_is_meant(recipe, word):
    for written in (word, f'"{word}"', f"'{word}'"):
        path = recipe(f"triggers: [{written}]\ntarget_label: {written}\ndataset: {written}\n")
        arguments, _, _ = parsed(path)
        assert (arguments.triggers, arguments.target_label, arguments.dataset) == ([word], word, word)


def test_a_trigger_need_not_be_in_a_list_and_may_be_called_null(recipe):
    assert parsed(recipe("trigger: no\n"))[0].triggers == ["no"]
    assert parsed(recipe("triggers: [null, cf]\n"))[0].triggers == ["null", "cf"]
    assert parsed(recipe("triggers: null\ntarget_label:\n"))[0].triggers is None


def test_numbers_switches_and_mappings_are_what_their_fields_want(recipe):
    arguments, config, _ = parsed(
        recipe(
            "num_clean_samples: 1_000\nsample_seed: 7\noverwrite: on\nresume: no\npurify_embeddings: off\n"
            "target_refusal: yes\nmax_accuracy_drop: 1e-2\ncandidate_ratios: [0.1, 2.0e-1]\n"
            "module_ratios: {attention: 0.5, no: 1}\nreserve_ratio: 0.5\n"
        )
    )
    assert (arguments.num_clean_samples, arguments.sample_seed) == (1000, 7)
    assert (arguments.overwrite, arguments.resume, arguments.target_refusal) == (True, False, True)
    assert (config.purify_embeddings, config.max_accuracy_drop, config.candidate_ratios) == (False, 0.01, [0.1, 0.2])
    assert config.module_ratios == {"attention": 0.5, "no": 1}
    assert config.reserve_ratio == 0.5


def test_a_benchmark_reads_its_recipe_alike(recipe):
    path = recipe(
        "name: 12:30\nbase_model: base\ntarget_label: no\nclass_names: [no, yes]\n"
        "data: {dataset: 0123, test_split: on, num_clean_samples: 8, max_length: 1_6}\n"
        "attacks: {badword: {trigger: no, on_top: no, poison_rate: 0.2, seeds: [1]}, other: {attack: badword, "
        "trigger: 1_000, on_top: yes}, third: {attack: badword, trigger: 42}}\n"
        "defenses: {none: , fine_mixing: {reserve_ratio: 0.5}}\n"
        "training: {learning_rate: 1e-4, max_steps: 2, bf16: false, run_name: no}\nseeds: [0, 1]\nnum_repeats: 2\n"
    )
    found = BenchRecipe.load(path)
    assert (found.name, found.target_label, found.class_names) == ("12:30", "no", ["no", "yes"])
    assert found.data == {"dataset": "0123", "test_split": "on", "num_clean_samples": 8, "max_length": 16}
    assert found.attacks["badword"] == {"trigger": "no", "on_top": False, "poison_rate": 0.2, "seeds": [1]}
    assert [found.attacks[name]["trigger"] for name in ("other", "third")] == ["1_000", "42"]
    assert found.attacks["other"]["on_top"] is True
    assert found.training == {"learning_rate": 1e-4, "max_steps": 2, "bf16": False, "run_name": "no"}
    assert (found.seeds, found.num_repeats) == ([0, 1], 2)
    assert found.defenses == {"none": {}, "fine_mixing": {"reserve_ratio": 0.5}}


@pytest.mark.parametrize(
    "text", ["a: !!python/object/apply:os.getcwd []\n", "a: [1\n", "- a\n", "a: *b\n", "? [a]\n: b\n"]
)
def test_what_is_no_recipe(recipe, text):
    with pytest.raises(FineMixingError) as error:
        read_recipe(recipe(text))
    assert "\n" not in str(error.value)


def test_aliases_and_merges_are_yaml_still(recipe):
    content = read_recipe(recipe("a: &x {lr: 1}\nb: {<<: *x, on: off}\n"))
    assert typed(content) == {"a": {"lr": 1}, "b": {"lr": 1, "on": "off"}}
    assert yaml.safe_load("a: no") == {"a": False}  # the loader of others stays as it was
