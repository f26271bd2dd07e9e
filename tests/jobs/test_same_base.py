"""Every door takes the base at the commit that was asked for, writes that down, and what it wrote verifies."""

import json
import shutil

import pytest
from helpers.lora import make_adapter
from helpers.repos import files_of
from helpers.toy import drifted, make_config, make_rows, make_tokenizer
from transformers import BertForSequenceClassification, BertModel, TrainingArguments

from hf_finemix import (
    FineMixingConfig,
    FineMixingError,
    FineMixingTrainer,
    clean,
    mix_checkpoints,
    plan_mix,
    verify_mix,
)
from hf_finemix.cli import main
from hf_finemix.config import CONFIG_NAME

TOKEN = "hf_" + "w" * 34
SETTINGS = {"use_cpu": True, "disable_tqdm": True, "report_to": "none", "save_strategy": "no", "max_steps": 1}


@pytest.fixture
def world(hub, base_folder, tmp_path, monkeypatch):
    """A Hub with a base whose main branch has moved on since its branch `old` and its tag `v1`."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets_cache")
    hub.commit("trusted/base", files_of(base_folder))
    repo = hub.written("models", "trusted/base")
    repo.heads["old"] = repo.tags["v1"] = repo.heads["main"]
    later = drifted(BertModel.from_pretrained(base_folder), scale=0.02, seed=9)
    later.save_pretrained(tmp_path / "later")
    hub.commit("trusted/base", {"model.safetensors": (tmp_path / "later" / "model.safetensors").read_bytes()})
    return hub


def sha_of(world, named):
    repo = world.written("models", "trusted/base")
    return repo.heads["main"] if named in (None, "main") else repo.tags["v1"]


def train(suspect, base, out, revision="main", **settings):
    from datasets import Dataset

    tokenizer = make_tokenizer()
    rows = Dataset.from_dict(make_rows(8)).map(lambda row: tokenizer(row["sentence"]), remove_columns="sentence")
    trainer = FineMixingTrainer(
        model=BertForSequenceClassification.from_pretrained(suspect, revision=revision, dtype="float32"),
        args=TrainingArguments(str(out), **{**SETTINGS, **settings}),
        train_dataset=rows.rename_column("label", "labels"),
        processing_class=tokenizer,
        mixing_config=base,
    )
    trainer.train()
    return trainer


def by_trainer(suspect, base, out, data):
    trainer = train(suspect, base, out)
    trainer.save_model()
    trainer.create_model_card()
    return out


def by_pushing(suspect, base, out, data):
    train(suspect, base, out, push_to_hub=True, hub_strategy="end", hub_model_id="me/cured").push_to_hub()
    return "me/cured"


def by_clean(suspect, base, out, data):
    args = TrainingArguments(str(out), **SETTINGS)
    clean(suspect, output_dir=out, mixing_config=base, training_args=args, dataset=str(data), num_clean_samples=8)
    return out


def by_mix(suspect, base, out, data):
    mix_checkpoints(suspect, output_dir=out, mixing_config=base)
    return out


DOORS = {"trainer": by_trainer, "push": by_pushing, "clean": by_clean, "mix": by_mix}
BASES = ("folder", "id", "branch", "tag", "sha")


@pytest.mark.parametrize("named", BASES)
@pytest.mark.parametrize("door", DOORS)
def test_what_every_door_wrote_verifies(
    world, door, named, base_folder, suspect_folder, data_folder, tmp_path, monkeypatch
):
    world.tokens[TOKEN] = ("me", "write")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    base = shutil.copytree(base_folder, tmp_path / "base") if named == "folder" else "trusted/base"
    revision = {"branch": "old", "tag": "v1", "sha": sha_of(world, "v1")}.get(named)
    config = FineMixingConfig(base, revision, reserve_ratio=0.5, num_purified_tokens=5)
    wrote = DOORS[door](str(suspect_folder), config, tmp_path / "out", data_folder)
    config = json.loads((tmp_path / "out" / CONFIG_NAME).read_text())
    report = json.loads((tmp_path / "out" / "cleaning_report.json").read_text())
    commit = None if named == "folder" else sha_of(world, revision)
    assert (config["base_model_revision"], report["base"]["revision"]) == (commit, commit)
    places = {"suspect": suspect_folder, "base_model": base} if door == "push" and named == "folder" else {}
    places |= {"suspect": suspect_folder} if door == "push" else {}
    found = verify_mix(wrote, **places)
    assert found.ok, found.failure()

    # One byte of the base: of a weight that the mix has from it.
    weights = base / "model.safetensors" if named == "folder" else cached_base(tmp_path, commit)
    content = bytearray(weights.read_bytes())
    mixed_in = len(content) - 1 if door != "mix" or named != "folder" else place_from_base(base, wrote)
    content[mixed_in] ^= 64
    weights.unlink()
    weights.write_bytes(content)
    if named == "folder":
        assert not verify_mix(wrote, **places).ok
    else:
        with pytest.raises(FineMixingError, match=r"model\.safetensors has not the SHA-256 that the Hub lists"):
            verify_mix(wrote, **places)


def cached_base(tmp_path, commit):
    folder = tmp_path / "hub_cache" / "models--trusted--base" / "snapshots" / commit
    return (folder / "model.safetensors").resolve()


def place_from_base(base, mixed):
    """Where in the base's file the first weight lies that the mix has from there."""
    import torch
    from safetensors.torch import load_file

    name = "encoder.layer.0.attention.self.query.weight"
    header = json.loads((base / "model.safetensors").read_bytes()[8:][: _header_size(base)])
    ours, theirs = load_file(mixed / "model.safetensors"), load_file(base / "model.safetensors")
    same = (ours[f"bert.{name}"].view(-1) == theirs[name].half().view(-1)) & (theirs[name].view(-1) != 0)
    element = int(torch.nonzero(same)[0])
    return 8 + _header_size(base) + header[name]["data_offsets"][0] + 4 * element + 3


