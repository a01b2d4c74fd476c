"""The sizes of a decoder-only transformer and how they follow from its config.json, for the families whose parameters are counted exactly. Standard
library only.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from explorer.cache_sizes import windowed_layers
from explorer.records import InputError

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "phi3", "gemma2", "gemma3_text", "mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3")
BIASED = ("qwen2", "gpt_oss")  # families whose query, key and value projections have a bias although no field says so
OUTPUT_BIASED = ("llama", "qwen3", "qwen3_moe", "gemma2", "gemma3_text", "gpt_oss")  # where attention_bias is the output projection's as well
TIED = ("gemma2", "gemma3_text")  # families whose head is the embedding unless a field says otherwise
HEADS = {"gemma2": 256, "gemma3_text": 256, "qwen3": 128, "gpt_oss": 64}  # head size where no field gives it; elsewhere hidden / heads
EXPERTS = {"mixtral": "num_local_experts", "gpt_oss": "num_local_experts", "qwen3_moe": "num_experts", "deepseek_v3": "n_routed_experts"}
WINDOWS = {"gpt_oss": 128, "mixtral": 0, "phi3": 0}  # tokens of a window where no field gives it; elsewhere 4,096
TEXT_LIMIT = 100_000  # characters of a pasted configuration


@dataclass(frozen=True)
class Matrix:
    """A kind of linear layer inside the blocks: weight [outputs, inputs], `count` of them in all layers. routed: one of the experts a token may meet."""

    name: str
    part: str
    outputs: int
    inputs: int
    count: int
    routed: bool = False

    @property
    def parameters(self) -> int:
        return self.outputs * self.inputs * self.count


@dataclass(frozen=True)
class Latent:
    """Ranks and head sizes of multi-head latent attention (MLA): the cache holds `kv_rank` + `rope` values a token and layer, shared by all heads."""

    q_rank: int
    kv_rank: int
    nope: int
    rope: int
    value: int


@dataclass(frozen=True)
class Architecture:
    """The sizes of a decoder-only transformer. experts: feed-forward copies a layer, of which `active` work on each token; shared: of as many
    copies besides, that work on every token; dense: the first or named layers without experts, of width dense_intermediate.
    """

    name: str
    family: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    intermediate: int
    vocabulary: int
    tied: bool
    attention_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    head_norms: bool = False
    norms: int = 2  # of the hidden size, a layer
    experts: int = 1
    active: int = 1
    shared: int = 0
    dense: int = 0
    dense_intermediate: int = 0
    window: int = 0  # tokens that attention looks back at most in `windowed` of the layers; 0 for all
    windowed: int = 0
    latent: Latent | None = None
    context: int = 0  # tokens the model was made for
    source: str = ""
    quantization: str = ""  # the quantization_config of a checkpoint that is published quantized, as JSON

    def attention(self) -> list[Matrix]:
        q, kv, part, one = self.heads * self.head_size, self.kv_heads * self.head_size, "attention", self.latent
        if one is None:
            sizes = {"query": (q, self.hidden), "key": (kv, self.hidden), "value": (kv, self.hidden), "output": (self.hidden, q)}
        else:
            wide = self.heads * (one.nope + one.rope)
            sizes = {"query down": (one.q_rank, self.hidden), "query": (wide, one.q_rank)} if one.q_rank else {"query": (wide, self.hidden)}
            sizes |= {"latent": (one.kv_rank + one.rope, self.hidden), "key and value": (self.heads * (one.nope + one.value), one.kv_rank)}
            sizes |= {"output": (self.hidden, self.heads * one.value)}
        return [Matrix(name, part, n, k, self.layers) for name, (n, k) in sizes.items()]

    def feed_forward(self) -> list[Matrix]:
        mixed = self.layers - self.dense
        kinds = [("dense ", self.dense_intermediate, self.dense, False), ("", self.intermediate, mixed * self.experts, self.experts > 1),
                 ("shared ", self.intermediate * self.shared, mixed, False)]  # fmt: skip
        found = []
        for kind, width, count, routed in kinds:
            if width and count:
                found += [Matrix(f"{kind}{name}", "feed-forward", width, self.hidden, count, routed) for name in ("gate", "up")]
                found.append(Matrix(f"{kind}down", "feed-forward", self.hidden, width, count, routed))
        return found

    def matrices(self) -> list[Matrix]:
        """The linear layers inside the decoder blocks: what is quantized."""
        return self.attention() + self.feed_forward()

    def parts(self) -> dict[str, int]:
        """Parameters by part; they add up to the published count of the checkpoint."""
        q, kv, mixed = self.heads * self.head_size, self.kv_heads * self.head_size, (self.layers - self.dense) * (self.experts > 1)
        a_layer = self.norms * self.hidden + 2 * self.head_size * self.head_norms + (q + 2 * kv) * self.attention_bias + self.hidden * self.output_bias
        a_layer += (2 * self.intermediate + self.hidden) * self.mlp_bias
        a_layer += self.latent.q_rank + self.latent.kv_rank if self.latent else 0
        small = self.hidden + self.layers * a_layer
        if self.family == "gpt_oss":  # a sink for each head, a bias in the router and in each expert
            small += self.layers * (self.heads + self.experts * (1 + 2 * self.intermediate + self.hidden))
        small += self.single
        return {
            "attention": sum(one.parameters for one in self.attention()), "feed-forward": sum(one.parameters for one in self.feed_forward()),
            "router": mixed * self.experts * self.hidden, "embedding": self.vocabulary * self.hidden,
            "output head": 0 if self.tied else self.vocabulary * self.hidden, "norms and biases": small,
        }  # fmt: skip

    @property
    def parameters(self) -> int:
        return sum(self.parts().values())

    @property
    def single(self) -> int:
        """Parameters that are kept in 32 bits: what DeepSeek's router adds to each expert's score to choose by."""
        return (self.layers - self.dense) * self.experts if self.family == "deepseek_v3" else 0

    @property
    def cached(self) -> int:
        """Values of one token and layer in the cache."""
        return self.latent.kv_rank + self.latent.rope if self.latent else 2 * self.kv_heads * self.head_size

    @property
    def splits(self) -> int:
        """Devices over which tensor parallelism divides the cache; with more of them it is copied. The latent cache belongs to all heads."""
        return 1 if self.latent else self.kv_heads

    def used(self) -> float:
        """Parameters inside the blocks that multiply for one token: of the experts those it meets, with the router."""
        share = self.active / self.experts
        return sum(one.parameters * (share if one.routed else 1) for one in self.matrices()) + self.parts()["router"]


def architecture(config: dict[str, Any], name: str = "") -> Architecture:
    """From a transformers config.json, or {"source", "config"} around one. Raises InputError with a sentence on what is missing, not a number, or of
    a family whose count is not known.
    """
    source, config = str(config.get("source", "")), config["config"] if isinstance(config.get("config"), dict) else config
    family = config.get("model_type")
    if family not in FAMILIES:
        inside = " Paste what stands under its text_config." if isinstance(config.get("text_config"), dict) else ""
        raise InputError(f"The planner counts {', '.join(FAMILIES)} models exactly and {str(family)[:30]!r} is none of them.{inside}")

    def size(key: str, default: Any = None, low: int = 1) -> int:
        value = config.get(key, default)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value < 10**7:
            raise InputError(f"config.json needs {key!r} as a whole number; it says {str(value)[:30]!r}.")
        return value

    heads, hidden, layers, said = size("num_attention_heads"), size("hidden_size"), size("num_hidden_layers"), bool(config.get("attention_bias"))
    asked = family in ("mistral", "mixtral", "phi3", *TIED, "gpt_oss") or (family.startswith("qwen") and config.get("use_sliding_window"))
    none = not asked or config.get("sliding_window", "") is None
    window = 0 if none else size("sliding_window", WINDOWS.get(family, 4096), 0)
    latent = None
    if family == "deepseek_v3":
        latent = Latent(size("q_lora_rank", 0, 0), size("kv_lora_rank"), size("qk_nope_head_dim"), size("qk_rope_head_dim"), size("v_head_dim"))
    size_of_head = latent.nope + latent.rope if latent else size("head_dim", HEADS.get(family, max(1, hidden // heads)))
    size("max_window_layers", 28, 0)  # refused here: below zero it would be windows in more layers than there are
    windowed = windowed_layers(config, family, layers, window)
    stored = config.get("quantization_config") or config.get("compression_config")
    width = "moe_intermediate_size" if family in ("qwen3_moe", "deepseek_v3") else "intermediate_size"
    return Architecture(
        name or str(config.get("_name_or_path") or family), family, hidden, layers, heads, size("num_key_value_heads", heads), size_of_head, size(width),
        size("vocab_size"), bool(config.get("tie_word_embeddings", family in TIED)), (family in BIASED or said) and latent is None,
        (said or family == "gpt_oss") and family in OUTPUT_BIASED, bool(config.get("mlp_bias")) and family == "llama",
        family in ("qwen3", "qwen3_moe", "gemma3_text"), 4 if family in TIED else 2, **mixture(config, family, layers, size),
        window=window if windowed else 0, windowed=windowed, latent=latent, context=size("max_position_embeddings", 0, 0), source=source,
        quantization=json.dumps(stored, sort_keys=True) if stored else "",
    )  # fmt: skip


def mixture(config: dict[str, Any], family: str, layers: int, size: Any) -> dict[str, int]:
    """The fields of a mixture of experts; none of a dense model."""
    if family not in EXPERTS:
        return {}
    many = next((key for key in (EXPERTS[family], "num_local_experts") if key in config), EXPERTS[family])  # transformers writes some by its own name
    found = {"experts": size(many, 8 if family == "mixtral" else None), "active": size("num_experts_per_tok", 2 if family == "mixtral" else None)}
    if found["active"] > found["experts"]:
        raise InputError(f"config.json has {found['experts']} experts, of which no token can meet {found['active']}.")
    if family == "deepseek_v3":
        found |= {"shared": size("n_shared_experts", 0, 0), "dense": min(layers, size("first_k_dense_replace", 0, 0))}
    if family == "qwen3_moe":
        step, only = size("decoder_sparse_step", 1), config.get("mlp_only_layers") or []
        if not isinstance(only, list):
            raise InputError(f"config.json needs 'mlp_only_layers' as a list of layers; it says {str(only)[:30]!r}.")
        found["dense"] = sum(i in only or (i + 1) % step != 0 for i in range(layers))
    return found | ({"dense_intermediate": size("intermediate_size")} if found.get("dense") else {})


def pasted(text: str) -> Architecture:
    """An architecture from the text of a config.json. Raises InputError."""
    try:
        config = json.loads(text[:TEXT_LIMIT])
    except (ValueError, RecursionError) as error:
        raise InputError("The text is no JSON; paste the whole config.json of a model.") from error
    if not isinstance(config, dict):
        raise InputError("The text is JSON but no object; paste the whole config.json of a model.")
    return architecture(config)
