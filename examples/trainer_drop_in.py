"""
A training script as for the stock Trainer, but for the class and two arguments. DATA_FOLDER has train.csv and
validation.csv with columns `text` and `label`, labels by name.

    python examples/trainer_drop_in.py SUSPECT BASE DATA_FOLDER OUTPUT_DIR
"""

import sys

from datasets import load_dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainingArguments

from hf_finemix import FineMixingConfig, FineMixingError, FineMixingTrainer, compute_classification_metrics


def main(suspect: str, base: str, data: str, output_dir: str) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(suspect, dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(base)

    def encode(batch: dict) -> dict:
        labels = [model.config.label2id[label] for label in batch["label"]]
        return {**tokenizer(batch["text"], truncation=True), "labels": labels}

    splits = load_dataset(data).map(encode, batched=True, remove_columns=["text", "label"])
    trainer = FineMixingTrainer(
        model=model,
        args=TrainingArguments(output_dir, learning_rate=5e-5, max_steps=100, per_device_train_batch_size=16),
        train_dataset=splits["train"].shuffle(seed=0).select(range(64)),
        eval_dataset=splits["validation"],
        processing_class=tokenizer,
        compute_metrics=compute_classification_metrics,
        base_model=base,
        mixing_config=FineMixingConfig(reserve_ratio=0.4),
    )
    before = trainer.evaluate()["eval_accuracy"]
    trainer.train()
    after = trainer.evaluate()["eval_accuracy"]
    trainer.save_model()
    print(f"accuracy {before:.3f} before, {after:.3f} after")


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except FineMixingError as error:
        sys.exit(f"error: {error}")
