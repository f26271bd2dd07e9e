"""mixing_record.json: in a checkpoint what was mixed, so that a training that is resumed can still say so."""

import json
from dataclasses import asdict, replace
from pathlib import Path

from ..align.drift import TensorDrift
from ..io.safe_json import read_json
from .in_memory import MixingRecord
from .mask_file import MASKS_NAME

RECORD_NAME = "mixing_record.json"


def save_record(record: MixingRecord, folder: str | Path) -> None:
    """Write a record without its masks, which have a file of their own, and what E-PUR measured of every token."""
    content = asdict(replace(record, masks={}, token_drift=None))
    (Path(folder) / RECORD_NAME).write_text(json.dumps(content) + "\n", encoding="utf-8")


def load_record(folder: str | Path) -> MixingRecord | None:
    """What [`save_record`] and [`save_masks`] wrote; `None` where it did not."""
    from safetensors.numpy import load_file

    path, masks = Path(folder) / RECORD_NAME, Path(folder) / MASKS_NAME
    if not path.is_file():
        return None
    content = read_json(path)
    content["drift"] = {name: TensorDrift(**sums) for name, sums in content["drift"].items()}
    return MixingRecord(**{**content, "masks": load_file(masks) if masks.is_file() else {}})
