import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import TrainingArguments

from hf_finemix import FineMixingConfig, FineMixingError, clean, mix_checkpoints, verify_mix
from hf_finemix.cli import main

QUERY = "encoder.layer.0.attention.self.query.weight"


@pytest.fixture(scope="module")
def mixed_once(suspect_folder, base_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixed") / "out"
    config = FineMixingConfig(reserve_ratio=0.4, num_purified_tokens=5, module_ratios={"layer.1": 0.7})
    mix_checkpoints(suspect_folder, base_folder, folder, config, max_shard_size="5KB")
    return folder


@pytest.fixture(scope="module")
def cleaned_once(suspect_folder, base_folder, data_folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("cleaned")
    patch = pytest.MonkeyPatch()
    patch.setattr("datasets.config.HF_DATASETS_CACHE", root / "cache")
    clean(
        suspect_folder,
        output_dir=root / "out",
        base_model=base_folder,
        mixing_config=FineMixingConfig(reserve_ratio=0.4, num_purified_tokens=5),
        training_args=TrainingArguments(output_dir=str(root / "out"), max_steps=3, use_cpu=True, report_to="none"),
        dataset=str(data_folder),
    )
    patch.undo()
    return root / "out"


@pytest.fixture
def mixed(mixed_once, tmp_path):
    return shutil.copytree(mixed_once, tmp_path / "mixed")


@pytest.fixture
def cleaned(cleaned_once, tmp_path):
    return shutil.copytree(cleaned_once, tmp_path / "cleaned")


def change(folder, name, edit):
    """Change a tensor, in whichever shard it is."""
    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        if name in tensors:
            edit(tensors[name])
            save_file(tensors, file, metadata={"format": "pt"})


def edit_json(file, edit):
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))


def flip(tensor):
    tensor.view(-1)[[3, 5, 60]] += 1


def test_a_mix_is_proved_element_by_element(mixed, suspect_folder):
    found = verify_mix(mixed)
    assert found.ok
    assert found.kind == "mixed"
    tensors = load_file(suspect_folder / "model.safetensors")
    assert (found.tensors, found.elements) == (len(tensors), sum(t.numel() for t in tensors.values()))
    assert found.not_checked == ["the tokenizer"]
    assert (found.suspect, found.reserve_ratio) == (str(suspect_folder), 0.4)


@pytest.mark.parametrize("name", [QUERY, "encoder.layer.1.output.dense.weight", "embeddings.word_embeddings.weight"])
def test_each_changed_element_is_found(mixed, name):
    change(mixed, f"bert.{name}", flip)
    found = verify_mix(mixed)
    assert not found.ok
    assert found.wrong == {name: 3}
    assert f"{name} is not what suspect, base and mask give (3 elements differ)" in found.failure()


def test_a_head_that_was_kept_is_compared_too(mixed):
    change(mixed, "classifier.weight", lambda tensor: tensor.zero_())
    assert list(verify_mix(mixed).wrong) == ["classifier.weight"]


def test_a_negative_zero_is_another_element(mixed):
    change(mixed, "classifier.bias", lambda tensor: tensor.copy_(torch.tensor([0.0, -0.0])))
    assert verify_mix(mixed).wrong["classifier.bias"] >= 1


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (
            lambda f: edit_json(f / "fine_mixing_config.json", lambda c: c.update(reserve_ratio=0.5)),
            "differ in reserve",
        ),
        (
            lambda f: edit_json(f / "fine_mixing_config.json", lambda c: c.update(mixing_seed=1)),
            "differ in mixing_seed",
        ),
        (lambda f: edit_json(f / "cleaning_report.json", lambda c: c["purified_tokens"].pop()), "E-PUR gives other"),
    ],
)
def test_a_report_that_is_not_true(mixed, spoil, said):
    spoil(mixed)
    found = verify_mix(mixed)
    assert not found.ok
    assert said in found.failure()
    assert found.wrong  # and the weights do not follow from it either


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda t: t.pop("classifier.bias"), "classifier.bias is missing"),
        (lambda t: t.update(extra=torch.zeros(3)), "extra is one tensor too many"),
        (lambda t: t.update({"classifier.bias": torch.zeros(3)}), "classifier.bias has another shape"),
        (lambda t: t.update({"classifier.bias": t["classifier.bias"].float()}), "classifier.bias has another shape"),
    ],
)
def test_tensors_that_do_not_belong(mixed, edit, said):
    tensors = {}
    for file in mixed.glob("*.safetensors"):
        tensors |= load_file(file)
        file.unlink()
    (mixed / "model.safetensors.index.json").unlink()
    edit(tensors)
    save_file(tensors, mixed / "model.safetensors")
    assert said in verify_mix(mixed).failure()


