"""Small real repositories of random weights, one of each supported architecture: tied and untied embeddings, biases, odd sizes, float dtypes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

VOCABULARY = 4096  # of the demo tokenizer
SHARED = {"vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
SHARED |= dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0)
GATED = SHARED | {"num_key_value_heads": 2, "intermediate_size": 128, "max_position_embeddings": 512}
# By model_type: the further fields of the configuration. What is odd about each is what real models of it do.
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": GATED | {"tie_word_embeddings": True, "intermediate_size": 136},  # 136: no group size divides the inputs of down_proj
    "mistral": GATED | {"tie_word_embeddings": False, "head_dim": 32, "sliding_window": None},
    "qwen2": GATED | {"tie_word_embeddings": True},  # biases on q, k, v
    "qwen3": GATED | {"tie_word_embeddings": False, "head_dim": 32},
    "gemma": GATED | {"head_dim": 32},
    "gemma2": GATED | {"head_dim": 32, "sliding_window": 64},
    "gemma3_text": GATED | {"head_dim": 32, "sliding_window": 64, "num_key_value_heads": 1},
    "phi": GATED | {"num_key_value_heads": 4},
    "phi3": GATED | {"tie_word_embeddings": False},
    "opt": SHARED | {"ffn_dim": 128, "max_position_embeddings": 512, "word_embed_proj_dim": 64},
    "gpt2": {k: v for k, v in SHARED.items() if "_" in k and k.endswith("token_id")} | {"vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 2, "n_head": 4,
                                                                                       "n_positions": 512},
    "gpt_neox": SHARED | {"intermediate_size": 128, "max_position_embeddings": 512, "tie_word_embeddings": False},
    "smollm3": GATED | {"tie_word_embeddings": True, "no_rope_layers": [1, 0]},
    "olmo": GATED | {"tie_word_embeddings": False},
    "olmo2": GATED | {"tie_word_embeddings": False},
    "stablelm": GATED | {"use_qkv_bias": True},
    "granite": GATED | {"tie_word_embeddings": True},
    "starcoder2": GATED | {"use_bias": True, "tie_word_embeddings": True},
}  # fmt: skip


def make(kind: str, folder: Path, dtype: torch.dtype = torch.bfloat16, shards: str = "5GB", **changes: Any) -> Path:
    """Writes a repository of this model_type into a folder and returns it. changes: fields of the configuration."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from explorer.models import DEMO

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **CONFIGS[kind] | changes)).to(dtype)
    model.save_pretrained(folder, max_shard_size=shards)
    AutoTokenizer.from_pretrained(DEMO).save_pretrained(folder)
    return folder
