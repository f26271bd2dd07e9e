"""What FineMixingTrainer publishes: the report and card of its training, through the same door as clean()'s."""

import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..align.drift import drift_by_layer
from ..errors import FineMixingError
from ..hub.errors import hub_api
from ..hub.fetch import cached_folder, cached_folders
from ..hub.lineage import USER
from ..io.checkpoint import sha256_of_file
from ..io.folder import LocalModel, weights_in
from ..io.output_folder import write_text
from ..io.read_back import read_back
from ..io.repo_names import is_repo_id
from .card import card_in_folder
from .card_metadata import carried_over
from .figures import draw_figures
from .publish import Destination, check_destination, push_cleaned, refuse_private_sources
from .report import CleaningReport
from .sections import mixing_section, run_section, search_section, source_section, token_rows, training_section

if TYPE_CHECKING:
    from ..trainer import FineMixingTrainer

logger = logging.getLogger(__name__)

__all__ = ["check_publishing", "publish_trained", "training_report", "write_card"]

_TASKS = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForCausalLM": "text-generation",
}


def publish_trained(
    trainer: "FineMixingTrainer",
    commit_message: str | None,
    blocking: bool,
    token: str | None,
    revision: str | None,
    private: bool | None,
    **card: Any,
) -> Any:
    """
    Save the trained model with report and card into `output_dir`, and publish that.

    Returns:
        `CommitInfo`, or with `blocking=False` a `Future` of it; `None` on all processes but the main one.

    Raises:
        [`FineMixingError`]: Nothing was mixed and trained yet, or as [`push_cleaned`].
    """
    args = trainer.args
    _check_trained(trainer)
    if trainer.evaluated is None and trainer.compute_metrics and trainer.eval_dataset is not None:
        trainer.evaluate()  # of the weights that are published: the last one of training may be of others
    trainer.callback_handler.on_push_begin(args, trainer.state, trainer.control)
    trainer.save_model(_internal_call=True)
    if not trainer.is_world_process_zero():
        return None
    if not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):  # where one process alone cannot ask the model
        base = trainer.base and trainer.base.folder
        read_back(Path(args.output_dir), trainer.model, trainer.processing_class, base=base)
    card.pop("model_name", None)
    trainer.create_model_card(**card)

    to = _destination(trainer, token, private, revision)

    def publish() -> Any:
        return push_cleaned(args.output_dir, **asdict(to), commit_message=commit_message).commit_info

    return publish() if blocking else hub_api().run_as_future(publish)


def check_publishing(trainer: "FineMixingTrainer", token: str | None, private: bool | None) -> None:
    """Tell before training what could not be published after it. Raises a [`FineMixingError`]."""
    if not trainer.is_world_process_zero():
        return
    destination = _destination(trainer, token, private)
    check_destination(destination)
    names = (getattr(trainer.model, "name_or_path", None), trainer.mixing_config.base_model_name_or_path)
    named = [name for name in names if name and is_repo_id(name) and not Path(name).is_dir()]
    refuse_private_sources(destination, [("model", name) for name in named])
    if trainer.mixing_config.adapter_mode == "adapter" and destination.private is None:
        logger.warning(
            "A LoRA in memory does not say where it is from: if it is private, and %s is not, set hub_private_repo.",
            destination.repo_id,
        )


def _destination(
    trainer: "FineMixingTrainer", token: str | None, private: bool | None, revision: str | None = None
) -> Destination:
    args = trainer.args
    return Destination(
        trainer.hub_model_id or args.hub_model_id or Path(args.output_dir).absolute().name,
        private=args.hub_private_repo if private is None else private,
        revision=revision or args.hub_revision,
        token=token or args.hub_token,
    )


