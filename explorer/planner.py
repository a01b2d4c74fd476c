"""What a model needs and where it fits: weights, KV cache and activations from its configuration alone, and bounds from data sheets.

Pure arithmetic on plain values; everything it gives is an estimate except the count of weights, which is exact. Standard library only.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any

from explorer.records import InputError

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "mixtral")
BIASED = ("qwen2",)  # families whose query, key and value projections have a bias although no field says so
TEXT_LIMIT = 100_000  # characters of a pasted configuration
KV_GROUP, KV_WINDOW = 32, 32  # a low-bit cache: values that share a scale and minimum; newest tokens that stay in 16 bits (explorer.kvcache)
SCALE_BITS = 16


@dataclass(frozen=True)
class Architecture:
    """The sizes of a decoder-only transformer. experts: feed-forward copies a layer, of which `active` work on each token."""

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
    experts: int = 1
    active: int = 1
    window: int = 0  # tokens that attention looks back at most; 0 for all
    context: int = 0  # tokens the model was made for
    source: str = ""

    def matrices(self) -> dict[str, tuple[int, int, int]]:
        """Name -> (outputs, inputs, how many in all layers) of the linear layers inside the decoder blocks: what is quantized."""
        q, kv, copies = self.heads * self.head_size, self.kv_heads * self.head_size, self.layers * self.experts
        return {
            "query": (q, self.hidden, self.layers), "key": (kv, self.hidden, self.layers), "value": (kv, self.hidden, self.layers),
            "output": (self.hidden, q, self.layers), "gate": (self.intermediate, self.hidden, copies), "up": (self.intermediate, self.hidden, copies),
            "down": (self.hidden, self.intermediate, copies),
        }  # fmt: skip

    def parts(self) -> dict[str, int]:
        """Parameters by part; they add up to the published count of the checkpoint."""
        shapes = {name: n * k * count for name, (n, k, count) in self.matrices().items()}
        q, kv = self.heads * self.head_size, self.kv_heads * self.head_size
        small = (2 * self.layers + 1) * self.hidden + (2 * self.layers * self.head_size if self.head_norms else 0)
        small += self.layers * ((q + 2 * kv) * self.attention_bias + self.hidden * self.output_bias)
        small += self.layers * (2 * self.intermediate + self.hidden) * self.mlp_bias
        return {
            "attention": sum(shapes[name] for name in ("query", "key", "value", "output")),
            "feed-forward": sum(shapes[name] for name in ("gate", "up", "down")),
            "router": self.layers * self.experts * self.hidden if self.experts > 1 else 0,
            "embedding": self.vocabulary * self.hidden, "output head": 0 if self.tied else self.vocabulary * self.hidden, "norms and biases": small,
        }  # fmt: skip

    @property
    def parameters(self) -> int:
        return sum(self.parts().values())


def architecture(config: dict[str, Any], name: str = "") -> Architecture:
    """From a transformers config.json, or {"source", "config"} around one. Raises InputError with a sentence on what is missing, not a number, or of
    a family whose count is not known.
    """
    source, config = str(config.get("source", "")), config["config"] if isinstance(config.get("config"), dict) else config
    family = config.get("model_type")
    if family not in FAMILIES:
        raise InputError(f"The planner counts {', '.join(FAMILIES)} models exactly and {str(family)[:30]!r} is none of them.")

    def size(key: str, default: Any = None, low: int = 1) -> int:
        value = config.get(key, default)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value < 10**7:
            raise InputError(f"config.json needs {key!r} as a whole number; it says {str(value)[:30]!r}.")
        return value

    heads, hidden = size("num_attention_heads"), size("hidden_size")
    window = size("sliding_window", 0, 0) if family in ("mistral", "mixtral") or config.get("use_sliding_window") else 0
    biased = family in BIASED or bool(config.get("attention_bias"))
    experts = size("num_local_experts", 8) if family == "mixtral" else 1
    return Architecture(
        name or str(config.get("_name_or_path") or family), family, hidden, size("num_hidden_layers"), heads, size("num_key_value_heads", heads),
        size("head_dim", max(1, hidden // heads)), size("intermediate_size"), size("vocab_size"), bool(config.get("tie_word_embeddings", False)), biased,
        bool(config.get("attention_bias")) and family in ("llama", "qwen3"), bool(config.get("mlp_bias")) and family == "llama", family == "qwen3", experts,
        size("num_experts_per_tok", 2) if experts > 1 else 1, window, size("max_position_embeddings", 0, 0), source,
    )  # fmt: skip


def pasted(text: str) -> Architecture:
    """An architecture from the text of a config.json. Raises InputError."""
    try:
        config = json.loads(text[:TEXT_LIMIT])
    except (ValueError, RecursionError) as error:
        raise InputError("The text is no JSON; paste the whole config.json of a model.") from error
    if not isinstance(config, dict):
        raise InputError("The text is JSON but no object; paste the whole config.json of a model.")
    return architecture(config)


@dataclass(frozen=True)
class Plan:
    """What is asked: bits of the weights and their groups (0: one scale an output channel, at 16 bits nothing), bits of
    the KV cache, tokens of context, users at once, tokens that one prefill step reads, whether groups carry a zero-point, and whether the embedding
    and output head are quantized as well, which most checkpoints do not.
    """

    bits: int = 16
    group: int = 128
    kv_bits: int = 16
    context: int = 8192
    users: int = 1
    chunk: int = 2048
    zeros: bool = False
    everything: bool = False


@dataclass(frozen=True)
class Need:
    """Bytes by part. weights: by name; kv_user: cache of one user at the full context; activations: of the largest step."""

    weights: dict[str, int] = field(default_factory=dict)
    kv_user: int = 0
    kv: int = 0
    activations: int = 0
    bits_per_weight: float = 16.0

    @property
    def weight_bytes(self) -> int:
        return sum(self.weights.values())

    @property
    def total(self) -> int:
        return self.weight_bytes + self.kv + self.activations


def stored_bits(n: int, k: int, plan: Plan) -> int:
    """Bits of one matrix [n, k]: codes, a 16-bit scale for each group and, where asked, a zero-point as wide as a code. A group that does not divide
    k keeps the matrix in 16 bits, as the methods do.
    """
    if plan.bits == 16 or (plan.group and k % plan.group):
        return 16 * n * k
    groups = n * (k // plan.group if plan.group else 1)
    return plan.bits * n * k + groups * (SCALE_BITS + (plan.bits if plan.zeros else 0))


def kv_bytes(model: Architecture, context: int, bits: int) -> int:
    """Bytes of one user's cache: keys and values of all layers; below 16 bits with a 16-bit scale and minimum for 32 values, the newest 32 tokens whole."""
    held = min(context, model.window) if model.window else context
    values = 2 * model.layers * model.kv_heads * model.head_size
    packed = 0 if bits == 16 else max(0, (held - KV_WINDOW) // KV_GROUP) * KV_GROUP
    return values * (held - packed) * 2 + values * packed * bits // 8 + values * packed * 4 // KV_GROUP


def activation_bytes(model: Architecture, plan: Plan) -> int:
    """Bytes of the largest set of tensors alive at once, by our own count of one decoder block at inference with fused attention.

    A prefill step of T tokens holds residual, normed input and block output (3 hidden) with gate, up and their product (3 intermediate), or
    queries, keys, values and attention output instead when those are larger, in bfloat16; and the last token's logits of each user in float32.
    """
    tokens = min(plan.chunk, plan.context) + plan.users
    attention = 2 * model.heads * model.head_size + 2 * model.kv_heads * model.head_size
    wide = max(3 * model.intermediate * model.active, attention)
    return 2 * tokens * (3 * model.hidden + wide) + 4 * plan.users * model.vocabulary


def need(model: Architecture, plan: Plan) -> Need:
    """What the model needs under a plan. Router, norms and biases stay in 16 bits, embedding and output head too unless asked.

    Raises InputError on values out of range.
    """
    for name, value, low, high in (("context", plan.context, 1, 10**7), ("users", plan.users, 1, 10**5), ("chunk", plan.chunk, 1, 10**6)):
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise InputError(f"{name} takes a whole number from {low:,} to {high:,}, not {str(value)[:20]}.")
    if plan.bits not in (16, 8, 6, 5, 4, 3, 2) or plan.kv_bits not in (16, 8, 4, 2) or plan.group not in (0, 32, 64, 128):
        raise InputError("Weights take 16, 8, 6, 5, 4, 3 or 2 bits in groups of 0 (a channel), 32, 64 or 128; the KV cache takes 16, 8, 4 or 2 bits.")
    parts, stored = model.parts(), {"attention": 0, "feed-forward": 0}
    for name, (n, k, count) in model.matrices().items():
        stored["attention" if name in ("query", "key", "value", "output") else "feed-forward"] += count * stored_bits(n, k, plan)
    if plan.everything:
        one = stored_bits(model.vocabulary, model.hidden, plan)
        stored |= {"embedding": one} | ({} if model.tied else {"output head": one})
    weights = {name: -(-stored[name] // 8) if name in stored else 2 * count for name, count in parts.items()}
    quantized = sum(parts[name] for name in stored)
    one = kv_bytes(model, plan.context, plan.kv_bits)
    return Need(weights, one, one * plan.users, activation_bytes(model, plan), sum(stored.values()) / quantized)


def step_bytes(model: Architecture, plan: Plan, found: Need) -> float:
    """Bytes that one decoding step of all users must read at least: every weight that some token meets, once, and each user's cache.

    The embedding is looked up by row, unless it is the output head as well. With experts, the expected share that `users` tokens meet when the
    router spreads them evenly: 1 - (1 - active/experts)^users.
    """
    weights: float = found.weight_bytes - (0 if model.tied else found.weights["embedding"])
    if model.experts > 1:
        met = 1 - (1 - model.active / model.experts) ** plan.users
        weights -= (1 - met) * found.weights["feed-forward"]
    return weights + found.kv


def gigabytes(count: float) -> str:
    """Bytes as GB (10^9), with the digits that matter."""
    value = count / 1e9
    return f"{value:,.0f} GB" if value >= 100 else f"{value:.1f} GB" if value >= 1 else f"{count / 1e6:.1f} MB"


def whole(value: float) -> int:
    """The largest whole number that is not above a value that is not negative, 0 below."""
    return max(0, math.floor(value))
