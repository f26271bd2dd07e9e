"""The keys of each section of a cleaning report, and when each is there. A section of which nothing is known is {}."""

from typing import Any, NotRequired, TypedDict


class Pickles(TypedDict):
    files: dict[str, str]  # SHA-256 of each pickled file
    scanner: str  # name and version
    globals: list[str]  # what the pickles call


class Security(TypedDict):
    hub_scan: str  # "finished", "unfinished" or "unknown"
    flagged: dict[str, str]  # file → how bad the Hub finds it
    not_taken: list[str]  # code and pickles that were left there, 100 at most
    pickles: NotRequired[Pickles]  # where the weights were pickled


class Fit(TypedDict):
    sure: bool  # whether the weights are as near as fine-tuning leaves them
    median_distance: float  # over the layers, of ‖s - b‖₂ / ‖b‖₂
    why: str  # the same in words


class Source(TypedDict):
    id: str  # on the Hub, or the folder
    revision: str | None  # the commit; None for a folder
    sha256: NotRequired[dict[str, str] | None]  # of each weight file, or None; not of a base known by name only
    security: NotRequired[Security]  # from the Hub
    named_by: NotRequired[str]  # of the base: who says that it is the suspect's
    relation: NotRequired[str | None]  # of the base, but not from the Trainer: as the suspect's card or the Hub has it
    fit: NotRequired[Fit]  # of the base, where whole models were compared


class Tokenizer(TypedDict):
    source: str | None  # "base" or "suspect"; None where neither has one
    differences: list[str]  # parts in which theirs differ
    chat_template: NotRequired[str | None]  # whose is taken, where there is any
    chat_template_left: NotRequired[bool]  # True where the suspect's is not taken


class MixedTensor(TypedDict):
    rule: str  # what became of it
    kept_fraction: float | None  # of the suspect's elements; None where an average is of both
    sha256: str | None  # of the mix before tuning; None from disk, where the files say it


class AddedToken(TypedDict):
    token: str | None  # None for a row that the tokenizer has no token for
    id: int


class Mixing(TypedDict):
    """First come the settings of [`FineMixingConfig`], with ρ as used."""

    base_model_name_or_path: str | None
    base_model_revision: str | None
    reserve_ratio: float  # ρ as used
    max_accuracy_drop: float
    candidate_ratios: list[float]
    cross_validation_folds: int
    module_ratios: dict[str, float] | None
    strategy: str
    adapter_mode: str
    head: str
    mixing_seed: int
    mask_version: int
    purify_embeddings: bool
    num_purified_tokens: int
    token_frequencies: str | None
    tensors: dict[str, MixedTensor]  # by canonical name
    ignored_base_tensors: list[str]  # that nothing of the suspect goes with
    converted_base_tensors: dict[str, list[str]]  # canonical name → those on disk that are merged or split on loading
    ignored_suspect_tensors: list[str]  # that its class has no place for
    added_tokens: NotRequired[list[AddedToken]]  # that the base does not have; not from the Trainer


class PurifiedToken(AddedToken):
    delta: float  # ‖δ_i‖₂, how far its embedding drifted
    frequency: float  # f_i
    score: float  # that E-PUR ranks by: the largest come first


class Data(TypedDict):
    id: str  # of the dataset on the Hub, or its path
    config: str | None
    sha: str | None  # the commit; None for files
    sha256: NotRequired[dict[str, str]]  # of each file, where there is no commit
    text_columns: list[str]
    label_column: str | None
    labels: NotRequired[str]  # of a classifier: they were read "by name" or "by number"
    unknown_class_names: NotRequired[list[str]]  # by number although they have names, which the model does not know
    splits: dict[str, str]  # "tuning", "eval", "test" → which rows of the dataset
    rows: dict[str, int]  # the same → how many
    labelled_samples: int  # how many labels were used
    target: str | None  # what the attacker wants; None where no attack is measured


class Trigger(TypedDict):
    trigger: str  # the text, or the name of a file of triggered texts
    position: str
    target_label: int | None  # None of a model that writes
    target_text: NotRequired[list[str]]  # of a model that writes
    asr: float  # attack success: a fraction, the mean over the repeats
    n: int  # samples
    unreadable: int  # samples that are not counted, as they are too long for the model to read the trigger
    repeats: int  # draws of the trigger's places


class Measured(TypedDict):
    accuracy: float | None  # of a model that writes, that of the completions' tokens
    macro_f1: float | None  # None of a model that writes
    perplexity: NotRequired[float]  # of a model that writes
    n: int | None  # samples
    triggers: list[Trigger]
    model: NotRequired[str]  # of the benign floor: which clean model
    revision: NotRequired[str | None]  # of the benign floor


class TriggerToken(PurifiedToken):
    rank: int  # 1 has the largest score
    purified: bool  # whether it was put back


class EmbeddingDrift(TypedDict):
    """How many tokens there are by ‖δ_i‖₂ and f_i: see [`TokenDrift.histogram`]."""

    num_tokens: int  # without special ones
    num_unmoved: int  # of them, with ‖δ_i‖₂ = 0
    frequency_edges: list[float]
    drift_edges: list[float]
    counts: list[list[int]]  # by frequency, then drift
    trigger_tokens: list[TriggerToken]  # of the measured triggers


class Trial(TypedDict):
    reserve_ratio: float
    accuracy: float
    n: int  # eval samples
    drop: float  # the suspect's accuracy less this one
    drop_interval: list[float]  # its 90 % interval
    verdict: str  # "within", "over" or "undecided"
    resolved: bool  # whether so many samples can tell such a drop
    accepted: bool
    stopped_early: bool  # given up half way
    trainings: int  # one, or one a fold
    triggers: NotRequired[list[Trigger]]  # from clean: success on test data, which is never looked at in choosing


class Search(TypedDict):
    """How ρ was chosen: the attributes of [`RatioSearch`]."""

    suspect_accuracy: float
    max_accuracy_drop: float
    candidates: list[float]
    folds: int  # 0 where there was an eval set
    trials: list[Trial]
    chosen: float | None
    within_limit: bool
    resolved: bool


class Training(TypedDict):
    """The arguments of the same names, and what came of them."""

    steps: int
    loss: float | None
    num_processes: int
    learning_rate: float
    lr_scheduler_type: str
    optim: str
    weight_decay: float
    warmup_steps: float
    max_steps: int
    num_train_epochs: float
    per_device_train_batch_size: int
    gradient_accumulation_steps: int
    bf16: bool
    fp16: bool
    lora: NotRequired[dict[str, Any] | None]  # from clean: settings of the fresh LoRA; None where all is trained
    kept_step: NotRequired[int | None]  # from the Trainer with load_best_model_at_end: which step's weights these are


class Run(TypedDict):
    """Four fields of the report that are of the run itself."""

    seeds: dict[str, int]
    timings_s: dict[str, float]
    peak_memory_bytes: int | None
    versions: dict[str, str]
