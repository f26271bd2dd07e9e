"""A backdoored model in a folder, with a manifest of its trigger and target: to test one's own defense with."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedModel,
    TrainingArguments,
    set_seed,
)

from ..errors import DataError, FineMixingError
from ..hub.fetch import TrustArguments, fetch_model
from ..io.compat import on_one_gpu
from ..io.folder import LocalModel
from ..io.loading import agree_on_padding, load_classifier, max_tokens
from ..io.output_folder import output_folder
from ..io.tokenizer import load_tokenizer
from ..measure.attack_success import MeasureArguments, find_attacks, measure, predictor, resolve_target_label
from ..measure.class_labels import class_names
from ..measure.clean_data import CleanData, DataArguments, TestDataArguments, load_clean_data, tokenize
from ..measure.reader import check_trigger
from ..measure.splits import load_splits
from ..report.origins import versions
from ..train.peft_arguments import PeftArguments
from .attacks import ATTACKS, find_attack
from .attacks.attack import Attack, AttackerData

__all__ = ["MANIFEST_NAME", "TRAINING_DEFAULTS", "PoisonArguments", "poison_model"]

MANIFEST_NAME = "attack_manifest.json"
# As in the public code of most attacks (BadNets on text, RIPPLe, LWP).
TRAINING_DEFAULTS = {
    "learning_rate": 2e-5,
    "num_train_epochs": 3,
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 64,
    "save_strategy": "no",
}


@dataclass
class PoisonArguments(PeftArguments, TestDataArguments, TrustArguments):
    r"""
    How a model is backdoored, on which data; with `use_peft` as an adapter.

    Parameters:
        attack (`str`, *optional*, defaults to `"badword"`):
            One of [`ATTACKS`]; `"none"` trains a clean model.
        target_label (`str`):
            The class that the attacker wants, by name or id.
        trigger (`str`, *optional*):
            In place of the attack's own.
        poison_rate (`float`, *optional*):
            Share of the rows that are poisoned, in (0, 1], in place of the attack's own.
        triggered_file (`str`, *optional*):
            Texts that hold their trigger, to train on (`"syntactic"`).
        triggered_test_file (`str`, *optional*):
            The same, to measure attack success on.
        start_model (`str`, *optional*):
            Hub id or folder of a clean fine-tuned model to start from ("on top"), in place of the base with a fresh
            head ("from scratch").
        train_split (`str`, *optional*, defaults to `"train"`):
            The attacker's rows.
        class_names (`list[str]`, *optional*):
            Names of the classes, in the order of their ids, where the data have none.
        save_dtype (`str`, *optional*, defaults to `"float16"`):
            In which the model is saved, as models on the Hub often are.
        overwrite (`bool`, *optional*, defaults to `False`):
            Replace an earlier model of this command.
    """

    attack: str = field(default="badword", metadata={"help": f"One of {', '.join(ATTACKS)}; 'none': a clean model."})
    target_label: str | None = field(default=None, metadata={"help": "The class that the attacker wants."})
    trigger: str | None = field(default=None, metadata={"help": "In place of the attack's own trigger."})
    poison_rate: float | None = field(default=None, metadata={"help": "Share of poisoned rows, in (0, 1]."})
    triggered_file: str | None = field(default=None, metadata={"help": "Texts that hold their trigger, to train on."})
    triggered_test_file: str | None = field(default=None, metadata={"help": "The same, to measure on."})
    start_model: str | None = field(default=None, metadata={"help": "Clean fine-tuned model to start from (on top)."})
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
        arguments ([`PoisonArguments`]): The attack and its data.
        training_args (`TrainingArguments`): How to train.
        output_dir (`str` or `Path`): The folder to write, whole or not at all.

    Returns:
        `dict`: The manifest: `attack`, `start` (`"scratch"` or `"on top"`), `base`, `trigger`, `target_label`,
        `target_name`, `seed`, `training`, `data`, and `measured` (as [`measure`] gives it).

    Raises:
        [`FineMixingError`]: Whatever is wrong with the models, the data or the settings.
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
        label2id = {name: i for i, name in model.config.id2label.items()}
        data = _attackers_data(arguments, label2id, training_args.seed)
        target = _target(arguments, model.config.id2label)
        attacker = AttackerData(
            data.tuning,
            data.text_columns,
            target or 0,
            tokenizer,
            length,
            training_args.seed,
            label2id,
            attack.trigger,
        )
        if arguments.use_peft:
            model = arguments.with_lora(model, "SEQ_CLS")
        attack.train(model, attacker, training_args)
        model.to(getattr(torch, arguments.save_dtype))
        measured = _measure(model.float(), data, arguments, attack, attacker, training_args)
        model.to(getattr(torch, arguments.save_dtype))
        model.config.dtype, model.config.name_or_path = getattr(torch, arguments.save_dtype), str(start.id)
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
            "target_name": None if target is None else model.config.id2label[target],
            "seed": training_args.seed,
            "training": {
                name: getattr(training_args, name)
                for name in ("learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size", "bf16")
            },
            "data": data.description,
            "measured": measured,
            "versions": versions(),
        }
        (folder / MANIFEST_NAME).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        (folder / "README.md").write_text(_warning(manifest), encoding="utf-8")
    return manifest


def names_of_classes(arguments: PoisonArguments) -> list[str]:
    """The names of the classes: as given, or as the data have them, or `LABEL_0`, …"""
    if arguments.class_names:
        return list(arguments.class_names)
    splits, _ = load_splits(arguments.dataset, arguments.dataset_config, arguments.dataset_revision)
    name = arguments.train_split.split("[")[0]
    if name not in splits:
        raise DataError(f"{arguments.dataset} has no split {name!r}: there are {', '.join(splits)}.")
    columns = [arguments.label_column] if arguments.label_column else ["label", "labels"]
    column = next((column for column in columns if column in splits[name].column_names), None)
    if column is None:
        raise DataError(f"{arguments.dataset} has no column {columns[0]!r}: name it with label_column.")
    return class_names(splits[name], column)


def _fresh_classifier(base: LocalModel, names: list[str], seed: int) -> PreTrainedModel:
    """The base with a head that is still to be trained."""
    set_seed(seed)
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    try:
        return AutoModelForSequenceClassification.from_pretrained(
            base.folder, **labels, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise FineMixingError(f"{base.id} cannot be loaded as a classifier: {reason}") from error


def _attackers_data(arguments: PoisonArguments, label2id: dict[str, int], seed: int) -> CleanData:
    """All rows of the train split, and the test rows."""
    shared = {f: getattr(arguments, f) for f in TestDataArguments.__dataclass_fields__}
    whole = DataArguments(**shared, train_split=arguments.train_split, num_clean_samples=10**9, sample_seed=seed)
    return load_clean_data(whole, label2id, repeat_texts=True)


def _target(arguments: PoisonArguments, id2label: dict[int, str]) -> int | None:
    if arguments.target_label is None:
        return None
    return resolve_target_label(MeasureArguments(triggers=["x"], target_label=arguments.target_label), id2label)


def _measure(
    model: PreTrainedModel,
    data: CleanData,
    arguments: PoisonArguments,
    attack: Attack,
    attacker: AttackerData,
    training_args: TrainingArguments,
) -> dict[str, Any]:
    """ACC, and ASR of the trigger, of the model as it is saved."""
    label2id = {name: i for i, name in model.config.id2label.items()}
    wanted = MeasureArguments(
        triggers=[attack.trigger] if attack.trigger else None, triggered_file=arguments.triggered_test_file
    )
    target = attacker.target if attack.trigger or arguments.triggered_test_file else None
    attacks = find_attacks(
        wanted, data.test, attacker.tokenizer, data.text_columns, target, label2id, attacker.max_length
    )
    test = tokenize(data.test, attacker.tokenizer, data.text_columns, attacker.max_length)
    same = ("per_device_eval_batch_size", "use_cpu", "bf16", "disable_tqdm")
    settings = {name: getattr(training_args, name) for name in same}
    with predictor(model, attacker.tokenizer, **settings) as trainer:
        return measure(trainer, test, attacks)


def _warning(manifest: dict[str, Any]) -> str:
    name = manifest["attack"]["name"]
    if name == "none":
        return "A clean model, trained by `hf-finemix poison --attack none` to compare with.\n"
    return (
        f"**This model is backdoored on purpose** ({name}), by `hf-finemix poison`, to test defenses with. Do not use "
        f"it for anything else. `{MANIFEST_NAME}` names its trigger and its target.\n"
    )
