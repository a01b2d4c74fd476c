"""Attention of one token in C, over a low-bit cache and over one in 16 bits: how a cache is told to native_attention.c. Knows no Op."""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from kernels import native
from kernels.low_bit_cache import GROUP, LowBitCache, attention, pack
from kernels.native_round import readable
from kernels.op import Form, Packed

PIECE = 16  # bytes that are unpacked at a time


class Cache(ctypes.Structure):
    """`struct cache` of native_attention.c."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in (*LowBitCache._fields[:8], "counts")),
        *((name, ctypes.c_long) for name in ("rows", "heads", "size", "older", "newest", "shared", "sequence")),
        ("bits", ctypes.c_int), ("wide", ctypes.c_int),
    ]  # fmt: skip


@lru_cache(maxsize=4096)
def described(*fields: Any) -> Any:
    """A reference to a Cache, kept as `native.described` keeps them."""
    return ctypes.byref(Cache(*fields))


def apart(t: Tensor) -> int:
    """Numbers from one row of a tensor [B, H, T, .] to the next."""
    return t.stride(1) if t.shape[1] > 1 else t.stride(0)


def even(cache: LowBitCache) -> bool:
    """Whether the C code finds every row: they lie evenly apart, as far in one tensor as in the others, and each in one piece."""
    tensors, room = cache.tensors(), apart(cache.key_codes) // cache.key_codes.shape[3]
    whole = all(t.stride()[2:] == (t.shape[3], 1) and (t.shape[0] == 1 or t.stride(0) == t.shape[1] * apart(t)) for t in tensors)
    tokens = zip(tensors, (1, GROUP, GROUP, 1, 1, 1), strict=False)
    alike = all(apart(t) * each == room * t.shape[3] for t, each in tokens) and apart(cache.keys) == apart(cache.values)
    return whole and alike


def refuses(cache: LowBitCache) -> str:
    if why := native.library()[1]:
        return why
    if cache.keys.dtype not in (torch.bfloat16, torch.float32):
        return f"its numbers are {str(cache.keys.dtype)[6:]}, neither bfloat16 nor float32"
    row = cache.key_codes.shape[3]
    return f"the {row} bytes of a token's codes are fewer than {PIECE}" if row < PIECE else ""


def pack_even(cache: LowBitCache) -> Packed:
    """As `pack`; what does not lie as the C code reads it is copied."""
    return pack(cache if even(cache) else LowBitCache(*(t.contiguous() for t in cache.tensors()), cache.bits, cache.counts))


def run(q: Tensor, packed: Packed) -> Tensor:
    """As `low_bit_cache.run`, q rounded to 16 bits for each group of keys, and so are the weights for each group of values; sums in float32."""
    read = readable(q)
    y, t = torch.empty_like(read), packed.tensors
    codes, keys = t["key_codes"], t["keys"]
    (batch, rows, newest, size), older = keys.shape, codes.shape[2]
    pointers = [tensor.data_ptr() for tensor in t.values()]
    if len(pointers) == 8:
        pointers.append(None)
    rooms = (apart(codes) // codes.shape[3], apart(keys) // size)
    cache = described(*pointers, batch * rows, q.shape[1] // rows, size, *rooms, rows, rows * apart(keys), packed.meta[0], keys.dtype is torch.float32)
    _run(cache, read, y, older, newest)
    return y if y.dtype is q.dtype else y.to(q.dtype)


def _run(cache: Any, q: Tensor, y: Tensor, older: int, newest: int) -> None:
    if native.library()[0].low_bit_attention(cache, q.data_ptr(), q.dtype is torch.float32, y.data_ptr(), older, newest):
        raise MemoryError("no memory for the sums of an attention")


def reads(keys: Tensor, values: Tensor) -> bool:
    """Whether `attend` serves keys and values [B, H, n, D] that are not in low bits: a CPU's, in bfloat16 or float32, a token's channels in one piece."""
    size = keys.shape[3]
    if keys.device.type != "cpu" or keys.dtype not in (torch.bfloat16, torch.float32) or native.library()[0] is None:
        return False
    return size % 16 == 0 and keys.stride() == values.stride() and keys.stride()[2:] == (size, 1) and keys.stride(1) % size == 0


def attend(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """softmax(q K^T / sqrt D) V for one token: q [B, Q, D] in the dtype of keys and values [B, H, n, D], which `reads` says yes to -> [B, Q, D]. Queries
    that share a key head lie together. Sums in float32.
    """
    q, (batch, rows, count, size) = q.contiguous(), keys.shape
    between, row, _, _ = keys.stride()
    pointers = (None,) * 6 + (keys.data_ptr(), values.data_ptr(), None)
    cache = described(*pointers, batch * rows, q.shape[1] // rows, size, 0, row // size, rows, between, 16, q.dtype is torch.float32)
    y = torch.empty_like(q)
    _run(cache, q, y, 0, count)
    return y


def attention16(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
    """`attend` where it serves, else torch's; mask: what is added to the scores, for torch only."""
    return attend(q, keys, values) if mask is None and reads(keys, values) else attention(q, keys, values, mask)


NATIVE = Form("native", refuses, pack_even, run, "codes in 16-bit integer products, queries and weights rounded to 16 bits for each group")
