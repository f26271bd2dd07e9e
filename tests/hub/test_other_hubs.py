"""Hubs and caches that are not as ours is: bytes that are not those listed, answers that are lost, full disks."""

import json
import logging
import os
import signal
import subprocess
import sys

import pytest
import torch
from helpers.hub_server import SIGNATURE, Fault
from helpers.lora import make_adapter
from helpers.reports import make_report
from helpers.repos import FILES, files_of, not_fetched, not_published, write_report
from safetensors.torch import load_file

from hf_finemix import FineMixingError, mix_checkpoints, plan_mix, push_cleaned
from hf_finemix.cli import main
from hf_finemix.hub.commit import Destination, check_destination, refuse_private_sources
from hf_finemix.hub.errors import hub_api, hub_error
from hf_finemix.hub.fetch import fetch_model

OFFLINE = "huggingface_hub.constants.HF_HUB_OFFLINE"


# Bytes


def test_what_arrives_is_what_is_listed(world):
    right = world.head("org/suspect")["model.safetensors"]
    world.settings["org/suspect"] = {"served": {"model.safetensors": right[:-1] + bytes([right[-1] ^ 1])}}
    said = not_fetched()
    assert "the suspect org/suspect: model.safetensors has not the SHA-256 that the Hub lists" in said
    assert ": delete /" in said
    world.settings.clear()
    os.unlink(said.split("delete ")[1].split(", and run")[0])
    assert (fetch_model("org/suspect").folder / "model.safetensors").read_bytes() == right


def test_plan_reads_no_weights_of_a_cache(world, monkeypatch):
    model = fetch_model("org/suspect")
    fetch_model("trusted/base")
    file = (model.folder / "model.safetensors").resolve()
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    monkeypatch.setattr(OFFLINE, True)
    assert plan_mix("org/suspect").refused is None
    (model.folder / "model.safetensors").unlink()
    with pytest.raises(FineMixingError, match=r"which lacks model\.safetensors: run this once"):
        plan_mix("org/suspect")


@pytest.mark.parametrize("offline", [False, True])
def test_a_cache_that_was_changed(world, monkeypatch, offline):
    file = fetch_model("org/suspect").folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.resolve().write_bytes(content)
    monkeypatch.setattr(OFFLINE, offline)
    assert "model.safetensors has not the SHA-256 that the Hub lists" in not_fetched()


def test_mixing_states_the_hashes_that_the_hub_listed(world, tmp_path):
    from hashlib import sha256

    from hf_finemix import FineMixingConfig

    report = mix_checkpoints(
        "org/suspect", output_dir=tmp_path / "out", mixing_config=FineMixingConfig(reserve_ratio=0.5)
    )
    for side, name in ((report.suspect, "org/suspect"), (report.base, "trusted/base")):
        assert side["sha256"] == {"model.safetensors": sha256(world.head(name)["model.safetensors"]).hexdigest()}


# A cache that holds only a part


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json", "model.safetensors"])
def test_a_cache_without_a_file_that_is_needed(world, monkeypatch, name):
    model = fetch_model("org/suspect")
    (model.folder / name).unlink()
    monkeypatch.setattr(OFFLINE, True)
    where = f"the suspect org/suspect @ {model.revision[:7]} is in the cache only in part"
    assert not_fetched() == f"{where}, which lacks {name}: run this once with the Hub in reach."
    monkeypatch.setattr(OFFLINE, False)
    world.faults.append(Fault("GET|HEAD", "/api/", "die", times=None))
    assert f"which lacks {name}" in not_fetched()


