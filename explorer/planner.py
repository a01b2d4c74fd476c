"""What a model needs and where it fits: weights, KV cache and activations from its configuration alone, and bounds from data sheets.

Pure arithmetic on plain values; everything it gives is an estimate except the count of weights, which is exact. Standard library only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from explorer.cache_sizes import windowed_bytes
from explorer.families import Architecture, Matrix
from explorer.layouts import LAYOUTS, Layout, stored_bits
from explorer.published import PUBLISHED, published
from explorer.records import InputError

SCALE_BITS = 16
PREFILL = 2048  # tokens of a prompt that one step reads


@dataclass(frozen=True)
class Plan:
    """What is asked: bits of the weights and their groups (0: one scale an output channel, at 16 bits nothing), bits of the KV cache, tokens of
    context, users at once, whether groups carry a zero-point, and whether the embedding and output head are quantized as well, which most
    checkpoints do not. format: one of LAYOUTS, which then takes the place of bits, group and zeros, or PUBLISHED, as the model's checkpoint is;
    kv_float: whether a cache of 8 bits is float8, which has no scales in its groups.
    """

    bits: int = 16
    group: int = 128
    kv_bits: int = 16
    context: int = 8192
    users: int = 1
    zeros: bool = False
    everything: bool = False
    format: str = ""
    kv_float: bool = False

    def layout(self) -> Layout | None:
        """How a quantized matrix is stored; None for 16 bits. Of a checkpoint only the model knows: see `layout_of`."""
        if self.format or self.bits == 16:
            return LAYOUTS.get(self.format)
        return Layout("", self.bits, self.group, SCALE_BITS + (self.bits if self.zeros else 0), inputs="int8" if self.bits == 8 else "")


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


def layout_of(model: Architecture, plan: Plan, one: Matrix) -> Layout | None:
    """How a matrix of a model is stored under a plan; None for 16 bits. Raises InputError for a checkpoint in a way that is not counted."""
    if plan.format != PUBLISHED:
        return plan.layout()
    found = published(model)
    return found.of(one) if found else None


def matrix_bits(model: Architecture, plan: Plan, one: Matrix) -> int:
    """Bits of all matrices of a kind: codes and what the blocks or groups share; of integers a 16-bit scale and, where asked, a zero-point as wide
    as a code.
    """
    return one.count * stored_bits(one.outputs, one.inputs, layout_of(model, plan, one))


def kv_bytes(model: Architecture, context: int, bits: int, scaled: bool = True) -> int:
    """Bytes of one user's cache in all layers."""
    return windowed_bytes(context, model.layers, model.windowed, model.window, model.cached, bits, scaled)