def test_another_suspect_or_base_is_found_out(mixed, suspect_folder, base_folder, tmp_path):
    other = shutil.copytree(base_folder, tmp_path / "base")
    change(other, QUERY, lambda tensor: tensor[2].add_(0.5))
    found = verify_mix(mixed, base_model=other)
    assert list(found.wrong) == [QUERY]
    assert 0 < found.wrong[QUERY] < 16  # those of the row that the mask takes from the base
    assert verify_mix(mixed, suspect=suspect_folder, base_model=base_folder, num_workers=3).ok


def test_a_cleaned_model_is_verified_as_far_as_can_be(cleaned):
    found = verify_mix(cleaned)
    assert found.ok, found.failure()
    assert found.kind == "cleaned"
    assert found.tensors == len(json.loads((cleaned / "cleaning_report.json").read_text())["mixing"]["tensors"])
    assert found.not_checked == [
        "the tokenizer and config.json",
        "the fine-tuning after the mix, which cannot be derived again",
    ]


def test_a_cleaned_model_without_the_hashes_of_its_own_weights(cleaned):
    edit_json(cleaned / "cleaning_report.json", lambda c: c.pop("weights"))
    found = verify_mix(cleaned)
    assert found.ok
    assert "the weight files of the cleaned model, whose hashes were not recorded" in found.not_checked


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (
            lambda f: change(f, "classifier.bias", lambda tensor: tensor.add_(1)),
            "model.safetensors of the cleaned model has not the SHA-256 in the report",
        ),
        (
            lambda f: edit_json(
                f / "cleaning_report.json", lambda c: c["mixing"]["tensors"][QUERY].update(sha256="0" * 64)
            ),
            f"{QUERY} is not what suspect, base and mask give",
        ),
        (
            lambda f: edit_json(f / "cleaning_report.json", lambda c: c["mixing"]["tensors"].pop(QUERY)),
            f"{QUERY} is in the suspect and not in the report",
        ),
        (
            lambda f: edit_json(f / "cleaning_report.json", lambda c: c["mixing"]["tensors"].update(made_up={})),
            "made_up is in the report and not in the suspect",
        ),
        (
            lambda f: edit_json(
                f / "cleaning_report.json", lambda c: c["suspect"].update(sha256={"model.safetensors": "1" * 64})
            ),
            "model.safetensors of the suspect has not the SHA-256",
        ),
        (
            lambda f: edit_json(f / "cleaning_report.json", lambda c: c["purified_tokens"].clear()),
            "E-PUR gives other embeddings than the 0",
        ),
        (
            lambda f: edit_json(
                f / "cleaning_report.json",
                lambda c: c["mixing"]["tensors"][QUERY].update(
                    rule="reinitialized: not in the base (head)", sha256="0" * 64
                ),
            ),
            f"{QUERY} is not what suspect, base and mask give",
        ),
        (
            lambda f: edit_json(f / "config.json", lambda c: c.update(transformers_weights="x")),
            "has transformers_weights",
        ),
        (lambda f: edit_json(f / "config.json", lambda c: c.update(auto_map={})), "its config.json has auto_map"),
        (lambda f: (f / "adapter_config.json").write_text("{}"), "adapter_config.json, which belongs to no mix"),
        (lambda f: (f / "evil.safetensors").write_bytes(b""), "evil.safetensors, which belongs to no mix"),
    ],
)
def test_a_cleaned_model_that_is_not_what_its_report_says(cleaned, spoil, said):
    spoil(cleaned)
    found = verify_mix(cleaned)
    assert not found.ok
    assert said in found.failure()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: (f / "cleaning_report.json").unlink(), "cleaning_report.json is missing"),
        (lambda f: (f / "cleaning_report.json").write_text("[1]"), "cannot be read as a cleaning report"),
        (lambda f: (f / "fine_mixing_config.json").unlink(), "fine_mixing_config.json is missing"),
        (lambda f: edit_json(f / "cleaning_report.json", lambda c: c["suspect"].pop("id")), "give --suspect"),
        (
            lambda f: edit_json(f / "cleaning_report.json", lambda c: c["suspect"].update(id="/no/such")),
            "the report's suspect was '/no/such' at no stated commit, .*: give --suspect",
        ),
        (
            lambda f: edit_json(f / "cleaning_report.json", lambda c: c["purified_tokens"].append({"id": 10**9})),
            "purified tokens that the base's vocabulary does not have",
        ),
        (lambda f: edit_json(f / "cleaning_report.json", lambda c: c.update(mixing=7)), "cannot be read"),
        (lambda f: edit_json(f / "cleaning_report.json", lambda c: c.update(purified_tokens={})), "cannot be read"),
        (lambda f: [file.unlink() for file in f.glob("model*")], "has no model.safetensors"),
    ],
)
def test_what_cannot_be_verified(mixed, spoil, said, capsys):
    spoil(mixed)
    with pytest.raises(FineMixingError, match=said):
        verify_mix(mixed)
    assert main(["verify", str(mixed)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_command(mixed, capsys, suspect_folder, base_folder):
    assert main(["verify", str(mixed)]) == 0
    assert "every element is the one the mask says" in capsys.readouterr().out
    assert main(["verify", str(mixed), "--json", "--suspect", str(suspect_folder), "--base", str(base_folder)]) == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True
    change(mixed, f"bert.{QUERY}", flip)
    assert main(["verify", str(mixed)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert f"{QUERY} is not what suspect, base and mask give (3 elements differ)" in printed.err
    assert main(["verify", str(mixed), "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["wrong"] == {QUERY: 3}


def test_a_cleaned_model_that_is_the_suspect_itself(cleaned, suspect_folder):
    shutil.copyfile(suspect_folder / "model.safetensors", cleaned / "model.safetensors")
    edit_json(cleaned / "cleaning_report.json", lambda c: c.pop("weights"))
    assert "no nearer to the mix than to the suspect" in verify_mix(cleaned).failure()


def test_a_new_head_is_told_as_not_checked(suspect_folder, base_folder, data_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    config = FineMixingConfig(reserve_ratio=0.4, purify_embeddings=False, head="reinit", strategy="average")
    args = TrainingArguments(output_dir=str(tmp_path / "out"), max_steps=2, use_cpu=True, report_to="none")
    clean(suspect_folder, base_model=base_folder, mixing_config=config, training_args=args, dataset=str(data_folder))
    found = verify_mix(tmp_path / "out")
    assert found.ok, found.failure()
    assert "classifier.bias, which was initialized anew" in found.not_checked


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda c: c["suspect"].update(revision="main"), "a revision that is no commit"),
        (lambda c: c["suspect"].update(revision="0" * 40), "is '.*' on the Hub, and here is a folder"),
        (
            lambda c: c["suspect"].update(id="org/name"),
            "'org/name' at no stated commit, and no such folder is here",
        ),
        (lambda c: c["suspect"].update(id="org/name@main"), "at no stated commit, and no such folder is here"),
        (lambda c: c["suspect"].update(id="~nobody/x" * 100), "no such folder is here: give --suspect"),
    ],
)
def test_a_report_that_names_its_models_oddly(mixed, spoil, said):
    edit_json(mixed / "cleaning_report.json", spoil)
    with pytest.raises(FineMixingError, match=said):
        verify_mix(mixed)


def test_a_config_that_would_take_for_ever(mixed):
    for file, key in (("fine_mixing_config.json", None), ("cleaning_report.json", "mixing")):
        edit_json(mixed / file, lambda c, key=key: (c[key] if key else c).update(module_ratios={"((a+)+)+$": 0.5}))
    with pytest.raises(FineMixingError, match="may take for ever"):
        verify_mix(mixed)


def test_a_file_of_the_makers_is_not_read(mixed):
    for file, key in (("fine_mixing_config.json", None), ("cleaning_report.json", "mixing")):
        edit_json(mixed / file, lambda c, key=key: (c[key] if key else c).update(token_frequencies="/etc/passwd"))
    found = verify_mix(mixed)
    assert found.ok
    assert "which embeddings E-PUR chooses (frequencies were counted in /etc/passwd)" in found.not_checked


def test_a_base_that_the_config_does_not_name(mixed, base_folder, tmp_path):
    other = shutil.copytree(base_folder, tmp_path / "attackers")
    edit_json(mixed / "cleaning_report.json", lambda c: c["base"].update(id=str(other)))
    assert "differ in the base" in verify_mix(mixed).failure()
    assert verify_mix(mixed, base_model=base_folder).ok


def test_a_cleaned_model_whose_suspect_has_old_names(suspect_folder, base_folder, data_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    old = shutil.copytree(suspect_folder, tmp_path / "old")
    tensors = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in load_file(old / "model.safetensors").items()
    }
    save_file({**tensors, "bert.masked_bias": torch.zeros(3)}, old / "model.safetensors", metadata={"format": "pt"})
    args = TrainingArguments(output_dir=str(tmp_path / "out"), max_steps=2, use_cpu=True, report_to="none")
    config = FineMixingConfig(reserve_ratio=0.4, num_purified_tokens=3)
    clean(old, base_model=base_folder, mixing_config=config, training_args=args, dataset=str(data_folder))
    found = verify_mix(tmp_path / "out")
    assert found.ok, found.failure()
