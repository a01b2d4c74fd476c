"""Codes to floats inside a kernel, without a conversion instruction: in plain Triton, and in inline assembly for four bytes at a time.

Integers: a code OR-ed into the mantissa of 1024 (fp16) or 128 (bf16) makes 1024 + code or 128 + code. Where a code lies higher up in its byte,
one fused multiply-add brings it down: (1024 + 2^s c) 2^-s - (2^(10-s) + middle) = c - middle, exactly. A code of 8 bits is one too wide for bf16:
its lower seven go into the mantissa of 128, and its upper bit, inverted, into the exponent of what is subtracted, 128 or 256. A 32-bit word of four
bytes, masked with a pattern that repeats every 16 bits, gives the codes of bytes 0 and 2 as one pair of halves, and shifted by 8 those of bytes 1
and 3: four weights in two masks and two multiply-adds. Bytes are stored in the order 0, 2, 1, 3 for that reason (packing.py).

Small floats: sign and magnitude are moved to where fp16 or bf16 keep them. The exponent then means 2^(bias - 15) or 2^(bias - 127) of what it
meant: in fp16 the factor is left to the caller, who multiplies sums by it; in bf16, whose products would vanish, the weights are multiplied.

Tables of 16 values: `prmt` looks four codes up in eight bytes at once. Four lookups (low and high byte, lower and upper half of the table), two
choices between the halves, and two that put bytes together: four weights from 16 bits of codes.
"""

from __future__ import annotations

import struct
from functools import cache

import triton
import triton.language as tl

from kernels.floats import FORMATS, bias
from kernels.packing import PLANES


def _pair(value: float, bf16: bool) -> str:
    """A constant as two halves of a 32-bit word, in hexadecimal."""
    half = struct.unpack("<I", struct.pack("<f", value))[0] >> 16 if bf16 else struct.unpack("<H", struct.pack("<e", value))[0]
    return f"0x{half:04x}{half:04x}"


def _repeat(mask: int) -> str:
    return f"0x{mask:04x}{mask:04x}"


def _shift(target: str, source: str, right: int) -> str:
    """`target` = `source` moved right by some bits, left when negative."""
    return f"{'shr' if right > 0 else 'shl'}.b32 {target}, {source}, {abs(right)};" if right else f"mov.b32 {target}, {source};"


@cache
def assembly(bits: int, bf16: bool, name: str = "", table: tuple[float, ...] = ()) -> str:
    """PTX for one 32-bit word of codes (3 bits: two words and one of upper bits) -> two registers a plane. Values: of the float format `name`,
    of the table, or code - 2**(bits-1). Operands: the outputs in the order of planes, then the inputs.
    """
    return _float_assembly(bits, bf16, name) if name else _table_assembly(bf16, table) if table else _integer_assembly(bits, bf16)


def _float_assembly(bits: int, bf16: bool, name: str) -> str:
    mantissa, planes = FORMATS[name][1], PLANES[bits]
    low = (7 if bf16 else 10) - mantissa  # where the magnitude goes
    lines = ["{ .reg .b32 t, u, a, c;"]
    if bf16:
        lines.append(f"mov.b32 a, {_pair(2.0 ** (127 - bias(name)), True)}; mov.b32 c, {_pair(-0.0, True)};")
    for plane in range(planes):
        for odd in range(2):
            place, out = plane * bits + 8 * odd, f"${2 * plane + odd}"
            lines.append(_shift("t", f"${2 * planes}", place + bits - 16))
            lines.append(f"and.b32 {out}, t, 0x80008000;")
            lines.append(_shift("u", f"${2 * planes}", place - low))
            lines.append(f"lop3.b32 {out}, u, {_repeat((2 ** (bits - 1) - 1) << low)}, {out}, 0xea;")
            if bf16:
                lines.append(f"fma.rn.bf16x2 {out}, {out}, a, c;")
    return " ".join([*lines, "}"])


def _table_assembly(bf16: bool, table: tuple[float, ...]) -> str:
    halves = [int(_pair(value, bf16), 16) & 0xFFFF for value in table]
    words = [
        f"0x{sum((half >> 8 * part & 255) << 8 * i for i, half in enumerate(halves[start : start + 4])):08x}" for part in (0, 1) for start in (0, 4, 8, 12)
    ]
    lines = ["{ .reg .b32 s, q, l, h, r;"]
    for half in range(2):
        lines.append(_shift("r", "$4", 16 * half))
        lines.append(f"and.b32 s, r, {_repeat(0x7777)}; shr.b32 q, r, 1; lop3.b32 q, q, {_repeat(0x4444)}, {_repeat(0x3210)}, 0xea;")
        for target, (a, b, c, d) in (("l", words[:4]), ("h", words[4:])):
            lines.append(f"prmt.b32 {target}, {a}, {b}, s; prmt.b32 r, {c}, {d}, s; prmt.b32 {target}, {target}, r, q;")
        lines.append(f"prmt.b32 ${half}, l, h, 0x5140; prmt.b32 ${2 + half}, l, h, 0x7362;")
    return " ".join([*lines, "}"])


