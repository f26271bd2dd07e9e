"""
Model folders that mean harm, or that nobody would write: each entry turns a valid folder into one, in place.

A folder has config.json and model.safetensors, and a parent of its own: what must not be reached is put beside it.
Code that a folder brings along leaves a trace there when it is run, see `RAN`.
"""

import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONFIG = "config.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")

Attack = Callable[[Path], Any]

RAN = "code_was_run"  # made beside the folder by code that it brings along
SECRET = "the secret beside the folder"  # in a file there that no message may quote
VICTIM = "classifier.bias"  # the tensor whose entry is changed
FORGED = "hf-finemix: all is well"  # what a line break in a name would put on a line of its own
ESCAPE = "\x1b[2J\x1b]0;owned\x07"
BIG = 20 << 20
DEEP = 100_000
LEFT_OUT = object()


def both(first: Attack, second: Attack) -> Attack:
    """One after the other."""

    def attack(folder: Path) -> None:
        first(folder)
        second(folder)

    return attack


# ---- Safetensors files ----------------------------------------------------------------------------------------------


def write_raw(path: Path, header: bytes, data: bytes = b"", length: int | None = None) -> None:
    """A safetensors file of these parts, which may claim another `length` of its header."""
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + data)


def read_raw(path: Path) -> tuple[bytes, bytes]:
    """The header and the data of a valid safetensors file."""
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    return content[8:end], content[end:]


def content(change: Callable[[bytes], bytes], file: str = WEIGHTS) -> Attack:
    """Change a whole file."""
    return lambda folder: _replace(folder / file, change((folder / file).read_bytes()))


def parts(change: Callable[[bytes, bytes], tuple[bytes, bytes]]) -> Attack:
    """Change header and data as bytes."""

    def attack(folder: Path) -> None:
        write_raw(folder / WEIGHTS, *change(*read_raw(folder / WEIGHTS)))

    return attack


def text(change: Callable[[bytes], bytes]) -> Attack:
    """Change the header as bytes."""
    return parts(lambda head, data: (change(head), data))


def length(change: Callable[[int], int]) -> Attack:
    """Claim another length of the header."""

    def attack(folder: Path) -> None:
        head, data = read_raw(folder / WEIGHTS)
        write_raw(folder / WEIGHTS, head, data, change(len(head)))

    return attack


def entry(**fields: Any) -> Attack:
    """Change fields of one tensor's entry; a function gets the old value, `LEFT_OUT` leaves the field out."""

    def change(head: bytes, data: bytes) -> tuple[bytes, bytes]:
        parsed = json.loads(head)
        for key, value in fields.items():
            old = parsed[VICTIM].pop(key)
            value = value(old) if callable(value) else value
            if value is not LEFT_OUT:
                parsed[VICTIM][key] = value
        return json.dumps(parsed).encode(), data

    return parts(change)


def replaced(value: Any) -> Attack:
    """Something else in place of one tensor's entry."""
    return text(lambda head: json.dumps({**json.loads(head), VICTIM: value}).encode())


def extra(name: str = "extra", dtype: Any = "F16", shape: Any = (1,), nbytes: int = 2) -> Attack:
    """One tensor more, behind the others."""

    def change(head: bytes, data: bytes) -> tuple[bytes, bytes]:
        added = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + nbytes]}
        return json.dumps({**json.loads(head), name: added}).encode(), data + bytes(nbytes)

    return parts(change)


def renamed(name: str) -> Attack:
    """Another name for a tensor that the model needs."""
    return text(lambda head: head.replace(json.dumps(VICTIM).encode(), json.dumps(name).encode()))


def metadata(value: Any) -> Attack:
    """Something else in place of the strings of `__metadata__`."""
    return text(lambda head: json.dumps({**json.loads(head), "__metadata__": value}).encode())


def twice(name: str, value: Callable[[dict], Any]) -> Attack:
    """A key a second time, at the header's end; `name` as JSON writes it."""

    def change(head: bytes) -> bytes:
        return head.rstrip()[:-1] + f", {name}: {json.dumps(value(json.loads(head)))}}}".encode()

    return text(change)


