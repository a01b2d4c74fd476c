"""A low-bit weight as the Triton kernel keeps it: which storage, layout and scale format hold it without loss, and the packed tensors."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kernels.floats import float_format
from kernels.op import LowBitWeight, Packed
from kernels.packing import PLANES, pack_planar, pack_table, pad_columns, swizzle

KINDS = ("integer", "table", "gather", "e2m1", "e2m3", "e3m2", "e4m3", "e5m2")  # what a code is; gather: an entry of a table read from memory
SCALES = ("number", "e8m0", "e4m3", "nested")
FOLDED = 4  # blocks of NVFP4 a step


class Layout(NamedTuple):
    """Constants of a packed weight. bits: of the storage; block: codes a step along K; group: codes that share a scale, 0 for all of a row; kind_index
    and scale_index: into KINDS and SCALES; run: blocks that share an outer scale.
    """

    bits: int
    block: int
    group: int
    n: int
    k: int
    kind_index: int
    scale_index: int
    run: int

    @property
    def float_name(self) -> str:
        """The small float that codes are, "" when they are none."""
        return KINDS[self.kind_index] if self.kind_index >= KINDS.index("e2m1") else ""

    @property
    def kind(self) -> str:
        """ "integer", "table", "gather" or "float"."""
        return "float" if self.float_name else KINDS[self.kind_index]

    @property
    def step(self) -> int:
        """Codes of a row that the kernel takes at once: several blocks where a block has two E4M3 scales, which it folds into the codes."""
        return FOLDED * self.block if (self.float_name, self.scale_kind, self.group) == ("e2m1", "e4m3", 16) else self.block

    @property
    def scale_kind(self) -> str:
        return SCALES[self.scale_index]


def integers(w: LowBitWeight) -> LowBitWeight:
    """The same weight without its codebook where that is evenly spaced, as two values always are."""
    if w.codebook is None or w.bits > 4:
        return w
    first, step = w.codebook[0].item(), (w.codebook[1] - w.codebook[0]).item()
    if not step or not torch.equal(w.codebook.cpu(), first + step * torch.arange(float(len(w.codebook)))):
        return w
    return w._replace(codebook=None, scale=(w.scale.float() * step).to(w.scale.dtype), zero=torch.full_like(w.scale, -first / step).float())


def block_of(bits: int, group: int, whole: bool = False) -> int:
    """Codes a step along K: 128 (256 for 3 bits), fewer where the group, 0 for none, is smaller than a plane of that; 0 when no block
    fits it. whole: all planes of a block must share a scale.
    """
    for block in {3: (256, 128, 64, 32), 8: (128, 64, 32, 16)}.get(bits, (128, 64, 32)):
        width = block // PLANES[bits]
        if width >= 16 and (group == 0 or group % block == 0 or (not whole and block % group == 0 and group % width == 0)):
            return block
    return 0


def group_of(w: LowBitWeight) -> int:
    """Codes of a row that share a scale, 0 for all."""
    return 0 if w.scale.shape[1] == 1 else w.codes.shape[1] // w.scale.shape[1]


def storage(w: LowBitWeight) -> tuple[int, str, int]:
    """(bits, kind, block) that hold a weight: the codes' own width where its groups fit the planes of that; block 0 when nothing fits."""
    group, name = group_of(w), float_format(w.codebook)
    if name:
        bits = 4 if name == "e2m1" else 8
        return bits, name, block_of(bits, group)
    if w.codebook is not None:
        block = block_of(4, group, whole=True) if w.bits <= 4 else 0
        bits = 4 if w.bits <= 4 else 8
        return (bits, "table", block) if block else (bits, "gather", block_of(bits, group))
    widths = [bits for bits in (2, 3, 4, 8) if bits >= w.bits]
    bits = next((bits for bits in widths if block_of(bits, group)), widths[-1])
    return bits, "integer", block_of(bits, group)


