"""Models and data by Hub id, with the real client over HTTP on loopback."""

import json
import os
import subprocess
import sys

import pytest
from helpers.hub_server import HubServer

from hf_finemix import FineMixingError
from hf_finemix.hub.cache import cached_folder
from hf_finemix.hub.fetch import fetch_model
from hf_finemix.io.folder import LocalModel


def test_a_local_folder_wins(base_folder):
    assert fetch_model(base_folder) == LocalModel(str(base_folder), base_folder, None)
    assert cached_folder(str(base_folder)) == base_folder


@pytest.mark.parametrize("name", ["/no/such/folder", "a/b/c", "org/na me", "../x/y", ""])
def test_names_that_are_neither_folder_nor_id(name):
    with pytest.raises(FineMixingError, match="neither a folder nor a Hub id"):
        fetch_model(name, role="base")
    assert cached_folder(name) is None


def test_a_file_is_no_model(base_folder):
    with pytest.raises(FineMixingError, match="neither a folder"):
        fetch_model(base_folder / "config.json")


@pytest.fixture
def hub(suspect_folder, base_folder, data_folder, tmp_path):
    """The tiny models and data on a Hub; the suspect's repo holds things that must not be fetched."""
    import shutil

    repo = tmp_path / "repo"
    shutil.copytree(suspect_folder, repo)
    (repo / "pytorch_model.bin").write_bytes(b"a pickle")
    (repo / "modeling_evil.py").write_text("raise SystemExit")
    (repo / "training_args.bin").write_bytes(b"a pickle")
    with HubServer({"org/suspect": repo, "org/base": base_folder}, {"org/data": data_folder}) as server:
        yield server


def run(server, tmp_path, *arguments, **variables):
    """The command line in a process of its own, because the client reads HF_ENDPOINT when it is imported."""
    environment = {**os.environ, "HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "hf_home"), **variables}
    return subprocess.run(
        [sys.executable, "-m", "hf_finemix", *arguments], capture_output=True, text=True, env=environment, cwd=tmp_path
    )


@pytest.mark.processes
def test_clean_by_ids(hub, tmp_path):
    arguments = "clean org/suspect --base-model org/base --dataset org/data --reserve-ratio 0.5 --max-steps 2 --json"
    result = run(hub, tmp_path, *arguments.split(), "--use-cpu", "--output-dir", "out")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["suspect"]["id"] == "org/suspect"
    assert report["suspect"]["revision"] == hub.sha("models", "org/suspect")
    assert report["base"]["revision"] == hub.sha("models", "org/base")
    assert report["data"]["sha"] == hub.sha("datasets", "org/data")
    # Everything was fetched at the commit that the report states, and neither code nor pickles at all.
    fetched = [request for request in hub.requests if "/resolve/" in request]
    assert fetched
    assert all("/resolve/" + hub.sha("models", "org/suspect") in r for r in fetched if "org/suspect" in r)
    assert not [request for request in fetched if "org/suspect" in request and (".bin" in request or ".py" in request)]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "- org/base\n- org/suspect\n" in card

    # Without the Hub the same is found in the cache, at the same commit.
    offline = run(hub, tmp_path, *arguments.split(), "--use-cpu", "--output-dir", "out2", HF_HUB_OFFLINE="1")
    assert offline.returncode == 0, offline.stderr
    assert json.loads(offline.stdout)["suspect"]["revision"] == hub.sha("models", "org/suspect")
    first, second = ((tmp_path / out / "model.safetensors").read_bytes() for out in ("out", "out2"))
    assert first == second

    # And with it nothing is fetched twice.
    count = len([request for request in hub.requests if request.startswith("GET") and "/resolve/" in request])
    again = run(hub, tmp_path, "mix", *arguments.split()[1:4], "--reserve-ratio", "0.5", "--output-dir", "mixed")
    assert again.returncode == 0, again.stderr
    assert len([r for r in hub.requests if r.startswith("GET") and "/resolve/" in r]) == count


@pytest.mark.processes
@pytest.mark.parametrize(
    ("arguments", "variables", "said"),
    [
        (["org/nothing", "--base-model", "org/base"], {}, "org/nothing is not a local folder and not on the Hub"),
        (["org/suspect", "--suspect-revision", "v9", "--base-model", "org/base"], {}, "no such revision"),
        (["org/suspect", "--base-model", "org/base"], {"HF_ENDPOINT": "http://127.0.0.1:9"}, "cannot be reached"),
        (["org/suspect", "--base-model", "org/base"], {"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE"),
    ],
)
def test_what_the_hub_does_not_give(hub, tmp_path, arguments, variables, said):
    ratio = ["--reserve-ratio", "0.4"]
    result = run(hub, tmp_path, "mix", *arguments, *ratio, "--output-dir", "out", **variables)
    assert result.returncode == 2
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not list(tmp_path.glob("out*"))


@pytest.mark.processes
def test_plan_mix_and_verify_by_ids(hub, tmp_path):
    flags = ["org/suspect", "--base-model", "org/base", "--reserve-ratio", "0.4", "--json"]
    planned = run(hub, tmp_path, "plan", *flags)
    assert planned.returncode == 0, planned.stderr
    plan = json.loads(planned.stdout)
    # Of the weights nothing but headers was fetched, and their size is told.
    assert not [file for file in (tmp_path / "hf_home").rglob("*") if file.name.endswith(".safetensors")]
    sizes = {kind: len(hub.files("models", kind)["model.safetensors"]) for kind in ("org/suspect", "org/base")}
    assert sizes["org/suspect"] <= plan["suspect"]["download"] < sizes["org/suspect"] + 200_000
    assert plan["disk"]["download"] == plan["suspect"]["download"] + plan["base"]["download"]
    assert plan["suspect"]["revision"] == hub.sha("models", "org/suspect")

    mixed = run(hub, tmp_path, "mix", *flags, "--output-dir", "out")
    assert mixed.returncode == 0, mixed.stderr
    report = json.loads(mixed.stdout)
    assert report["suspect"]["id"] == "org/suspect"
    assert report["suspect"]["revision"] == hub.sha("models", "org/suspect")
    assert report["suspect"]["security"]["not_taken"] == ["modeling_evil.py", "pytorch_model.bin", "training_args.bin"]
    assert report["mixing"]["base_model_revision"] == hub.sha("models", "org/base")
    assert not [
        request for request in hub.requests if "/resolve/" in request and (".bin" in request or ".py" in request)
    ]
    told = {rule["rule"]: rule["tensors"] for rule in plan["rules"]}
    rules = [entry["rule"].removeprefix("purified and ") for entry in report["mixing"]["tensors"].values()]
    assert told == {rule: rules.count(rule) for rule in rules}

    verified = run(hub, tmp_path, "verify", "out")
    assert verified.returncode == 0, verified.stderr
    assert f"org/base @ {hub.sha('models', 'org/base')}" in verified.stdout
    hub.repos["models", "org/mixed"] = tmp_path / "out"
    by_id = run(hub, tmp_path, "verify", "org/mixed")
    assert by_id.returncode == 0, by_id.stderr
    offline = run(hub, tmp_path, "plan", *flags, HF_HUB_OFFLINE="1")
    assert offline.returncode == 0, offline.stderr
    assert json.loads(offline.stdout)["rules"] == plan["rules"]
    assert json.loads(offline.stdout)["disk"]["download"] == 0
    missing = run(hub, tmp_path, "plan", "org/nothing", "--base-model", "org/base")
    assert (missing.returncode, len(missing.stderr.splitlines())) == (2, 1)
    assert "org/nothing is not a local folder and not on the Hub" in missing.stderr
