"""What a model is for, and so how it is loaded, fed and measured: one task a file."""

from ..errors import FineMixingError
from ..io.folder import LocalModel, is_adapter
from ..io.safe_json import read_object
from ..repo_contents import ADAPTER_CONFIG_NAME
from .classification import Classification
from .generation import CausalGeneration, Seq2SeqGeneration
from .task import Task

_OF_ADAPTERS = {task.lora_task: task for task in (Classification, CausalGeneration, Seq2SeqGeneration)}


def find_task(model: LocalModel) -> type[Task]:
    """
    The task of a model, by the class that its configuration names: a classifier of sequences where it names none.

    Raises:
        [`FineMixingError`]: A task that is mixed and trained, but that nothing here measures.
    """
    if is_adapter(model.folder):
        name = read_object(model.folder, ADAPTER_CONFIG_NAME).get("task_type")
        return _OF_ADAPTERS.get(name if isinstance(name, str) else "", Classification)
    names = read_object(model.folder, "config.json").get("architectures")
    name = names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""
    if name.endswith(("ForTokenClassification", "ForQuestionAnswering", "ForMultipleChoice", "ForMaskedLM")):
        raise FineMixingError(
            f"{model.id} is a {name[:80]}, which clean does not measure: mix and tune it with FineMixingTrainer."
        )
    if name.endswith(("ForCausalLM", "LMHeadModel")):
        return CausalGeneration
    return Seq2SeqGeneration if name.endswith("ForConditionalGeneration") else Classification
