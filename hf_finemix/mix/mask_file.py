"""masks.safetensors: the masks of a mix that a score chose, a bit for each mixed element, for anyone to check."""

from collections.abc import Mapping
from math import prod
from pathlib import Path

import numpy as np

from ..errors import FineMixingError
from ..io.checkpoint import Checkpoint

MASKS_NAME = "masks.safetensors"


def save_masks(masks: Mapping[str, np.ndarray], folder: str | Path) -> None:
    """
    Write masks, by canonical name, into the folder of a cleaned model.

    They are as [`np.packbits`] packs them: row-major, the first element in the highest bit; 1 keeps the suspect's.
    """
    from safetensors.numpy import save_file

    save_file(dict(masks), Path(folder) / MASKS_NAME, metadata={"format": "np.packbits, row-major, big bit order"})


class MaskFile(Checkpoint):
    """The masks of a folder, read slice by slice. A [`FineMixingError`] where there are none."""

    def __init__(self, folder: str | Path):
        path = Path(folder) / MASKS_NAME
        if not path.is_file():
            raise FineMixingError(f"{path} is missing, and its mix was chosen by scores: get the whole folder.")
        super().__init__(folder, only=path)

    def keep(self, name: str, start: int, stop: int) -> np.ndarray:
        """The mask of elements `start` to `stop` of a tensor, booleans."""
        info, size = self.tensors.get(name), -(-stop // 8) - start // 8
        if info is None or info.dtype != "uint8" or prod(info.shape) < -(-stop // 8):
            raise FineMixingError(f"{self.folder / MASKS_NAME} has no mask for {name}: it is of another mix.")
        packed = np.empty(size, dtype=np.uint8)
        self.read_into(name, memoryview(packed), start // 8)
        return np.unpackbits(packed, count=stop - start // 8 * 8)[start % 8 :].view(bool)