def copies(model: Architecture, devices: int) -> float:
    """How often the cache is held in all when tensor parallelism spreads the key and value heads over `devices`: 1 where they divide the heads;
    with more devices than heads each head is copied, and the fullest device decides where the heads do not divide.
    """
    return devices * -(-model.splits // devices) / model.splits


def user_activations(model: Architecture, devices: int = 1) -> int:
    """Bytes on one device that one more user's decoding token takes: its share of a block, and its logits in float32."""
    return 2 * token_values(model, devices) + 4 * model.vocabulary


def token_values(model: Architecture, devices: int) -> int:
    """Values alive on one device for one token in a block: residual, normed input and block output whole; the rest is split over the devices."""
    one = model.latent
    heads = model.heads * (2 * (one.nope + one.rope) + 2 * one.value) if one else 2 * model.heads * model.head_size + 2 * model.kv_heads * model.head_size
    feed = max(model.intermediate * (model.active + model.shared), model.dense_intermediate)
    return 3 * model.hidden + -(-max(3 * feed, heads) // devices)


def activation_bytes(model: Architecture, plan: Plan, devices: int = 1) -> int:
    """Bytes on each device of the largest set of tensors alive at once, by our own count of one decoder block at inference with fused attention.

    A prefill step of T tokens, at most PREFILL, holds residual, normed input and block output (3 hidden) with gate, up and their product (3 intermediate), or
    queries, keys, values and attention output instead when those are larger, in bfloat16; and the last token's logits of each user in float32.
    transformers' eager blocks were measured at 1.05 to 1.14 of it, and at 1.7 where attention is the widest (it copies rotated and repeated heads).
    """
    return 2 * min(PREFILL, plan.context) * token_values(model, devices) + plan.users * user_activations(model, devices)


def tables(model: Architecture, plan: Plan) -> dict[str, Layout | None]:
    """Of embedding and output head those that are quantized as well, with how."""
    if plan.everything:
        return {"embedding": plan.layout()} | ({} if model.tied else {"output head": plan.layout()})
    found = published(model) if plan.format == PUBLISHED else None
    return {"output head": found.layout} if found and found.head and not model.tied else {}


def need(model: Architecture, plan: Plan) -> Need:
    """What the model needs under a plan. Router, norms and biases stay in 16 bits, embedding and output head too unless asked.

    Raises InputError on values out of range.
    """
    for name, value, low, high in (("context", plan.context, 1, 10**7), ("users", plan.users, 1, 10**5)):
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise InputError(f"{name} takes a whole number from {low:,} to {high:,}, not {str(value)[:20]}.")
    if plan.bits not in (16, 8, 6, 5, 4, 3, 2) or plan.kv_bits not in (16, 8, 4, 2) or plan.group not in (0, 32, 64, 128):
        raise InputError("Weights take 16, 8, 6, 5, 4, 3 or 2 bits in groups of 0 (a channel), 32, 64 or 128; the KV cache takes 16, 8, 4 or 2 bits.")
    if plan.format and plan.format not in (*LAYOUTS, PUBLISHED):
        raise InputError(f"There is no format {plan.format[:20]!r}; choose {', '.join(LAYOUTS)}, {PUBLISHED}, or integers by bits and group.")
    if plan.format == PUBLISHED and plan.everything:
        raise InputError("A model as published has the embedding and head of its checkpoint; do not ask to quantize them too.")
    if plan.kv_float and plan.kv_bits != 8:
        raise InputError("A float8 cache has 8 bits.")
    parts, stored = model.parts(), {"attention": 0, "feed-forward": 0}
    for one in model.matrices():
        stored[one.part] += matrix_bits(model, plan, one)
    stored |= {name: stored_bits(model.vocabulary, model.hidden, kept) for name, kept in tables(model, plan).items()}
    weights = {name: -(-stored[name] // 8) if name in stored else 2 * count for name, count in parts.items()}
    weights["norms and biases"] += 2 * model.single
    quantized = sum(parts[name] for name in stored)
    cache = kv_bytes(model, plan.context, plan.kv_bits, not plan.kv_float)
    return Need(weights, cache, cache * plan.users, activation_bytes(model, plan), sum(stored.values()) / quantized)


def step_weights(model: Architecture, plan: Plan, found: Need) -> float:
    """Bytes of weights that one decoding step of all users must read at least: every weight that some token meets, once.

    The embedding is looked up by row, unless it is the output head as well. With experts, the expected share that `users` tokens meet when the
    router spreads them evenly: 1 - (1 - active/experts)^users.
    """
    weights: float = found.weight_bytes - (0 if model.tied else found.weights["embedding"])
    met = 1 - (1 - model.active / model.experts) ** plan.users
    return weights - (1 - met) * sum(matrix_bits(model, plan, one) / 8 for one in model.matrices() if one.routed)


def step_bytes(model: Architecture, plan: Plan, found: Need, devices: int = 1) -> float:
    """Bytes that one decoding step of all users must read at least on all devices together: weights, and each user's cache, copies included."""
    return step_weights(model, plan, found) + found.kv * copies(model, devices)


def decode_work(model: Architecture, context: int) -> float:
    """FLOP of one decoded token: 2 for each parameter it meets in the blocks and the head, and attention over the context, 4 for each query head,
    value of the head and token looked back at (scores, then their sum over the values). Latent attention multiplies in the latent space.
    """
    one = model.latent
    pair = 2 * model.heads * (2 * one.kv_rank + one.rope) if one else 4 * model.heads * model.head_size
    seen = (model.layers - model.windowed) * context + model.windowed * min(context, model.window)
    return 2 * (model.used() + model.vocabulary * model.hidden) + pair * seen


def prompt_work(model: Architecture, context: int) -> float:
    """FLOP of one token of a prompt of `context` tokens, on average: as above, but causal attention sees half as far, keys and values of a latent
    cache are spelt out once, and only the last token meets the head.
    """
    one, window = model.latent, min(context, model.window)
    pair = 2 * model.heads * (one.nope + one.rope + one.value) if one else 4 * model.heads * model.head_size
    far, near = (context + 1) / 2, (window * (window + 1) / 2 + (context - window) * window) / context
    seen = (model.layers - model.windowed) * far + model.windowed * near
    return 2 * (model.used() + model.vocabulary * model.hidden / context) + pair * seen


def rounded_work(model: Architecture, plan: Plan, work: float, head: float = 1) -> dict[str, float]:
    """Of `work`, the FLOP of one token, those whose inputs software may round, by what to (see Layout): products of matrices in such a format, and
    attention over a float8 cache. head: how many of the token's vectors meet the head.
    """
    share, found = model.active / model.experts, dict.fromkeys(("int8", "fp8", "fp4"), 0.0)
    parts = [(layout_of(model, plan, one), one.inputs, one.parameters * (share if one.routed else 1)) for one in model.matrices()]
    last = tables(model, plan).get("embedding" if model.tied else "output head")
    for layout, k, parameters in [*parts, (last, model.hidden, head * model.vocabulary * model.hidden)]:
        kept = layout.over(k) if layout else None
        if kept and kept.inputs:
            found[kept.inputs] += 2 * parameters
    if plan.kv_float:
        found["fp8"] += work - 2 * (model.used() + head * model.vocabulary * model.hidden)
    return found


def gigabytes(count: float) -> str:
    """Bytes as GB (10^9), with the digits that matter."""
    value = count / 1e9
    return f"{value:,.0f} GB" if value >= 100 else f"{value:.1f} GB" if value >= 1 else f"{count / 1e6:.1f} MB"


def whole(value: float) -> int:
    """The largest whole number that is not above a value that is not negative, 0 below."""
    return max(0, math.floor(value))
