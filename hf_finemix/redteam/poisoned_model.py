"""A backdoored model in a folder, with a manifest of its trigger and target: to test one's own defense with."""

import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel, TrainingArguments, set_seed

from ..errors import DataError, FineMixingError, told_as
from ..hub.fetch import TrustArguments, fetch_model
from ..io.compat import on_one_gpu
from ..io.folder import LocalModel
from ..io.loading import agree_on_padding, load_classifier, max_tokens
from ..io.output_folder import output_folder
from ..io.tokenizer import load_tokenizer
from ..measure.arguments import DataArguments, EvaluationArguments, MeasureArguments, TestDataArguments
from ..measure.attack_success import predictor, resolve_target_label
from ..measure.class_labels import class_names
from ..measure.classification import Classification
from ..measure.clean_data import CleanData, load_clean_data
from ..measure.reader import check_trigger
from ..measure.splits import load_splits
from ..measure.text_columns import find_columns
from ..report.origins import versions
from ..train.peft_arguments import PeftArguments
from .attacks.attack import Attack, AttackerData
from .registry import ATTACKS, find_attack

MANIFEST_NAME = "attack_manifest.json"
# As in the public code of most attacks (BadNets on text, RIPPLe, LWP).
POISONING_DEFAULTS = {
    "learning_rate": 2e-5,
    "num_train_epochs": 3,
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 64,
    "save_strategy": "no",
}
# What the manifest has of the training.
_TOLD = ("learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size", "bf16")


@dataclass
class PoisonArguments(PeftArguments, TestDataArguments, TrustArguments):
    """How a model is backdoored, on which data; with `use_peft` as an adapter. Each field says itself what it is."""

    attack: str = field(default="badword", metadata={"help": f"One of {', '.join(ATTACKS)}; 'none': a clean model."})
    target_label: str | None = field(default=None, metadata={"help": "The class that the attacker wants."})
    trigger: str | None = field(default=None, metadata={"help": "In place of the attack's own trigger."})
    poison_rate: float | None = field(default=None, metadata={"help": "Share of poisoned rows, in (0, 1]."})
    triggered_file: str | None = field(default=None, metadata={"help": "Texts that hold their trigger, to train on."})
    triggered_test_file: str | None = field(default=None, metadata={"help": "The same, to measure on."})
    start_model: str | None = field(
        default=None,
        metadata={"help": "Clean fine-tuned model to start from (on top), in place of the base with a fresh head."},
    )
    train_split: str = field(default="train", metadata={"help": "Split of the attacker's rows."})
    class_names: list[str] | None = field(default=None, metadata={"help": "Names of the classes, in their order."})
    save_dtype: str = field(default="float16", metadata={"help": "float16, bfloat16 or float32."})
    overwrite: bool = field(default=False, metadata={"help": "Replace an earlier model of this command."})

    def make_attack(self) -> Attack:
        """The attack, with what was given in place of its own settings."""
        given = {"trigger": self.trigger, "rate": self.poison_rate, "triggered_file": self.triggered_file}
        return find_attack(self.attack, **{name: value for name, value in given.items() if value is not None})


