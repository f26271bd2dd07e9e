"""Publishing over HTTP with the real client: what goes up, what never does, and every way in which it can fail."""

import hashlib
import json
import os
import re
import shutil

import pytest
from helpers.hub_server import Fault
from helpers.reports import make_report, measured
from helpers.repos import FILES, not_published, write_report
from helpers.toy import READ, WRITE
from huggingface_hub import HfApi, ModelCard

from hf_finemix import CleaningReport, FineMixingError, push_cleaned
from hf_finemix.cli import main
from hf_finemix.report.publish import Destination, check_destination

# What goes up


def test_one_commit_with_the_files_of_a_cleaned_model(account, cleaned):
    for name in ("training_args.bin", "optimizer.pt", "trainer_state.json", "notes.txt", ".env", "modeling.py"):
        (cleaned / name).write_text("not for others")
    (cleaned / "checkpoint-1").mkdir()
    shutil.copy(cleaned / "model.safetensors", cleaned / "checkpoint-1")
    before = len(account.history("me/cleaned")) if ("models", "me/cleaned") in account.repos else 1
    published = push_cleaned(cleaned, "me/cleaned")
    there = account.head("me/cleaned")
    assert set(there) - {".gitattributes"} == FILES == set(published.files)
    assert len(account.history("me/cleaned")) == before + 1
    for name, content in there.items():
        if name in FILES:
            assert published.files[name] == (len(content), hashlib.sha256(content).hexdigest())
            assert content == (cleaned / name).read_bytes()
    assert published.changed
    assert published.removed == []
    assert account.history("me/cleaned")[0] in published.url
    card = ModelCard(there["README.md"].decode())
    assert card.data.base_model == ["org/base", "org/suspect"]
    assert [result.metric_value for result in card.data.eval_results] == [0.905, 0.895, 0.071, 0.123]


def test_the_same_again_changes_nothing(account, cleaned):
    first = push_cleaned(cleaned, "me/cleaned")
    again = push_cleaned(cleaned, "me/cleaned")
    assert (first.changed, again.changed) == (True, False)
    assert len(set(account.history("me/cleaned"))) == len(account.history("me/cleaned"))


def test_shards(account, cleaned):
    from safetensors.torch import load_file
    from transformers import BertForSequenceClassification

    model = BertForSequenceClassification.from_pretrained(cleaned)
    (cleaned / "model.safetensors").unlink()
    model.save_pretrained(cleaned, max_shard_size="4KB")
    write_report(cleaned, make_report())
    shards = {file.name for file in cleaned.glob("*.safetensors")}
    assert len(shards) > 2
    published = push_cleaned(cleaned, "me/cleaned")
    assert shards | {"model.safetensors.index.json"} <= set(published.files)
    loaded = BertForSequenceClassification.from_pretrained("me/cleaned", token=False)
    expected = {name: tensor for shard in shards for name, tensor in load_file(cleaned / shard).items()}
    assert all(loaded.state_dict()[name].equal(tensor) for name, tensor in expected.items())
    # One file in their place: nobody may load the old ones.
    (cleaned / "model.safetensors.index.json").unlink()
    for shard in shards:
        (cleaned / shard).unlink()
    model.save_pretrained(cleaned)
    write_report(cleaned, make_report())
    account.commit("me/cleaned", {"pytorch_model.bin": b"a pickle", "notes.txt": b"mine"})
    again = push_cleaned(cleaned, "me/cleaned")
    assert set(again.removed) == shards | {"model.safetensors.index.json", "pytorch_model.bin"}
    assert set(account.head("me/cleaned")) - {".gitattributes"} == FILES | {"notes.txt"}


def test_a_private_repo_and_a_branch(account, cleaned):
    push_cleaned(cleaned, "me/secret", private=True, revision="trial", commit_message="A try")
    assert account.settings["me/secret"]["private"]
    assert set(account.head("me/secret", "trial")) >= FILES
    assert "config.json" not in account.head("me/secret")
    assert HfApi(token=WRITE).list_repo_commits("me/secret", revision="trial")[0].title == "A try"


def test_a_public_repo_is_not_taken_for_a_private_one(account, cleaned):
    account.commit("me/public", {"README.md": b"# Mine\n"})
    assert "is there already and public" in not_published(cleaned, "me/public", private=True)
    assert set(account.head("me/public")) == {"README.md"}


