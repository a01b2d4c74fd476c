"""KV cache in low bits: older keys and values as packed codes, the newest ones in 16 bits. Knows nothing of methods or metrics."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from explorer.cache_sizes import GROUP, WINDOW, packed_tokens, windowed_bytes, windowed_layers
from explorer.models import reading
from explorer.records import InputError

WIDTHS = (16, 8, 4, 2)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes uint8 [..., D] below 2**bits, bits 2, 4 or 8 -> bytes [..., D * bits / 8], the first code in the lowest bits."""
    parts = codes.unflatten(-1, (-1, 8 // bits))
    shifts = torch.arange(0, 8, bits, device=codes.device)
    return (parts.int() << shifts).sum(-1).to(torch.uint8)


def unpack(packed: Tensor, bits: int) -> Tensor:
    """The inverse of `pack`."""
    shifts = torch.arange(0, 8, bits, device=packed.device)
    return ((packed.int().unsqueeze(-1) >> shifts) & (2**bits - 1)).flatten(-2).to(torch.uint8)


class Chunk:
    """Keys or values of some tokens, [B, H, T, D] bfloat16, in low bits: codes, scale and minimum over groups along one dimension (2 or 3)."""

    def __init__(self, states: Tensor, bits: int, dim: int) -> None:
        self.bits, self.dim, self.dtype = bits, dim, states.dtype
        groups = states.float().unflatten(dim, (-1, GROUP))
        low, high = groups.amin(dim + 1, keepdim=True), groups.amax(dim + 1, keepdim=True)
        self.low = low.to(states.dtype)
        scale = (high - self.low.float()) / (2**bits - 1)
        self.scale = torch.where(scale > 0, scale, 1.0).to(states.dtype)
        codes = ((groups - self.low.float()) / self.scale.float()).round().clamp(0, 2**bits - 1)
        self.codes = pack(codes.to(torch.uint8).flatten(dim, dim + 1), bits)

    def states(self) -> Tensor:
        """[B, H, T, D] in the dtype that came in."""
        codes = unpack(self.codes, self.bits).float().unflatten(self.dim, (-1, GROUP))
        return (codes * self.scale.float() + self.low.float()).flatten(self.dim, self.dim + 1).to(self.dtype)

    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (self.codes, self.scale, self.low))


class KiviLayer(DynamicLayer):
    """One layer's cache after KIVI (arXiv 2402.02750, section 3.3): keys are rounded per channel, because a few channels of keys are large for
    all tokens; values per token, because each token's value is used on its own. The newest WINDOW tokens stay in 16 bits (the paper's residual
    is 128). What is first read into an empty cache, a prompt, attends to its own keys and values as they are; only the tokens after it meet them rounded.
    """

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits, self.old_keys, self.old_values = bits, [], []

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Adds [B, H, T, D] and returns all keys and values as attention sees them: old ones dequantized, new ones exact; a prompt's all exact."""
        prompt = self.get_seq_length() == 0
        super().update(key_states, value_states)
        while self.keys.shape[-2] >= WINDOW + GROUP:
            self.old_keys.append(Chunk(self.keys[..., :GROUP, :], self.bits, 2))
            self.old_values.append(Chunk(self.values[..., :GROUP, :], self.bits, 3))
            self.keys, self.values = self.keys[..., GROUP:, :], self.values[..., GROUP:, :]
        if prompt:
            return key_states, value_states
        old = zip(*((k.states(), v.states()) for k, v in zip(self.old_keys, self.old_values, strict=True)), strict=True)
        keys, values = tuple(old) or ((), ())
        return torch.cat([*keys, self.keys], dim=-2), torch.cat([*values, self.values], dim=-2)

    def get_seq_length(self) -> int:
        """Tokens in the cache, packed or not."""
        return GROUP * len(self.old_keys) + super().get_seq_length()

    def reset(self) -> None:
        """Empties the cache."""
        super().reset()
        self.old_keys, self.old_values = [], []

    def nbytes(self) -> int:
        """Bytes held now."""
        newest = 0 if self.keys is None else self.keys.numel() * self.keys.element_size() + self.values.numel() * self.values.element_size()
        return newest + sum(chunk.nbytes() for chunk in (*self.old_keys, *self.old_values))


def kivi_cache(config: Any, bits: int) -> Cache:
    """An empty cache of `bits` (8, 4 or 2) for a model of this configuration. Raises InputError as `check_heads`."""
    check_heads(config, bits)
    return Cache(layers=[KiviLayer(bits) for _ in range(config.num_hidden_layers)])


def check_heads(config: Any, bits: int) -> None:
    """Raises InputError where no group divides the channels of a head of a model of this configuration, and its cache cannot have so few bits."""
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if bits != 16 and size % GROUP:
        raise InputError(f"A cache in {bits} bits groups {GROUP} channels, and this model's heads have {size}; leave the cache at 16 bits.")


def bytes_at(config: Any, context: int, bits: int) -> int:
    """Bytes of the cache of one sequence of `context` tokens: what `KiviLayer.nbytes` comes to in all layers, or of a bfloat16 cache. Layers whose
    attention sees a window need no more than its tokens, though a `KiviLayer` keeps them all.
    """
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    layers, window = config.num_hidden_layers, getattr(config, "sliding_window", None) or 0
    windowed = windowed_layers(config.to_dict(), config.model_type, layers, window) if window else 0
    return windowed_bytes(context, layers, windowed, window, 2 * heads * size, bits)  # keys and values of one token in a layer


@torch.no_grad()
def chunked_logits(model: Any, windows: Tensor, bits: int, prompt: int = 0) -> Tensor:
    """Logits [B, T, V] of windows [B, T] int64 through a cache of `bits`, as if all after the first `prompt` tokens were generated one by one.

    Each part begins with the token before which generation packs a group, so that each token meets as many exact ones as it would there.
    """
    if bits == 16:
        return model(windows, use_cache=False).logits
    cache, length = kivi_cache(model.config, bits), windows.shape[1]
    packing = range(packed_tokens(prompt) + WINDOW + GROUP - 1, length, GROUP)  # tokens before which a group is packed: the 64th in 16 bits
    parts = windows.tensor_split([prompt, *packing], dim=1)
    return torch.cat([model(part, use_cache=True, **reading(model, cache)).logits for part in parts if part.shape[1]], dim=1)
