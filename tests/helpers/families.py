"""Small randomly made models of the real classes: classifiers, and their bases with and without a head."""

from dataclasses import dataclass
from typing import Any

__all__ = ["FAMILIES", "Family"]

_ENCODER = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
_ENCODER |= {"max_position_embeddings": 70}
_DECODER = {**_ENCODER, "num_key_value_heads": 1, "head_dim": 8}


@dataclass(frozen=True)
class Family:
    """
    Names of transformers' classes, and the settings that make them small.

    Attributes:
        config (`str`): Configuration class.
        classifier (`str`): Model with the task's head.
        headless (`str`): Model without any head.
        with_head (`str`): Model with the head it was pre-trained with.
        settings (`dict`): For the configuration.
    """

    config: str
    classifier: str
    headless: str
    with_head: str
    settings: dict[str, Any]

    def make(self, kind: str, **changes: Any):
        """A randomly initialized model: `kind` is `"classifier"`, `"headless"` or `"with_head"`."""
        import transformers

        config = getattr(transformers, self.config)(
            **{"vocab_size": 52, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, **self.settings, **changes}
        )
        if kind == "classifier":
            config.id2label, config.label2id = {0: "negative", 1: "positive"}, {"negative": 0, "positive": 1}
        return getattr(transformers, getattr(self, kind))(config)


def _family(name: str, settings: dict[str, Any], head: str = "ForMaskedLM", with_head: str | None = None) -> Family:
    return Family(
        config=f"{name}Config",
        classifier=f"{name}ForSequenceClassification",
        headless=f"{name}Model",
        with_head=with_head or f"{name}{head}",
        settings=settings,
    )


FAMILIES = {
    "BERT": _family("Bert", _ENCODER),
    "RoBERTa": _family("Roberta", _ENCODER),
    "XLM-R": _family("XLMRoberta", _ENCODER),
    "DistilBERT": _family(
        "DistilBert",
        {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "max_position_embeddings": 70},
    ),
    # One layer's weights serve for all layers, and word embeddings are narrower than the layers.
    "ALBERT": _family("Albert", {**_ENCODER, "embedding_size": 8}),
    "ELECTRA": _family("Electra", {**_ENCODER, "embedding_size": 8}, "ForPreTraining"),
    "DeBERTa-v2": _family(
        "DebertaV2",
        {
            **_ENCODER,
            "relative_attention": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_buckets": 8,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "position_biased_input": False,
            "conv_kernel_size": 3,
        },
    ),
    "MPNet": _family("MPNet", _ENCODER),
    "ModernBERT": _family("ModernBert", {**_ENCODER, "cls_token_id": 2, "sep_token_id": 3, "local_attention": 8}),
    # Conv1D: weights lie the other way round than in Linear. The output embedding is tied to the input's.
    "GPT-2": _family("GPT2", {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 70}, "LMHeadModel"),
    "Llama": _family("Llama", _DECODER, "ForCausalLM"),
    "Qwen2": _family("Qwen2", _DECODER, "ForCausalLM"),
    "Qwen3": _family("Qwen3", _DECODER, "ForCausalLM"),
    "Gemma": _family("Gemma", _DECODER, "ForCausalLM"),
    "Gemma 3": _family("Gemma3Text", {**_DECODER, "sliding_window": 8}, with_head="Gemma3ForCausalLM"),
    # The experts are a tensor each on disk, and one tensor of a layer in memory.
    "Mixtral": _family("Mixtral", {**_DECODER, "num_local_experts": 3}, "ForCausalLM"),
    "Qwen3-MoE": _family(
        "Qwen3Moe", {**_DECODER, "num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 8}, "ForCausalLM"
    ),
    "T5": _family(
        "T5",
        {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0},
        "ForConditionalGeneration",
    ),
    "BART": _family(
        "Bart",
        {
            "d_model": 16,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 32,
            "decoder_ffn_dim": 32,
            "max_position_embeddings": 70,
            "decoder_start_token_id": 3,
        },
        "ForConditionalGeneration",
    ),
}
