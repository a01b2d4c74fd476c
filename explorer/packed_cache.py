"""The token loop's KV cache in low bits: tensors made once, packed in place and attended to as codes. What rounding means stands in `kvcache`."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from explorer.cache_sizes import GROUP, WINDOW, packed_tokens
from explorer.kvcache import Chunk
from kernels.kv_attention import TORCH
from kernels.low_bit_cache import LowBitCache, unpacked
from kernels.native_attention import NATIVE
from kernels.op import Packed, ops, serving

OP = "kv_attention"


class Place(NamedTuple):
    """One layer in one step: where the new token's keys and values go, [2, B, H, D], static [2, B, H, W, D], and the cache as its kernel takes it."""

    new: Tensor
    cache: Packed


class PackedCache:
    """Keys and values in every layer of at most `batch` sequences of `context` tokens, H heads of D channels, rounded as `kvcache.KiviLayer` rounds them.

    The newest tokens are in 16 bits. Where one more would make 64 of them, the oldest 32 are packed first, in all layers at once and before the step, so
    that a step does the same every time. static: it also has the same shapes and tensors every time, and counts on the device tell the kernel how far
    they are filled, as a CUDA graph needs it; packing stays outside the graph. The form in C reads counts too, which the host writes: cutting the filled part
    out of every layer's tensors would take longer at each step than its attention. Any other form is handed the filled part.
    """

    def __init__(self, shape: tuple[int, int, int, int], context: int, bits: int, like: Tensor, static: bool | None = None) -> None:
        """shape: (layers, batch, H, D); like: its device, and its dtype for what is in 16 bits; static None: on a GPU whose kernel serves D."""
        layers, batch, heads, size = shape
        capacity, self.window = packed_tokens(context), min(context, WINDOW + GROUP)
        rows = (layers, batch, heads, capacity)
        codes = [torch.zeros(*rows, size * bits // 8, dtype=torch.uint8, device=like.device) for _ in range(2)]
        across = [like.new_zeros(layers, batch, heads, capacity // GROUP, size) for _ in range(2)]
        along = [like.new_zeros(*rows, size // GROUP) for _ in range(2)]
        self.parts = [codes[0], *across, codes[1], *along]  # in the order of LowBitCache
        self.newest = like.new_zeros(layers, 2, batch, heads, self.window, size)
        self.bits, self.batch, self.older = bits, batch, 0
        self.counts = torch.zeros(2, dtype=torch.long, device=like.device)
        self.packing = torch.tensor([GROUP, -GROUP], device=like.device)  # what packing a group adds to the counts
        self.slot = self.counts[1:]
        form, _ = serving(ops()[OP], LowBitCache(*(part[0] for part in self.parts), *self.newest[0], bits), like.device)
        self.form, self.name = form, f"{OP} ({form.name})"
        self.static = (like.is_cuda and form is not TORCH) if static is None else static
        self.present = self.counts.numpy() if form is NATIVE else None  # the same memory
        self.layers: list[Packed] = []  # each layer's whole tensors and the counts, where the kernel reads these

    def nbytes(self) -> int:
        """Bytes held, filled or not."""
        return sum(t.nbytes for t in (*self.parts, self.newest, self.counts, self.packing))

    def reset(self, batch: int) -> None:
        """Empties the cache for so many sequences."""
        if self.batch != batch or not self.layers:
            self.batch = batch
            self.layers = self._cut(self.parts, self.newest[:, :, :batch], self.counts) if self.static or self.form is NATIVE else []
        self._count(0, 0)

    def _count(self, older: int, newest: int) -> None:
        self.older = older
        self.counts[0].fill_(older)
        self.counts[1].fill_(newest)

    def fill(self, layer: int, pair: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a prompt, [2, B, H, T, D], into one layer of an empty cache; gives them as the prompt attends to them, exact."""
        older = packed_tokens(pair.shape[3])
        self.newest[layer, :, : self.batch, :, : pair.shape[3] - older] = pair[..., older:, :]
        if older:
            chunks = [Chunk(states[..., :older, :], self.bits, dim) for states, dim in zip(pair, (2, 3), strict=True)]
            self._put([part[layer, : self.batch] for part in self.parts], 0, chunks)
        return pair[0], pair[1]

    def filled(self, length: int) -> None:
        """The prompt of so many tokens is in all layers."""
        older = packed_tokens(length)
        self._count(older, length - older)

    def make_room(self, length: int) -> None:
        """Before the step after `length` tokens: packs a group where the new token would be the 64th in 16 bits. Does nothing when it is called again."""
        if length + 1 - self.older < WINDOW + GROUP:
            return
        live = self.newest[:, :, : self.batch]  # [L, 2, B, H, W, D]
        chunks = [Chunk(live[:, i, ..., :GROUP, :].flatten(0, 1), self.bits, 2 + i) for i in range(2)]
        self._put([part[:, : self.batch] for part in self.parts], self.older, chunks)
        live[..., :WINDOW, :] = live[..., GROUP:, :]
        self.older += GROUP
        self.counts += self.packing

    @staticmethod
    def _put(parts: list[Tensor], start: int, chunks: list[Chunk]) -> None:
        """Packed keys and values of T tokens from token `start` on into the tensors of some layers, [..., B, H, ., .]."""
        tensors = [t for chunk in chunks for t in (chunk.codes, chunk.scale.squeeze(chunk.dim + 1), chunk.low.squeeze(chunk.dim + 1))]
        for i, (part, new) in enumerate(zip(parts, tensors, strict=True)):
            first = start // GROUP if i in (1, 2) else start
            part[..., first : first + new.shape[2], :] = new.view(*part.shape[:-2], *new.shape[2:])

    def step(self, length: int) -> list[Place]:
        """Where each layer finds its cache in the step after `length` tokens, the new token counted."""
        if self.static:
            self.counts[1:] += 1
            self.slot, new = self.counts[1:] - 1, self.newest[:, :, : self.batch]
        else:
            new = self.newest[:, :, : self.batch, :, length - self.older]
        return [Place(*pair) for pair in zip(new.unbind(0), self.seen(length + 1), strict=True)]

    def seen(self, length: int) -> list[Packed]:
        """Each layer's first `length` tokens as the kernel takes them."""
        if self.layers:
            if not self.static:
                self.present[1] = length - self.older
            return self.layers
        parts = [part[..., : self.older // GROUP if i in (1, 2) else self.older, :] for i, part in enumerate(self.parts)]
        return self._cut(parts, self.newest[:, :, : self.batch, :, : length - self.older], None)

    def _cut(self, parts: list[Tensor], newest: Tensor, counts: Tensor | None) -> list[Packed]:
        """Tensors of all layers -> each layer's. All layers are cut at once: each cut costs as much as one layer's."""
        layers = zip(*(part[:, : self.batch].unbind(0) for part in parts), newest[:, 0].unbind(0), newest[:, 1].unbind(0), strict=True)
        return [self.form.pack(LowBitCache(*layer, self.bits, counts)) for layer in layers]

    def seen_bytes(self, length: int) -> int:
        """Bytes of the first `length` tokens in all layers."""
        return sum(t.nbytes for packed in self.seen(length) for t in unpacked(packed).present().tensors())

    def attend(self, place: Place, queries: Tensor, pair: Tensor) -> Tensor:
        """Stores the new token's keys and values, pair [2, B, H, D]; queries [B, Q, D] -> what they mix of all tokens, [B, Q, D]."""
        if self.static:
            place.new.index_copy_(3, self.slot, pair.unsqueeze(3))
        else:
            place.new.copy_(pair)
        return self.form.run(queries, place.cache)
