"""The CPU form of our own: codes of 2 to 6 and 8 bits on AVX2, AVX-512 or its bfloat16 products, compiled from native.c by whatever C compiler is there.

torch's 4-bit operator unpacks in float32 and keeps one layout of 4 bits; this one looks codes up by a permutation, so that every table of 16 values costs the
same, keeps 2 to 6 bits in as many, and multiplies pairs of bfloat16 where a CPU has that. Compiled once into __pycache__, as Python does with its own; where
there is no compiler, no x86 or no AVX2, the form says so and refuses, and torch's operators serve.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.floats import FORMATS, bias, float_format
from kernels.formats import group_of, integers
from kernels.op import Form, LowBitWeight, Packed

FOLDER = Path(__file__).parent
# What a CPU must have, by its names in /proc/cpuinfo, and what the compiler may use; the first that fits is taken.
AVX512 = ("avx512f", "avx512bw", "avx512vl", "fma")
PAIRS = (*AVX512, "avx512_vnni", "avx512_bf16")
FLAVOURS = {
    "amx": (*PAIRS, "amx_tile", "amx_int8", "amx_bf16"),
    "avx512bf16": PAIRS,
    "avx512vnni": (*AVX512, "avx512_vnni"),
    "avx512": AVX512,
    "avx2": ("avx2", "fma"),
}
IN_PAIRS = ("amx", "avx512bf16")  # which multiply pairs of bfloat16
COMPILE = ("-O3", "-ffp-contract=fast", "-fopenmp", "-fPIC")
STRIP = 16  # outputs that lie together
TABLE2, TABLE3, TABLE4, INTEGER5, INTEGER6, FLOAT6, INTEGER8, FLOAT8 = range(8)  # as in native.h
STEP = {TABLE4: 8, INTEGER8: 4, FLOAT8: 4}  # codes of an output that lie together, 16 of the other kinds
# Where the codes of a pair lie in a step of 16 inputs, as native.c's `place` reads them: 16-bit halves of words, the last ones of 3 and 5 bits bytes, and in
# each from its lowest bit on (pair, its first bit that lies here, how many do).
PLACES = {
    TABLE3: ((*((pair, 0, 3) for pair in range(5)), (7, 0, 1)), ((5, 0, 3), (6, 0, 3), (7, 1, 2))),
    INTEGER5: (((0, 0, 5), (1, 0, 5), (2, 0, 5), (7, 0, 1)), ((3, 0, 5), (4, 0, 5), (5, 0, 5), (7, 1, 1)), ((6, 0, 5), (7, 2, 3))),
    INTEGER6: (((0, 0, 6), (1, 0, 6), (6, 0, 4)), ((2, 0, 6), (3, 0, 6), (7, 0, 4)), ((4, 0, 6), (5, 0, 6), (6, 4, 2), (7, 4, 2))),
}
PLACES[FLOAT6] = PLACES[INTEGER6]
EXACT = 1e-3  # how far, in Frobenius norm, a table may be from its values in bfloat16: less than a product's result is rounded by


@cache
def flavour() -> str:
    """The best of FLAVOURS that this CPU runs, "" for none."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return ""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    has = set(next((line.partition(":")[2] for line in lines if line.startswith("flags")), "").split())
    return next((name for name, needs in FLAVOURS.items() if has.issuperset(needs) and (name != "amx" or may_use_tiles())), "")


@cache
def may_use_tiles() -> bool:
    """Asks Linux for the memory of AMX's tiles, for all threads of this process; it may say no."""
    arch_prctl, request_permission, tile_data = 158, 0x1023, 18
    return ctypes.CDLL(None).syscall(arch_prctl, request_permission, tile_data) == 0