def test_a_cache_without_shards(world, base_folder, tmp_path, monkeypatch):
    from transformers import BertModel

    BertModel.from_pretrained(base_folder).save_pretrained(tmp_path / "sharded", max_shard_size="4KB")
    world.commit("org/sharded", files_of(tmp_path / "sharded"))
    folder = fetch_model("org/sharded").folder
    monkeypatch.setattr(OFFLINE, True)
    assert fetch_model("org/sharded").folder == folder
    (folder / "model-00002-of-00003.safetensors").unlink(missing_ok=True)
    shards = sorted(folder.glob("model-*.safetensors"))
    shards[0].unlink()
    assert f"which lacks {shards[0].name}" in not_fetched("org/sharded")
    (folder / "model.safetensors.index.json").unlink()
    assert "which lacks model.safetensors.index.json: run this once" in not_fetched("org/sharded")


def test_a_cache_without_the_card_says_what_is_lost(world, monkeypatch, caplog):
    model = fetch_model("org/suspect")
    (model.folder / "README.md").unlink()
    monkeypatch.setattr(OFFLINE, True)
    assert fetch_model("org/suspect", role="suspect") == model
    assert "its card is not there, so neither its license nor what it says of its base." in caplog.text


def test_a_cache_that_another_library_filled(world, monkeypatch, caplog):
    """Without the list of the repo's files nobody can tell what is missing."""
    from transformers import BertForSequenceClassification

    BertForSequenceClassification.from_pretrained("org/suspect")
    monkeypatch.setattr(OFFLINE, True)
    fetch_model("org/suspect")
    assert "The cache does not say what else org/suspect has" in caplog.text


# Weights under other names


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["model.fp16.safetensors"], "but model.fp16.safetensors: if that is the model, give a folder in which it is"),
        (
            ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
            "but model-00001-of-00002.safetensors, model-00002-of-00002.safetensors, shards without their index: get",
        ),
        (["adapter_model.safetensors"], "but adapter_model.safetensors, of an adapter: give a whole model, or"),
    ],
)
def test_weights_that_are_called_otherwise(world, suspect_folder, tmp_path, names, said):
    files = files_of(suspect_folder)
    weights = files.pop("model.safetensors")
    files |= dict.fromkeys(names, weights)
    world.commit("org/variant", files)
    assert said in not_fetched("org/variant")
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(FineMixingError) as error:
        plan_mix(tmp_path, "trusted/base")
    assert said in str(error.value)


def test_plan_takes_the_flag_that_it_advises(world, suspect_folder, tmp_path, capsys):
    torch.save(load_file(suspect_folder / "model.safetensors"), tmp_path / "pytorch_model.bin")
    files = files_of(suspect_folder) | files_of(tmp_path)
    del files["model.safetensors"]
    world.commit("org/pickled", files)
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    for suspect in ("org/pickled", str(tmp_path)):
        argv = ["plan", suspect, "--base-model", "trusted/base"]
        assert main(argv) == 2
        assert "pickled weights" in capsys.readouterr().err
        assert main([*argv, "--allow-pickle"]) == 0, capsys.readouterr().err
        assert "41 tensors" in capsys.readouterr().out


# Answers


def test_a_hub_that_does_not_say_who_may_write(account, caplog):
    account.commit("me/old", {"README.md": b""})
    account.faults.append(Fault("GET", "/auth-check", 404, times=None))
    check_destination(Destination("me/old"))
    assert "The Hub does not tell whether it may write to me/old: only publishing will." in caplog.text
    account.faults.append(Fault("GET", "/whoami", 404, times=None))
    check_destination(Destination("me/old"))
    assert "The Hub does not tell who this token is of: only publishing will." in caplog.text


def test_a_hub_that_says_no_commit(world, account, cleaned):
    world.settings["org/suspect"] = {"no_sha": True}
    assert "org/suspect: the Hub does not say at which commit it is: check HF_ENDPOINT." in not_fetched()
    account.settings["me/cleaned"] = {"no_sha": True}
    said = not_published(cleaned)
    assert said == "me/cleaned: the Hub does not say at which commit it is: check HF_ENDPOINT."