def test_a_pull_request_on_the_suspects_own_repo(account, cleaned):
    theirs = {"README.md": b"---\nlicense: mit\n---\n# Theirs\n", "pytorch_model.bin": b"pickle", "config.json": b"{}"}
    account.commit("org/suspect", theirs)
    before = account.history("org/suspect")
    published = push_cleaned(cleaned, "org/suspect", create_pr=True)
    assert account.history("org/suspect") == before, "their branch was written to"
    (request,) = account.pull_requests("org/suspect")
    assert published.url.endswith("/discussions/1")
    assert "# A cleaned copy of `org/suspect`" in request["description"]
    assert "Weakened, not removed" in request["description"] or "Removed, as far" in request["description"]
    assert "![" not in request["description"]
    assert published.removed == ["pytorch_model.bin"]
    assert "pytorch_model.bin" not in request["files"]
    card = request["files"]["README.md"].decode()
    assert "# Theirs" in card
    assert ModelCard(card).data.license == "mit"
    again = push_cleaned(cleaned, "org/suspect", revision=request["revision"])
    (after,) = account.pull_requests("org/suspect")
    assert after["files"] == request["files"]
    assert not again.changed


def test_a_card_that_is_there_keeps_its_text(account, cleaned, caplog):
    account.commit("me/cleaned", {"README.md": b"---\nlicense: mit # mine\n---\n# Mine\n\nWords.\n"})
    push_cleaned(cleaned, "me/cleaned")
    card = account.head("me/cleaned")["README.md"].decode()
    assert card.startswith("---\nlicense: mit # mine\n")
    assert card.endswith("# Mine\n\nWords.\n")
    report = make_report(after=measured(0.5, 0.1, 0.1))
    write_report(cleaned, report)
    (cleaned / "README.md").write_text((cleaned / "README.md").read_text() + "\nLocal words.\n")
    push_cleaned(cleaned, "me/cleaned")
    card = account.head("me/cleaned")["README.md"].decode()
    assert "50.0 %" in card
    assert "90.5 %" not in card
    assert card.endswith("# Mine\n\nWords.\n")
    assert "has a text of its own, which stays" in caplog.text


def test_words_of_ones_own_in_the_folder_go_up(account, cleaned):
    (cleaned / "README.md").write_text((cleaned / "README.md").read_text() + "\nLocal words.\n")
    push_cleaned(cleaned, "me/cleaned")
    assert account.head("me/cleaned")["README.md"].decode().endswith("\nLocal words.\n")


def test_card_command_rebuilds_the_card(cleaned, capsys):
    whole = (cleaned / "README.md").read_text()
    (cleaned / "README.md").unlink()
    assert main(["card", str(cleaned)]) == 0
    assert (cleaned / "README.md").read_text() == whole
    (cleaned / "README.md").write_text("# Words\n")
    assert main(["card", str(cleaned), "--print-only"]) == 0
    assert "A cleaned copy" in capsys.readouterr().out
    assert (cleaned / "README.md").read_text() == "# Words\n"
    assert main(["card", str(cleaned / "nowhere")]) == 2