def built(name: str) -> Path:
    """The library of a flavour, compiled where it is not there yet, by one thread of one process while others wait. Raises OSError where it cannot be, with
    one clause.
    """
    compiler = shutil.which("gcc") or shutil.which("cc")
    flags = [*COMPILE, *("-m" + feature.replace("avx512_", "avx512").replace("_", "-") for feature in FLAVOURS[name])]
    text = b"".join(file.read_bytes() for file in sorted(FOLDER.glob("native*.[ch]"))) + " ".join(flags).encode()
    path = FOLDER / "__pycache__" / f"native-{name}-{hashlib.sha256(text).hexdigest()[:16]}.so"
    if path.is_file():
        return path
    if compiler is None:
        raise OSError("no C compiler is here to build it (install gcc)")
    if not os.access(path.parent if path.parent.exists() else FOLDER, os.W_OK):
        raise OSError("it is not built and its folder cannot be written (run `python -m kernels.native` as who can)")
    path.parent.mkdir(exist_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        if not path.is_file():
            _build(compiler, flags, name, path)
    finally:
        os.close(folder)
    return path


def _build(compiler: str, flags: Sequence[str], name: str, path: Path) -> None:
    """Compiles a flavour to `path`, and takes away what older sources gave."""
    sources = sorted(FOLDER.glob("native*.c"))
    *parts, made = (path.with_suffix(f".{os.getpid()}.{end}") for end in (*(file.stem for file in sources), "new"))
    steps = [(*flags, "-c", str(source), "-o", str(part)) for source, part in zip(sources, parts, strict=True)]
    try:
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            list(pool.map(partial(_compile, compiler), steps))
        # Linked without an OpenMP library of its own: torch's is in this process, and two would keep a pool of threads each.
        _compile(compiler, ("-shared", *map(str, parts), "-o", str(made)))
        for old in path.parent.glob(f"native-{name}-*.so"):
            old.unlink(missing_ok=True)
        os.replace(made, path)
    except subprocess.TimeoutExpired:
        raise OSError("the C compiler took over five minutes") from None
    finally:
        for file in (*parts, made):
            file.unlink(missing_ok=True)


def _compile(compiler: str, arguments: Sequence[str]) -> None:
    done = subprocess.run([compiler, *arguments], capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise OSError(f"the C compiler failed: {' '.join(done.stderr.strip().splitlines()[-1:])}")


@cache
def library() -> tuple[ctypes.CDLL | None, str]:
    """(the compiled library, "") or (None, a clause that says why there is none)."""
    name = flavour()
    if not name:
        return None, "this CPU has no AVX2, or is no x86 under Linux"
    try:
        threads = next(line.split(maxsplit=5)[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "gomp" in line or "iomp" in line)
        ctypes.CDLL(threads, ctypes.RTLD_GLOBAL)
        found = ctypes.CDLL(str(built(name)))
    except StopIteration:
        return None, "torch brought no OpenMP library"
    except OSError as error:
        return None, str(error)
    pointer, number, flag = ctypes.c_void_p, ctypes.c_long, ctypes.c_int
    found.low_bit_product.argtypes = [pointer, pointer, number, pointer, pointer, flag]
    found.round_rows.argtypes = [pointer, flag, number, number, pointer, pointer, flag, pointer]
    found.low_bit_attention.argtypes = [pointer, pointer, flag, pointer, number, number]
    found.product16.argtypes = [pointer, pointer, pointer, pointer, number, number, number]
    found.turn_rows.argtypes = [pointer, flag, number, pointer, pointer, pointer, pointer]
    found.low_bit_int8.argtypes = [pointer, flag, pointer, number, pointer, pointer, pointer, pointer]
    return found, ""


def refuses(w: LowBitWeight) -> str:
    """Whether this form serves a weight."""
    library_here, why = library()
    if library_here is None:
        return why
    w = integers(w)
    kind = kind_of(w)
    if kind is None:
        return "no table of over 16 values but that of a small float"
    if w.codebook is not None and kind in (TABLE2, TABLE3, TABLE4) and flavour() in IN_PAIRS and narrowed(w.codebook)[1] > EXACT:
        return "its table is not near enough to bfloat16"
    group, step = group_of(w), STEP.get(kind, 16)
    return f"groups of {group} are no multiple of {step}" if group % step else ""


def kind_of(w: LowBitWeight) -> int | None:
    """How the codes of a weight are kept, None for a way that is not known here. 3, 5 and 6 bits take the next wider way where groups do not fit them."""
    fits = group_of(w) % 16 == 0
    if w.bits <= 4:
        return TABLE2 if w.bits <= 2 else TABLE3 if w.bits == 3 and fits else TABLE4
    if w.codebook is None:
        return INTEGER5 if w.bits == 5 and fits else INTEGER6 if w.bits == 6 and fits else INTEGER8
    return None if not float_format(w.codebook) else FLOAT6 if w.bits == 6 and fits else FLOAT8


def narrowed(table: Tensor) -> tuple[Tensor, float, float]:
    """(table times a factor in [1, 2), rounded to bfloat16, float32; its distance from it in Frobenius norm, relative; the factor), the best of 256 factors."""
    factors = 1 + torch.arange(256.0) / 256
    scaled = factors[:, None] * table.float().cpu()
    rounded = scaled.bfloat16().float()
    errors = (rounded - scaled).norm(dim=1) / scaled.norm(dim=1)
    best = int(errors.argmin())
    return rounded[best], errors[best].item(), factors[best].item()


def values(w: LowBitWeight, kind: int) -> tuple[Tensor, Tensor, float, int]:
    """(codes as they are kept, uint8; the 16 numbers that native.c reads, float32; what scales are divided by; mantissa bits of a small float or 0)."""
    if kind in (INTEGER5, INTEGER6, INTEGER8):
        return (w.codes.int() - 2 ** (w.bits - 1)).to(torch.uint8), torch.zeros(16), 1.0, 0
    if kind in (FLOAT6, FLOAT8):
        name = float_format(w.codebook)
        sign = w.codes >> (w.bits - 1)
        return sign << (5 if kind == FLOAT6 else 7) | w.codes & (2 ** (w.bits - 1) - 1), torch.full((16,), 2.0 ** (127 - bias(name))), 1.0, FORMATS[name][1]
    if w.codebook is None:
        table, factor = torch.arange(2.0**w.bits) - 2 ** (w.bits - 1), 1.0
    elif flavour() in (*IN_PAIRS, "avx2") and (near := narrowed(w.codebook))[1] <= EXACT:
        table, _, factor = near
    else:
        table, factor = w.codebook.float(), 1.0
    return w.codes, F.pad(table, (0, 16 - len(table))), factor, 0


def pack(w: LowBitWeight) -> Packed:
    """Codes as bytes [N, K * bits / 8], rounded up to whole strips and steps, in the order that native.c draws; scale, and where there are zeros
    shift, in [N, groups]: bfloat16 where that is exact, else float32; table [16]. meta = what native.c is told of them.
    """
    w = integers(w)
    kind, (n, k) = kind_of(w), w.codes.shape
    codes, table, factor, mantissa = values(w, kind)
    step = STEP.get(kind, 16)
    if kind in PLACES:
        words = in_steps(codes, PLACES[kind], kind == TABLE3)
    else:
        words = in_words(codes, range(step) if kind == INTEGER8 else [*range(0, step, 2), *range(1, step, 2)])
    numbers = {"scale": by_row(w.scale, n) / factor}
    if w.zero is not None:
        numbers["shift"] = (2 ** (w.bits - 1) - by_row(w.zero, n)).expand(numbers["scale"].shape)
    wide = any(not torch.equal(t.bfloat16().float(), t) for t in numbers.values())
    held = {name: strips(t if wide else t.bfloat16()) for name, t in numbers.items()}
    groups = w.scale.shape[1]
    return Packed({"codes": words, **held, "table": table}, (n, k, groups, -(-k // step) // groups, kind, int(wide), mantissa))


def in_words(codes: Tensor, order: Sequence[int]) -> Tensor:
    """Codes [N, K] uint8 as 32-bit words [N, K / codes a word], both rounded up, a strip's words one after the other; order: which of its inputs a word
    has from its lowest bits on.
    """
    word = len(order)
    codes = F.pad(codes, (0, -codes.shape[1] % word, 0, -codes.shape[0] % STRIP))
    lanes = codes.view(-1, STRIP, codes.shape[1] // word, word)
    words = torch.zeros(lanes.shape[:3], dtype=torch.int32)
    for place, lane in enumerate(order):
        words |= lanes[..., lane].int() << place * (32 // word)
    return words.transpose(1, 2).contiguous().view(codes.shape[0], -1)


def in_steps(codes: Tensor, places: Sequence[Sequence[tuple[int, int, int]]], apart: bool) -> Tensor:
    """Codes [N, K] uint8 as bytes [N, K / 16 * bytes of a step], both rounded up, a strip's steps one after the other; places: see PLACES. apart: the
    first part of all steps of a strip, then the second of all.
    """
    codes = F.pad(codes, (0, -codes.shape[1] % 16, 0, -codes.shape[0] % STRIP))
    pairs = codes.view(-1, STRIP, codes.shape[1] // 16, 8, 2).permute(0, 2, 3, 1, 4)  # [strips, steps, 8, 16 outputs, even and odd]
    parts = []
    for part in places:
        halves, at = torch.zeros(pairs[:, :, 0].shape, dtype=torch.int32), 0
        for pair, first, bits in part:
            halves |= (pairs[:, :, pair].int() >> first & 2**bits - 1) << at
            at += bits
        parts.append((halves.to(torch.uint8) if at == 8 else halves.to(torch.uint16)).flatten(2).view(torch.uint8))
    return torch.cat([part.flatten(1) for part in parts] if apart else parts, -1).view(codes.shape[0], -1)


def by_row(t: Tensor, n: int) -> Tensor:
    """Scale or zero [R, groups] with a row for each output, [N, groups] float32."""
    return t.float().repeat_interleave(n // t.shape[0], 0)


def strips(t: Tensor) -> Tensor:
    """[N, groups] with a strip's groups one after the other, rounded up to whole strips with zeros."""
    t = F.pad(t, (0, 0, 0, -t.shape[0] % STRIP))
    return t.view(-1, STRIP, t.shape[1]).transpose(1, 2).contiguous().view(t.shape)


class Weight(ctypes.Structure):
    """`struct weight` of native.c."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("codes", "scale", "shift", "table")), *((name, ctypes.c_long) for name in ("n", "k", "groups", "steps")),
        *((name, ctypes.c_int) for name in ("kind", "wide", "mantissa")),
    ]  # fmt: skip


@lru_cache(maxsize=4096)
def described(*fields: Any) -> Any:
    """A reference to a Weight. Kept, because making one takes as long as a small product."""
    return ctypes.byref(Weight(*fields))


def fitting(x: Tensor, packed: Packed) -> Tensor:
    """x [M, K] contiguous. Raises RuntimeError for another K than the weight's, whose inputs would be read beyond their end."""
    if x.shape[1] != packed.meta[1]:
        raise RuntimeError(f"inputs of {x.shape[1]} channels do not fit a weight of {packed.meta[1]}")
    return x.contiguous()


def product(x: Tensor, packed: Packed, rounding: Any = None) -> Tensor:
    """x [M, K] bfloat16, or float32 too where `rounding` (see native_round.py) says how it is rounded first -> [M, N] bfloat16."""
    t, meta, x = packed.tensors, packed.meta, fitting(x, packed)
    y = x.new_empty(x.shape[0], meta[0]) if rounding is None else torch.empty(x.shape[0], meta[0], dtype=torch.bfloat16)
    shift = t["shift"].data_ptr() if "shift" in t else None
    weight = described(t["codes"].data_ptr(), t["scale"].data_ptr(), shift, t["table"].data_ptr(), *meta)
    if library()[0].low_bit_product(x.data_ptr(), y.data_ptr(), x.shape[0], weight, rounding, x.dtype is torch.float32):
        raise MemoryError("no memory for the packed inputs of a product")
    return y


def int8_pack(codes: Tensor, scale: Tensor) -> Packed:
    """Codes [N, K] uint8, 128 for zero, and scale [N] float32, for `int8_sums` and `int8_product`."""
    words = in_words(codes, range(4))
    held = {"codes": words, "scale": F.pad(scale, (0, -len(scale) % STRIP))}
    return Packed(held, (*codes.shape, 1, words.shape[1], INTEGER8, 1, 0))


class Outliers(ctypes.Structure):
    """`struct outliers` of native_int8.c."""

    _fields_ = [("columns", ctypes.c_void_p), ("count", ctypes.c_long), ("threshold", ctypes.c_float)]


@lru_cache(maxsize=4096)
def outliers(*fields: Any) -> Any:
    """A reference to Outliers: (where their columns are or None, how many, the threshold)."""
    return ctypes.byref(Outliers(*fields))


def int8_product(x: Tensor, packed: Packed, rounding: Any = None, scale: Tensor | None = None, apart: Any = None, like: Tensor | None = None) -> Tensor:
    """int8 x [M, K] -> the int32 sums with codes minus 128, float32 [M, N]; with scale [M, 1] the product, in the dtype of `like`. bfloat16 or float32 x
    -> the product of x, rounded as `rounding` (see native_round.py) says but for its outliers (`apart`, see `outliers`), in its dtype.
    """
    t, meta, x = packed.tensors, packed.meta, fitting(x, packed)
    y = torch.empty(x.shape[0], meta[0], dtype=x.dtype if rounding is not None else torch.float32 if like is None else like.dtype)
    weight = described(t["codes"].data_ptr(), t["scale"].data_ptr(), None, None, *meta)
    given = scale if scale is None else scale.contiguous()
    at = None if given is None else given.data_ptr()
    if library()[0].low_bit_int8(x.data_ptr(), y.dtype is torch.float32, y.data_ptr(), x.shape[0], weight, rounding, at, apart):
        raise MemoryError("no memory for the packed inputs of a product")
    return y


@torch.library.custom_op("quantization_explorer::native_product", mutates_args=())
def native_product(x: Tensor, codes: Tensor, scale: Tensor, shift: Tensor | None, table: Tensor, meta: list[int]) -> Tensor:
    """`product` as an operator that torch.compile can hold; called directly otherwise, which takes a third of the time."""
    tensors = {"codes": codes, "scale": scale, "table": table} | ({} if shift is None else {"shift": shift})
    return product(x, Packed(tensors, tuple(meta)))


@native_product.register_fake
def _(x: Tensor, codes: Tensor, scale: Tensor, shift: Tensor | None, table: Tensor, meta: list[int]) -> Tensor:
    return x.new_empty(x.shape[0], meta[0])


def run(x: Tensor, packed: Packed) -> Tensor:
    if torch.compiler.is_compiling():
        t = packed.tensors
        return native_product(x.bfloat16(), t["codes"], t["scale"], t.get("shift"), t["table"], list(packed.meta)).to(x.dtype)
    return product(x, packed) if x.dtype is torch.bfloat16 else product(x.bfloat16(), packed).to(x.dtype)


NATIVE = Form(
    "native", refuses, pack, run,
    "bf16 activations; 1-bit codes occupy 2 bits, 7-bit codes 8; where groups are no multiples of 16, 3-bit codes occupy 4 bits, 5- and 6-bit codes 8",
    torch.bfloat16,
)  # fmt: skip


def main() -> None:
    """Compiles what this machine needs, or with --all every flavour; says what it did."""
    for name in FLAVOURS if "--all" in sys.argv else filter(None, [flavour()]):
        try:
            print(f"{name}: {built(name).name}")
        except OSError as error:
            print(f"{name}: not built: {error}")


if __name__ == "__main__":
    main()
