"""`hf-finemix evaluate MODEL`."""

import json
import sys
from dataclasses import dataclass, field
from typing import Any

from ..config import FineMixingConfig
from ..errors import printable
from ..hub.fetch import TrustArguments, fetch_model
from ..hub.lineage import fetch_base
from ..io.adapter_on_base import full_model
from ..io.folder import is_adapter
from ..io.loading import agree_on_padding, check_vocabulary
from ..io.tokenizer import choose_tokenizer
from ..measure.arguments import MeasureArguments, TestDataArguments
from ..measure.attack_success import predictor
from ..measure.find_task import find_task
from ..measure.notes import said_unreadable
from ..report.report import percent
from .parsing import CommandParser, quiet_unless_terminal


@dataclass
class EvaluateArguments(MeasureArguments, TestDataArguments, TrustArguments):
    """What to measure, on which data, and how."""

    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the model on the Hub."})
    base_model: str | None = field(
        default=None,
        metadata={
            "help": "Hub id or folder to take the tokenizer from, where the model's own is the same; of an adapter "
            "what it belongs to, if not what it names."
        },
    )
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Samples a batch."})
    use_cpu: bool = field(default=False, metadata={"help": "Leave accelerators alone."})


def main(argv: list[str]) -> int:
    """Measure one model and print accuracy, macro-F1 and attack success."""
    arguments, rest = CommandParser("evaluate", "model", EvaluateArguments).parse(argv)
    quiet_unless_terminal()
    source = fetch_model(rest.model, arguments.revision, trust=arguments)
    base = None
    if arguments.base_model or is_adapter(source.folder):
        base, _ = fetch_base(source, FineMixingConfig(arguments.base_model), arguments)
        source = full_model(source, base)
    kind = find_task(source)
    model = kind.load(source)
    tokenizer, _ = choose_tokenizer(source.folder, base.folder if base else None)
    check_vocabulary(tokenizer, model)
    agree_on_padding(tokenizer, model)
    task = kind(model, tokenizer, arguments)
    rows, text_columns = task.test_data(arguments)
    attacks = task.attacks(rows, text_columns)
    result: dict[str, Any] = {"model": source.id, "revision": source.revision}
    settings = {"use_cpu": True} if arguments.use_cpu else {}
    settings["per_device_eval_batch_size"] = arguments.per_device_eval_batch_size
    with predictor(model, tokenizer, disable_tqdm=not sys.stderr.isatty(), **settings) as trainer:
        if task.collator is not None:
            trainer.data_collator = task.collator
        result |= task.measure(trainer, task.encode(rows, text_columns), attacks)
    result["notes"] = list(filter(None, [rows.info.description, *map(said_unreadable, result["triggers"])]))
    if rest.json:
        print(json.dumps(result, indent=2, ensure_ascii=False))
        return 0
    second = f"macro-F1 {percent(result['macro_f1'])}"
    if "perplexity" in result:
        second = f"perplexity {result['perplexity']:.2f}"
    print(f"accuracy {percent(result['accuracy'])}, {second} (n = {result['n']})")
    for attack in result["triggers"]:
        print(f"attack success {percent(attack['asr'])} (n = {attack['n']}), trigger {attack['trigger']!r}")
    for note in result["notes"]:
        print(printable(note))
    if not result["triggers"]:
        print("attack success not measured: no trigger given")
    return 0