def poison_model(
    base: str | Path, arguments: PoisonArguments, training_args: TrainingArguments, output_dir: str | Path
) -> dict[str, Any]:
    """
    Backdoor a model and write it with its tokenizer and a manifest.

    Args:
        base (`str` or `Path`): Hub id or folder of the pre-trained model.
        arguments ([`PoisonArguments`]), training_args (`TrainingArguments`): The attack and its data; how to train.
        output_dir (`str` or `Path`): The folder to write, whole or not at all.

    Returns:
        `dict`: The manifest: `attack`, `start` (`"scratch"` or `"on top"`), `base`, `trigger`, `target_label`,
        `target_name`, `seed`, `training`, `data`, and `measured` (as [`measure`] gives it).
    """
    attack = arguments.make_attack()
    if attack.needs_clean_model and not arguments.start_model:
        raise FineMixingError(f"the attack {attack.name!r} starts from a clean fine-tuned model: give start_model.")
    if attack.needs_base and arguments.start_model:
        raise FineMixingError(
            f"the attack {attack.name!r} starts from the base, which it stays close to: no start_model."
        )
    if training_args.world_size > 1:
        raise FineMixingError("poison runs in one process: start it without accelerate launch or torchrun.")
    on_one_gpu(training_args)  # DataParallel would hide what some attacks look at
    if arguments.save_dtype not in ("float16", "bfloat16", "float32"):
        raise FineMixingError(f"save_dtype is {arguments.save_dtype!r}: give float16, bfloat16 or float32.")
    if arguments.target_label is None and attack.name != "none":
        raise FineMixingError("target_label is missing: the class that the attacker wants.")
    if arguments.use_peft and attack.edits_weights:
        raise FineMixingError(
            f"the attack {attack.name!r} edits the weights itself, which no LoRA holds: leave use_peft."
        )
    with output_folder(Path(output_dir), overwrite=arguments.overwrite, marker=MANIFEST_NAME) as folder:
        fetched = fetch_model(base, role="base", trust=arguments)
        if arguments.start_model:
            start = fetch_model(arguments.start_model, role="start model", trust=arguments)
            model = load_classifier(start)
        else:
            start, model = fetched, _fresh_classifier(fetched, names_of_classes(arguments), training_args.seed)
        tokenizer = load_tokenizer(start.folder) or load_tokenizer(fetched.folder)
        if tokenizer is None:
            raise FineMixingError(f"{fetched.id} has no tokenizer: give a base with one.")
        agree_on_padding(tokenizer, model)
        check_trigger(attack.trigger or "", tokenizer, model)
        length = max_tokens(arguments.max_length, tokenizer, model)
        names, seed, target = model.config.id2label, training_args.seed, None
        label2id = {name: i for i, name in names.items()}
        rows = {"train_split": arguments.train_split, "num_clean_samples": 10**9, "sample_seed": seed}
        data = load_clean_data(DataArguments(**_shared(arguments), **rows), label2id, repeat_texts=True)
        if arguments.target_label is not None:
            wanted = MeasureArguments(triggers=["x"], target_label=arguments.target_label)
            target = resolve_target_label(wanted, names)
        read = tokenizer, length, seed, label2id, attack.trigger
        attacker = AttackerData(data.tuning, data.text_columns, target or 0, *read)
        if arguments.use_peft:
            model = arguments.with_lora(model, "SEQ_CLS")
        attack.train(model, attacker, training_args)
        dtype = getattr(torch, arguments.save_dtype)  # measured is what is saved
        measured = _measure(model.to(dtype).float(), attacker, data, arguments, training_args)
        model.to(dtype)
        model.config.dtype, model.config.name_or_path = dtype, str(start.id)
        if arguments.use_peft:
            model.peft_config["default"].base_model_name_or_path = str(start.id)
            model.config.save_pretrained(folder)  # which has the names of the classes
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        manifest = {
            "attack": attack.described(),
            "start": "on top" if arguments.start_model else "scratch",
            "lora": arguments.lora_settings(),
            "base": {"id": fetched.id, "revision": fetched.revision},
            "trigger": attack.trigger,
            "target_label": target,
            "target_name": None if target is None else names[target],
            "seed": seed,
            "training": {name: getattr(training_args, name) for name in _TOLD},
            "data": data.description,
            "measured": measured,
            "versions": versions(),
        }
        (folder / MANIFEST_NAME).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        (folder / "README.md").write_text(_warning(attack), encoding="utf-8")
    return manifest


def names_of_classes(arguments: PoisonArguments) -> list[str]:
    """The names of the classes: as given, or as the data have them, or `LABEL_0`, …"""
    if arguments.class_names:
        return list(arguments.class_names)
    splits, _ = load_splits(arguments.dataset, arguments.dataset_config, arguments.dataset_revision)
    name = arguments.train_split.split("[")[0]
    if name not in splits:
        raise DataError(f"{arguments.dataset} has no split {name!r}: there are {', '.join(splits)}.")
    return class_names(splits[name], find_columns(splits[name], arguments, {})[1])


def _fresh_classifier(base: LocalModel, names: list[str], seed: int) -> PreTrainedModel:
    """The base with a head that is still to be trained."""
    set_seed(seed)
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    with told_as(f"{base.id} cannot be loaded as a classifier", kinds=(OSError, ValueError)):
        return AutoModelForSequenceClassification.from_pretrained(
            base.folder, **labels, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
        )


def _shared(arguments: PoisonArguments) -> dict[str, Any]:
    return {f.name: getattr(arguments, f.name) for f in fields(TestDataArguments)}


def _measure(
    model: PreTrainedModel,
    attacker: AttackerData,
    data: CleanData,
    arguments: PoisonArguments,
    training_args: TrainingArguments,
) -> dict[str, Any]:
    """ACC, and ASR of the trigger, of the model as it is saved."""
    triggers = {"triggers": attacker.trigger and [attacker.trigger], "triggered_file": arguments.triggered_test_file}
    wanted = EvaluationArguments(**_shared(arguments), **triggers, target_label=arguments.target_label)
    task, columns = Classification(model, attacker.tokenizer, wanted), data.text_columns
    same = ("per_device_eval_batch_size", "use_cpu", "bf16", "disable_tqdm")
    with predictor(model, attacker.tokenizer, **{name: getattr(training_args, name) for name in same}) as trainer:
        return task.measure(trainer, task.encode(data.test, columns), task.attacks(data.test, columns))


def _warning(attack: Attack) -> str:
    if attack.name == "none":
        return "A clean model, trained by `hf-finemix poison --attack none` to compare with.\n"
    paper = f", {attack.paper}" if attack.paper else ""
    return (
        f"**This model is backdoored on purpose** ({attack.pretty_name}{paper}), by `hf-finemix poison`, to test "
        f"defenses with. Do not use it for anything else. `{MANIFEST_NAME}` names its trigger and its target.\n"
    )
