"""What FineMixingTrainer publishes: the report and card of its training, through the same door as clean()'s."""

import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers.trainer_utils import HubStrategy

from ..align.drift import drift_by_layer
from ..errors import FineMixingError
from ..hub.cache import cached_folder, cached_folders
from ..hub.commit import Destination, check_destination, refuse_private_sources
from ..hub.errors import hub_api
from ..hub.lineage import USER
from ..io.checkpoint import sha256_of_file
from ..io.folder import LocalModel, weights_in
from ..io.output_folder import write_text
from ..io.read_back import read_back
from ..io.repo_names import is_repo_id
from ..train.mixin import MixingMixin
from ..train.processes import agreed
from .card import card_in_folder
from .card_metadata import carried_over
from .figures import draw_figures
from .publish import push_cleaned
from .report import CleaningReport
from .sections import mixing_section, run_section, search_section, source_section, token_rows, training_section

logger = logging.getLogger(__name__)


_TASKS = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForCausalLM": "text-generation",
}


class PublishingMixin(MixingMixin):
    """What makes a Trainer that mixes publish through the same door as [`clean`], and tell before what it cannot."""

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """As [`~transformers.Trainer.init_hf_repo`], and tell before training what could not be published after it."""
        if self.mixing_config is not None:
            with agreed():
                _check_publishing(self, _destination(self, token, private))
        super().init_hf_repo(token, private)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """
        Publish as [`~transformers.Trainer.push_to_hub`] does; a mixed model in one commit with its report and card,
        and without the pickled arguments, which hold a token (see [`push_cleaned`]).

        Returns:
            `CommitInfo`, or with `blocking=False` a `Future` of it; `None` on all processes but the main one.

        Raises:
            [`FineMixingError`]: Nothing was mixed and trained yet, or as [`push_cleaned`].
        """
        if self.mixing_config is None:
            return super().push_to_hub(commit_message, blocking, token, revision, private, **kwargs)
        _check_trained(self)
        args = self.args
        if self.mixing.evaluated is None and self.compute_metrics and self.eval_dataset is not None:
            self.evaluate()  # of the weights that are published: the last one of training may be of others
        self.callback_handler.on_push_begin(args, self.state, self.control)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        if not (self.is_fsdp_enabled or self.is_deepspeed_enabled):  # where one process alone cannot ask the model
            base = self.mixing.base and self.mixing.base.folder
            read_back(Path(args.output_dir), self.model, self.processing_class, base=base)
        kwargs.pop("model_name", None)
        self.create_model_card(**kwargs)
        to = _destination(self, token, private, revision)

        def publish() -> Any:
            return push_cleaned(args.output_dir, **asdict(to), commit_message=commit_message).commit_info

        return publish() if blocking else hub_api().run_as_future(publish)

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Write the card as [`~transformers.Trainer.create_model_card`] does; of a mix, into what README.md holds."""
        if self.mixing_config is None:
            return super().create_model_card(language, license, tags, *args, **kwargs)
        if not self.is_world_process_zero():
            return None
        _check_trained(self)
        folder = Path(self.args.output_dir)
        if self.mixing.saved_step != self.state.global_step:  # what lies there is of another training or another step
            self.save_model(_internal_call=True)
        report = training_report(self)
        given = {"language": language, "license": license, "tags": [tags] if isinstance(tags, str) else tags}
        report.card_metadata |= {key: value for key, value in given.items() if value}
        report.weights = {file.name: sha256_of_file(file) for file in weights_in(folder).files}
        report.figures = draw_figures(report, folder)
        report.save(folder)
        write_text(folder / "README.md", card_in_folder(folder, report))


def _check_publishing(trainer: MixingMixin, to: Destination) -> None:
    if (strategy := trainer.args.hub_strategy) != HubStrategy.END:
        raise FineMixingError(
            f"hub_strategy={strategy.value!r} uploads during training, with the pickled arguments and their token, "
            'before anything is measured: set hub_strategy="end", and publish with push_to_hub().'
        )
    if not trainer.is_world_process_zero():
        return
    check_destination(to)
    names = (getattr(trainer.model, "name_or_path", None), trainer.mixing_config.base_model_name_or_path)
    named = [name for name in names if name and is_repo_id(name) and not Path(name).is_dir()]
    refuse_private_sources(to, [("model", name) for name in named])
    if trainer.mixing_config.adapter_mode == "adapter" and to.private is None:
        logger.warning(
            "A LoRA in memory does not say where it is from: if it is private, and %s is not, set hub_private_repo.",
            to.repo_id,
        )


def _destination(
    trainer: MixingMixin, token: str | None, private: bool | None, revision: str | None = None
) -> Destination:
    args = trainer.args
    return Destination(
        trainer.hub_model_id or args.hub_model_id or Path(args.output_dir).absolute().name,
        private=args.hub_private_repo if private is None else private,
        revision=revision or args.hub_revision,
        token=token or args.hub_token,
    )


def _check_trained(trainer: MixingMixin) -> None:
    if trainer.config_of_mix is None or not trainer.state.global_step:
        raise FineMixingError("nothing was mixed and trained yet: call train() before publishing.")


def training_report(trainer: MixingMixin) -> CleaningReport:
    """
    What a Trainer knows of its cleaning: mix, training, and the accuracy on its eval data where the weights that there
    are now were evaluated on them.

    Attack success is not, so the report does not say what became of a backdoor.
    """
    record, config = trainer.mixing_record, trainer.config_of_mix
    suspect, search = _suspect(trainer), trainer.ratio_search
    losses = [entry["train_loss"] for entry in trainer.state.log_history if "train_loss" in entry]
    before = search.suspect_accuracy if search and not config.cross_validation_folds else None  # or of other rows
    after = trainer.mixing.evaluated or {}
    task = next((task for end, task in _TASKS.items() if type(trainer.model).__name__.endswith(end)), None)
    kept = {"kept_step": trainer.state.best_global_step} if trainer.args.load_best_model_at_end else {}
    return CleaningReport(
        suspect=source_section(suspect)
        if suspect.folder.is_dir()
        else {"id": suspect.id, "revision": None, "sha256": None},
        base={**source_section(trainer.mixing.base), "named_by": USER}
        if trainer.mixing.base
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


def _measured(trainer: MixingMixin, accuracy: float | None, macro_f1: float | None) -> dict[str, Any]:
    """Of the rows of `eval_dataset`, if it is a single one."""
    rows = trainer.eval_dataset
    if isinstance(rows, Mapping):
        accuracy = macro_f1 = None
    size = len(rows) if accuracy is not None and hasattr(rows, "__len__") else None
    return {"accuracy": accuracy, "macro_f1": macro_f1, "n": size, "triggers": []}


def _suspect(trainer: MixingMixin) -> LocalModel:
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
