"""What a Hub repo holds at one commit, and what of it is taken: asked before anything is fetched."""

import logging
import re
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import FineMixingError, printable
from .hub.errors import hub_api
from .io.checkpoint import INDEX_NAME, WEIGHTS_NAME, Checkpoint, check_inside, other_weights, read_json
from .io.pickles import PICKLED_ADAPTER_NAME, PICKLED_INDEX_NAME, PICKLED_NAME

if TYPE_CHECKING:
    from huggingface_hub import ResolvedRevision

__all__ = [
    "ADAPTER_CONFIG_NAME",
    "ADAPTER_WEIGHTS_NAME",
    "SMALL_FILES",
    "RepoContents",
    "adapter_weights",
    "copy_small_files",
    "has_pickles",
    "inspect_repo",
    "is_adapter",
    "needed_files",
    "size_text",
    "small_files",
    "small_files_among",
    "weights_in",
]

logger = logging.getLogger(__name__)

ADAPTER_CONFIG_NAME, ADAPTER_WEIGHTS_NAME = "adapter_config.json", "adapter_model.safetensors"  # peft's names

# What transformers saves of a tokenizer: to ask it takes longer than to mix, so the tests ask whether one is missing.
TEMPLATE_NAME, TEMPLATE_FOLDER = "chat_template.jinja", "additional_chat_templates"
VOCABULARY_FILES = {"vocab.txt", "vocab.json", "merges.txt", "spiece.model", "tokenizer.model", "sentencepiece.model"}
VOCABULARY_FILES |= {"sentencepiece.bpe.model", "spm.model", "spm_char.model", "source.spm", "target.spm", "dict.txt"}
VOCABULARY_FILES |= {"bpe.codes", "vocab.bpe", "vocab-src.json", "vocab-tgt.json", "target_vocab.json", "tekken.json"}
VOCABULARY_FILES |= {"byte_maps.json", "emoji.json", "encoder.json", "entity_vocab.json", "normalizer.json"}
VOCABULARY_FILES |= {"prophetnet.tokenizer", "word_pronunciation.json", "word_shape.json"}
TOKENIZER_FILES = VOCABULARY_FILES | {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}
TOKENIZER_FILES |= {"added_tokens.json", TEMPLATE_NAME}
PROCESSOR_FILES = {"preprocessor_config.json", "processor_config.json", "chat_template.json"}
PROCESSOR_FILES |= {"video_preprocessor_config.json", "audio_tokenizer_config.json"}
# How sentence-transformers puts modules behind a model: the list of them, their settings, a folder for each.
MODULES_NAME = "modules.json"
SENTENCE_FILES = {MODULES_NAME, "config_sentence_transformers.json"} | {
    f"sentence_{kind}_config.json"
    for kind in ("albert", "bert", "camembert", "distilbert", "roberta", "xlm-roberta", "xlnet")
}
# Besides the weights, at the top of a model: configuration, tokenizer and card as data. Never code, never pickles.
SMALL_FILES = TOKENIZER_FILES | PROCESSOR_FILES | SENTENCE_FILES
SMALL_FILES |= {"config.json", "generation_config.json", ADAPTER_CONFIG_NAME, "README.md"}
SMALL_FILES |= {"cleaning_report.json", "fine_mixing_config.json"}
_IN_FOLDERS = re.compile(
    rf"{TEMPLATE_FOLDER}/[\w.-]{{1,100}}\.jinja|\d{{1,2}}_\w{{1,50}}/(config\.json|model\.safetensors)"
)
MAX_IN_FOLDERS, MAX_BYTES_IN_FOLDERS = 50, 100_000_000
_CODE_OR_PICKLE = re.compile(
    r".*\.(py|so|sh|bin|pt|pth|ckpt|pkl|pickle|joblib|dill|h5|keras|msgpack)", re.IGNORECASE | re.DOTALL
)
_SHARD = re.compile(r"[\w.-]{1,200}\.(safetensors|bin)")