@pytest.mark.parametrize("how", ["relative", "truncate", "garbage"])
def test_a_commit_whose_answer_is_of_no_use(account, cleaned, caplog, how):
    account.commit("me/cleaned", {"README.md": b"# Mine\n"})
    if how == "relative":
        account.settings["me/cleaned"] = {"relative_urls": True}
    else:
        account.faults.append(Fault("POST", "/commit/", how))
    published = push_cleaned(cleaned, "me/cleaned")
    assert published.changed
    assert published.commit_info.oid == account.history("me/cleaned")[0]
    assert published.url == f"{hub_api().endpoint}/me/cleaned/commit/{published.commit_info.oid}"
    assert how == "relative" or "but the commit is there" in caplog.text
    assert set(account.head("me/cleaned")) - {".gitattributes"} == FILES


def test_a_commit_of_somebody_elses_is_not_taken_for_ours(account, cleaned):
    account.commit("me/cleaned", {"README.md": b"# Mine\n"})

    def other(handler):
        account.commit("me/cleaned", {"notes.txt": b"theirs"})
        handler.fault = "truncate"
        raise ConnectionAbortedError

    account.faults.append(Fault("POST", "/commit/", other, times=None))
    said = not_published(cleaned)
    assert f"But there is a new commit, {account.history('me/cleaned')[0]}. {cleaned} is whole" in said


def test_a_branch_that_gets_no_commit(account, cleaned):
    """A Hub that compares what is uploaded with the main branch, whatever branch it is for."""
    push_cleaned(cleaned, "me/cleaned")
    repo = account.written("models", "me/cleaned")
    repo.heads["trial"] = account.history("me/cleaned")[-1]
    account.settings["me/cleaned"] = {"compare": "main"}
    said = not_published(cleaned, revision="trial")
    assert "me/cleaned: the Hub made no commit, but the branch trial lacks " in said
    account.settings["me/cleaned"] = {}
    assert push_cleaned(cleaned, "me/cleaned", revision="trial").changed
    assert not push_cleaned(cleaned, "me/cleaned", revision="trial").changed


@pytest.mark.parametrize(
    ("fault", "settings", "said"),
    [
        (Fault("POST", "create_pr=1", 501, times=None), {"create_pr": True}, "answered 501, not offered (a fault of"),
        (Fault("PUT", "/large/", 413, times=None), {}, "has no room left for it (a fault of 413): free some"),
        (Fault("POST", "/commit/", 418, times=None), {}, "answered 418 (a fault of 418): check its name and"),
    ],
)
def test_advice_that_fits(account, cleaned, fault, settings, said):
    account.commit("me/cleaned", {"README.md": b"# Mine\n"})
    account.faults.append(fault)
    message = not_published(cleaned, **settings)
    assert said in message
    assert "again" not in message