def alias(begin: int, end: int) -> Attack:
    """One tensor more that begins and ends so many bytes off another one's data."""

    def change(head: bytes) -> bytes:
        parsed = json.loads(head)
        first, last = parsed[VICTIM]["data_offsets"]
        shape = [(last + end - first - begin) // 2]
        added = {"dtype": "F16", "shape": shape, "data_offsets": [first + begin, last + end]}
        return json.dumps({**parsed, "extra": added}).encode()

    return text(change)


def hole(head: bytes, data: bytes) -> tuple[bytes, bytes]:
    """Bytes between two tensors that belong to none."""
    parsed = json.loads(head)
    begin = parsed[VICTIM]["data_offsets"][0]
    for name, info in parsed.items():
        if name != "__metadata__" and info["data_offsets"][0] >= begin:
            info["data_offsets"] = [offset + 8 for offset in info["data_offsets"]]
    return json.dumps(parsed).encode(), data[:begin] + bytes(8) + data[begin:]


def nested(opening: bytes = b"[", closing: bytes = b"]", inside: bytes = b"") -> bytes:
    """JSON deeper than any parser wants it."""
    return opening * DEEP + inside + closing * DEEP


def as_list(head: bytes) -> bytes:
    """One entry as a list, which some parsers take for the object."""
    return json.dumps({**json.loads(head), VICTIM: list(json.loads(head)[VICTIM].values())}).encode()


def odd_names(head: bytes) -> bytes:
    """A thousand empty tensors more."""
    empty = {"dtype": "F16", "shape": [0], "data_offsets": [0, 0]}
    return json.dumps({**json.loads(head), **{f"{ESCAPE}{i}": empty for i in range(1000)}}).encode()


def header_of_101_mb(folder: Path) -> None:
    """As long as it claims to be, but a hole on the disk."""
    write_raw(folder / WEIGHTS, b"{", length=101 << 20)
    os.truncate(folder / WEIGHTS, 102 << 20)


def many_tensors(folder: Path) -> None:
    """300,000 of one byte each."""
    one = '"%d":{"dtype":"U8","shape":[],"data_offsets":[%d,%d]}'
    head = "{" + ",".join(one % (i, i, i + 1) for i in range(300_000)) + "}"
    write_raw(folder / WEIGHTS, head.encode(), bytes(300_000))


# ---- Indexes --------------------------------------------------------------------------------------------------------


def shard(folder: Path) -> None:
    """The valid folder in two shards."""
    tensors = load_file(folder / WEIGHTS)
    names = sorted(tensors)
    half = len(names) // 2
    for file, chosen in zip(SHARDS, (names[:half], names[half:]), strict=True):
        save_file({name: tensors[name].clone() for name in chosen}, folder / file, metadata={"format": "pt"})
    weight_map = {name: SHARDS[i >= half] for i, name in enumerate(names)}
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    (folder / WEIGHTS).unlink()


def sharded(attack: Attack) -> Attack:
    """Split the folder first."""
    return both(shard, attack)


def index_bytes(change: Callable[[bytes], bytes]) -> Attack:
    """Change the index as bytes."""
    return sharded(content(change, INDEX))


def index(**keys: Any) -> Attack:
    """Change keys of the index; a function gets the old value, `LEFT_OUT` leaves the key out."""

    def change(old: bytes) -> bytes:
        parsed = json.loads(old)
        for key, value in keys.items():
            before = parsed.pop(key, None)
            value = value(before) if callable(value) else value
            if value is not LEFT_OUT:
                parsed[key] = value
        return json.dumps(parsed).encode()

    return index_bytes(change)


def mapped(file: Any, name: str = VICTIM) -> Attack:
    """An index that puts one tensor into this file."""
    return index(weight_map=lambda names: {**names, name: file})


def moved(place: Callable[[Path], Path], said: Callable[[Path], str]) -> Attack:
    """The second shard at another place, where the index says it is."""

    def attack(folder: Path) -> None:
        place(folder).parent.mkdir(exist_ok=True)
        (folder / SHARDS[1]).rename(place(folder))
        parsed = json.loads((folder / INDEX).read_bytes())
        names = {n: said(folder) if file == SHARDS[1] else file for n, file in parsed["weight_map"].items()}
        (folder / INDEX).write_text(json.dumps({**parsed, "weight_map": names}))

    return sharded(attack)


def same_tensor_in_both_shards(folder: Path) -> None:
    """The last tensor of the second shard in the first one too."""
    second = load_file(folder / SHARDS[1])
    save_file({**load_file(folder / SHARDS[0]), max(second): second[max(second)]}, folder / SHARDS[0])


def key_twice(old: bytes) -> bytes:
    """An index that puts one tensor into both shards: which one counts depends on the parser."""
    name = json.dumps(VICTIM).encode()
    return old.replace(name, b'%s: "%s", %s' % (name, SHARDS[0].encode(), name))


# ---- Links, pipes and folders ---------------------------------------------------------------------------------------


def _replace(path: Path, value: bytes) -> None:
    path.unlink()
    path.write_bytes(value)


def link(target: str, file: str = WEIGHTS) -> Attack:
    """A link in place of a file."""

    def attack(folder: Path) -> None:
        (folder / file).unlink()
        (folder / file).symlink_to(target)

    return attack


def outside(file: str) -> Attack:
    """A file moved out of the folder, and a link to it."""

    def attack(folder: Path) -> None:
        (folder / file).rename(folder.parent / f"outside-{file}")
        (folder / file).symlink_to(folder.parent / f"outside-{file}")

    return attack


def through_a_linked_folder(folder: Path) -> None:
    """A link within the folder, to a folder in it that is itself a link to elsewhere."""
    (folder.parent / "elsewhere").mkdir()
    (folder / WEIGHTS).rename(folder.parent / "elsewhere" / WEIGHTS)
    (folder / "sub").symlink_to("../elsewhere")
    (folder / WEIGHTS).symlink_to(f"sub/{WEIGHTS}")


def inside(folder: Path) -> None:
    """A link to a file of the same folder."""
    (folder / WEIGHTS).rename(folder / "weights.bin")
    (folder / WEIGHTS).symlink_to("weights.bin")


def secret(file: str) -> Attack:
    """A link to a file beside the folder that is none of the model's business."""

    def attack(folder: Path) -> None:
        (folder.parent / "secret.txt").write_text(SECRET)
        link("../secret.txt", file)(folder)

    return attack


def links_in_a_circle(folder: Path) -> None:
    """Two links to each other."""
    link("other")(folder)
    (folder / "other").symlink_to(WEIGHTS)


def pipe(file: str = WEIGHTS) -> Attack:
    """A pipe in place of a file: opening it waits for a writer that never comes."""

    def attack(folder: Path) -> None:
        (folder / file).unlink()
        os.mkfifo(folder / file)

    return attack


def directory(file: str = WEIGHTS) -> Attack:
    """A directory in place of a file."""

    def attack(folder: Path) -> None:
        (folder / file).unlink()
        (folder / file).mkdir()

    return attack


def removed(file: str) -> Attack:
    """No such file."""
    return lambda folder: (folder / file).unlink()


def unreadable(file: str = WEIGHTS) -> Attack:
    """No right to read the file. Root has it all the same."""
    return lambda folder: (folder / file).chmod(0)


# ---- Code -----------------------------------------------------------------------------------------------------------


class Payload:
    """What runs when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def pickled(*names: str, keep: bool = False) -> Attack:
    """Pickles of this name in place of the weights, or beside them."""

    def attack(folder: Path) -> None:
        for name in names:
            (folder / name).write_bytes(pickle.dumps(Payload(folder.parent / RAN)))
        if not keep:
            (folder / WEIGHTS).unlink()

    return attack


def remote_code(folder: Path) -> None:
    """A config that asks for a module of the folder, which leaves a trace when it is imported."""
    code = f"import os\nos.makedirs({str(folder.parent / RAN)!r}, exist_ok=True)\n"
    (folder / "evil.py").write_text(f"{code}class Config: pass\nclass Model: pass\n")
    auto_map = {"AutoConfig": "evil.Config", "AutoModelForSequenceClassification": "evil.Model"}
    config(auto_map={**auto_map, "AutoModel": "evil.Model", "AutoTokenizer": ["evil.Model", None]})(folder)


# ---- Configs --------------------------------------------------------------------------------------------------------


def config(**keys: Any) -> Attack:
    """Change keys of config.json; `LEFT_OUT` leaves one out."""

    def change(old: bytes) -> bytes:
        parsed = {**json.loads(old), **keys}
        return json.dumps({key: value for key, value in parsed.items() if value is not LEFT_OUT}).encode()

    return content(change, CONFIG)


def deep_config(old: bytes) -> bytes:
    """Valid but for a value that is nested without end."""
    return old.rstrip()[:-1] + b', "deep": ' + nested() + b"}"


# ---- What must be refused -------------------------------------------------------------------------------------------

HOSTILE: dict[str, Attack] = {
    # The file as a whole
    "empty file": content(lambda old: b""),
    "7 bytes": content(lambda old: old[:7]),
    "8 bytes": content(lambda old: old[:8]),
    "zeros": content(lambda old: bytes(len(old))),
    "data truncated": content(lambda old: old[:-1]),
    "no data": parts(lambda head, data: (head, b"")),
    "one byte too many": content(lambda old: old + b"\0"),
    "another file behind it": content(lambda old: old + old),
    "a pickle by that name": pickled(WEIGHTS, keep=True),
    # The header's length
    "header length 0": length(lambda old: 0),
    "header length 1": length(lambda old: 1),
    "header length one too small": length(lambda old: old - 1),
    "header length one too large": length(lambda old: old + 1),
    "header length 2**63": length(lambda old: 1 << 63),
    "header length 2**64-1": length(lambda old: (1 << 64) - 1),
    "header length 2**64-8": length(lambda old: (1 << 64) - 8),
    "header larger than the file": length(lambda old: 1 << 20),
    "header of 101 MB": header_of_101_mb,
    "header of 20 MB of spaces": text(lambda head: head + b" " * BIG),
    # The header's text
    "header not JSON": text(lambda head: head[:-1] + b"]"),
    "header with something behind it": text(lambda head: head + b"{}"),
    "header a list": text(lambda head: b"[" + head + b"]"),
    "header a string": text(lambda head: json.dumps(head.decode()).encode()),
    "header null": text(lambda head: b"null"),
    "header of 100,000 brackets": text(lambda head: b'{"a": ' + nested() + b"}"),
    "header of 100,000 braces": text(lambda head: nested(b'{"a":', b"}", b"0")),
    "header of 100,000 open brackets": text(lambda head: b"[" * DEEP),
    "header with a name that is not UTF-8": text(lambda head: head.replace(b"classifier", b"classi\xfe\xffer")),
    "header with half a surrogate": text(lambda head: head.replace(b"classifier", b"\\ud800fier")),
    "header in UTF-16": text(lambda head: head.decode().encode("utf-16")),
    "header behind a byte order mark": text(lambda head: b"\xef\xbb\xbf" + head),
    "header with NaN": text(lambda head: head.replace(b"[0,", b"[NaN,", 1)),
    "header with a raw line break in a name": text(lambda head: head.replace(b"classifier", b"classi\nfier")),
    # Names twice
    "name twice, the same entry": twice(f'"{VICTIM}"', lambda head: head[VICTIM]),
    "name twice, once escaped": twice(f'"\\u0063{VICTIM[1:]}"', lambda head: head[VICTIM]),
    "name twice, another entry": twice(f'"{VICTIM}"', lambda head: {**head[VICTIM], "data_offsets": [0, 4]}),
    "metadata twice": twice('"__metadata__"', lambda head: {}),
    "dtype twice": text(lambda head: head.replace(b'"dtype":', b'"dtype":"F32","dtype":', 1)),
    "offsets twice": text(lambda head: head.replace(b'"data_offsets":', b'"data_offsets":[0,2],"data_offsets":')),
    # Offsets
    "tensor on another one": alias(0, 0),
    "overlapping tensors": alias(2, 2),
    "tensor within another one": alias(2, 0),
    "tensor across the end of the file": alias(0, 1 << 20),
    "hole between tensors": parts(hole),
    "hole at the beginning": entry(data_offsets=[8, 12]),
    "offsets reversed": entry(data_offsets=lambda old: old[::-1]),
    "offsets negative": entry(data_offsets=lambda old: [-old[1], -old[0]]),
    "begin negative": entry(data_offsets=lambda old: [-4, 0]),
    "offsets float": entry(data_offsets=lambda old: [float(offset) for offset in old]),
    "offsets bool": entry(data_offsets=[False, True]),
    "offsets strings": entry(data_offsets=lambda old: [str(offset) for offset in old]),
    "offsets null": entry(data_offsets=None),
    "offsets a number": entry(data_offsets=4),
    "one offset": entry(data_offsets=lambda old: old[:1]),
    "three offsets": entry(data_offsets=lambda old: [*old, old[1]]),
    "offset 2**64 too large": entry(data_offsets=lambda old: [old[0], old[1] + (1 << 64)]),
    "offsets 2**64+8": entry(data_offsets=[(1 << 64) + 4, (1 << 64) + 8]),
    "offsets 2**63": entry(data_offsets=[1 << 63, (1 << 63) + 4]),
    "offset of 100,000 digits": text(lambda head: head.replace(b"[0,", b"[" + b"9" * DEEP + b",", 1)),
    "offset 1e400": text(lambda head: head.replace(b"[0,", b"[1e400,", 1)),
    # Shapes
    "shape one too large": entry(shape=lambda old: [old[0] + 1]),
    "shape one too small": entry(shape=lambda old: [old[0] - 1]),
    "shape empty": entry(shape=[]),
    "shape with nothing in it": entry(shape=[0]),
    "shape negative": entry(shape=[-2]),
    "shape negative twice": entry(shape=[-1, -2]),
    "shape float": entry(shape=[2.0]),
    "shape bool": entry(shape=[True, 2]),
    "shape strings": entry(shape=["2"]),
    "shape nested": entry(shape=[[2]]),
    "shape a number": entry(shape=2),
    "shape a string": entry(shape="2"),
    "shape null": entry(shape=None),
    "shape an object": entry(shape={"0": 2}),
    "shape 2**64+2": entry(shape=[(1 << 64) + 2]),
    "shape whose product is 2**80": extra(shape=[1 << 40, 1 << 40], nbytes=0),
    "shape whose product is 2**64+1": extra(shape=[274177, 67280421310721], nbytes=2),
    "shape whose bytes are 2**64": extra(dtype="F32", shape=[1 << 62], nbytes=0),
    "shape whose bits are 2**64": extra(dtype="F64", shape=[1 << 58], nbytes=0),
    "shape of 2**40 without data": extra(shape=[1 << 40], nbytes=0),
    "hole, and a name of terminal escapes": both(entry(data_offsets=[8, 12]), renamed(f"{ESCAPE}\n{FORGED}")),
    "hole, and a name of 100 kB": both(entry(data_offsets=[8, 12]), renamed("x" * DEEP)),
    "hole, and a name that turns the writing around": both(entry(data_offsets=[8, 12]), renamed("a\u202eb\u2066c")),
    "dtype that cannot be mixed, and a name of 100 kB": extra("x" * DEEP, dtype="C64", nbytes=8),
    "shape of 100,000 twos": extra(shape=[2] * DEEP, nbytes=0),
    # Dtypes and entries
    "dtype unknown": entry(dtype="F128"),
    "dtype of another size": entry(dtype="F32"),
    "dtype in small letters": entry(dtype="f16"),
    "dtype empty": entry(dtype=""),
    "dtype a number": entry(dtype=16),
    "dtype null": entry(dtype=None),
    "dtype a list": entry(dtype=["F16"]),
    "dtype an object": entry(dtype={"F16": 2}),
    "dtype of terminal escapes": entry(dtype=ESCAPE + "\n" + FORGED),
    "dtype of 100 kB": entry(dtype="F" * DEEP),
    "no dtype": entry(dtype=LEFT_OUT),
    "no shape": entry(shape=LEFT_OUT),
    "no offsets": entry(data_offsets=LEFT_OUT),
    "entry null": replaced(None),
    "entry a number": replaced(7),
    "entry a string": replaced("F16"),
    "entry an empty object": replaced({}),
    "metadata of numbers": metadata({"format": 1}),
    "metadata of objects": metadata({"format": {"a": "b"}}),
    "metadata null inside": metadata({"format": None}),
    "metadata a list": metadata(["format", "pt"]),
    "metadata a string": metadata("pt"),
    "metadata a tensor": metadata({"dtype": "F16", "shape": [0], "data_offsets": [0, 0]}),
    # The index as a whole
    "index empty": index_bytes(lambda old: b""),
    "index not JSON": index_bytes(lambda old: old[:-1]),
    "index a list": index_bytes(lambda old: b"[" + old + b"]"),
    "index null": index_bytes(lambda old: b"null"),
    "index not UTF-8": index_bytes(lambda old: old.replace(b"classifier", b"classi\xfe\xffer")),
    "index in UTF-16": index_bytes(lambda old: old.decode().encode("utf-16")),
    "index of 20 MB": index_bytes(lambda old: old + b" " * BIG),
    "index of one string of 20 MB": index(metadata=lambda old: {"note": "x" * BIG}),
    "index with a list of 5,000,000": index_bytes(lambda old: b'{"a": [' + b"0," * 5_000_000 + b"0], " + old[1:]),
    "index nested in brackets": index_bytes(lambda old: b'{"a": ' + nested() + b", " + old[1:]),
    "index nested in braces": index_bytes(lambda old: nested(b'{"weight_map":', b"}", b"0")),
    "weight_map missing": index(weight_map=LEFT_OUT),
    "weight_map null": index(weight_map=None),
    "weight_map empty": index(weight_map={}),
    "weight_map a list": index(weight_map=lambda names: list(names.items())),
    "weight_map a string": index(weight_map=SHARDS[0]),
    "weight_map twice": index_bytes(lambda old: b'{"weight_map": {}, ' + old[1:]),
    "tensor twice in weight_map": index_bytes(key_twice),
    # The files it names
    "shard beside the folder": moved(lambda f: f.parent / "x.safetensors", lambda f: "../x.safetensors"),
    "shard by its full path": moved(lambda f: f / "x.safetensors", lambda f: str(f / "x.safetensors")),
    "shard by its full path outside": moved(
        lambda f: f.parent / "x.safetensors", lambda f: str(f.parent / "x.safetensors")
    ),
    "shard in a subfolder": moved(lambda f: f / "sub" / "x.safetensors", lambda f: "sub/x.safetensors"),
    "shard by a detour": moved(lambda f: f / "x.safetensors", lambda f: f"../{f.name}/x.safetensors"),
    "shard with a dot": moved(lambda f: f / "x.safetensors", lambda f: "./x.safetensors"),
    "shard with a backslash": moved(lambda f: f / "..\\x.safetensors", lambda f: "..\\x.safetensors"),
    "shard as a URL": mapped("https://example.org/x.safetensors"),
    "shard at home": mapped("~/x.safetensors"),
    "shard missing": sharded(removed(SHARDS[1])),
    "shard of no name": mapped(""),
    "shard that is the folder": mapped("."),
    "shard that is the parent": mapped(".."),
    "shard that is the index": mapped(INDEX),
    "shard that is the config": mapped(CONFIG),
    "shard with NUL in its name": mapped(f"{SHARDS[0]}\0.safetensors"),
    "shard with half a surrogate in its name": mapped("\ud800.safetensors"),
    "shard with terminal escapes in its name": mapped(f"{ESCAPE}\n{FORGED}.safetensors"),
    "shard with a line break behind its name": mapped(f"{SHARDS[0]}\n"),
    "shard with a name of 100 kB": mapped("x" * DEEP + ".safetensors"),
    "shard with a path of 100 kB": mapped("../" * DEEP + "x.safetensors"),
    "shard a number": mapped(1),
    "shard a float": mapped(1e308),
    "shard null": mapped(None),
    "shard a list": mapped([SHARDS[1]]),
    "shard an object": mapped({"file": SHARDS[1]}),
    "shard a pickle": both(mapped("pytorch_model.bin"), pickled("pytorch_model.bin", keep=True)),
    "shard a pickle called safetensors": sharded(pickled(SHARDS[1], keep=True)),
    "shard broken": sharded(content(lambda old: old[:-1], SHARDS[1])),
    "shard a directory": sharded(directory(SHARDS[1])),
    "shard a pipe": sharded(pipe(SHARDS[1])),
    "shard a link outside": sharded(outside(SHARDS[1])),
    "shard a link to itself": sharded(link(SHARDS[1], SHARDS[1])),
    "shard a link to nothing": sharded(link("nothing.safetensors", SHARDS[1])),
    "tensor in the wrong shard": mapped(SHARDS[0]),
    "tensor in no shard": mapped(SHARDS[1], "nowhere"),
    "tensor in no shard, with terminal escapes": mapped(SHARDS[1], f"{ESCAPE}\n{FORGED}"),
    "tensor in no shard, with half a surrogate": mapped(SHARDS[1], "\ud800"),
    "tensor in no shard, of 100 kB": mapped(SHARDS[1], "x" * DEEP),
    "1,000 tensors in no shard": index(weight_map=lambda names: names | {f"t{i}": SHARDS[1] for i in range(1000)}),
    "tensor in two shards, of 100 kB": both(extra("x" * DEEP), sharded(same_tensor_in_both_shards)),
    "tensor in two shards": sharded(same_tensor_in_both_shards),
    # Links, pipes, folders
    "link to a valid file outside": outside(WEIGHTS),
    "link to a valid file outside, through a folder": through_a_linked_folder,
    "link to a secret": secret(WEIGHTS),
    "link to itself": link(WEIGHTS),
    "links in a circle": links_in_a_circle,
    "link to nothing": link("nothing.safetensors"),
    "link to nothing outside": link("../../nothing.safetensors"),
    "link to the folder": link("."),
    "link to /dev/zero": link("/dev/zero"),
    "link to /proc/self/mem": link("/proc/self/mem"),
    "a pipe": pipe(),
    "a directory": directory(),
    "no weights": removed(WEIGHTS),
    "unreadable": unreadable(),
    "unreadable shard": sharded(unreadable(SHARDS[1])),
    "unreadable index": sharded(unreadable(INDEX)),
    "index a pipe": sharded(pipe(INDEX)),
    "index a directory": sharded(directory(INDEX)),
    "index a link outside": sharded(outside(INDEX)),
    "index a link to a secret": sharded(secret(INDEX)),
    "index a link to itself": sharded(link(INDEX, INDEX)),
    "index a link to /dev/zero": sharded(link("/dev/zero", INDEX)),
    # Pickles
    "only a pickle": pickled("pytorch_model.bin"),
    "only a pickle with terminal escapes in its name": pickled(f"{ESCAPE}\n{FORGED}.bin"),
    "only 1,000 pickles": pickled(*(f"pytorch_model-{i:05}-of-01000.bin" for i in range(1000))),
}


# ---- What may be loaded or refused ----------------------------------------------------------------------------------

HARMLESS_BUT_ODD: dict[str, Attack] = {
    "name that climbs": extra("../../etc/passwd"),
    "name that is a full path": extra("/etc/passwd"),
    "name of NUL": extra("a\0b"),
    "name with a line break": extra(f"a\n{FORGED}"),
    "name with a carriage return": extra(f"a\r{FORGED}"),
    "name with a line separator": extra(f"a\u2028{FORGED}\x85{FORGED}"),
    "name with terminal escapes": extra(ESCAPE),
    "name with C1 controls": extra("a\x9b2Jb"),
    "name that turns the writing around": extra("a\u202eb\u2066c"),
    "name of 100 kB": extra("x" * DEEP),
    "name that is empty": extra(""),
    "name with a format in it": extra("{0.__class__} %s %(a)s"),
    "name that is markup": extra("<script>alert(1)</script> | [x](javascript:y) `"),
    "name beyond the basic plane": extra("\U0001f600\ufeff"),
    "needed name with a line break": renamed(f"{VICTIM}\n{FORGED}"),
    "needed name with terminal escapes": renamed(VICTIM + ESCAPE),
    "needed name of 100 kB": renamed(VICTIM + "x" * DEEP),
    "the same name with and without its prefix": extra("embeddings.word_embeddings.weight"),
    "1,000 odd names": text(odd_names),
    "300,000 tensors": many_tensors,
    "no tensors": parts(lambda head, data: (b"{}", b"")),
    "tensor of 100,000 dimensions": extra(shape=[1] * DEEP),
    "tensor of 65 dimensions": extra(shape=[1] * 65),
    "tensor of no data": extra(shape=[0], nbytes=0),
    "tensor of 0 times 2**63": extra(shape=[0, 1 << 63], nbytes=0),
    "tensor of 2**40 times 0 times 2**40": extra(shape=[1 << 40, 0, 1 << 40], nbytes=0),
    "complex numbers": extra(dtype="C64", nbytes=8),
    "4-bit numbers": extra(dtype="F4", shape=[4]),
    "8-bit exponents": extra(dtype="F8_E8M0", shape=[2]),
    "8-bit floats": extra(dtype="F8_E4M3", shape=[2]),
    "booleans that are neither": both(extra(dtype="BOOL", shape=[2]), content(lambda old: old[:-2] + b"\x02\xff")),
    "dtype as an object": entry(dtype={"F16": None}),
    "entry as a list": text(as_list),
    "entry with keys of its own": text(lambda head: head.replace(b'"dtype":', b'"a":{"b":[1]},"dtype":', 1)),
    "header behind a space": text(lambda head: b" " + head),
    "header of odd length": text(lambda head: head.rstrip() + b" " * (1 - len(head.rstrip()) % 2)),
    "header padded with line breaks": text(lambda head: head.rstrip() + b"\n" * 64),
    "shape with -0": text(lambda head: head.replace(b"[0,", b"[-0,", 1)),
    "metadata null": metadata(None),
    "metadata of terminal escapes": metadata({ESCAPE: f"\n{FORGED}"}),
    "metadata of 1 MB": metadata({"format": "x" * (1 << 20)}),
    "index behind a byte order mark": index_bytes(lambda old: b"\xef\xbb\xbf" + old),
    "index with NaN": index(metadata={"total_size": float("nan")}),
    "index with a number of 100,000 digits": index_bytes(lambda old: b'{"a": ' + b"9" * DEEP + b", " + old[1:]),
    "index without one tensor": index(weight_map=lambda names: {n: f for n, f in names.items() if n != VICTIM}),
    "index beside a single file": lambda folder: (folder / INDEX).write_bytes(b"{}"),
    "index beside a single file, a pipe": lambda folder: os.mkfifo(folder / INDEX),
    "link within the folder": inside,
    "pickle beside the weights": pickled("pytorch_model.bin", "training_args.bin", keep=True),
}

# ---- Configs, for what reads them -----------------------------------------------------------------------------------

HOSTILE_CONFIG: dict[str, Attack] = {
    "config missing": removed(CONFIG),
    "config empty": content(lambda old: b"", CONFIG),
    "config not JSON": content(lambda old: old.rstrip()[:-1], CONFIG),
    "config a list": content(lambda old: b"[" + old + b"]", CONFIG),
    "config null": content(lambda old: b"null", CONFIG),
    "config not UTF-8": content(lambda old: old.replace(b"negative", b"\xfe\xff"), CONFIG),
    "config of 20 MB": config(note="x" * BIG),
    "config of 20 MB of spaces": content(lambda old: old + b" " * BIG, CONFIG),
    "config nested": content(deep_config, CONFIG),
    "config nested in braces": content(lambda old: nested(b'{"a":', b"}", b"0"), CONFIG),
    "config a pipe": pipe(CONFIG),
    "config a directory": directory(CONFIG),
    "config a link to /etc/hostname": link("/etc/hostname", CONFIG),
    "config a link to a secret": secret(CONFIG),
    "config a link to a valid one outside": outside(CONFIG),
    "config a link to itself": link(CONFIG, CONFIG),
    "config a link to /dev/zero": link("/dev/zero", CONFIG),
    "config unreadable": unreadable(CONFIG),
    "model_type an object": config(model_type={"bert": 1}),
    "model_type a list": config(model_type=["bert"]),
    "model_type a number": config(model_type=7),
    "model_type of terminal escapes": config(model_type=f"{ESCAPE}\n{FORGED}"),
    "model_type that climbs": config(model_type="../../evil"),
    "model_type of 100 kB": config(model_type="x" * DEEP),
}

ODD_CONFIG: dict[str, Attack] = {
    "auto_map": remote_code,
    "auto_map and unknown model_type": both(remote_code, config(model_type="evil")),
    "auto_map of another repo": config(auto_map={"AutoModel": "evil/repo--evil.Model"}),
    "auto_map a list": config(auto_map=["evil.Model"]),
    "model_type unknown": config(model_type="no_such_model"),
    "model_type missing": config(model_type=LEFT_OUT),
    "model_type of another model": config(model_type="gpt2"),
    "model_type twice": content(lambda old: b'{"model_type": "gpt2", ' + old.lstrip()[1:], CONFIG),
    "architectures a string": config(architectures="BertForSequenceClassification"),
    "architectures numbers": config(architectures=[1, 2]),
    "architectures an object": config(architectures={"a": 1}),
    "architectures null": config(architectures=None),
    "architectures empty": config(architectures=[]),
    "architectures unknown": config(architectures=["NoSuchModel"]),
    "architectures of the library's insides": config(architectures=["__loader__", "os.system", "PreTrainedModel"]),
    "architectures of terminal escapes": config(architectures=[f"{ESCAPE}\n{FORGED}"]),
    "10**12 layers": config(num_hidden_layers=10**12),
    "10**400 layers": config(num_hidden_layers=10**400),
    "-1 layers": config(num_hidden_layers=-1),
    "layers a string": config(num_hidden_layers="2"),
    "layers a list of lists": config(num_hidden_layers=[[2]]),
    "2**40 words": config(vocab_size=1 << 40),
    "hidden size 0": config(hidden_size=0),
    "hidden size 2**40": config(hidden_size=1 << 40),
    "no heads": config(num_attention_heads=0),
    "labels a list": config(id2label=["negative", "positive"]),
    "labels of terminal escapes": config(id2label={"0": ESCAPE, "1": f"\n{FORGED}"}),
    "labels by odd keys": config(id2label={"-1": "a", "x": "b"}),
    "num_labels 10**9": config(id2label=LEFT_OUT, label2id=LEFT_OUT, num_labels=10**9),
    "dtype unknown": config(dtype="no_such_dtype", torch_dtype="os"),
    "attention from the Hub": config(_attn_implementation="evil/kernel", attn_implementation="evil/kernel"),
    "weights elsewhere": config(transformers_weights="../secret.safetensors"),
    "quantized": config(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
    "quantized by what nobody knows": config(quantization_config={"quant_method": ESCAPE}),
    "custom pipelines": config(custom_pipelines={"text-classification": {"impl": "evil.Model", "pt": ["Model"]}}),
    "config with NaN": config(layer_norm_eps=float("nan")),
    "config behind a byte order mark": content(lambda old: b"\xef\xbb\xbf" + old, CONFIG),
}