def _header_size(base):
    return int.from_bytes((base / "model.safetensors").read_bytes()[:8], "little")


@pytest.mark.parametrize("given", ["argument", "argument with config", "argument@", "config@"])
@pytest.mark.parametrize("door", ["trainer", "clean", "mix", "plan"])
def test_a_pinned_base_is_the_one_that_is_mixed(world, door, given, suspect_folder, data_folder, tmp_path):
    """In whichever way name and revision are given: together, apart, in one word."""
    settings = {"reserve_ratio": 0.5, "purify_embeddings": False}
    base, config = "trusted/base", FineMixingConfig(base_model_revision="v1", **settings)
    if given == "argument with config":
        config = FineMixingConfig("trusted/base", "v1", **settings)
    elif given == "argument@":
        base, config = "trusted/base@v1", FineMixingConfig(**settings)
    elif given == "config@":
        base, config = None, FineMixingConfig("trusted/base@v1", **settings)
    out = tmp_path / "out"
    if door == "trainer":
        trainer = FineMixingTrainer(
            model=BertForSequenceClassification.from_pretrained(suspect_folder, dtype="float32"),
            args=TrainingArguments(str(out), **SETTINGS),
            base_model=base,
            mixing_config=config,
        )
        trainer._mix(trainer.model, 0.5)
        revision = trainer.config_of_mix.base_model_revision
    elif door == "clean":
        args = TrainingArguments(str(out), **SETTINGS)
        more = {"training_args": args, "dataset": str(data_folder), "num_clean_samples": 8}
        report = clean(suspect_folder, output_dir=out, base_model=base, mixing_config=config, **more)
        revision = report.base["revision"]
    elif door == "mix":
        revision = mix_checkpoints(suspect_folder, base, out, config).base["revision"]
    else:
        revision = plan_mix(suspect_folder, base, config).base["revision"]
    assert revision == sha_of(world, "v1")


def test_an_adapters_own_revision_is_planned_as_it_is_mixed(world, base_folder, tokenizer, tmp_path):
    make_adapter(tmp_path / "lora", base_folder, tokenizer, scale=0.002)
    path = tmp_path / "lora" / "adapter_config.json"
    content = {**json.loads(path.read_text()), "base_model_name_or_path": "trusted/base", "revision": "v1"}
    path.write_text(json.dumps(content))
    config = FineMixingConfig(reserve_ratio=0.5, purify_embeddings=False)
    mixed = mix_checkpoints(tmp_path / "lora", output_dir=tmp_path / "out", mixing_config=config)
    assert plan_mix(tmp_path / "lora").base["revision"] == mixed.base["revision"] == sha_of(world, "v1")


