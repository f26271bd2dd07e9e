import getpass
import json
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from hf_finemix.cli import main


@pytest.fixture
def no_driver(monkeypatch):
    monkeypatch.setattr("hf_finemix.cli.env.shutil.which", lambda name: None)
    monkeypatch.setattr("sys.platform", "linux")


def test_what_is_printed_is_what_is_installed(no_driver, capsys):
    assert main(["env", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    libraries = [
        "hf_finemix",
        "torch",
        "transformers",
        "accelerate",
        "peft",
        "datasets",
        "huggingface_hub",
        "safetensors",
    ]
    assert list(found) == [*libraries, "python", "platform", "cores", "memory", "accelerator"]
    assert [found[name] for name in libraries] == [version(name) for name in libraries]
    assert (found["python"], found["accelerator"]) == (platform.python_version(), "none")
    assert main(["env"]) == 0
    assert capsys.readouterr().out == "".join(f"- {name}: {value}\n" for name, value in found.items())


def test_nothing_of_the_user_is_in_it(no_driver, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_NobodyMustEverSeeThis")
    assert main(["env"]) == 0
    out = capsys.readouterr().out
    for secret in ("hf_Nobody", str(Path.home()), sys.prefix, str(Path.cwd()), platform.node()):
        assert secret not in out
    assert getpass.getuser() not in out.split()


def test_what_torch_runs_on(no_driver, monkeypatch, capsys):
    monkeypatch.setattr("hf_finemix.cli.env.shutil.which", lambda name: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert main(["env"]) == 0
    assert "- accelerator: none that torch can use\n" in capsys.readouterr().out
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
    assert main(["env"]) == 0
    assert "- accelerator: 2 × Some GPU\n" in capsys.readouterr().out


def test_nothing_heavy_is_imported():
    code = """
import shutil, sys
shutil.which = lambda name: None
sys.platform = "linux"
from hf_finemix.cli import main
main(["env"])
print(sorted({"torch", "transformers", "numpy", "datasets", "huggingface_hub"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_a_word_too_many(capsys):
    assert main(["env", "all"]) == 2
    assert "unknown argument 'all'" in capsys.readouterr().err
