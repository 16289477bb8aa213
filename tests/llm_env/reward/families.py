"""A tiny random classifier of every family that `AutoModelForSequenceClassification` knows, from its configuration alone."""

from __future__ import annotations

from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForSequenceClassification, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

END, BEGINNING = 2, 1
VOCABULARY = 1024

LEFT_OUT = {
    "layoutlmv2": "its class needs detectron2",
    "modernvbert": "reads pictures",
    "qwen3_5": "reads pictures; qwen3_5_text is here",
    "t5gemma2": "reads pictures; t5gemma is here",
    "tapas": "reads tables",
    "ultravbert": "reads pictures",
}
FAMILIES = [f for f in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES if f not in LEFT_OUT]

# One name or another of these is in every configuration.
_SIZES = {
    32: "hidden_size d_model n_embd dim emb_dim embedding_size hidden_dim",
    2: "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_decoder_layers num_key_value_heads "
    "num_experts_per_tok",
    4: "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads num_experts "
    "n_routed_experts num_local_experts",
    48: "intermediate_size ffn_dim encoder_ffn_dim decoder_ffn_dim d_ff n_inner d_inner ffn_hidden_size intermediate_dim",
    8: "head_dim d_kv d_head",
    16: "moe_intermediate_size",
    256: "max_position_embeddings n_positions max_seq_len n_ctx",
    1: "n_group topk_group",
    VOCABULARY: "vocab_size",
}
SIZES = {name: size for size, names in _SIZES.items() for name in names.split()}

_LATENT = {  # multi-head latent attention
    "num_key_value_heads": 4,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
}
_LINEAR = {  # linear attention and full attention in turns
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
_HYBRID = ["linear_attention", "linear_attention", "hybrid"] * 2  # state-space layers, and attention
# What the sizes leave to be said; None takes a size away.
SPECIAL: dict[str, dict[str, Any]] = {
    "axk1": _LATENT,
    "axk2": _LATENT,
    "canine": {"num_hash_functions": 8, "num_hash_buckets": 64},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10_000.0}}},
    "deepseek_v2": _LATENT,
    "deepseek_v3": _LATENT,
    "esmc": {"num_key_value_heads": 4},
    "falcon": {"head_dim": None},
    "funnel": {"num_hidden_layers": None, "block_sizes": [1, 1]},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 8},
    "gptj": {"rotary_dim": 8},
    "jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
    },
    "layoutlmv3": {"coordinate_size": 6, "shape_size": 4},
    "lilt": {"hidden_size": 48},
    "luke": {"entity_vocab_size": 10},
    "markuplm": {
        "max_xpath_tag_unit_embeddings": 16,
        "max_xpath_subs_unit_embeddings": 16,
        "tag_pad_id": 15,
        "subs_pad_id": 15,
        "xpath_unit_hidden_size": 8,
    },
    "minicpm3": _LATENT,
    "mistral4": {**_LATENT, "head_dim": 16, "qk_head_dim": 16, "v_head_dim": 16},
    "mobilebert": {"intra_bottleneck_size": 32, "true_hidden_size": 32},
    "perceiver": {
        "d_latents": 32,
        "num_latents": 8,
        "num_self_attends_per_block": 1,
        "num_self_attention_heads": 4,
        "num_cross_attention_heads": 4,
        "qk_channels": 32,
        "v_channels": 32,
    },
    "qwen3_5_text": _LINEAR,
    "qwen3_next": {**_LINEAR, "shared_expert_intermediate_size": 16},
    "reformer": {
        "num_attention_heads": 2,
        "attention_head_size": 16,
        "feed_forward_size": 48,
        "axial_pos_shape": [8, 8],
        "axial_pos_embds_dim": [16, 16],
        "max_position_embeddings": 64,
        "attn_layers": ["local", "local"],
        "local_attn_chunk_length": 8,
        "is_decoder": False,
    },
    "t5": {"decoder_start_token_id": 0},
    "umt5": {"decoder_start_token_id": 0},
    "xlnet": {"max_position_embeddings": None},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "zamba": {"num_hidden_layers": 6, "layer_types": _HYBRID, "attention_head_dim": 16},
    "zamba2": {"num_hidden_layers": 6, "layers_block_type": _HYBRID, "mamba_headdim": 8, "mamba_d_state": 16},
}


def classifier(family: str, pad: int | None, end: int = END, labels: int = 1) -> PreTrainedModel:
    """A random classifier in eval mode, whose weights are large enough that positions and contexts matter.

    Raises:
        Exception: of whatever kind where the family knows no model without a pad token, and `pad` is None.
    """
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForSequenceClassification.from_config(_config(family, pad, end, labels)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1 and parameter.std() < 0.1:  # T5's are large as they are
                parameter.mul_(4)
    return model


def _config(family: str, pad: int | None, end: int, labels: int) -> Any:
    tokens = {"pad_token_id": pad, "eos_token_id": end, "bos_token_id": BEGINNING, "num_labels": labels}
    if family == "gemma3":
        return CONFIG_MAPPING[family](
            text_config=_config("gemma3_text", pad, end, labels),
            vision_config={**_fitting("siglip_vision_model"), "image_size": 28, "patch_size": 14},
            **tokens,
        )
    if family == "t5gemma":
        half = {**_fitting("t5_gemma_module"), **tokens}
        return CONFIG_MAPPING[family](encoder=half, decoder={**half, "is_decoder": True}, **tokens)
    sizes = {**_fitting(family), **SPECIAL.get(family, {})}
    return CONFIG_MAPPING[family](**{name: size for name, size in sizes.items() if size is not None}, **tokens)


def _fitting(family: str) -> dict[str, Any]:
    """The small sizes that a configuration has a name for."""
    default = CONFIG_MAPPING[family]()
    return {n: s for n, s in SIZES.items() if isinstance(getattr(default, n, ""), int | None)}
