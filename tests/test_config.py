import ast
import inspect
import json
import subprocess
import sys

import pytest
from helpers.toy import ROOT
from transformers import HfArgumentParser, TrainingArguments

import hf_finemix
from hf_finemix import FineMixingConfig, FineMixingError
from hf_finemix.config import CONFIG_NAME


def test_defaults():
    config = FineMixingConfig()
    assert config.base_model_name_or_path is None
    assert config.reserve_ratio == "auto"
    assert config.max_accuracy_drop == 0.02
    assert config.candidate_ratios == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    assert (config.strategy, config.head) == ("random", "keep")
    assert (config.purify_embeddings, config.num_purified_tokens) == (True, 200)
    assert (config.mixing_seed, config.mask_version) == (0, 2)


def test_round_trip(tmp_path):
    config = FineMixingConfig(
        base_model_name_or_path="org/base", reserve_ratio=0.35, module_ratios={"attention": 0.5}, mixing_seed=2**62
    )
    config.save_pretrained(tmp_path / "new")
    assert FineMixingConfig.from_pretrained(tmp_path / "new") == config
    assert json.loads((tmp_path / "new" / CONFIG_NAME).read_text())["reserve_ratio"] == 0.35


def test_strings_of_the_command_line_are_parsed():
    parser = HfArgumentParser((FineMixingConfig, TrainingArguments))
    line = '--base-model b --reserve-ratio 0.4 --module_ratios {"a":0.5} --candidate-ratios 0.9 0.1'
    line += " --no-purify-embeddings"
    config, _ = parser.parse_args_into_dataclasses(line.split())
    assert config.base_model_name_or_path == "b"
    assert config.reserve_ratio == 0.4
    assert config.module_ratios == {"a": 0.5}
    assert config.candidate_ratios == [0.1, 0.9]
    assert config.purify_embeddings is False


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("reserve_ratio", 1.1),
        ("reserve_ratio", -0.1),
        ("reserve_ratio", "much"),
        ("reserve_ratio", float("nan")),
        ("reserve_ratio", None),
        ("max_accuracy_drop", 2),
        ("candidate_ratios", []),
        ("candidate_ratios", [0.5, 7]),
        ("module_ratios", "{"),
        ("module_ratios", "[1]"),
        ("module_ratios", {"(": 0.5}),
        ("module_ratios", {"a": 3}),
        ("strategy", "fisherman"),
        ("head", "cut"),
        ("mask_version", 1),
        ("mask_version", 3),
        ("mixing_seed", -1),
        ("mixing_seed", 2**63),
        ("num_purified_tokens", -1),
        ("num_purified_tokens", None),
        ("mixing_seed", 0.0),
        ("mixing_seed", "0"),
        ("candidate_ratios", 0.5),
    ],
)
def test_values_out_of_range_are_told(field, value):
    with pytest.raises(FineMixingError, match=field) as error:
        FineMixingConfig(**{field: value})
    assert "\n" not in str(error.value)


def test_another_base_has_no_revision_of_the_former():
    config = FineMixingConfig(base_model_name_or_path="a", base_model_revision="v1", reserve_ratio=0.3)
    assert config.with_base("a") == config
    assert config.with_base("b") == FineMixingConfig(base_model_name_or_path="b", reserve_ratio=0.3)


def test_first_matching_module_ratio_counts():
    config = FineMixingConfig(module_ratios={r"layer\.0\.": 0.1, "layer": 0.2})
    assert config.ratio_for("encoder.layer.0.x", 0.7) == 0.1
    assert config.ratio_for("encoder.layer.1.x", 0.7) == 0.2
    assert config.ratio_for("embeddings.x", 0.7) == 0.7


@pytest.mark.parametrize("content", [None, "no json", "[]", '{"rho": 1}'])
def test_unreadable_config(tmp_path, content):
    if content is not None:
        (tmp_path / CONFIG_NAME).write_text(content)
    with pytest.raises(FineMixingError, match=CONFIG_NAME):
        FineMixingConfig.from_pretrained(tmp_path)


def test_one_name_for_one_thing():
    """Bases, folders to write and configs go by one name in all public functions."""
    functions = [value for name in hf_finemix.__all__ if callable(value := getattr(hf_finemix, name))]
    names = set().union(*(inspect.signature(function).parameters for function in functions))
    assert {"base_model", "output_dir", "mixing_config"} < names
    assert not names & {"base_name_or_path", "out", "config", "output_folder"}


def test_import_is_light():
    code = "import sys, hf_finemix; print({'torch', 'transformers', 'datasets', 'numpy'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.strip() == "set()"


def test_type_checkers_see_the_names_that_there_are():
    """The static imports beside the table of the lazy ones."""
    tree = ast.parse((ROOT / "hf_finemix" / "__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    static = {part.asname: (part.name, node.module) for node in block.body for part in node.names}
    assert static == {name: (name, home) for name, home in hf_finemix._HOMES.items()}
    assert {*static, "__version__"} == set(hf_finemix.__all__)


def test_every_public_name_can_be_had():
    for name in hf_finemix.__all__:
        assert getattr(hf_finemix, name) is not None
    with pytest.raises(AttributeError):
        _ = hf_finemix.nothing