@dataclass(frozen=True)
class RepoContents:
    """
    A repo as the Hub describes it.

    Attributes:
        id (`str`): `org/name`.
        revision (`ResolvedRevision`): What was asked for, and the commit it stands for.
        sizes (`dict[str, int]`): Every file and its bytes.
        sha256 (`dict[str, str]`): Of the large ones.
        tags (`list[str]`): As the Hub has them; `custom_code` says that the repo brings code.
        scan (`str`): How far the Hub's own scan is: `"finished"`, `"unfinished"` or `"unknown"`.
        flagged (`dict[str, str]`): Files in which the scan found something, and how bad it calls them.
    """

    id: str
    revision: "ResolvedRevision"
    sizes: dict[str, int]
    sha256: dict[str, str] = field(default_factory=dict)
    tags: list[str] = field(default_factory=list)
    scan: str = "unknown"
    flagged: dict[str, str] = field(default_factory=dict)

    @property
    def sha(self) -> str:
        """The commit."""
        return self.revision.resolved

    def code_and_pickles(self) -> list[str]:
        """Files that can run when they are loaded, or are code."""
        return sorted(name for name in self.sizes if _CODE_OR_PICKLE.fullmatch(name))

    def describe(self, chosen: Collection[str]) -> str:
        """One line: the commit, what is taken and how large it is, what is left there, what the Hub's scan says."""
        line = f"{self.id} @ {self.sha[:7]}: {len(chosen)} files, {size_text(sum(self.sizes[n] for n in chosen))}"
        if left := [printable(name)[:100] for name in self.code_and_pickles() if name not in chosen]:
            line += f"; not taken, code or pickles: {', '.join(left[:5])}{', …' if len(left) > 5 else ''}"
        scan = {
            "finished": f"{len(self.flagged)} files flagged" if self.flagged else "nothing found",
            "unfinished": "not finished, so it says nothing",
            "unknown": "none",
        }
        return f"{line}; the Hub's scan: {scan[self.scan]}."


def inspect_repo(repo: str, revision: str | None = None) -> RepoContents:
    """
    Ask the Hub for everything that it says about a repo, at the commit that a revision stands for now.

    Raises:
        [`FineMixingError`]: The repo is disabled, or what it lists cannot be.
        `Exception`: What [`hub_error`] makes one line of.
    """
    try:
        resolved = hub_api().resolve_revision(repo, revision=revision)  # everything else is asked of that commit
    except AssertionError as error:  # what the client makes of an answer without a commit
        raise FineMixingError(f"{repo}: the Hub does not say at which commit it is: check HF_ENDPOINT.") from error
    info = hub_api().model_info(repo, revision=resolved.resolved, files_metadata=True, securityStatus=True)
    if info.disabled:
        raise FineMixingError(f"{repo} is disabled on the Hub: it is not to be had, take another model.")
    if not re.fullmatch("[0-9a-f]{40}", resolved.resolved) or info.sha != resolved.resolved:
        raise FineMixingError(f"{repo}: the Hub answered no commit but {str(info.sha)[:100]!r}: try again later.")
    status = info.security_repo_status if isinstance(info.security_repo_status, dict) else {}
    finished = status.get("scansDone")
    return RepoContents(
        id=repo,
        revision=resolved,
        sizes={file.rfilename: file.size or 0 for file in info.siblings or ()},
        sha256={file.rfilename: file.lfs.sha256 for file in info.siblings or () if file.lfs and file.lfs.sha256},
        tags=[str(tag) for tag in info.tags or ()],
        scan="unknown" if finished is None else "finished" if finished is True else "unfinished",
        flagged={
            str(issue.get("path")): str(issue.get("level"))
            for issue in status.get("filesWithIssues") or ()
            if isinstance(issue, dict)
        },
    )


def needed_files(contents: RepoContents, *, allow_pickle: bool = False) -> list[str]:
    """
    Which files to fetch: one set of weights, and the small files that belong to them.

    Args:
        contents ([`RepoContents`]): What there is.
        allow_pickle (`bool`, *optional*, defaults to `False`): Take pickled weights where there are no safetensors.

    Raises:
        [`FineMixingError`]: There are no weights that may be taken, or the Hub's scan calls one of the files unsafe.
    """
    names = contents.sizes
    has_model = WEIGHTS_NAME in names or INDEX_NAME in names
    if WEIGHTS_NAME in names:
        weights = [WEIGHTS_NAME]
    elif INDEX_NAME in names:
        weights = [INDEX_NAME, *_shards(contents, INDEX_NAME)]
    elif ADAPTER_CONFIG_NAME in names and ADAPTER_WEIGHTS_NAME in names:
        weights = [ADAPTER_WEIGHTS_NAME]
    else:
        weights = _pickled(contents, allow_pickle)
    chosen = sorted({*weights, *small_files_among(names)} - ({ADAPTER_CONFIG_NAME} if has_model else set()))
    for name, level in contents.flagged.items():
        if name not in chosen or level in ("safe", "queued", "unscanned"):
            continue
        if level in ("caution", "error"):
            logger.warning("%s: the Hub's scan has %s down as %r.", contents.id, name, level)
        else:
            raise FineMixingError(
                f"{contents.id}: the Hub's scan calls {name} {level}: do not load it, take another model."
            )
    return chosen


def has_pickles(contents: RepoContents) -> bool:
    """Whether its weights are pickled, and in no other form there."""
    names = contents.sizes
    adapter = ADAPTER_CONFIG_NAME in names and ADAPTER_WEIGHTS_NAME in names
    return not adapter and WEIGHTS_NAME not in names and INDEX_NAME not in names and bool(_pickles(contents))


