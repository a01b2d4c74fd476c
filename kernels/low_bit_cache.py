"""A KV cache in low bits as tensors: what it means, and attention of one new token over it in plain torch. Knows no kernel.

Keys share a scale and a minimum per channel over 32 tokens, values per token over 32 channels; a byte holds 8 / bits neighbouring channels, the
first in its lowest bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.op import Packed

GROUP = 32  # tokens of a key's channel, or channels of a value, that share a scale and a minimum


class LowBitCache(NamedTuple):
    """Keys and values [B, H, T, D] of T older tokens, a multiple of GROUP, and R new ones, R > 0.

    key_codes, value_codes [B, H, T, D * bits / 8] uint8; key_scale, key_low [B, H, T / GROUP, D]; value_scale, value_low [B, H, T, D / GROUP];
    keys, values [B, H, R, D]; floats of one dtype. A number is code * scale + low. counts [2] int64: how many of the T and of the R there are, the
    first ones, on the tensors' device: a CUDA graph fixes the shapes while a cache fills. None: all.
    """

    key_codes: Tensor
    key_scale: Tensor
    key_low: Tensor
    value_codes: Tensor
    value_scale: Tensor
    value_low: Tensor
    keys: Tensor
    values: Tensor
    bits: int
    counts: Tensor | None = None

    def tensors(self) -> list[Tensor]:
        """All but the counts, in order."""
        return list(self[:8])

    def present(self) -> LowBitCache:
        """The part that the counts speak of, without counts. On a GPU the host waits for them."""
        if self.counts is None:
            return self
        older, newest = self.counts.tolist()
        groups = (t[:, :, : older // GROUP] for t in (self.key_scale, self.key_low))
        values = (t[:, :, :older] for t in (self.value_codes, self.value_scale, self.value_low))
        return LowBitCache(self.key_codes[:, :, :older], *groups, *values, self.keys[:, :, :newest], self.values[:, :, :newest], self.bits)


def dequantize(cache: LowBitCache) -> tuple[Tensor, Tensor]:
    """(keys, values) [B, H, T + R, D] float32: what the codes mean."""
    places, mask = torch.arange(0, 8, cache.bits, dtype=torch.uint8, device=cache.keys.device), 2**cache.bits - 1
    key, value = (((c.unsqueeze(-1) >> places) & mask).flatten(-2).float() for c in (cache.key_codes, cache.value_codes))
    key = (key.unflatten(2, (-1, GROUP)) * cache.key_scale.unsqueeze(3) + cache.key_low.unsqueeze(3)).flatten(2, 3)
    value = (value.unflatten(3, (-1, GROUP)) * cache.value_scale.unsqueeze(4) + cache.value_low.unsqueeze(4)).flatten(3)
    return torch.cat([key, cache.keys.float()], 2), torch.cat([value, cache.values.float()], 2)


def attention(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
    """torch's attention of one token, q [B, Q, D] over keys and values [B, H, n, D]; the queries that share a key head are the rows of one product, which is
    its fastest way.
    """
    rows = q.view(len(q), keys.shape[1], -1, q.shape[-1])
    return torch.nn.functional.scaled_dot_product_attention(rows, keys, values, attn_mask=mask).reshape(q.shape)


def pack(cache: LowBitCache) -> Packed:
    """The tensors by name; meta = (bits,)."""
    return Packed({name: t for name, t in cache._asdict().items() if isinstance(t, Tensor)}, (cache.bits,))


def unpacked(packed: Packed) -> LowBitCache:
    """The inverse of `pack`."""
    return LowBitCache(**packed.tensors, bits=packed.meta[0])


SHORT = 1 << 14  # codes of keys up to which all are dequantized for torch's own attention: fewer calls, and there a call costs more than its work
STEP = 1 << 20  # codes that the torch form turns to float32 at a time, 4 MiB: more are fetched from memory anew, fewer cost more calls


def run(q: Tensor, packed: Packed) -> Tensor:
    """In float32, the scales multiplied into the queries and the weights as the kernel does, so that a code is only converted, never scaled; but see SHORT."""
    cache = unpacked(packed).present()
    if not cache.key_codes.shape[2]:
        return attention(q, cache.keys.to(q.dtype), cache.values.to(q.dtype))
    if cache.key_codes.numel() * 8 // cache.bits <= SHORT:
        return attention(q, *(t.to(q.dtype) for t in dequantize(cache)))
    size, bits = q.shape[-1], cache.bits
    key_codes, key_scale, key_low, *of_values, keys, values = (t.flatten(0, 1) for t in cache.tensors())  # B H = n rows of everything
    n, older, _ = key_codes.shape
    rows = (q.float() * size**-0.5).view(n, -1, size)
    score = rows.new_empty(n, rows.shape[1], older + keys.shape[1])
    score[..., older:] = torch.bmm(rows, keys.float().transpose(1, 2))
    step = max(GROUP, STEP // (n * size) // GROUP * GROUP)
    spans = [slice(start, min(start + step, older)) for start in range(0, older, step)]
    for span in spans:
        groups = slice(span.start // GROUP, span.stop // GROUP)
        _scores(score[..., span], rows, key_codes[:, span], key_scale[:, groups], key_low[:, groups], bits)
    weight = torch.softmax(score, -1)
    y = torch.bmm(weight[..., older:], values.float()).view(n, rows.shape[1], -1, GROUP)
    for span in spans:
        _add_values(y, weight[..., span], *(t[:, span] for t in of_values), bits)
    return y.view(q.shape).to(q.dtype)


def _planes(codes: Tensor, bits: int) -> Iterator[Tensor]:
    """Every (8 / bits)th channel of bytes [n, T, D * bits / 8], uint8, beginning with each of the first."""
    for place in range(0, 8, bits):
        plane = codes >> place if place else codes
        yield plane & (2**bits - 1) if place + bits < 8 else plane


def _scores(score: Tensor, rows: Tensor, codes: Tensor, scale: Tensor, low: Tensor, bits: int) -> None:
    """Queries [n, heads, D] times the keys of some groups of tokens into score [n, heads, T]. The channels stand plane by plane in one product."""
    (n, tokens, width), planes, heads = codes.shape, 8 // bits, rows.shape[1]
    numbers = rows.new_empty(n, tokens, planes, width)
    for plane, part in zip(numbers.unbind(2), _planes(codes, bits), strict=True):
        plane.copy_(part)
    turned, scale = (t.unflatten(-1, (width, planes)).transpose(-1, -2).flatten(-2) if planes > 1 else t for t in (rows, scale))
    scaled = turned.unsqueeze(1) * scale.unsqueeze(2)  # [n, groups, heads, D]
    part = torch.bmm(scaled.flatten(0, 1), numbers.view(-1, GROUP, planes * width).transpose(1, 2)).view(n, -1, heads, GROUP)
    least = torch.bmm(rows, low.float().transpose(1, 2))  # [n, heads, groups]
    torch.add(part.transpose(1, 2), least.unsqueeze(3), out=score.view(n, heads, -1, GROUP))


def _add_values(y: Tensor, weight: Tensor, codes: Tensor, scale: Tensor, low: Tensor, bits: int) -> None:
    """Adds weights [n, heads, T] times the values of some tokens to y [n, heads, D / GROUP, GROUP]. A plane holds channels of all groups: every group's
    weights meet all of them, and the product's diagonal is what counts; that takes less time than many small products.
    """
    groups, planes, scale = y.shape[2], 8 // bits, scale.transpose(1, 2)  # scale [n, groups, T]
    y += torch.bmm(weight, low.float()).unsqueeze(3)
    if planes == 1:
        numbers = codes.float()
        for group in range(groups):
            y[:, :, group] += torch.bmm(weight * scale[:, group, None], numbers[..., group * GROUP : (group + 1) * GROUP])
        return
    scaled = (weight.unsqueeze(2) * scale.unsqueeze(1)).flatten(1, 2)  # [n, heads * groups, T]
    for place, part in enumerate(_planes(codes, bits)):
        product = torch.bmm(scaled, part.float()).view(*y.shape[:3], groups, -1)
        y[..., place::planes] += product.diagonal(0, 2, 3).transpose(2, 3)