def write_card(
    trainer: "FineMixingTrainer",
    language: str | None = None,
    license: str | None = None,
    tags: str | list[str] | None = None,
    model_name: str | None = None,
    **unused: Any,
) -> None:
    """Write the report and the card of a training into `output_dir`; what else stands in README.md stays."""
    if not trainer.is_world_process_zero():
        return
    _check_trained(trainer)
    folder = Path(trainer.args.output_dir)
    if trainer.saved_step != trainer.state.global_step:  # what lies there is of another training, or of another step
        trainer.save_model(_internal_call=True)
    report = training_report(trainer)
    given = {"language": language, "license": license, "tags": [tags] if isinstance(tags, str) else tags}
    report.card_metadata |= {key: value for key, value in given.items() if value}
    report.weights = {file.name: sha256_of_file(file) for file in weights_in(folder).files}
    report.figures = draw_figures(report, folder)
    report.save(folder)
    write_text(folder / "README.md", card_in_folder(folder, report))


def _check_trained(trainer: "FineMixingTrainer") -> None:
    if trainer.config_of_mix is None or not trainer.state.global_step:
        raise FineMixingError("nothing was mixed and trained yet: call train() before publishing.")


def training_report(trainer: "FineMixingTrainer") -> CleaningReport:
    """
    What a Trainer knows of its cleaning: mix, training, and the accuracy on its eval data where the weights that there
    are now were evaluated on them.

    Attack success is not, so the report does not say what became of a backdoor.
    """
    record, config = trainer.mixing_record, trainer.config_of_mix
    suspect, search = _suspect(trainer), trainer.ratio_search
    losses = [entry["train_loss"] for entry in trainer.state.log_history if "train_loss" in entry]
    before = search.suspect_accuracy if search and not config.cross_validation_folds else None  # or of other rows
    after = trainer.evaluated or {}
    task = next((task for end, task in _TASKS.items() if type(trainer.model).__name__.endswith(end)), None)
    kept = {"kept_step": trainer.state.best_global_step} if trainer.args.load_best_model_at_end else {}
    return CleaningReport(
        suspect=source_section(suspect)
        if suspect.folder.is_dir()
        else {"id": suspect.id, "revision": None, "sha256": None},
        base={**source_section(trainer.base), "named_by": USER}
        if trainer.base
        else {"id": config.base_model_name_or_path, "revision": config.base_model_revision, "named_by": USER},
        mixing=mixing_section(
            config,
            record.tensors if record else {},
            ignored_base=record.ignored_base_tensors if record else (),
            converted_base=record.converted_base_tensors if record else None,
        ),
        purified_tokens=token_rows(record.purified_tokens) if record else [],
        before=_measured(trainer, before, None),
        after=_measured(trainer, after.get("eval_accuracy"), after.get("eval_macro_f1")),
        drift_by_layer={"before": drift_by_layer(record.drift)} if record else {},
        ratio_search=search_section(search),
        training=training_section(trainer.args, trainer.state.global_step, losses[-1] if losses else None, **kept),
        card_metadata={**carried_over(suspect.folder), **({"pipeline_tag": task} if task else {})},
        **run_section({"mixing": config.mixing_seed, "training": trainer.args.seed}),
    )


def _measured(trainer: "FineMixingTrainer", accuracy: float | None, macro_f1: float | None) -> dict[str, Any]:
    """Of the rows of `eval_dataset`, if it is a single one."""
    rows = trainer.eval_dataset
    if isinstance(rows, Mapping):
        accuracy = macro_f1 = None
    size = len(rows) if accuracy is not None and hasattr(rows, "__len__") else None
    return {"accuracy": accuracy, "macro_f1": macro_f1, "n": size, "triggers": []}


def _suspect(trainer: "FineMixingTrainer") -> LocalModel:
    """Where the model was loaded from, as far as it can still be told."""
    if trainer.config_of_mix.adapter_mode == "adapter":  # the model goes by the name of what is under its LoRA
        return LocalModel("a LoRA in memory", Path("/nonexistent"))
    name = getattr(trainer.model, "name_or_path", "") or "a model made in memory"
    folder = cached_folder(name)
    if folder is None or not any(folder.glob("*.safetensors")):
        return LocalModel(name, Path("/nonexistent"))
    on_hub = is_repo_id(name) and folder != Path(name)
    if on_hub and len(cached_folders(name)) > 1:  # nobody can tell any more which one it was
        return LocalModel(name, Path("/nonexistent"))
    return LocalModel(name, folder, folder.name if on_hub else None)
