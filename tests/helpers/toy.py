"""Tiny models, their tokenizer and the rows of a toy task: words of one feeling among neutral ones."""

import os
from functools import lru_cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
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


@lru_cache
def sentences(count=32, seed=0):
    """The same rows as a Trainer takes them."""
    rows, tokenizer = make_rows(count, seed), make_tokenizer()
    return [{**tokenizer(text), "labels": label} for text, label in zip(rows["sentence"], rows["label"], strict=True)]


def weights(model):
    """A copy of all that a model has."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
