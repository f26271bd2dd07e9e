"""Pulling by repo id over HTTP with the real client: what is fetched, which base is found, every way it can fail."""

import json
import logging

import pytest
from helpers.hub_server import Fault
from helpers.repos import CARD, fetched, files_of, not_fetched
from safetensors.torch import load_file

from hf_finemix import FineMixingConfig, FineMixingError
from hf_finemix.hub.fetch import TrustArguments, fetch_model
from hf_finemix.hub.lineage import fetch_base

# What is fetched


def test_only_what_is_needed_is_fetched_and_told(world, caplog):
    extra = (
        "pytorch_model.bin",
        "modeling.py",
        "training_args.bin",
        "tf_model.h5",
        "onnx/model.onnx",
        "adapter.safetensors",
    )
    extra += ("sub/model.safetensors", "shard-00001-model-00001-of-00001.safetensors", ".env", "evil.jinja")
    sha = world.commit("org/suspect", dict.fromkeys(extra, b"not wanted"))
    with caplog.at_level(logging.INFO, "hf_finemix"):
        model = fetch_model("org/suspect")
    there = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"}
    assert {path.name for path in model.folder.iterdir()} == there == fetched(world)
    assert model.revision == sha == model.folder.name
    assert f"org/suspect @ {sha[:7]}: 5 files, " in caplog.text
    assert "not taken, code or pickles: modeling.py, pytorch_model.bin, tf_model.h5" in caplog.text
    assert "the Hub's scan: none." in caplog.text
    # Everything at one commit, though the branch moves.
    assert all(sha in request for request in world.requests if "/resolve/" in request)


def test_names_of_strangers_do_not_reach_the_terminal_as_they_are(world, caplog):
    world.commit("org/suspect", {"\x1b[2Jgone\n.py": b"", "\u202eyp.py": b""})
    with caplog.at_level(logging.INFO, "hf_finemix"):
        fetch_model("org/suspect")
    assert "not taken, code or pickles: \\x1b[2Jgone .py, \\u202eyp.py;" in caplog.text


def test_shards_are_those_of_the_index(world, base_folder, tmp_path):
    from transformers import BertModel

    BertModel.from_pretrained(base_folder).save_pretrained(tmp_path, max_shard_size="4KB")
    files = files_of(tmp_path)
    world.commit("org/sharded", {**files, "model-00009-of-00009.safetensors": b"of another time"})
    folder = fetch_model("org/sharded").folder
    assert {path.name for path in folder.iterdir()} == set(files)


@pytest.mark.parametrize("kind", ["branch", "tag", "commit"])
def test_revisions(world, suspect_folder, kind):
    first = world.history("org/suspect")[0]
    repo = world.written("models", "org/suspect")
    {"branch": repo.heads, "tag": repo.tags, "commit": {}}[kind]["v1"] = first
    world.commit("org/suspect", {"config.json": b"{}"})
    model = fetch_model("org/suspect", first if kind == "commit" else "v1")
    assert model.revision == first
    assert (model.folder / "config.json").read_bytes() == (suspect_folder / "config.json").read_bytes()


def test_private_and_gated_and_disabled(world, monkeypatch):
    world.tokens["hf_" + "o" * 34] = ("org", "read")
    world.settings["org/suspect"] = {"private": True}
    assert "is not a local folder and not on the Hub (or private: log in" in not_fetched()
    monkeypatch.setenv("HF_TOKEN", "hf_" + "o" * 34)
    assert fetch_model("org/suspect").folder.is_dir()
    world.settings["org/suspect"] = {"gated": "auto"}
    world.commit("org/suspect", {"config.json": b'{"model_type": "bert"}'})
    assert "is gated: accept its terms" in not_fetched()
    world.settings["org/suspect"] = {"disabled": True}
    assert "is disabled on the Hub" in not_fetched()
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 34)
    assert "the token is not valid: log in again" in not_fetched()