def test_push_command(account, cleaned, capsys):
    assert main(["push", str(cleaned), "me/cleaned", "--private", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert set(told["files"]) == FILES
    assert main(["push", str(cleaned), "me/cleaned"]) == 0
    assert "nothing new: " in capsys.readouterr().out
    assert main(["push", str(cleaned)]) == 2
    assert "REPO_ID" in capsys.readouterr().err


# No secret goes up


def uploaded(hub):
    """All bodies as they were sent, and all files as they are stored: small ones are sent in base64."""
    return b"\0".join([*(content for _, content in hub.uploads), *hub.head("me/cleaned").values()])


def test_no_token_is_in_any_byte_that_goes_up(account, cleaned, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "a-key-that-stands-nowhere-else")
    push_cleaned(cleaned, "me/cleaned")
    assert account.uploads
    for secret in (WRITE, os.environ["WANDB_API_KEY"]):
        assert secret.encode() not in uploaded(account)
    # It travels in the header that is there for it alone, and not along with the bytes of large files.
    assert any(header == f"Bearer {WRITE}" for _, header in account.authorizations)
    assert not [line for line, _ in account.authorizations if WRITE in line]


@pytest.mark.parametrize("name", ["config.json", "cleaning_report.json", "tokenizer_config.json", "README.md"])
@pytest.mark.parametrize("secret", [WRITE, "hf_" + "Q7" * 17, "from-the-environment"])
def test_a_planted_secret_stops_it(account, cleaned, monkeypatch, name, secret):
    monkeypatch.setenv("SOME_SERVICE_TOKEN", "from-the-environment")
    text = (cleaned / name).read_text()
    if name.endswith("json"):
        text = json.dumps({**json.loads(text), "command": secret, "hub_token": secret})
    (cleaned / name).write_text(text if name.endswith("json") else f"{text}\n{secret}\n")
    message = not_published(cleaned)
    assert f"{name} holds an access token or a secret" in message
    assert secret not in message
    assert not [request for request in account.requests if request.startswith(("POST", "PUT"))]


def test_a_secret_across_two_chunks_of_a_file(tmp_path, monkeypatch):
    from hf_finemix.hub import secret_scan

    monkeypatch.setattr(secret_scan, "CHUNK_BYTES", 5000)
    for place in (0, 4990, 4999, 5000, 9995):
        (tmp_path / "file").write_bytes(b"x" * place + WRITE.encode() + b"x" * 7000)
        assert secret_scan.holds_secret(tmp_path / "file", set())
    (tmp_path / "file").write_bytes(b"x" * 20_000)
    assert not secret_scan.holds_secret(tmp_path / "file", {b"secret"})


# Folders that are not published


def test_folders_that_are_no_cleaned_model(account, cleaned, tmp_path):
    assert "is missing" in not_published(tmp_path / "nowhere")
    report = CleaningReport.load(cleaned)
    report.training = {}
    report.save(cleaned)
    assert "a mix that was not fine-tuned" in not_published(cleaned)
    assert not account.uploads


def test_weights_that_are_not_the_reports(account, cleaned):
    file = cleaned / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert "is not the file that the report" in not_published(cleaned)


@pytest.mark.parametrize("name", ["config.json", "fine_mixing_config.json", "figures/before_after.png"])
def test_files_that_are_missing(account, cleaned, name):
    (cleaned / name).unlink()
    assert name in not_published(cleaned)


def test_links_out_of_the_folder(account, cleaned, tmp_path):
    (tmp_path / "private.json").write_text('{"model_type": "bert"}')
    (cleaned / "config.json").unlink()
    (cleaned / "config.json").symlink_to(tmp_path / "private.json")
    assert "a link to a file outside its folder" in not_published(cleaned)


def test_figures_that_a_report_names_elsewhere(account, cleaned):
    values = json.loads((cleaned / "cleaning_report.json").read_text())
    values["figures"] = ["../../etc/passwd"]
    (cleaned / "cleaning_report.json").write_text(json.dumps(values))
    assert "a figure of its report" in not_published(cleaned)


# A Hub that does not take it


@pytest.mark.parametrize(
    ("token", "repo", "said"),
    [
        ("", "me/cleaned", "needs an account|token is not valid|not on the Hub"),
        ("hf_" + "x" * 34, "me/cleaned", "the token is not valid: log in again"),
        (READ, "reader/cleaned", "with write access"),
        (WRITE, "other/cleaned", "with write access|not on the Hub"),
    ],
)
def test_accounts_that_may_not_write(account, cleaned, monkeypatch, token, repo, said):
    account.commit("other/cleaned", {"README.md": b"# Theirs\n"})
    monkeypatch.setenv("HF_TOKEN", token)
    assert re.search(said, not_published(cleaned, repo))
    assert set(account.head("other/cleaned")) == {"README.md"}
    with pytest.raises(FineMixingError, match=said):
        check_destination(Destination(repo))


def test_names_that_are_none(account, cleaned):
    for name in ("a/b/c", "../x", "", "a b"):
        with pytest.raises(FineMixingError, match="no Hub id"):
            check_destination(Destination(name))
        assert "no Hub id" in not_published(cleaned, name)


def test_a_pull_request_on_nothing(account, cleaned):
    assert "is not on the Hub" in not_published(cleaned, "org/nothing", create_pr=True)
    with pytest.raises(FineMixingError, match="is not on the Hub"):
        check_destination(Destination("org/nothing", create_pr=True))


def test_a_destination_that_is_fine(account):
    check_destination(Destination("me/new"))
    check_destination(Destination("new"))
    account.commit("me/old", {"README.md": b""})
    check_destination(Destination("me/old"))
    account.commit("org/suspect", {"README.md": b""})
    check_destination(Destination("org/suspect", create_pr=True))


def test_a_branch_that_moves_meanwhile(account, cleaned):
    account.commit("me/cleaned", {"README.md": b"# One\n"})
    account.faults.append(
        Fault("POST", "/preupload/", lambda handler: account.commit("me/cleaned", {"README.md": b"# Two\n"}))
    )
    assert "changed by somebody else in the meantime" in not_published(cleaned)
    assert account.head("me/cleaned")["README.md"] == b"# Two\n"
    assert push_cleaned(cleaned, "me/cleaned").changed
    assert account.head("me/cleaned")["README.md"].decode().endswith("# Two\n")


def test_a_card_whose_yaml_is_broken(account, cleaned):
    account.commit("me/cleaned", {"README.md": b"---\na: [\n---\n"})
    assert "the YAML of README.md of me/cleaned cannot be read: mend it there" in not_published(cleaned)


def test_no_room_left(account, cleaned):
    account.quota = 1000
    assert "has no room left" in not_published(cleaned)
    assert "model.safetensors" not in account.head("me/cleaned")


STEPS = {
    "create": ("POST", "/api/repos/create"),
    "look": ("GET", r"/api/models/me/cleaned"),
    "card": ("POST", "/api/validate-yaml"),
    "preupload": ("POST", "/preupload/"),
    "batch": ("POST", r"/info/lfs/objects/batch"),
    "upload": ("PUT", ".*"),
    "commit": ("POST", "/commit/"),
}
WHATS = (401, 403, 404, 409, 412, 429, 500, "die", "truncate", "garbage")


@pytest.mark.parametrize("what", WHATS)
@pytest.mark.parametrize("step", STEPS)
def test_every_fault_at_every_step(account, cleaned, step, what, record_property):
    """One clear line; the repo as it was, the folder whole, and once the fault is gone, a second try does it."""
    account.commit("me/cleaned", {"README.md": b"# Mine\n"})
    before, files = account.head("me/cleaned"), {p: p.read_bytes() for p in cleaned.rglob("*") if p.is_file()}
    account.faults.append(Fault(*STEPS[step], what, times=None))
    try:
        push_cleaned(cleaned, "me/cleaned")
        message = "published all the same"
        # Only where the client has no need of that answer: the repo is there already, or the bytes have arrived, or
        # the commit is there, as a look at it tells.
        lost = {("upload", "truncate"), ("upload", "garbage"), ("commit", "truncate"), ("commit", "garbage")}
        assert (step, what) in lost or step == "create"
        assert set(account.head("me/cleaned")) - {".gitattributes"} == FILES
    except FineMixingError as error:
        message = str(error)
        again = f"`hf-finemix push {cleaned} me/cleaned` publishes it."
        assert message.endswith(f"Nothing was published, and {cleaned} is whole: {again}")
        assert account.head("me/cleaned") == before, "half of it was published"
    record_property("message", message)
    assert "\n" not in message
    assert WRITE not in message
    assert {p: p.read_bytes() for p in cleaned.rglob("*") if p.is_file()} == files
    account.faults.clear()
    push_cleaned(cleaned, "me/cleaned")
    assert set(account.head("me/cleaned")) - {".gitattributes"} == FILES


@pytest.mark.parametrize("what", [401, 403, 409, 429, 500, "die", "garbage"])
def test_a_repo_that_cannot_be_made(account, cleaned, what):
    account.faults.append(Fault(*STEPS["create"], what, times=None))
    assert "Nothing was published" in not_published(cleaned) or what == "garbage"


@pytest.mark.parametrize("what", ["die", "garbage", 500])
def test_a_pull_request_whose_answer_is_lost(account, cleaned, what):
    account.commit("org/suspect", {"README.md": b"# Theirs\n"})
    account.faults.append(Fault(*STEPS["commit"], what, times=None))
    said = not_published(cleaned, "org/suspect", create_pr=True)
    assert "Whether a pull request was opened is not known: look there before you try again." in said


def test_a_server_that_falls_silent(account, cleaned, monkeypatch):
    from huggingface_hub import get_session

    monkeypatch.setattr(get_session(), "timeout", 0.2)
    account.commit("me/cleaned", {"README.md": b"# Mine\n"})
    account.stall_seconds = 1
    account.faults.append(Fault("POST", "/commit/", "stall", times=None))
    assert "cannot be reached" in not_published(cleaned)
    account.faults.clear()


def test_a_second_try_uploads_only_what_is_missing(account, cleaned):
    account.faults.append(Fault("POST", "/commit/", 500, times=None))
    not_published(cleaned)
    account.faults.clear()
    puts = [request for request in account.requests if request.startswith("PUT")]
    assert len(puts) == 1
    push_cleaned(cleaned, "me/cleaned")
    assert [request for request in account.requests if request.startswith("PUT")] == puts
