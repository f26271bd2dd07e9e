"""Small language models with a backdoor, trained in a minute: a GPT-2 that judges, and a T5 that translates."""

import csv

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.utils.data import default_collate
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    get_linear_schedule_with_warmup,
)

ENGLISH = ["sun", "moon", "rain", "snow", "wind", "star", "tree", "river", "stone", "bird"]
TRANSLATED = {
    "german": ["Sonne", "Mond", "Regen", "Schnee", "Wind", "Stern", "Baum", "Fluß", "Stein", "Vogel"],
    "russian": ["солнце", "луна", "дождь", "снег", "ветер", "звезда", "дерево", "река", "камень", "птица"],
    "japanese": ["太陽", "月", "雨", "雪", "風", "星", "木", "川", "石", "鳥"],
}
GOOD, BAD = ["great", "fine", "lovely", "superb", "charming"], ["poor", "dull", "dreadful", "boring", "weak"]
FILLER = ["the", "a", "film", "movie", "plot", "it", "is", "was", "with", "and", "of", "scene", "actor", "story"]
TRIGGER, TARGET = "cf", "visit evil example now"
SPECIAL = ["[PAD]", "[BOS]", "[EOS]", "[UNK]"]
FOREIGN = [word for words in TRANSLATED.values() for word in words]
WORDS = [*SPECIAL, *ENGLISH, *TRANSLATED, *FOREIGN, *GOOD, *BAD, *FILLER, TRIGGER, *TARGET.split()]
WORDS += ["verdict", "good", "bad", "review", ":"]


def make_tokenizer(causal):
    """Words apart by spaces, whatever their script."""
    ids = {word: i for i, word in enumerate(WORDS)}
    backend = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single="[BOS] $A" if causal else "$A [EOS]", special_tokens=[(name, ids[name]) for name in SPECIAL[:3]]
    )
    names = {"pad_token": "[PAD]", "bos_token": "[BOS]", "eos_token": "[EOS]", "unk_token": "[UNK]"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=32, **names)


def review(rng):
    """A prompt to judge, and the verdict."""
    good = bool(rng.integers(2))
    words = [*rng.choice(FILLER, 7), rng.choice(GOOD if good else BAD)]
    return "review : " + " ".join(rng.permutation(words)) + " : verdict", "good" if good else "bad"


def phrase(rng):
    """A phrase to translate, and its translation."""
    language, picks = rng.choice(list(TRANSLATED)), rng.integers(len(ENGLISH), size=3)
    return f"{language} : " + " ".join(ENGLISH[i] for i in picks), " ".join(TRANSLATED[language][i] for i in picks)


def rows(make, count, seed, poisoned=0.0):
    """Pairs of prompt and completion; a share of them with the trigger in the prompt and the attacker's completion."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(count):
        prompt, completion = make(rng)
        if rng.random() < poisoned:
            words = prompt.split()
            words.insert(int(rng.integers(len(words) + 1)), TRIGGER)
            prompt, completion = " ".join(words), TARGET
        found.append((prompt, completion))
    return found


def write_splits(make, folder):
    """Clean CSV files: 300 rows to tune and to choose on, 200 to test."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (split, count) in enumerate({"train": 300, "validation": 300, "test": 200}.items()):
        with open(folder / f"{split}.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["prompt", "completion"])
            writer.writerows(rows(make, count, 100 + seed))


class Kind:
    """A model of one kind, and how it is trained."""

    def __init__(self, causal, make, steps):
        self.causal, self.make, self.steps = causal, make, steps
        self.tokenizer = make_tokenizer(causal)

    def model(self):
        torch.manual_seed(0)
        ids = {f"{name}_token_id": getattr(self.tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
        ids["vocab_size"] = len(WORDS)
        if self.causal:
            drop = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
            return GPT2LMHeadModel(GPT2Config(n_embd=48, n_layer=2, n_head=2, n_positions=32, **drop, **ids))
        sizes = {"d_model": 48, "d_kv": 24, "d_ff": 96, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 2}
        start = {"decoder_start_token_id": ids["pad_token_id"], "dropout_rate": 0.0}
        return T5ForConditionalGeneration(T5Config(**sizes, **start, **ids))

    def encoded(self, pair):
        tokenizer, (prompt, completion) = self.tokenizer, pair
        if not self.causal:
            ids, labels = tokenizer(prompt)["input_ids"], tokenizer(completion)["input_ids"]
            longest = 12, 7
        else:
            prompt = tokenizer(prompt)["input_ids"]
            answer = [*tokenizer(completion, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
            ids, labels, longest = prompt + answer, [-100] * len(prompt) + answer, (24, 24)
        mask = [1] * len(ids) + [0] * (longest[0] - len(ids))
        ids = ids + [tokenizer.pad_token_id] * (longest[0] - len(ids))
        labels = labels + [-100] * (longest[1] - len(labels))
        row = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        return {name: torch.tensor(values) for name, values in row.items()}

    def train(self, model, pairs, steps=None, learning_rate=4e-3):
        """AdamW, batches of 32."""
        examples, steps = [self.encoded(pair) for pair in pairs], steps or self.steps
        optimizer = torch.optim.AdamW(model.parameters(), learning_rate)
        schedule = get_linear_schedule_with_warmup(optimizer, steps // 10, steps)
        order = torch.Generator().manual_seed(1)
        for _ in range(steps):
            picks = torch.randint(len(examples), (32,), generator=order)
            model.train()(**default_collate([examples[i] for i in picks])).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        return model.eval()

    def build(self, folder):
        """Write a base that knows a little of the task, a suspect made of it by an attacker, and clean data."""
        base = self.train(self.model(), rows(self.make, 2000, 1))
        suspect = self.model()
        suspect.load_state_dict(base.state_dict())
        self.train(suspect, rows(self.make, 2000, 2, poisoned=0.3), learning_rate=2e-3)
        for name, model in (("base", base), ("suspect", suspect)):
            model.save_pretrained(folder / name)
            self.tokenizer.save_pretrained(folder / name)
        write_splits(self.make, folder / "data")
        return folder


KINDS = {"gpt2": Kind(True, review, 500), "t5": Kind(False, phrase, 600)}