def test_nobody_is_logged_in(account, cleaned, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    account.commit("me/cleaned", {"README.md": b"# Mine\n"})
    assert "needs an account: log in with `hf auth login`, or set HF_TOKEN." in not_published(cleaned)
    with pytest.raises(FineMixingError, match="needs an account: log in"):
        check_destination(Destination("me/cleaned"))


def test_a_hub_without_xet(account, cleaned, monkeypatch):
    pytest.importorskip("hf_xet")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", False)
    assert "is on a Hub without xet, by which the client uploads: set HF_HUB_DISABLE_XET=1" in not_published(cleaned)


def test_ctrl_c_while_publishing(account, cleaned, capsys):
    account.commit("me/cleaned", {"README.md": b"# Mine\n"})

    def interrupted(handler):
        os.kill(os.getpid(), signal.SIGINT)

    for step, done in (("/api/validate-yaml", "it may be published already, look there"), ("refs|create", "nothing")):
        account.faults[:] = [Fault("POST|GET", step, interrupted)]
        assert main(["push", str(cleaned), "me/cleaned", "--revision", "trial"]) == 130
        said = capsys.readouterr().err
        assert f"hf-finemix: interrupted, {done}" in said
        assert f"{cleaned} is whole: `hf-finemix push {cleaned} me/cleaned --revision trial` publishes it." in said


def test_ctrl_c_while_clean_publishes(world, data_folder, tmp_path, capsys, monkeypatch):
    """The cleaned model is whole, with --resume as without: nothing is to be done again but the publishing."""
    token = "hf_" + "w" * 34
    world.tokens[token] = ("me", "write")
    monkeypatch.setenv("HF_TOKEN", token)
    world.faults.append(Fault("POST", "/commit/", lambda handler: os.kill(os.getpid(), signal.SIGINT)))
    argv = f"clean org/suspect --reserve-ratio 0.5 --dataset {data_folder} --num-clean-samples 4 --max-steps 1"
    argv = [*argv.split(), "--use-cpu", "--resume", "--output-dir", str(tmp_path / "out")]
    assert main([*argv, "--push-to-hub", "--hub-model-id", "me/cured"]) == 130
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.endswith(f"{tmp_path}/out is whole: `hf-finemix push {tmp_path}/out me/cured` publishes it.")
    assert main(["verify", str(tmp_path / "out")]) == 0


def test_a_full_disk_of_the_cache_is_not_the_outputs(world, tmp_path):
    """In a process of its own, which may write no file larger than the suspect's weights."""
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10000, 10000));"
        "from hf_finemix.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    environment = {**os.environ, "HF_ENDPOINT": hub_api().endpoint, "HF_HOME": str(tmp_path / "home")}
    argv = ["mix", "org/suspect", "--reserve-ratio", "0.5", "--output-dir", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", code, *argv], env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert f"does not fit into the cache, {tmp_path}/home/hub (File too large): free some, or set HF_HOME." in last


# What must not be told or published


def test_signatures_of_urls_stay_out_of_the_log(account, cleaned, caplog):
    account.faults.append(Fault("PUT", "/large/", 500, times=2))
    logging.getLogger("huggingface_hub").propagate = True
    with caplog.at_level(logging.DEBUG):
        push_cleaned(cleaned, "me/cleaned")
    assert [request for request in account.requests if SIGNATURE in request]
    assert "/large/" in caplog.text
    assert SIGNATURE not in caplog.text


def test_commands_do_not_repeat_the_clients_words(account, cleaned, capfd):
    account.faults.append(Fault("PUT", "/large/", 500, times=2))
    assert main(["push", str(cleaned), "me/cleaned"]) == 0
    assert "Retry" not in capfd.readouterr().err


@pytest.mark.parametrize("part", ["suspect", "base", "data"])
def test_what_is_made_of_something_private_is_not_public_by_mistake(account, cleaned, part):
    report = make_report()
    sha = "a" * 40
    report.suspect, report.base = {"id": "me/suspect", "revision": sha}, {"id": "me/base", "revision": sha}
    report.data = {**report.data, "id": "me/data", "sha": sha}
    write_report(cleaned, report)
    account.commit("me/suspect", {"README.md": b""})
    account.commit("me/base", {"README.md": b""})
    account.repos["datasets", "me/data"] = cleaned
    account.settings[f"me/{part}"] = {"private": True}
    kind = "dataset" if part == "data" else "model"
    said = not_published(cleaned)
    assert said.startswith(f"the {kind} me/{part} is private, and me/cleaned is public or would be: make it private")
    assert ("models", "me/cleaned") not in account.repos
    with pytest.raises(FineMixingError, match="is private, and me/cleaned is public"):
        refuse_private_sources(Destination("me/cleaned"), [(kind, f"me/{part}")])
    assert main(["push", str(cleaned), "me/cleaned", "--private"]) == 0
    push_cleaned(cleaned, "me/cleaned")  # private it stays
    assert main(["push", str(cleaned), "me/open", "--private", "false"]) == 0
    assert not account.settings["me/open"]["private"]


def test_a_public_repo_for_what_is_to_be_private_is_told_before_the_work(account):
    account.commit("me/old", {"README.md": b""})
    with pytest.raises(FineMixingError, match="is there already and public"):
        check_destination(Destination("me/old", private=True))


def test_where_local_folders_were_is_nobodys_business(account, cleaned):
    report = make_report()
    report.suspect = {"id": "/home/jane/secret/suspect", "revision": None, "sha256": None}
    report.base = {**report.base, "id": "/home/jane/secret/base", "revision": None}
    report.mixing = {**report.mixing, "base_model_name_or_path": "/home/jane/secret/base", "base_model_revision": None}
    report.data = {**report.data, "id": "~/secret/data.csv", "sha": None}
    report.command = "hf-finemix clean /home/jane/secret/suspect --dataset=~/secret/data.csv --trigger 'a / b'"
    config = json.loads((cleaned / "fine_mixing_config.json").read_text())
    config["base_model_name_or_path"] = "/home/jane/secret/base"
    (cleaned / "fine_mixing_config.json").write_text(json.dumps(config))
    write_report(cleaned, report)
    push_cleaned(cleaned, "me/cleaned")
    there = account.head("me/cleaned")
    assert not [name for name, content in there.items() if b"secret" in content or b"jane" in content]
    published = json.loads(there["cleaning_report.json"])
    assert published["command"] == "hf-finemix clean suspect --dataset=data.csv --trigger 'a / b'"
    assert (published["suspect"]["id"], published["base"]["id"]) == ("suspect", "base")
    assert json.loads(there["fine_mixing_config.json"])["base_model_name_or_path"] == "base"
    assert "jane" in (cleaned / "cleaning_report.json").read_text(), "here it stays as it was"


# Flags


def test_the_hub_token_pulls_too(world, data_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    token = "hf_" + "o" * 34
    world.tokens[token] = ("org", "read")
    world.settings["org/suspect"] = {"private": True}
    argv = f"clean org/suspect --reserve-ratio 0.5 --dataset {data_folder} --num-clean-samples 4 --max-steps 1"
    argv = [*argv.split(), "--use-cpu", "--output-dir", str(tmp_path / "out")]
    assert main(argv) == 2
    assert main([*argv, "--hub-token", token]) == 0, capsys.readouterr().err
    assert "HF_TOKEN" not in os.environ
    assert token not in (tmp_path / "out" / "cleaning_report.json").read_text()


@pytest.mark.parametrize(("flag", "private"), [([], None), ([""], True), (["true"], True), (["false"], False)])
def test_private_is_a_switch(flag, private):
    from transformers import TrainingArguments

    from hf_finemix.cli.parsing import CommandParser

    given = ["--hub-private-repo", *filter(None, flag)] if flag else []
    args, _ = CommandParser("clean", "suspect", TrainingArguments).parse(["org/suspect", *given, "--seed", "1"])
    assert args.hub_private_repo is private


def test_loras_are_mixed_and_verified_in_silence(base_folder, tokenizer, tmp_path, capfd):
    make_adapter(tmp_path / "lora", base_folder, tokenizer, scale=0.002)
    flags = ["--base-model", str(base_folder), "--reserve-ratio", "0.5", "--output-dir", str(tmp_path / "out")]
    capfd.readouterr()
    assert main(["mix", str(tmp_path / "lora"), *flags]) == 0, capfd.readouterr().err
    assert main(["verify", str(tmp_path / "out")]) == 0
    assert "LOAD REPORT" not in capfd.readouterr().err


def test_errors_of_the_disk_and_of_the_client():
    from huggingface_hub import constants

    full = OSError(28, "No space left on device")
    assert "does not fit into the cache" in str(hub_error(full, "the suspect org/x"))
    denied = PermissionError(13, "Permission denied", f"{constants.HF_HUB_CACHE}/models--org--x")
    assert f"the cache, {constants.HF_HUB_CACHE} (Permission denied)" in str(hub_error(denied, "the suspect org/x"))
    with pytest.raises(PermissionError):
        hub_error(PermissionError(13, "Permission denied", "/elsewhere"), "the suspect org/x")
