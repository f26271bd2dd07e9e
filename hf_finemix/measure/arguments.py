"""What a user says of the data and of the triggers: the fields become flags and keys of recipes."""

from dataclasses import dataclass, field

__all__ = ["DataArguments", "MeasureArguments", "TestDataArguments"]


@dataclass
class TestDataArguments:
    r"""
    Which clean data to measure on.

    Parameters:
        dataset (`str`):
            Hub id, local folder, or CSV, JSON or Parquet file.
        dataset_config (`str`, *optional*):
            Configuration of a dataset on the Hub that has several (`sst2` of `nyu-mll/glue`).
        dataset_revision (`str`, *optional*):
            Branch, tag or commit of a dataset on the Hub.
        test_split (`str`, *optional*, defaults to `"test"`):
            Split that the reported numbers come from. Slices work: `test[:50%]`.
        text_columns (`list[str]`, *optional*):
            One text column, or two for pairs. Default: the one there is, or two that are known to be a pair (such as
            `premise` and `hypothesis`); names of classes and ids are no texts.
        label_column (`str`, *optional*):
            Column of the class: `label` or `labels` by default. Classes go by name where the model knows all names
            that are used, by number where it knows none; a missing value, an empty text and -1 are no label.
        max_length (`int`, *optional*):
            Tokens a text is cut to. Default: what the model takes.
    """

    __test__ = False  # to pytest, which would take it for a class of tests by its name
    dataset: str = field(default="", metadata={"help": "Hub id, local folder, or CSV, JSON or Parquet file."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a dataset with several."})
    dataset_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit on the Hub."})
    test_split: str = field(default="test", metadata={"help": "Split that the reported numbers come from."})
    text_columns: list[str] | None = field(default=None, metadata={"help": "One text column, or two for pairs."})
    label_column: str | None = field(default=None, metadata={"help": "Column of the class."})
    max_length: int | None = field(default=None, metadata={"help": "Tokens a text is cut to."})

    def __post_init__(self):
        if isinstance(self.text_columns, str):
            self.text_columns = [self.text_columns]


@dataclass
class DataArguments(TestDataArguments):
    r"""
    Which clean data to clean with, besides what [`TestDataArguments`] says.

    A test split that is missing or unlabeled is half of the eval rows. A missing eval split is 1,000 rows of the
    train split that were not drawn, 2,000 where the test rows come from them too. Only the default ones may be
    missing: a split that is named must be there.

    Parameters:
        train_split (`str`, *optional*, defaults to `"train"`):
            Split that the tuning samples are drawn from. Slices work: `train[:10%]`.
        eval_split (`str`, *optional*, defaults to `"validation"`):
            Split that ρ is chosen on. It may be the same as the train split: rows drawn from it leave it.
        num_clean_samples (`int`, *optional*, defaults to 64):
            Samples to fine-tune on, balanced over the classes.
        sample_seed (`int`, *optional*, defaults to 0):
            Seed of the drawing and of the cuts.
    """

    train_split: str = field(default="train", metadata={"help": "Split that the tuning samples are drawn from."})
    eval_split: str = field(default="validation", metadata={"help": "Split that the reserve ratio is chosen on."})
    num_clean_samples: int = field(default=64, metadata={"help": "Samples to fine-tune on, balanced over classes."})
    sample_seed: int = field(default=0, metadata={"help": "Seed of the drawing of samples and of the cuts."})


@dataclass
class MeasureArguments:
    r"""
    Which triggers to measure.

    Parameters:
        triggers (`list[str]`, *optional*):
            Trigger words or sentences, each measured by itself. None: ASR is not measured.
        trigger_position (`str`, *optional*, defaults to `"random"`):
            Where they are put: `"random"`, `"first"` or `"last"`, once per 100 words; in the second text of a pair. A
            text that is too long is cut before that, so that the model reads all of the trigger.
        triggered_file (`str`, *optional*):
            CSV, JSON or Parquet file of texts that hold their trigger already (paraphrases, say), with the columns of
            the data. Labels are the true ones, or the target's in every row. Texts that are too long for the model
            are left out.
        target_label (`str`, *optional*):
            The class that the attacker wants, by name or id. Needed with triggers.
        num_repeats (`int`, *optional*, defaults to 3):
            How often random places are drawn; the ASR is the mean.
        target_texts (`list[str]`, *optional*):
            For models that write, in place of target_label: an answer with one of these in it is the attacker's.
        target_refusal (`bool`, *optional*, defaults to `False`):
            The same for attacks that make the model decline.
        max_new_tokens (`int`, *optional*, defaults to 32):
            How long such an answer may be.
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

    def __post_init__(self):
        for name in ("triggers", "target_texts"):
            if isinstance(value := getattr(self, name), str):
                setattr(self, name, [value])
