"""One job in several processes (`accelerate launch`): what the main one does for all, and how an error reaches all."""

import pickle
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from torch import nn

from ..errors import FineMixingError
from ..io.output_folder import output_folder

T = TypeVar("T")


def from_main(do: Callable[[], T]) -> T:
    """What `do` makes in the main process, which must be picklable, in every one; its error is raised in all."""
    state = PartialState()
    if state.num_processes == 1:
        return do()
    found: list = [None, None]
    if state.is_main_process:
        try:
            found[0] = do()
        except Exception as error:
            found[1] = _portable(error)
    broadcast_object_list(found)
    if found[1] is not None:
        raise found[1]
    return found[0]


@contextmanager
def agreed() -> Iterator[None]:
    """A block without communication, after which every process goes on, or every one raises the first one's error."""
    state, own = PartialState(), None
    try:
        yield
    except Exception as error:
        if state.num_processes == 1:
            raise
        own = error
    if state.num_processes == 1:
        return
    errors = gather_object([None if own is None else _portable(own)])
    if own is not None:
        raise own
    if first := next((error for error in errors if error is not None), None):
        raise FineMixingError(f"another process failed: {first}") from first


@contextmanager
def shared_output_folder(final: Path, *, overwrite: bool = False, resume: bool = False) -> Iterator[Path]:
    """[`output_folder`] that the main process makes, fills and puts in its place, and whose path all know."""
    main = PartialState().is_main_process
    with ExitStack() as stack:
        with agreed():
            if main:
                stack.enter_context(output_folder(final, overwrite=overwrite, resume=resume))
        yield final.resolve().with_name(final.resolve().name + ".partial")
        with agreed():
            stack.close()


def leave_group() -> None:
    """The last thing a command does: a group whose threads outlive the interpreter aborts the process now and then."""
    PartialState().destroy_process_group()


def _portable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # an error of a library, with its sockets or tensors
        return FineMixingError(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
    return error


@contextmanager
def whole_model(model: nn.Module, *, changed: bool = True) -> Iterator[nn.Module | None]:
    """
    A model to read and change in the main process, `None` in the others, which get the weights after the block if it
    `changed` them. The model is the same in every process: whole, sharded by FSDP 2 or ZeRO-3, or without weights in
    all but the main process (RAM-efficient loading).
    """
    state = PartialState()
    if state.num_processes == 1:
        yield model
    elif any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        import deepspeed

        with deepspeed.zero.GatheredParameters(list(model.parameters()), modifier_rank=0 if changed else None):
            yield model if state.is_main_process else None
    elif any(hasattr(parameter, "full_tensor") for parameter in model.parameters()):
        yield from _unsharded(model, state, changed)
    else:
        yield model if state.is_main_process else None
        if changed:
            _broadcast(model, state)


def _unsharded(model: nn.Module, state: PartialState, changed: bool) -> Iterator[nn.Module | None]:
    """By torch's own gathering of a state dict on the main process, and its way back into the shards."""
    if hasattr(model, "peft_config"):
        raise FineMixingError("a sharded model with a LoRA cannot be mixed: mix from disk to disk, and train the mix.")
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict

    weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    whole = None
    if state.is_main_process:
        kind = next(kind for kind in type(model).__mro__ if not kind.__name__.startswith("FSDP"))
        if not hasattr(model, "config"):
            raise FineMixingError("a sharded model that is not of transformers cannot be mixed: mix it before.")
        with torch.device("meta"):
            whole = kind(model.config)
        whole.load_state_dict(weights, strict=False, assign=True)
        whole.tie_weights()
        whole.name_or_path = model.name_or_path
    yield whole
    if changed:
        weights = whole.state_dict() if whole is not None else {}
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
        set_model_state_dict(model, weights, options=options)


def _broadcast(model: nn.Module, state: PartialState) -> None:
    saved = model.state_dict().keys()
    tensors = [*model.parameters(), *(buffer for name, buffer in model.named_buffers() if name in saved)]
    if any(gather_object([any(tensor.is_meta for tensor in tensors)])):
        return  # what has no weights yet gets the main process's when it is wrapped
    for tensor in tensors:
        values = tensor.detach().to(state.device)
        torch.distributed.broadcast(values, src=0)
        tensor.data.copy_(values)
