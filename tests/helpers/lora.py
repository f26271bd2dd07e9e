"""LoRA classifiers with random weights, written to folders."""

import json

import torch
from transformers import AutoModelForSequenceClassification

from helpers.toy import make_config
from hf_finemix.io.folder import LocalModel

VARIANTS = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "ranks": {"rank_pattern": {"query": 2}, "alpha_pattern": {"^bert.encoder.layer.1.attention.self.key$": 3}},
    "bias": {"bias": "all"},
    "lora_bias": {"lora_bias": True},
    "embeddings": {"target_modules": ["query", "word_embeddings"]},
    "regex": {"target_modules": r".*\.(0|1)\.attention\.self\.(query|value)"},
    "some_layers": {"target_modules": ["query"], "layers_to_transform": [1]},
    "saved": {"modules_to_save": ["pooler"]},
}
TRIED = torch.arange(5, 45).view(4, 10)


def make_adapter(folder, base_folder, tokenizer, labels=("no", "yes", "both"), scale=0.03, **settings):
    """A LoRA classifier with random weights, which is written to a folder."""
    import peft

    torch.manual_seed(3)
    config = make_config(id2label=dict(enumerate(labels)), label2id={name: i for i, name in enumerate(labels)})
    model = AutoModelForSequenceClassification.from_pretrained(base_folder, config=config)
    usual = {"r": 4, "lora_alpha": 8, "target_modules": ["query", "key", "value", "dense"], "task_type": "SEQ_CLS"}
    model = peft.get_peft_model(model, peft.LoraConfig(**{**usual, **settings}))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += scale * torch.randn(parameter.shape)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model.eval()


def changed(folder, **changes):
    """Put something else into its configuration."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def local(folder):
    return LocalModel(str(folder), folder)