def _pickles(contents: RepoContents) -> list[str]:
    possible = [PICKLED_NAME, PICKLED_INDEX_NAME]
    if ADAPTER_CONFIG_NAME in contents.sizes:
        possible.append(PICKLED_ADAPTER_NAME)
    return [name for name in possible if name in contents.sizes]


def _pickled(contents: RepoContents, allow: bool) -> list[str]:
    found = _pickles(contents)
    pickles = [name for name in contents.code_and_pickles() if not name.endswith((".py", ".sh"))]
    if not found:
        what = other_weights(contents.sizes) or (
            f"only {', '.join(pickles[:3])}: ask for a safetensors version"
            if pickles
            else "no weights at all: ask for a safetensors version"
        )
        raise FineMixingError(f"{contents.id} has no {WEIGHTS_NAME} and no {INDEX_NAME}, {what}.")
    if not allow:
        raise FineMixingError(
            f"{contents.id} has only pickled weights ({found[0]}), which can run code when loaded: ask for a "
            "safetensors version, or give --allow-pickle, which scans them and reads them as data alone."
        )
    return [found[0], *(_shards(contents, found[0]) if found[0] == PICKLED_INDEX_NAME else ())]


def _shards(contents: RepoContents, index: str) -> list[str]:
    """The shards that an index names. Whatever else it names is left to the check of the folder."""
    from huggingface_hub import hf_hub_download

    content = read_json(Path(hf_hub_download(contents.id, index, revision=contents.revision)))
    names = content.get("weight_map") if isinstance(content, dict) else None
    shards = set(map(str, names.values())) if isinstance(names, dict) else set()
    return sorted(name for name in shards if _SHARD.fullmatch(name) and name in contents.sizes)


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and no weights of its own."""
    whole = any((folder / name).is_file() for name in (WEIGHTS_NAME, INDEX_NAME))
    return (folder / ADAPTER_CONFIG_NAME).is_file() and not whole


def adapter_weights(folder: Path) -> Path:
    """
    The file of an adapter's weights.

    Raises:
        [`FineMixingError`]: The folder has none, or only a pickled one.
    """
    file, pickled = folder / ADAPTER_WEIGHTS_NAME, folder / PICKLED_ADAPTER_NAME
    if file.is_file():
        return file
    if pickled.is_file():
        raise FineMixingError(
            f"{folder} has only pickled weights ({pickled.name}), which can run code when loaded: save the adapter "
            "anew as safetensors, or give --allow-pickle, which scans them and reads them as data alone."
        )
    raise FineMixingError(f"{folder} has an {ADAPTER_CONFIG_NAME} and no {file.name}: give the whole adapter.")


def weights_in(folder: Path) -> Checkpoint:
    """The weights of a folder: an adapter's, where it holds no others."""
    return Checkpoint(folder, only=adapter_weights(folder) if is_adapter(folder) else None)


def small_files_among(sizes: Mapping[str, int]) -> list[str]:
    """
    Which files of a model are taken besides its weights.

    Args:
        sizes (`Mapping[str, int]`): Bytes of every file, by its path in the model.
    """
    in_folders = [
        name for name in sorted(sizes) if _IN_FOLDERS.fullmatch(name) and sizes[name] <= MAX_BYTES_IN_FOLDERS
    ]
    return [*sorted(SMALL_FILES & sizes.keys()), *in_folders[:MAX_IN_FOLDERS]]


def small_files(folder: Path) -> list[str]:
    """
    As [`small_files_among`], of a folder on this machine.

    Raises:
        [`FineMixingError`]: One of them is a link out of the folder.
    """
    found = {}
    for path in (*folder.glob("*"), *folder.glob("*/*")):
        name = path.relative_to(folder).as_posix()
        if (name in SMALL_FILES or _IN_FOLDERS.fullmatch(name)) and path.is_file():
            check_inside(path, folder)
            found[name] = path.stat().st_size
    return small_files_among(found)


def copy_small_files(source: Path, target: Path, leave: Collection[str] = ()) -> None:
    """Copy the [`small_files`] of a folder into another one, but for those to `leave`."""
    for name in small_files(source):
        if name not in leave:
            (target / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(source / name, target / name)


def size_text(number: int) -> str:
    """A number of bytes for people: `90.9 MB`."""
    units: list[Any] = ["B", "kB", "MB", "GB", "TB"]
    while number >= 1000 and len(units) > 1:
        number, units = number / 1000, units[1:]
    return f"{number:.{0 if number >= 100 or units[0] == 'B' else 1}f} {units[0]}"
