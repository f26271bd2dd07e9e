"""Weights in shards, written by hand."""

import json

from safetensors.torch import save_file

from hf_finemix.io.checkpoint import INDEX_NAME


def write_shards(folder, shards, index=None):
    """Write shards and an index; `index` overrides the map of names."""
    names = {name: file for file, tensors in shards.items() for name in tensors}
    for file, tensors in shards.items():
        save_file(tensors, folder / file)
    (folder / INDEX_NAME).write_text(json.dumps({"metadata": {}, "weight_map": index or names}))
