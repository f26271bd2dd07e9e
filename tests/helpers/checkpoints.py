"""Folders of models for the tests: in shards written by hand, with the toy tokenizer, or changed."""

import json
import shutil

from safetensors.torch import load_file, save_file

from helpers.toy import make_tokenizer
from hf_finemix.io.checkpoint import INDEX_NAME


def write_shards(folder, shards, index=None):
    """Write shards and an index; `index` overrides the map of names."""
    names = {name: file for file, tensors in shards.items() for name in tensors}
    for file, tensors in shards.items():
        save_file(tensors, folder / file)
    (folder / INDEX_NAME).write_text(json.dumps({"metadata": {}, "weight_map": index or names}))


def save_with_tokenizer(model, folder):
    """Save a model beside the tokenizer of the toy task."""
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def changed_copy(source, folder, weights=None, config=None):
    """A copy of a model's folder, with its tensors as `weights` leaves them, and other values in its config."""
    shutil.copytree(source, folder)
    if weights:
        tensors = load_file(folder / "model.safetensors")
        weights(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    if config:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | config))
    return folder
