"""Codes to floats inside a kernel, without a conversion instruction: in plain Triton, and in inline assembly for four bytes at a time.

A code OR-ed into the mantissa of 1024 (fp16) or 128 (bf16) makes 1024 + code or 128 + code. Where a code lies higher up in its byte, one fused
multiply-add brings it down: (1024 + 2^s c) 2^-s - (2^(10-s) + middle) = c - middle, exactly. A 32-bit word of four bytes, masked with a pattern
that repeats every 16 bits, gives the codes of bytes 0 and 2 as one pair of halves, and shifted by 8 those of bytes 1 and 3: four weights in
two masks and two multiply-adds. Bytes are stored in the order 0, 2, 1, 3 for that reason (packing.py).
"""

from __future__ import annotations

import struct

import triton
import triton.language as tl


def _pair(value: float, bf16: bool) -> str:
    """A constant as two halves of a 32-bit word, in hexadecimal."""
    half = struct.unpack("<I", struct.pack("<f", value))[0] >> 16 if bf16 else struct.unpack("<H", struct.pack("<e", value))[0]
    return f"0x{half:04x}{half:04x}"


def _repeat(mask: int) -> str:
    return f"0x{mask:04x}{mask:04x}"


def _shift(target: str, source: str, right: int) -> str:
    """`target` = `source` moved right by some bits, left when negative."""
    return f"{'shr' if right > 0 else 'shl'}.b32 {target}, {source}, {abs(right)};" if right else f"mov.b32 {target}, {source};"


def assembly(bits: int, bf16: bool) -> str:
    """PTX for one 32-bit word of codes (3 bits: two words and one of upper bits) -> two registers a plane, values code - 2**(bits-1).

    Operands: the outputs in the order of planes, then the inputs. bf16 has seven mantissa bits: planes that reach above bit 6 are shifted down.
    """
    planes, kind = {2: 4, 3: 8, 4: 2, 8: 1}[bits], "bf16x2" if bf16 else "f16x2"
    base, top, middle = (128, 7, 2 ** (bits - 1)) if bf16 else (1024, 10, 2 ** (bits - 1))
    magic, low = _pair(base, bf16), min(bits, 2) if bits == 3 else bits
    lines = ["{ .reg .b32 t, u, a, c;"]
    for plane in range(planes):
        word = f"${2 * planes + (plane // 4 if bits == 3 else 0)}"
        place = plane % 4 * low
        down = place if bf16 and place + bits > top else 0  # shifted down first, when the plane lies too high for the mantissa
        at = place - down
        lines.append(f"mov.b32 a, {_pair(2.0**-at, bf16)}; mov.b32 c, {_pair(-(base * 2.0**-at + middle), bf16)};")
        for odd in range(2):
            out = f"${2 * plane + odd}"
            lines.append(_shift("t", word, down + 8 * odd))
            lines.append(f"lop3.b32 {out}, t, {_repeat((2**low - 1) << at)}, {magic}, 0xea;")
            if bits == 3:
                lines.append(_shift("u", f"${2 * planes + 2}", plane + 8 * odd - (at + 2)))
                lines.append(f"lop3.b32 {out}, u, {_repeat(4 << at)}, {out}, 0xea;")
            lines.append(f"fma.rn.{kind} {out}, {out}, a, c;")
    return " ".join([*lines, "}"])


def constraints(bits: int) -> str:
    """Register constraints of `assembly`: outputs are written before all inputs are read."""
    planes = {2: 4, 3: 8, 4: 2, 8: 1}[bits]
    return ",".join(["=&r"] * (2 * planes) + ["r"] * (3 if bits == 3 else 1))


_FP16_2, _BF16_2, _R2 = tl.constexpr(assembly(2, False)), tl.constexpr(assembly(2, True)), tl.constexpr(constraints(2))
_FP16_3, _BF16_3, _R3 = tl.constexpr(assembly(3, False)), tl.constexpr(assembly(3, True)), tl.constexpr(constraints(3))
_FP16_4, _BF16_4, _R4 = tl.constexpr(assembly(4, False)), tl.constexpr(assembly(4, True)), tl.constexpr(constraints(4))
_FP16_8, _R8 = tl.constexpr(assembly(8, False)), tl.constexpr(constraints(8))


@triton.jit
def plane_code(word, high, PLANE: tl.constexpr, BITS: tl.constexpr):
    """The codes of one plane, uint8, from bytes in the layout of packing.py; high: the upper bits of 3-bit codes."""
    if BITS == 8:
        return word
    if BITS == 3:
        return ((word >> (PLANE % 4 * 2)) & 3) | (((high >> PLANE) & 1) << 2)
    return (word >> (PLANE * BITS)) & (2**BITS - 1)


@triton.jit
def to_float(code, MIDDLE: tl.constexpr):
    """uint8 codes -> fp16 code - MIDDLE, exactly."""
    return ((code.to(tl.int16) | 0x6400).to(tl.float16, bitcast=True) - (1024.0 + MIDDLE)).to(tl.float16)


@triton.jit
def planes_by_assembly(word, second, high, BITS: tl.constexpr, BF16: tl.constexpr):
    """All planes of a tile of bytes as a tuple of tiles, fp16 or bf16, with values code - 2**(BITS-1). second: bytes of planes 4 to 7 of
    3-bit codes. The dtypes stand as literals because the compiler asks for them.
    """
    if BITS == 2 and BF16:
        tiles = tl.inline_asm_elementwise(_BF16_2, _R2, [word], (tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16), True, 4)
    elif BITS == 2:
        tiles = tl.inline_asm_elementwise(_FP16_2, _R2, [word], (tl.float16, tl.float16, tl.float16, tl.float16), True, 4)
    elif BITS == 3 and BF16:
        tiles = tl.inline_asm_elementwise(
            _BF16_3, _R3, [word, second, high],
            (tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16), True, 4,
        )  # fmt: skip
    elif BITS == 3:
        tiles = tl.inline_asm_elementwise(
            _FP16_3, _R3, [word, second, high],
            (tl.float16, tl.float16, tl.float16, tl.float16, tl.float16, tl.float16, tl.float16, tl.float16), True, 4,
        )  # fmt: skip
    elif BITS == 4 and BF16:
        tiles = tl.inline_asm_elementwise(_BF16_4, _R4, [word], (tl.bfloat16, tl.bfloat16), True, 4)
    elif BITS == 4:
        tiles = tl.inline_asm_elementwise(_FP16_4, _R4, [word], (tl.float16, tl.float16), True, 4)
    else:
        tiles = (tl.inline_asm_elementwise(_FP16_8, _R8, [word], tl.float16, True, 4).to(tl.bfloat16 if BF16 else tl.float16),)
    return tiles
