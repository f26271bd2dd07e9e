"""How a suspect is fine-tuned where nobody says otherwise."""

from typing import Any

from transformers import TrainingArguments

# Where cleaning a model on a few samples wants something else than TrainingArguments' own defaults.
TRAINING_DEFAULTS: dict[str, Any] = {
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 64,
    "learning_rate": 5e-5,
    "num_train_epochs": 0,  # as many as MIN_STEPS and MIN_EPOCHS ask for
    "save_strategy": "no",
}


def train_at_least(args: TrainingArguments, rows: int) -> None:
    """Where neither steps nor epochs were given: 100 steps, or three epochs where that is more."""
    if args.max_steps <= 0 and args.num_train_epochs <= 0:
        samples = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        args.max_steps = max(MIN_STEPS, MIN_EPOCHS * -(-rows // samples))


MIN_STEPS, MIN_EPOCHS = 100, 3