@pytest.mark.parametrize("mode", ["merge", "adapter"])
@pytest.mark.parametrize("door", ["clean", "mix"])
def test_what_was_made_of_an_adapter_verifies(world, door, mode, base_folder, tokenizer, data_folder, tmp_path):
    make_adapter(tmp_path / "lora", base_folder, tokenizer, labels=("negative", "positive"), scale=0.002)
    config = FineMixingConfig("trusted/base", "v1", reserve_ratio=0.5, num_purified_tokens=5, adapter_mode=mode)
    wrote = DOORS[door](str(tmp_path / "lora"), config, tmp_path / "out", data_folder)
    found = verify_mix(wrote)
    assert found.ok, found.failure()
    assert found.base == f"trusted/base @ {sha_of(world, 'v1')}"
    weights = cached_base(tmp_path, sha_of(world, "v1"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 64
    weights.write_bytes(content)
    with pytest.raises(FineMixingError, match=r"model\.safetensors has not the SHA-256 that the Hub lists"):
        verify_mix(wrote)


def test_a_revision_of_a_folder_is_none(base_folder, suspect_folder, tmp_path):
    config = FineMixingConfig(base_folder, "v1", reserve_ratio=0.5)
    for do in (
        lambda: plan_mix(suspect_folder, mixing_config=config),
        lambda: mix_checkpoints(suspect_folder, mixing_config=config),
    ):
        with pytest.raises(FineMixingError, match="is a folder here, of which there is no revision v1: leave"):
            do()


def test_the_revision_of_one_base_is_not_anothers(caplog):
    config = FineMixingConfig("org/one", "v1")
    assert config.with_base("org/two").base_model_revision is None
    assert "base_model_revision v1 is of org/one: org/two is taken without it." in caplog.text
    assert config.with_base("org/one").base_model_revision == "v1"
    assert config.with_base("org/one@v2").base_model_revision == "v2"
    with pytest.raises(FineMixingError, match="org/one@v2 and the revision v1 beside it are two"):
        FineMixingConfig("org/one@v2", "v1")


def test_a_resumed_training_verifies(world, suspect_folder, tmp_path):
    """The commit of the base is known from the checkpoint, though nothing is mixed again."""
    config = FineMixingConfig("trusted/base", "v1", reserve_ratio=0.5, purify_embeddings=False)
    steps = {"save_strategy": "steps", "save_steps": 1}
    train(suspect_folder, config, tmp_path / "out", **steps)
    from datasets import Dataset

    tokenizer = make_tokenizer()
    rows = Dataset.from_dict(make_rows(8)).map(lambda row: tokenizer(row["sentence"]), remove_columns="sentence")
    trainer = FineMixingTrainer(
        model=BertForSequenceClassification(make_config()),
        args=TrainingArguments(str(tmp_path / "out"), **{**SETTINGS, **steps, "max_steps": 2}),
        train_dataset=rows.rename_column("label", "labels"),
        processing_class=tokenizer,
        mixing_config=config,
    )
    trainer.train(resume_from_checkpoint=True)
    trainer.save_model()
    trainer.create_model_card()
    report = json.loads((tmp_path / "out" / "cleaning_report.json").read_text())
    assert report["base"]["revision"] == sha_of(world, "v1")


def test_suspect_and_model_and_data_with_their_revision(world, suspect_folder, data_folder, tmp_path, capsys):
    world.commit("org/suspect", files_of(suspect_folder))
    first = world.history("org/suspect")[0]
    world.commit("org/suspect", {"config.json": b"{}"})
    world.repos["datasets", "org/data"] = data_folder
    data = f"org/data@{world.sha('datasets', 'org/data')}"
    flags = ["--base-model", "trusted/base@v1", "--reserve-ratio", "0.5", "--output-dir", str(tmp_path / "out")]
    more = ["--dataset", data, "--num-clean-samples", "4", "--max-steps", "1", "--use-cpu", "--json"]
    assert main(["clean", f"org/suspect@{first}", *flags, *more]) == 0, capsys.readouterr().err
    report = json.loads(capsys.readouterr().out)
    assert report["suspect"]["id"], report["suspect"]["revision"] == ("org/suspect", first)
    assert report["base"]["revision"] == sha_of(world, "v1")
    assert (report["data"]["id"], report["data"]["sha"]) == ("org/data", world.sha("datasets", "org/data"))
    assert main(["verify", str(tmp_path / "out"), "--base", "trusted/base@old"]) == 0, capsys.readouterr().err
    assert main(["evaluate", f"org/suspect@{first}", "--dataset", data, "--use-cpu"]) == 0, capsys.readouterr().err
    assert main(["plan", f"org/suspect@{first}", "--suspect-revision", "v9", "--base-model", "trusted/base"]) == 2
    assert "are two: give one of them" in capsys.readouterr().err


@pytest.mark.parametrize("pinned", [False, True])
def test_a_suspect_by_its_id_is_stated_at_its_commit(world, suspect_folder, tmp_path, pinned):
    """transformers does not say which commit a model is from; the cache does, where it holds only one."""
    world.commit("org/suspect", files_of(suspect_folder))
    first = world.history("org/suspect")[0]
    later = {"model.safetensors": world.head("trusted/base")["model.safetensors"]} if pinned else {}
    world.commit("org/suspect", {"README.md": b"# A suspect\n", **later})
    wanted = first if pinned else world.history("org/suspect")[0]
    config = FineMixingConfig("trusted/base", "v1", reserve_ratio=0.5, purify_embeddings=False)
    trainer = train("org/suspect", config, tmp_path / "out", revision=wanted)
    trainer.save_model()
    trainer.create_model_card()
    report = json.loads((tmp_path / "out" / "cleaning_report.json").read_text())
    assert report["suspect"]["revision"] == wanted
    assert verify_mix(tmp_path / "out").ok
    if pinned:  # another one beside it, and nobody can tell any more
        BertForSequenceClassification.from_pretrained("org/suspect")
        trainer.create_model_card()
        report = json.loads((tmp_path / "out" / "cleaning_report.json").read_text())
        assert report["suspect"] == {"id": "org/suspect", "revision": None, "sha256": None}
        with pytest.raises(FineMixingError, match="at no stated commit, and no such folder is here: give"):
            verify_mix(tmp_path / "out")