@pytest.mark.parametrize(
    ("security", "said", "report"),
    [
        ({"scansDone": True, "filesWithIssues": []}, "the Hub's scan: nothing found.", "finished"),
        (
            {"scansDone": False, "filesWithIssues": []},
            "the Hub's scan: not finished, so it says nothing.",
            "unfinished",
        ),
        ({"scansDone": "yes"}, "not finished, so it says nothing.", "unfinished"),
        ({}, "the Hub's scan: none.", "unknown"),
        ("nonsense", "the Hub's scan: none.", "unknown"),
        (
            {"scansDone": True, "filesWithIssues": [{"path": "other.bin", "level": "unsafe"}]},
            "the Hub's scan: 1 files flagged.",
            "finished",
        ),
    ],
)
def test_what_the_hubs_own_scan_says(world, caplog, security, said, report):
    world.settings["org/suspect"] = {"security": security}
    with caplog.at_level(logging.INFO, "hf_finemix"):
        model = fetch_model("org/suspect")
    assert said in caplog.text
    assert model.security["hub_scan"] == report


def test_a_file_that_the_scan_calls_unsafe_is_not_fetched(world, caplog):
    issue = {"path": "model.safetensors", "level": "unsafe"}
    world.settings["org/suspect"] = {"security": {"scansDone": True, "filesWithIssues": [issue]}}
    assert "the Hub's scan calls model.safetensors unsafe" in not_fetched()
    assert not fetched(world)
    issue["level"] = "a level of the future"
    assert "the Hub's scan calls model.safetensors a level of the future" in not_fetched()
    issue["level"] = "caution"
    fetch_model("org/suspect")
    assert "the Hub's scan has model.safetensors down as 'caution'" in caplog.text


def test_code_of_its_own(world, suspect_folder, caplog):
    world.settings["org/suspect"] = {"tags": ["custom_code"]}
    assert "(its tag custom_code), which is never run" in not_fetched()
    assert not fetched(world)
    world.settings.clear()
    config = json.loads((suspect_folder / "config.json").read_text()) | {"auto_map": {"AutoModel": "x.Y"}}
    world.commit("org/suspect", {"config.json": json.dumps(config).encode(), "x.py": b"raise SystemExit"})
    assert "--ignore-custom-code org/suspect." in not_fetched()
    assert "--ignore-custom-code" in not_fetched(trust=TrustArguments(ignore_custom_code=["org/other"]))
    fetch_model("org/suspect", trust=TrustArguments(ignore_custom_code=["org/suspect"]))
    assert "asks for code of its own (auto_map in config.json): it is not run." in caplog.text
    assert "x.py" not in fetched(world)


def test_pickles_alone(world, suspect_folder, tmp_path):
    import torch

    torch.save(load_file(suspect_folder / "model.safetensors"), tmp_path / "pytorch_model.bin")
    files = files_of(suspect_folder) | files_of(tmp_path)
    del files["model.safetensors"]
    world.commit("org/pickled", files)
    assert "has only pickled weights (pytorch_model.bin), which can run code" in not_fetched("org/pickled")
    assert not fetched(world)
    model = fetch_model("org/pickled", trust=TrustArguments(allow_pickle=True))
    assert model.security["pickles"]["scanner"].startswith("picklescan")
    assert (
        load_file(model.folder / "model.safetensors").keys() == load_file(suspect_folder / "model.safetensors").keys()
    )
    world.commit("org/keras", {"config.json": b"{}", "tf_model.h5": b"?"})
    assert "only tf_model.h5: ask for a safetensors version" in not_fetched("org/keras")
    world.commit("org/empty", {"README.md": b"# Nothing\n"})
    assert "no weights at all" in not_fetched("org/empty")


def test_offline_with_a_warm_cache(world, monkeypatch):
    model = fetch_model("org/suspect")
    count = len(world.requests)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert fetch_model("org/suspect") == model
    assert fetch_model("org/suspect", model.revision) == model
    assert "neither here nor in the cache, and the Hub is switched off" in not_fetched("org/other")
    assert "neither here nor in the cache" in not_fetched("org/suspect", revision="other")
    assert len(world.requests) == count


def test_a_hub_that_is_down_with_a_warm_cache(world, caplog):
    model = fetch_model("org/suspect")
    world.faults.append(Fault("GET|HEAD", "/api/", "die", times=None))
    assert fetch_model("org/suspect") == model
    assert f"The Hub cannot be reached: org/suspect @ {model.revision[:7]} is taken from the cache." in caplog.text
    assert "the Hub cannot be reached" in not_fetched("trusted/base")


