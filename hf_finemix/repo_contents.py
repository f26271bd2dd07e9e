"""Which files a model consists of, by their names: what is taken of a repo or a folder, and what never is."""

import re
from collections.abc import Mapping
from typing import Any

REPORT_NAME = "cleaning_report.json"
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
SMALL_FILES |= {REPORT_NAME, "fine_mixing_config.json"}
_IN_FOLDERS = re.compile(
    rf"{TEMPLATE_FOLDER}/[\w.-]{{1,100}}\.jinja|\d{{1,2}}_\w{{1,50}}/(config\.json|model\.safetensors)"
)
MAX_IN_FOLDERS, MAX_BYTES_IN_FOLDERS = 50, 100_000_000
_CODE_OR_PICKLE = re.compile(
    r".*\.(py|so|sh|bin|pt|pth|ckpt|pkl|pickle|joblib|dill|h5|keras|msgpack)", re.IGNORECASE | re.DOTALL
)


def small_files_among(sizes: Mapping[str, int]) -> list[str]:
    """Which files of a model are taken besides its weights, of all its paths with their bytes."""
    in_folders = [
        name for name in sorted(sizes) if _IN_FOLDERS.fullmatch(name) and sizes[name] <= MAX_BYTES_IN_FOLDERS
    ]
    return [*sorted(SMALL_FILES & sizes.keys()), *in_folders[:MAX_IN_FOLDERS]]


def size_text(number: float) -> str:
    """A number of bytes for people: `90.9 MB`."""
    units: list[Any] = ["B", "kB", "MB", "GB", "TB"]
    while number >= 1000 and len(units) > 1:
        number, units = number / 1000, units[1:]
    return f"{number:.{0 if number >= 100 or units[0] == 'B' else 1}f} {units[0]}"