def refuses(w: LowBitWeight) -> str:
    """Whether the Triton form serves a weight: groups must be made of whole planes of at least 16 codes, and zeros must be finite in fp16."""
    w = integers(w)
    bits, _kind, block = storage(w)
    if not block:
        return f"groups of {group_of(w)} do not fit the planes of {bits}-bit codes"
    return "" if w.codebook is not None or w.zero is None or bool(narrow_zero(w).isfinite().all()) else "its zeros are too large for 16 bits"


def narrow_zero(w: LowBitWeight) -> Tensor:
    """The zeros of a weight that has some, less the middle code, in fp16: of scale's shape."""
    return (w.zero - 2 ** (w.bits - 1)).to(torch.float16)


def pack(w: LowBitWeight) -> Packed:
    """Codes, for 3 bits their high bits, scale, where there is one a zero (less the middle code, fp16) or codebook, and "nest": the unit of E4M3
    scales times 256, or codebook, offset and outer scales of nested ones. meta = (Layout, the table's values).
    """
    w = integers(w)
    n, k = w.codes.shape
    bits, kind, block = storage(w)
    lift = 2 ** (bits - 1) - 2 ** (w.bits - 1) if kind == "integer" else 0  # narrower codes move up, so that the middle code means 0 again
    codes = w.codes + lift
    if kind in KINDS[KINDS.index("e2m1") :]:
        sign = codes >> (w.bits - 1)
        codes = sign << (bits - 1) | codes & (2 ** (w.bits - 1) - 1)
    scale, scale_kind = narrow(w)
    run = w.nested.run if scale_kind == "nested" else 1
    layout = Layout(bits, block, group_of(w), n, k, KINDS.index(kind), SCALES.index(scale_kind), run)
    codes = pad_columns(codes, layout.step, 2 ** (bits - 1) if kind == "integer" else 0)
    tensors = pack_table(codes, block) if kind == "table" else pack_planar(swizzle(codes), block, bits)
    if scale.shape[0] not in (1, n):
        scale = scale.repeat_interleave(n // scale.shape[0], dim=0)
    tensors["scale"] = scale.contiguous()
    if scale_kind == "e4m3":
        tensors["nest"] = (256 * w.unit).view(1)
    elif scale_kind == "nested":
        tensors["nest"] = torch.cat([w.nested.codebook, w.nested.offset.view(1), w.nested.outer])
    values: tuple[float, ...] = ()
    if kind in ("table", "gather"):
        tensors["codebook"] = torch.nn.functional.pad(w.codebook, (0, 2**bits - len(w.codebook)))
        values = tuple(tensors["codebook"].tolist()) if kind == "table" else ()
    elif w.codebook is None and w.zero is not None:
        zero = narrow_zero(w)
        tensors["zero"] = (zero if zero.shape[0] in (1, n) else zero.repeat_interleave(n // zero.shape[0], dim=0)).contiguous()
    return Packed(tensors, (layout, values))


def narrow(w: LowBitWeight) -> tuple[Tensor, str]:
    """(scales in the narrowest format that holds every one exactly, its name in SCALES)."""
    scale = w.scale.float()
    if w.nested is not None and scale.shape[0] == w.codes.shape[0]:
        return w.nested.codes.view(scale.shape), "nested"
    if w.unit is not None:
        codes = (scale / w.unit).to(torch.float8_e4m3fn)
        if torch.allclose(codes.float() * w.unit, scale, rtol=1e-6, atol=0):
            return codes.view(torch.uint8), "e4m3"
    fraction, exponent = torch.frexp(scale)
    if scale.shape[1] > 1 and bool((fraction == 0.5).all()) and bool((exponent > -126).all()):
        return (exponent + 126).to(torch.uint8), "e8m0"
    for dtype in (torch.bfloat16, torch.float16):
        if torch.equal(scale.to(dtype).float(), scale):
            return scale.to(dtype), "number"
    return scale, "number"