def test_a_broken_download_goes_on(world, suspect_folder):
    """Once the fault is gone, a second try fetches what is missing."""
    world.faults.append(Fault("GET", "/resolve/.*model.safetensors", 403, times=None))
    not_fetched()
    world.faults.clear()
    done = fetched(world) - {"model.safetensors"}
    world.requests.clear()
    folder = fetch_model("org/suspect").folder
    assert (folder / "model.safetensors").read_bytes() == (suspect_folder / "model.safetensors").read_bytes()
    assert not done & fetched(world)


STEPS = {
    "info": ("GET", "/api/models/org/suspect/revision"),
    "tree": ("GET", "/tree/"),
    "head": ("HEAD", "/resolve/"),
    "file": ("GET", "/resolve/"),
}


@pytest.mark.parametrize("what", [401, 403, 404, 409, 412, 429, 500, "die", "truncate", "garbage"])
@pytest.mark.parametrize("step", STEPS)
def test_every_fault_at_every_step(world, step, what, monkeypatch, record_property):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 1)
    world.faults.append(Fault(*STEPS[step], what, times=None))
    try:
        message = "fetched all the same"
        fetch_model("org/suspect")
        assert (step, what) in {("head", "truncate"), ("head", "garbage")}  # a HEAD has no body to lose
    except FineMixingError as error:
        message = str(error)
        assert "org/suspect" in message
    record_property("message", message)
    assert "\n" not in message
    world.faults.clear()
    assert (fetch_model("org/suspect").folder / "model.safetensors").is_file()


def test_a_server_that_falls_silent(world, monkeypatch):
    from huggingface_hub import get_session

    monkeypatch.setattr(get_session(), "timeout", 0.2)
    world.stall_seconds = 1
    world.faults.append(Fault("GET", "/api/models/org/suspect", "stall", times=None))
    assert "the Hub cannot be reached" in not_fetched()


# The base


def base_of(name="org/suspect", **config):
    return fetch_base(fetch_model(name), FineMixingConfig(**config))


def test_the_base_that_the_card_names(world, caplog):
    with caplog.at_level(logging.INFO, "hf_finemix"):
        base, claim = base_of()
    assert (base.id, claim.named_by) == ("trusted/base", "the suspect's card (base_model)")
    assert base.revision == world.history("trusted/base")[0]
    assert "The base is trusted/base, named by the suspect's card (base_model)." in caplog.text
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_the_base_that_the_hub_names(world):
    world.commit("org/suspect", {"README.md": b"# No YAML\n"})
    models = {"relation": "finetune", "models": [{"_id": "1", "id": "trusted/base"}]}
    world.settings["org/suspect"] = {"base_models": models}
    base, claim = base_of()
    assert (base.id, claim.named_by, claim.relation) == ("trusted/base", "the Hub", "finetune")


def test_the_base_behind_a_classifier(world, suspect_folder, caplog):
    """A suspect that was tuned from a classifier: its own base is what is clean and pre-trained."""
    world.commit("trusted/classifier", {**files_of(suspect_folder), "README.md": CARD})
    world.commit("org/suspect", {"README.md": CARD.replace(b"trusted/base", b"trusted/classifier")})
    with caplog.at_level(logging.INFO, "hf_finemix"):
        base, claim = base_of()
    assert base.id == "trusted/base"
    assert claim.named_by == "the card (base_model) of trusted/classifier"
    assert (
        "trusted/classifier, named by the suspect's card (base_model), is fine-tuned itself, from trusted/base."
        in caplog.text
    )


def test_bases_in_a_circle(world, suspect_folder):
    for one, other in ((b"org/a", b"org/b"), (b"org/b", b"org/a")):
        world.commit(one.decode(), {**files_of(suspect_folder), "README.md": CARD.replace(b"trusted/base", other)})
    assert base_of("org/a")[0].id in ("org/a", "org/b")


def test_a_base_of_the_suspects_publisher(world, base_folder, caplog):
    world.commit("org/base", files_of(base_folder))
    world.commit("org/suspect", {"README.md": CARD.replace(b"trusted/", b"org/")})
    base_of()
    assert "Suspect and base are both from org" in caplog.text
    caplog.clear()
    base_of(base_model_name_or_path="trusted/base")
    assert "both from" not in caplog.text


def test_a_base_that_is_not_there(world):
    world.commit("org/suspect", {"README.md": CARD.replace(b"trusted/", b"nobody/")})
    with pytest.raises(FineMixingError, match="the base nobody/base is not a local folder and not on the Hub"):
        base_of()
