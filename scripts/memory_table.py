"""
The table of memory in docs/processes.md: what `plan` says of models of several sizes, by mode.

    python scripts/memory_table.py

It writes safetensors with the models' headers and holes in place of weights, of which `plan` reads none.
"""

import json
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BertConfig, LlamaConfig

from hf_finemix import FineMixingConfig
from hf_finemix.planning import plan_mix
from hf_finemix.repo_contents import size_text

LLAMA = {"vocab_size": 128256, "num_key_value_heads": 8, "tie_word_embeddings": False, "dtype": "bfloat16"}
SIZES = {
    "BERT-base (110 M), 2 classes, float32": (AutoModelForSequenceClassification, BertConfig(dtype="float32")),
    "Llama of 1.5 B, bfloat16": (
        AutoModelForCausalLM,
        LlamaConfig(hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32, **LLAMA),
    ),
    "Llama of 8 B, bfloat16": (
        AutoModelForCausalLM,
        LlamaConfig(hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, **LLAMA),
    ),
}
ADAPTED = (
    "query",
    "key",
    "value",
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
    "dense",
)


def write_holes(path: Path, shapes: dict[str, tuple[int, ...]], dtype: torch.dtype) -> None:
    header, offset, size = {}, 0, torch.finfo(dtype).bits // 8
    for name, shape in shapes.items():
        end = offset + size * torch.Size(shape).numel()
        header[name] = {"dtype": {4: "F32", 2: "BF16"}[size], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)


def main() -> None:
    print(
        "| model | `mix` | `clean`, all weights | `clean --use-peft` | a LoRA of rank 16, `--adapter-mode adapter` |"
    )
    print("|---|---|---|---|---|")
    for name, (kind, config) in SIZES.items():
        with tempfile.TemporaryDirectory() as folder:
            base, adapter = Path(folder) / "base", Path(folder) / "adapter"
            with torch.device("meta"):
                model = kind.from_config(config)
            for place in (base, adapter):
                place.mkdir()
            config.architectures = [type(model).__name__]
            config.save_pretrained(base)
            shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
            write_holes(base / "model.safetensors", shapes, getattr(torch, str(config.dtype).removeprefix("torch.")))
            lora = {}
            for key, shape in shapes.items():
                module = key.removesuffix(".weight")
                if key.endswith(".weight") and len(shape) == 2 and module.split(".")[-1] in ADAPTED:
                    lora[f"base_model.model.{module}.lora_A.weight"] = (16, shape[1])
                    lora[f"base_model.model.{module}.lora_B.weight"] = (shape[0], 16)
            write_holes(adapter / "adapter_model.safetensors", lora, torch.float32)
            task = "CAUSAL_LM" if kind is AutoModelForCausalLM else "SEQ_CLS"
            content = {"peft_type": "LORA", "task_type": task, "r": 16, "lora_alpha": 32, "target_modules": ["any"]}
            (adapter / "adapter_config.json").write_text(json.dumps(content))
            whole = plan_mix(base, base).memory
            kept = plan_mix(adapter, base, FineMixingConfig(adapter_mode="adapter")).memory
            cells = [whole["mix"], whole["clean"], whole["clean_with_lora"], kept["clean"]]
            print(f"| {name} | {' | '.join(map(size_text, cells))} |")


if __name__ == "__main__":
    main()
