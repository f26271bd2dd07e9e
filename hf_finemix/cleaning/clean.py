"""clean(): the main job. Pull, measure, purify, mix, fine-tune, measure, write, publish."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from ..config import FineMixingConfig
from ..errors import FineMixingError
from ..hub.commit import Destination, check_destination, refuse_private_sources
from ..hub.errors import logged_in
from ..hub.fetch import fetch_model
from ..io.checkpoint import Checkpoint
from ..io.folder import LocalModel
from ..io.output_folder import check_free_space
from ..io.repo_names import split_revision
from ..report.publish import push_cleaned
from ..report.report import CleaningReport
from ..train.defaults import TRAINING_DEFAULTS
from ..train.processes import agreed, from_main, shared_output_folder
from .arguments import CleaningArguments, check_settings, cleaning_arguments
from .results import Fit, Pulled, make_report
from .stages import check_fit, make_trainer, measure_before, mix_and_train, prepare_samples, pull, write


def clean(
    suspect: str | Path,
    *,
    output_dir: str | Path | None = None,
    base_model: str | Path | None = None,
    mixing_config: FineMixingConfig | None = None,
    training_args: TrainingArguments | None = None,
    command: str | None = None,
    **settings: Any,
) -> CleaningReport:
    """
    Clean a model that may be backdoored, and write the cleaned model with its report, figures and card.

    It may be a classifier of texts or pairs, or one that writes (causal, or sequence to sequence), or a LoRA of one.

    The output appears whole or not at all: it is written to `OUT.partial` and renamed at the end. In several processes
    (`accelerate launch`) the main one mixes and writes, all train and measure, and an error of one is raised in all.

    Args:
        suspect (`str` or `Path`):
            Hub id or local folder of the fine-tuned model, with weights in safetensors.
        output_dir (`str` or `Path`, *optional*):
            Where the cleaned model goes; in place of `training_args.output_dir`.
        base_model (`str` or `Path`, *optional*):
            Hub id or local folder of its clean pre-trained base; it wins over the config's. Without either it is the
            one that the suspect names, if its weights agree.
        mixing_config ([`FineMixingConfig`], *optional*):
            What to mix and how.
        training_args (`TrainingArguments`, *optional*):
            How to fine-tune; with neither steps nor epochs (0) at least 100 steps and 3 epochs. By default also
            batches of 16 and a learning rate of 5e-5. With `push_to_hub` the finished folder is published once, at the
            end, to `hub_model_id`.
        command (`str`, *optional*):
            The command line to state in the report.
        settings:
            Fields of [`CleaningArguments`]: `dataset="stanfordnlp/sst2"`, `num_clean_samples=64`, `triggers=["cf"]`,
            `target_label="positive"`, …

    Returns:
        [`CleaningReport`]: What was measured and done, as in `cleaning_report.json`.

    Raises:
        [`FineMixingError`]: Whatever is wrong with the models, the data or the settings, before anything is written.
    """
    arguments = cleaning_arguments(settings)
    config = mixing_config or FineMixingConfig()
    if base_model is not None:
        config = config.with_base(base_model)
    if training_args is None:
        training_args = TrainingArguments(output_dir=str(output_dir or "cleaned"), **TRAINING_DEFAULTS)
    check_settings(arguments, config, training_args)
    final = Path(output_dir or training_args.output_dir)
    read = (suspect, config.base_model_name_or_path, arguments.reference_model)
    read += (arguments.dataset, arguments.triggered_file, config.token_frequencies)
    for source in (Path(source).expanduser().resolve() for source in read if source):
        if source.exists() and source.is_relative_to(final.resolve()):
            raise FineMixingError(f"the output folder {final} is or holds {source}, which is read: give another one.")
    output = shared_output_folder(final, overwrite=arguments.overwrite, resume=arguments.resume)
    with logged_in(training_args.hub_token), output as partial:
        with agreed(), training_args.main_process_first(desc="fetching and reading"):
            main = training_args.process_index == 0
            found = fetch_model(suspect, arguments.suspect_revision, role="suspect", trust=arguments)
            destination = _destination(found, arguments, training_args)
            if main and destination is not None:
                check_destination(destination)
            pulled = pull(found, arguments, config)
            with pulled.timed("load"):
                fit = check_fit(pulled)
                samples = prepare_samples(pulled, fit)
            if main and destination is not None:
                refuse_private_sources(destination, _sources(pulled, fit))
            if main:
                files = Checkpoint(fit.subject.source.folder).files
                check_free_space(partial, sum(file.stat().st_size for file in files))
        trainer = make_trainer(pulled, fit, samples, training_args, partial)
        before = measure_before(trainer, pulled, fit, samples)
        cleaned = mix_and_train(trainer, pulled, fit, samples)
        report = make_report(pulled, fit, samples, before, cleaned)
        report.command = command
        report = write(report, partial, pulled, fit, samples, cleaned)
    if destination is not None:
        from_main(lambda: push_cleaned(final, **asdict(destination)))
    return report


def _sources(pulled: Pulled, fit: Fit) -> list[tuple[str, str]]:
    """What the cleaned model is made of that is on the Hub."""
    models = [fit.subject.source, pulled.base, *filter(None, [pulled.reference])]
    dataset = pulled.arguments.dataset
    data = [] if Path(dataset).expanduser().exists() else [dataset]
    found = [("model", model.id) for model in models if model.revision]
    return found + [("dataset", split_revision(name)[0]) for name in data]


def _destination(
    suspect: LocalModel, arguments: CleaningArguments, training_args: TrainingArguments
) -> Destination | None:
    """Where the cleaned model is to be published, if anywhere."""
    repo_id = training_args.hub_model_id
    if arguments.create_pr:
        if repo_id is None and suspect.revision is None:
            raise FineMixingError(
                f"create_pr: the suspect {suspect.id} is a folder, give hub_model_id (--hub-model-id)."
            )
        repo_id = repo_id or suspect.id
    elif not training_args.push_to_hub:
        return None
    elif repo_id is None:
        raise FineMixingError("push_to_hub needs a name: give hub_model_id (--hub-model-id me/suspect-cleaned).")
    return Destination(
        repo_id,
        create_pr=arguments.create_pr,
        private=training_args.hub_private_repo,
        revision=training_args.hub_revision,
        token=training_args.hub_token,
    )
