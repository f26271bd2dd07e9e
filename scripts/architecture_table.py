"""
Write `hf_finemix/align/architectures.json`: what each text model of the installed transformers calls its weights.

    python scripts/architecture_table.py

Every class is made once with and once without tied embeddings, with two layers and on the meta device. Classes that
cannot be made from a default configuration, or whose own names transformers renames, merges or splits on loading, are
left out: their layout is read from the class when it is needed.
"""

import json
import warnings

import torch
import transformers
from tqdm import tqdm
from transformers.models.auto import modeling_auto

from hf_finemix.align.architectures import TABLE, describe

TASKS = ("SEQUENCE_CLASSIFICATION", "TOKEN_CLASSIFICATION", "QUESTION_ANSWERING", "CAUSAL_LM", "MASKED_LM")
TASKS += ("SEQ_TO_SEQ_CAUSAL_LM", "MULTIPLE_CHOICE", "PRETRAINING")
LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers")
LAYERS += ("num_decoder_layers", "num_encoder_layers")


def classes() -> list[str]:
    """The names of all classes of the model types that have a text model."""
    mappings = [getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING_NAMES") for task in TASKS]
    types = set().union(*mappings[:6])
    found = set()
    for mapping in [modeling_auto.MODEL_MAPPING_NAMES, *mappings]:
        for model_type in types & set(mapping):
            names = mapping[model_type]
            found.update([names] if isinstance(names, str) else names)
    return sorted(found)


def entry(name: str) -> dict | None:
    """What the table says of a class; `None` where it says nothing."""
    cls = getattr(transformers, name)
    config = cls.config_class()
    if config.sub_configs:
        return None
    ties_by_default = bool(getattr(config, "tie_word_embeddings", False))
    described = {}
    for tie in (True, False):
        config = cls.config_class(tie_word_embeddings=tie)
        for layers in LAYERS:
            if isinstance(getattr(config, layers, None), int) and getattr(config, layers) > 2:
                setattr(config, layers, 2)
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:2]
        with torch.device("meta"):
            described[tie] = describe(cls(config))
    if None in described.values():
        return None
    always = described[False].pop("tied")
    return {
        **described[False],
        "tied": described[True]["tied"],
        "always_tied": always,
        "ties_by_default": ties_by_default,
    }


def main() -> None:
    """Write the table."""
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    found, left_out = {}, []
    for name in tqdm(classes()):
        try:
            facts = entry(name)
        except Exception as error:
            facts = None
            print(name, type(error).__name__, str(error)[:100].replace("\n", " "))
        if facts is None:
            left_out.append(name)
        else:
            found[name] = getattr(transformers, name).config_class.model_type, facts
    # What all classes of a model type have in common is written once, as is what is the same for several classes.
    common = {}
    for model_type, facts in found.values():
        common[model_type] = common.get(model_type, set(facts["names"])) & set(facts["names"])
    bodies = sorted({tuple(sorted(names)) for names in common.values()})
    grouped = {}
    for name, (model_type, facts) in found.items():
        facts["body"] = bodies.index(tuple(sorted(common[model_type])))
        facts["names"] = sorted(set(facts["names"]) - common[model_type])
        grouped.setdefault(json.dumps(facts), {})[name] = model_type
    lines = [json.dumps({"classes": names, **json.loads(facts)}) for facts, names in sorted(grouped.items())]
    parts = [",\n".join(map(json.dumps, bodies)), ",\n".join(lines)]
    head = f'{{"transformers": "{transformers.__version__}",\n"bodies": [\n'
    TABLE.write_text(f'{head}{parts[0]}\n],\n"architectures": [\n{parts[1]}\n]}}\n', encoding="utf-8")
    print(f"{len(found)} classes in {len(grouped)} groups, left out: {', '.join(left_out)}")


if __name__ == "__main__":
    main()
