"""
Suspects on the Hub that mean harm (hostile_repos.py), each cleaned by id with a memory and a time limit.

docs/hub.md has the table of them, made by scripts/hub_tables.py.
"""

import json
import os
import resource
import signal
import sys
from pathlib import Path

import pytest
from helpers.hostile_repos import HOSTILE_REPOS, SISTER_ID, STRANGERS, SUSPECT_ID, Canary, HostileRepo, live

pytestmark = pytest.mark.hostile

SECONDS, BYTES = 60, 3 << 30


def run_apart(argv: list[str], folder: Path) -> tuple[int, str, str]:
    """The command line in a process of its own, which may neither grow nor last: exit status, output and errors."""
    from hf_finemix.cli import main

    files = [folder / "stdout", folder / "stderr"]
    pid = os.fork()
    if pid:
        _, status = os.waitpid(pid, 0)
        return os.waitstatus_to_exitcode(status), *(file.read_text(errors="replace") for file in files)
    code = 70
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        signal.alarm(SECONDS)
        sys.stdout, sys.stderr = (open(file, "w", encoding="utf-8") for file in files)  # noqa: SIM115
        os.dup2(sys.stdout.fileno(), 1)
        os.dup2(sys.stderr.fileno(), 2)
        os.chdir(folder)
        code = main(argv)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


@pytest.fixture
def world(hub, suspect_folder, base_folder, tmp_path):
    """A Hub with the base, a sister of the suspect, and a place for the suspect; a canary."""
    honest = {path.name: path.read_bytes() for path in suspect_folder.iterdir()}
    hub.commit("trusted/base", {path.name: path.read_bytes() for path in base_folder.iterdir()})
    hub.commit(SISTER_ID, honest)
    return hub, honest, Canary.at(tmp_path)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("repo", HOSTILE_REPOS, ids=lambda repo: repo.name)
def test_hostile_repo(repo: HostileRepo, world, data_folder, tmp_path, record_property):
    hub, honest, canary = world
    hub.commit(SUSPECT_ID, repo.make(honest, canary))
    flags = f"--base-model trusted/base --dataset {data_folder} --reserve-ratio 0.5 --max-steps 1 --use-cpu"
    argv = ["clean", SUSPECT_ID, *flags.split(), "--output-dir", "out", "--trigger", "cf", "--target-label", "1"]
    code, _, errors = run_apart([*argv, "--num-clean-samples", "4", *repo.flags], tmp_path)
    last = errors.strip().splitlines()[-1] if errors.strip() else ""
    record_property("what", repo.what)
    record_property("outcome", last.removeprefix("hf-finemix: error: ") if code else "cleaned, nothing got through")

    assert not canary.path.exists(), "code was run"
    asked = [request for request in hub.requests if any(stranger in request for stranger in STRANGERS)]
    assert not asked, "something was asked for elsewhere"
    assert code == (2 if repo.expect == "refused" else 0), errors[-2000:]
    assert "Traceback" not in errors
    out = tmp_path / "out"
    if repo.expect == "refused":
        assert last.startswith("hf-finemix: error: ")
        assert "please report" not in last
        assert repo.hint in last.lower()
        assert not list(tmp_path.glob("out*"))
        return
    for path in out.rglob("*"):
        assert not path.is_symlink()
        assert canary.secret.encode() not in (path.read_bytes() if path.is_file() else b""), path
        assert path.is_dir() or path.suffix in (".safetensors", ".json", ".png", ".md", ".txt", ".jinja"), path
    card = (out / "README.md").read_text(encoding="utf-8")
    assert not live(card, canary.text)
    config = json.loads((out / "config.json").read_text())
    assert not {"auto_map", "custom_pipelines", "attribute_map", "transformers_weights"} & set(config)