def _integer_assembly(bits: int, bf16: bool) -> str:
    """bf16 has seven mantissa bits: planes that reach above bit 6 are shifted down."""
    if bits == 8 and bf16:
        return _bytes_to_bf16()
    planes, kind = PLANES[bits], "bf16x2" if bf16 else "f16x2"
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


def _bytes_to_bf16() -> str:
    """128 + (q & 127) less 128 where q >= 128, else 256: q - 128 exactly, as bf16 has one significant bit more than the mantissa keeps."""
    lines = ["{ .reg .b32 t, a, c;", f"mov.b32 a, {_pair(1.0, True)};"]
    for odd in range(2):
        lines.append(_shift("t", "$2", 8 * odd))
        lines.append(f"lop3.b32 ${odd}, t, {_repeat(0x7F)}, {_pair(128.0, True)}, 0xea;")
        lines.append(f"lop3.b32 c, t, {_repeat(0x80)}, {_pair(-128.0, True)}, 0xae;")  # bit 7 is the last of the exponent: set, it doubles
        lines.append(f"fma.rn.bf16x2 ${odd}, ${odd}, a, c;")
    return " ".join([*lines, "}"])


def constraints(bits: int) -> str:
    """Register constraints of `assembly`: outputs are written before all inputs are read."""
    planes = PLANES[bits]
    return ",".join(["=&r"] * (2 * planes) + ["r"] * (3 if bits == 3 else 1))


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
def to_small_float(code, BITS: tl.constexpr, MANTISSA: tl.constexpr):
    """uint8 codes of a float, sign first -> fp16 with sign and magnitude in place: the value over 2**(15 - bias)."""
    wide = code.to(tl.int16)
    sign, size = wide >> (BITS - 1), wide & (2 ** (BITS - 1) - 1)
    return ((sign << 15) | (size << (10 - MANTISSA))).to(tl.int16).to(tl.float16, bitcast=True)


@triton.jit
def table_code(word, PLANE: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """The 4-bit codes of one plane, uint8 [ROWS, WIDTH], in the order of inputs, from bytes in the layout of tables (packing.py)."""
    even, odd = tl.split(tl.reshape(word, (ROWS, WIDTH // 4, 2, 2)))
    byte = even if PLANE == 0 else odd
    return tl.reshape(tl.join(byte & 15, byte >> 4), (ROWS, WIDTH))


@triton.jit
def planes_by_assembly(word, second, high, ASM: tl.constexpr, REGISTERS: tl.constexpr, BITS: tl.constexpr, BF16: tl.constexpr):
    """All planes of a tile of bytes as a tuple of tiles, fp16 or bf16, as `assembly` gives them. second: bytes of planes 4 to 7 of
    3-bit codes. The dtypes stand as literals because the compiler asks for them.
    """
    if BITS == 2 and BF16:
        tiles = tl.inline_asm_elementwise(ASM, REGISTERS, [word], (tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16), True, 4)
    elif BITS == 2:
        tiles = tl.inline_asm_elementwise(ASM, REGISTERS, [word], (tl.float16, tl.float16, tl.float16, tl.float16), True, 4)
    elif BITS == 3 and BF16:
        tiles = tl.inline_asm_elementwise(
            ASM, REGISTERS, [word, second, high],
            (tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16), True, 4,
        )  # fmt: skip
    elif BITS == 3:
        tiles = tl.inline_asm_elementwise(
            ASM, REGISTERS, [word, second, high],
            (tl.float16, tl.float16, tl.float16, tl.float16, tl.float16, tl.float16, tl.float16, tl.float16), True, 4,
        )  # fmt: skip
    elif BITS == 4 and BF16:
        tiles = tl.inline_asm_elementwise(ASM, REGISTERS, [word], (tl.bfloat16, tl.bfloat16), True, 4)
    elif BITS == 4:
        tiles = tl.inline_asm_elementwise(ASM, REGISTERS, [word], (tl.float16, tl.float16), True, 4)
    elif BF16:
        tiles = (tl.inline_asm_elementwise(ASM, REGISTERS, [word], tl.bfloat16, True, 4),)
    else:
        tiles = (tl.inline_asm_elementwise(ASM, REGISTERS, [word], tl.float16, True, 4),)
    return tiles
