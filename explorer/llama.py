"""The Llama family's forward pass for the token loop: the model's own weights and layers in the fewest operations. Knows no methods or metrics.

transformers builds masks, position embeddings and cache objects anew at every token, which costs more than the arithmetic of a small model. Here the
rotary table is made once, q, k and v are one product and so are gate and up, and the cache is one tensor. The result is the same up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from explorer.packed_cache import PackedCache
from explorer.products import Product, product
from kernels import token_step
from kernels.native_attention import attention16, reads

FAMILY = ("llama", "mistral", "qwen2", "qwen3")
TABLE = 16 << 20  # bytes up to which the rotary table is kept for every head, which saves two small operations a token
ROPE_WITHOUT_STATE = ("default", "llama3", "linear", "yarn")


class Norm:
    """RMSNorm of rows [M, H]. One row on a CPU goes by layer_norm of (x, -x), whose mean is 0 and whose variance is the mean square: one kernel where
    torch's RMSNorm is seven.
    """

    def __init__(self, weight: Tensor, eps: float) -> None:
        self.weight, self.eps, self.width = weight, eps, weight.shape
        self.doubled = torch.cat([weight, torch.zeros_like(weight)]) if weight.device.type == "cpu" else None

    def __call__(self, x: Tensor) -> Tensor:
        if self.doubled is None or x.shape[0] > 1:
            return F.rms_norm(x, self.width, self.weight, self.eps)
        return self.of_signed(torch.cat([x, -x], 1))[:, : self.width[0]]

    def of_signed(self, both: Tensor) -> Tensor:
        """The same of a row beside its negative, [1, 2 H], in the first half of the result [1, 2 H]; CPU only."""
        return torch.layer_norm(both, self.doubled.shape, self.doubled, None, self.eps)


class Block(NamedTuple):
    """One decoder block: its products ([M, K] -> [M, N]) and norms; head_norms: weights [D] for queries and keys (Qwen3), or None."""

    qkv: Product
    out: Product
    gate_up: Product
    down: Product
    before: Norm
    between: Norm
    head_norms: tuple[Tensor, Tensor] | None


def refuses(model: Any, context: int) -> str:
    """Why this loop cannot run a transformers model with a cache of `context` tokens, "" when it can."""
    config = model.config
    if config.model_type not in FAMILY:
        return f"a model of type {config.model_type} has its own forward pass"
    if config.hidden_act != "silu":
        return f"its activation is {config.hidden_act}"
    rope = (config.rope_parameters or {}).get("rope_type", "default")
    if rope not in ROPE_WITHOUT_STATE:
        return f"its position embedding ({rope}) depends on the length"
    kinds = getattr(config, "layer_types", None) or ()
    window = getattr(config, "sliding_window", None)
    slides = "sliding_attention" in kinds or (config.model_type == "mistral" and window is not None)
    return f"its attention slides over {window} of {context} tokens" if slides and window < context else ""


class LlamaLoop:
    """Forward passes over at most `batch` sequences that advance together. static: every shape is fixed and the position lives on the device, as a CUDA graph
    needs it; otherwise attention reads only the tokens that are there. A cache in low bits stays packed: attention reads its codes.
    """

    name = "own loop"

    def __init__(self, model: Any, context: int, kv_bits: int = 16, batch: int = 1, static: bool | None = None) -> None:
        config, body = model.config, model.model
        weight = body.embed_tokens.weight
        context = -(-context // 16) * 16 if weight.is_cuda else context  # torch's attention kernels copy a mask that is no multiple of 16
        self.context, self.kv_bits, self.batch, self.device = context, kv_bits, batch, weight.device
        self.size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.queries, self.keys = config.num_attention_heads, getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        self.eps, self.embedding = config.rms_norm_eps, weight
        self.blocks = [_block(layer, self.eps) for layer in body.layers]
        self.head, self.last = product([model.lm_head]), Norm(body.norm.weight, self.eps)
        products = [self.head, *(p for b in self.blocks for p in (b.qkv, b.out, b.gate_up, b.down))]
        self.copies, self.beyond = sum(p.copied for p in products), sum(p.beyond for p in products)
        self.table = _rotary_table(body.rotary_emb, context, self.size, weight)
        self.no_turn = weight.new_tensor([1.0, 0.0]).view(2, 1, 1, 1, 1).expand(2, 1, self.keys, 2, self.size // 2)
        small = 2 * context * (self.queries + 2 * self.keys) * self.size * weight.element_size() <= TABLE
        self.whole = self._of_heads(self.table) if small else None
        shape = (len(self.blocks), batch, 2, self.keys, context, self.size)  # 2: keys and values
        self.cache = weight.new_zeros(shape) if kv_bits == 16 else None
        self.packed = None if kv_bits == 16 else PackedCache((len(self.blocks), batch, self.keys, self.size), context, kv_bits, weight, static)
        self.static = self.packed.static if self.packed else weight.is_cuda if static is None else static
        ours = self.packed is None and not self.static and reads(self.cache[0, :, 0], self.cache[0, :, 1])
        self.attention = self.packed.name if self.packed else "native attention" if ours else "torch SDPA"
        self.length = 0
        self.position = torch.zeros(1, dtype=torch.long, device=self.device)
        self.fused = weight.is_cuda and self.static
        self.lean = weight.device.type == "cpu" and not self.static and self.blocks[0].head_norms is None
        self.signed = weight.new_empty(1, 2 * weight.shape[1])  # the hidden state of the one row of a lean step, and beside it its negative
        self.halves = self.signed.split(weight.shape[1], 1)

    def reset(self, batch: int = 1) -> None:
        """Empties the cache for so many sequences."""
        self.batch, self.length = batch, 0
        self.position.zero_()
        if self.packed:
            self.packed.reset(batch)

    def cache_bytes(self) -> int:
        """Bytes that the cache holds, filled or not."""
        return self.packed.nbytes() if self.packed else self.cache.nbytes

    def prefill(self, prompt: Tensor) -> Tensor:
        """Reads prompt [B, T] int64 into an empty cache -> logits of its last tokens [B, V]."""
        self.reset(len(prompt))
        logits = self._forward(prompt)
        self.length = prompt.shape[1]
        self.position.fill_(self.length)
        if self.packed:
            self.packed.filled(self.length)
        return logits

    def prepare(self) -> None:
        """What comes before a step and depends on the length: a graph cannot hold it. Called twice it does nothing more."""
        if self.packed:
            self.packed.make_room(self.length)

    def step(self, token: Tensor) -> Tensor:
        """One more token a sequence, [B, 1] int64 -> logits [B, V]. When static and prepared it touches no host memory: it can be captured."""
        self.prepare()
        logits = self._lean_step(token) if self.lean and self.batch == 1 else self._fused_step(token) if self.fused else self._forward(token)
        self.position += 1
        self.length += 1
        return logits

    def attentions(self) -> list[Callable[[Tensor], Tensor]]:
        """For each block its attention over the tokens that are there: queries [B, Q, D] -> [B, Q, D]. For timing: nothing is stored."""
        if self.packed:
            return [partial(self.packed.form.run, packed=seen) for seen in self.packed.seen(self.length)]
        mask, seen = self._mask(1), self.cache[:, : self.batch, ..., : self.context if self.static else self.length, :]
        return [partial(attention16, keys=keys, values=values, mask=mask) for keys, values in (pair.unbind(1) for pair in seen.unbind(0))]

    def seen_bytes(self) -> int:
        """Bytes of the cache that a step reads: of the tokens that are there, static in 16 bits of all there is room for."""
        if self.packed:
            return self.packed.seen_bytes(self.length)
        return self.cache[:, : self.batch].nbytes * (self.context if self.static else self.length) // self.context

    def _forward(self, tokens: Tensor) -> Tensor:
        new = tokens.shape[1]
        hidden = F.embedding(tokens.reshape(-1), self.embedding)  # [B T, H]
        turns, mask = self._turns(new), self._mask(new)
        states = self._states(new)
        for block, state in zip(self.blocks, states, strict=True):
            hidden += block.out.run(self._attend(block.qkv.run(block.before(hidden)), block, state, new, turns, mask))
            gate, up = block.gate_up.run(block.between(hidden)).chunk(2, -1)
            hidden += block.down.run(F.silu(gate).mul_(up))
        if new > 1:
            hidden = hidden.view(self.batch, new, -1)[:, -1]
        return self.head.run(self.last(hidden))

    def _fused_step(self, token: Tensor) -> Tensor:
        """`_forward` for one token a sequence on a GPU, where each small operation costs a launch: they are joined."""
        hidden = F.embedding(token.reshape(-1), self.embedding)
        turns, mask, normed = self._turns(1) if self.packed or self.blocks[0].head_norms else None, self._mask(1), self.blocks[0].before(hidden)
        following = [*(block.before for block in self.blocks[1:]), self.last]
        for block, state, norm in zip(self.blocks, self._states(1), following, strict=True):
            mixed = self._attend(block.qkv.run(normed), block, state, 1, turns, mask)
            normed = token_step.add_and_norm(hidden, block.out.run(mixed), block.between.weight, self.eps)
            normed = token_step.add_and_norm(hidden, block.down.run(token_step.gated(block.gate_up.run(normed))), norm.weight, self.eps)
        return self.head.run(normed)

    def _lean_step(self, token: Tensor) -> Tensor:
        """`_forward` for one token of one sequence on a CPU, where every small operation costs as much as the arithmetic of a small layer."""
        queries, keys, size, width = self.queries, self.keys, self.size, self.signed.shape[1] // 2
        hidden, minus = self.halves
        hidden.copy_(self.embedding[token[0]])
        cos, sin = (table[0] for table in self._turns(1))  # [heads, 2, D/2]
        states = self.packed.step(self.length) if self.packed else self._lean_states()
        for block, state in zip(self.blocks, states, strict=True):
            torch.neg(hidden, out=minus)
            rows = block.qkv.run(block.before.of_signed(self.signed)[:, :width]).view(-1, 2, size // 2)
            rows = torch.addcmul(rows * cos, rows.flip(1), sin).view(-1, size)
            if self.packed:
                mixed = self.packed.attend(state, rows[:queries].unsqueeze(0), rows[queries:].view(2, 1, keys, size))
            else:
                place, known = state
                place.copy_(rows[queries:].view_as(place))
                mixed = attention16(rows[:queries].unsqueeze(0), *known.unbind(0), None)
            hidden += block.out.run(mixed.view(1, -1))
            torch.neg(hidden, out=minus)
            gate, up = block.gate_up.run(block.between.of_signed(self.signed)[:, :width]).chunk(2, -1)
            hidden += block.down.run(F.silu(gate).mul_(up))
        torch.neg(hidden, out=minus)
        return self.head.run(self.last.of_signed(self.signed)[:, :width])

    def _lean_states(self) -> Iterator[tuple[Tensor, Tensor]]:
        """For each block (where the new keys and values go [2, KV, D], those there are then [2, 1, KV, n, D])."""
        cache = self.cache[:, :1]
        places, seen = cache[:, 0, :, :, self.length].unbind(0), cache[..., : self.length + 1, :].transpose(1, 2)
        return zip(places, seen.unbind(0), strict=True)

    def _states(self, new: int) -> Sequence[Any]:
        """For each block where its keys and values are: (where the new ones go, keys [B, KV, n, D], values), or the place in its cache in low bits.

        All blocks at once: cutting the cache block by block would take six small operations each.
        """
        if self.packed:
            return self.packed.step(self.length) if new == 1 else range(len(self.blocks))
        at_once, end, cache = self.static and new == 1, self.length + new, self.cache[:, : self.batch]
        seen = cache if at_once else cache[..., :end, :]
        places = cache if at_once else cache[..., end - new : end, :]  # [L, B, 2, KV, T, D]
        return list(zip(places.unbind(0), seen[:, :, 0].unbind(0), seen[:, :, 1].unbind(0), strict=True))

    def _turns(self, new: int) -> tuple[Tensor, Tensor]:
        """cos and sin [T, heads, 2, D/2] of the new tokens; 1 and 0 for the values, which do not turn."""
        table = self.table if self.whole is None else self.whole
        here = table.index_select(1, self.position) if self.static and new == 1 else table[:, self.length : self.length + new]
        cos, sin = (self._of_heads(here) if self.whole is None else here).unbind(0)
        return cos, sin

    def _of_heads(self, table: Tensor) -> Tensor:
        """[2, T, 2, D/2] -> [2, T, heads, 2, D/2], one for each query, key and value."""
        turned = table.unsqueeze(2).expand(-1, -1, self.queries + self.keys, -1, -1)
        return torch.cat([turned, self.no_turn.expand(-1, table.shape[1], -1, -1, -1)], 2)

    def _mask(self, new: int) -> Tensor | None:
        """What a static step adds to the scores [.., n]: minus infinity where no token is yet."""
        if not self.static or new > 1:
            return None
        later = torch.arange(self.context, device=self.device) > self.position
        return torch.zeros_like(later, dtype=self.embedding.dtype).masked_fill(later, float("-inf")).view(1, 1, 1, -1)

    def _attend(self, rows: Tensor, block: Block, state: Any, new: int, turns: tuple[Tensor, Tensor] | None, mask: Tensor | None) -> Tensor:
        """rows [B T, (Q + 2 KV) D], the queries, keys and values of the new tokens -> [B T, Q D]. turns None: one kernel turns and stores them."""
        batch, q, kv = self.batch, self.queries, self.keys
        if turns is None:
            queries = token_step.turn_and_store(rows, self.table, self.position, state[0], q)
            return attention16(queries, *state[1:], mask).reshape(batch, -1)
        rows = rows.view(batch, new, q + 2 * kv, 2, self.size // 2)
        if block.head_norms is not None:
            rows = _norm_heads(rows.flatten(3), q, kv, block.head_norms, self.eps).view_as(rows)
        rows = torch.addcmul(rows * turns[0], rows.flip(3), turns[1]).view(batch, new, q + 2 * kv, self.size)
        pair = rows[:, :, q:].view(batch, new, 2, kv, self.size)
        if self.packed and new == 1:
            return self.packed.attend(state, rows[:, 0, :q], pair[:, 0].transpose(0, 1)).reshape(batch, -1)
        keys, values = self._remember(state, pair, new)
        if new == 1:
            return attention16(rows[:, 0, :q], keys, values, mask).reshape(batch, -1)
        mixed = F.scaled_dot_product_attention(rows[:, :, :q].transpose(1, 2), keys, values, is_causal=True, enable_gqa=q != kv)
        return mixed.transpose(1, 2).reshape(batch * new, -1)

    def _remember(self, state: Any, pair: Tensor, new: int) -> tuple[Tensor, Tensor]:
        """Stores keys and values, pair [B, T, 2, KV, D]; gives the keys and the values [B, KV, n, D] that the new tokens attend to."""
        if self.packed:
            return self.packed.fill(state, pair.permute(2, 0, 3, 1, 4))
        pair = pair.permute(0, 2, 3, 1, 4)
        place, keys, values = state
        if self.static and new == 1:
            place.index_copy_(3, self.position, pair)
        else:
            place.copy_(pair)
        return keys, values


def _block(layer: nn.Module, eps: float) -> Block:
    attention, mlp = layer.self_attn, layer.mlp
    norms = (attention.q_norm.weight, attention.k_norm.weight) if hasattr(attention, "q_norm") else None
    qkv, gate_up = product([attention.q_proj, attention.k_proj, attention.v_proj], True), product([mlp.gate_proj, mlp.up_proj], True)
    before, between = (_norm(n.weight, p, eps) for n, p in ((layer.input_layernorm, qkv), (layer.post_attention_layernorm, gate_up)))
    return Block(qkv, product([attention.o_proj]), gate_up, product([mlp.down_proj]), before, between, norms)


def _norm(weight: Tensor, after: Product, eps: float) -> Norm:
    return Norm(weight if after.inverse is None else weight.detach() * after.inverse, eps)


def _rotary_table(rotary: Callable, context: int, size: int, like: Tensor) -> Tensor:
    """[2, T, 2, D/2] in the model's dtype: the cosines, and the sines with the sign that the exchanged halves take, as the model's own module gives them."""
    positions = torch.arange(context, device=like.device)[None]
    cos, sin = (table[0].view(context, 2, size // 2) for table in rotary(like[:1], positions))
    return torch.stack([cos, torch.cat([-sin[:, :1], sin[:, 1:]], 1)])


def _norm_heads(rows: Tensor, q: int, kv: int, weights: tuple[Tensor, Tensor], eps: float) -> Tensor:
    """rows [B, T, heads, D] with RMSNorm over D of each query and each key."""
    queries, keys, values = rows.split([q, kv, kv], 2)
    return torch.cat([F.rms_norm(queries, queries.shape[-1:], weights[0], eps), F.rms_norm(keys, keys.shape[-1:], weights[1], eps), values], 2)
