"""A suspect on its base: a whole model, or a LoRA that stays one. Which of the two is asked once, here."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import PreTrainedModel

from ..align.drift import drift_by_layer
from ..align.loaded_layout import LoadedLayout
from ..align.names import named_tensors
from ..align.pair_in_memory import Pair, compare_with_base, dtypes_on_disk
from ..config import FineMixingConfig
from ..io.adapter_on_base import full_model
from ..io.checkpoint import Checkpoint
from ..io.folder import LocalModel
from ..io.model_files import copy_model_files
from ..io.read_back import save_model
from .adapter_output import adapter_to_train, dtypes_of_adapter, save_adapter
from .lora import adapter_parameters


@dataclass
class WholeModel:
    """A suspect that is mixed, trained and saved as a whole; a LoRA was merged with its base for that."""

    source: LocalModel  # the suspect's folder, or the one that its LoRA was merged to
    base: LocalModel
    model: PreTrainedModel  # the suspect in float32, to be mixed
    dtypes: dict[str, torch.dtype]  # what each tensor is saved in, by name
    read: Callable[[LocalModel], PreTrainedModel]  # loads a model from a folder in float32

    def load(self) -> PreTrainedModel:
        """The suspect once more, as it was before it was mixed."""
        return self.read(self.source)

    def ignored_tensors(self, pair: Pair) -> list[str]:
        """Tensors on disk that the suspect's class has no place for."""
        known = set(pair.suspect.tensors).union(*pair.suspect.aliases.values())
        sources = LoadedLayout(Checkpoint(self.source.folder), self.model).sources
        return sorted({source for name, names in sources.items() if name not in known for source in names})

    def round(self, model: PreTrainedModel) -> None:
        """Round the weights to what they are saved in, so that what is measured is what is saved."""
        for name, tensor in named_tensors(model).tensors.items():
            tensor.data.copy_(tensor.data.to(self.dtypes[name]))

    def drift(self, model: PreTrainedModel) -> dict[str, float | None]:
        """How far each layer is from the base's."""
        with Checkpoint(self.base.folder) as base:
            return drift_by_layer(compare_with_base(model, base, dtypes=self.dtypes).drift)

    def save(self, model: PreTrainedModel, folder: Path) -> None:
        """Write weights, configuration and the small files that belong to them."""
        for name, tensor in named_tensors(model).tensors.items():
            tensor.data = tensor.data.to(self.dtypes[name])
        model.config.dtype = model.dtype
        save_model(model, folder)
        copy_model_files(self.source, self.base.folder, folder)


@dataclass
class LoraAdapter:
    """A suspect's LoRA that is mixed, trained and saved as a LoRA of that base."""

    adapter: LocalModel
    source: LocalModel  # where it is merged with its base, to be compared and described
    base: LocalModel
    config: FineMixingConfig
    model: PreTrainedModel = field(init=False)  # the base with the LoRA on it
    dtypes: dict[str, torch.dtype] = field(init=False)

    def __post_init__(self) -> None:
        self.model, self.dtypes = self.load(), dtypes_of_adapter(self.adapter)

    def load(self) -> PreTrainedModel:
        return adapter_to_train(self.adapter, self.base, self.config)

    def ignored_tensors(self, pair: Pair) -> list[str]:
        return []

    def round(self, model: PreTrainedModel) -> None:
        for name, parameter in adapter_parameters(model).items():
            parameter.data.copy_(parameter.data.to(self.dtypes[name]))

    def drift(self, model: PreTrainedModel) -> dict[str, float | None]:
        merged = copy.deepcopy(model).merge_and_unload()  # takes the memory of one more model
        with Checkpoint(self.base.folder) as base:
            return drift_by_layer(compare_with_base(merged, base).drift)

    def save(self, model: PreTrainedModel, folder: Path) -> None:
        save_adapter(model, folder, self.base, self.dtypes)


Subject = WholeModel | LoraAdapter


def open_subject(
    suspect: LocalModel,
    base: LocalModel,
    config: FineMixingConfig,
    read: Callable[[LocalModel], PreTrainedModel],
) -> tuple[Subject, Pair]:
    """Load a suspect, by `read`, and compare it with its base, as a whole model whether or not a LoRA stays one."""
    source = full_model(suspect, base)
    model = read(source)
    with Checkpoint(base.folder) as weights:
        pair = compare_with_base(model, weights, head=config.head, dtypes=dtypes_on_disk(model))
    if config.adapter_mode == "adapter":
        return LoraAdapter(suspect, source, base, config), pair
    return WholeModel(source, base, model, pair.dtypes, read), pair
