"""What a user says of the data and of the triggers: each field is a flag and a key of recipes, with its own help."""

from dataclasses import dataclass, field


class _OneForAList:
    """A text where several are expected is one of them."""

    def __post_init__(self):
        for name in ("text_columns", "triggers", "target_texts"):
            if isinstance(value := getattr(self, name, None), str):
                setattr(self, name, [value])


@dataclass
class TestDataArguments(_OneForAList):
    """
    Which clean data to measure on.

    Without `text_columns` the text is the one column of texts that there is, or two that are known to be a pair; names
    of classes and ids are no texts. Classes go by name where the model knows all names that are used, by number where
    it knows none; a missing value, an empty text and -1 are no label. Slices of splits work: `test[:50%]`.
    """

    __test__ = False  # to pytest, which would take it for a class of tests by its name
    dataset: str = field(
        default="",
        metadata={
            "help": "Hub id, local folder, or CSV, JSON or Parquet file.",
            "aliases": ["--dataset-name", "--dataset_name"],
        },
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a dataset with several."})
    dataset_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit on the Hub."})
    test_split: str = field(default="test", metadata={"help": "Split that the reported numbers come from."})
    text_columns: list[str] | None = field(default=None, metadata={"help": "One text column, or two for pairs."})
    label_column: str | None = field(default=None, metadata={"help": "Column of the class, if not label or labels."})
    max_length: int | None = field(
        default=None, metadata={"help": "Tokens a text is cut to, if not what the model takes."}
    )


@dataclass
class DataArguments(TestDataArguments):
    """
    Which clean data to clean with, besides what [`TestDataArguments`] says.

    A test split that is missing or unlabeled is half of the eval rows. A missing eval split is 1,000 rows of the
    train split that were not drawn, 2,000 where the test rows come from them too. Only the default ones may be
    missing: a split that is named must be there. The eval split may be the train split: rows drawn from it leave it.
    """

    train_split: str = field(default="train", metadata={"help": "Split that the tuning samples are drawn from."})
    eval_split: str = field(default="validation", metadata={"help": "Split that the reserve ratio is chosen on."})
    num_clean_samples: int = field(default=64, metadata={"help": "Samples to fine-tune on, balanced over classes."})
    sample_seed: int = field(default=0, metadata={"help": "Seed of the drawing of samples and of the cuts."})


@dataclass
class MeasureArguments(_OneForAList):
    """
    Which triggers to measure, each by itself; without any, ASR is not measured.

    A trigger goes into a text once per 100 words, into the second text of a pair; a text that is too long is cut
    before that, so that the model reads all of the trigger. A `triggered_file` has the columns of the data; its labels
    are the true ones, or the target's in every row, and texts that are too long for the model are left out. The
    attacker of a classifier wants `target_label`; of a model that writes, an answer with one of the `target_texts`, or
    a refusal.
    """

    triggers: list[str] | None = field(
        default=None, metadata={"help": "Trigger words or sentences to measure.", "aliases": ["--trigger"]}
    )
    trigger_position: str = field(default="random", metadata={"help": "Where they are put: random, first or last."})
    triggered_file: str | None = field(
        default=None, metadata={"help": "CSV, JSON or Parquet file of texts that hold their trigger already."}
    )
    target_label: str | None = field(
        default=None, metadata={"help": "The class that the attacker wants, by name or id. Needed with triggers."}
    )
    num_repeats: int = field(default=3, metadata={"help": "How often random trigger places are drawn, for the mean."})
    target_texts: list[str] | None = field(
        default=None,
        metadata={
            "help": "Of a model that writes: what the attacker wants in its answer.",
            "aliases": ["--target-text"],
        },
    )
    target_refusal: bool = field(default=False, metadata={"help": "The attacker wants the model to decline."})
    max_new_tokens: int = field(default=32, metadata={"help": "Tokens of an answer that is looked at."})


@dataclass
class EvaluationArguments(MeasureArguments, DataArguments):
    """What a [`Task`] measures, on which data."""
