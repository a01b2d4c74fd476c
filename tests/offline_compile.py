"""Compiles the kernels' variants for GPUs that are not here and prints facts about the machine code as JSON. Run without the interpreter.

Facts are kept in assets/machine_code.json under a hash of all that determines them, so that only what changed is compiled, and of each GPU one variant
that did not, to test the record. --record: compiles all and writes the record.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path

import triton
from triton import language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from kernels.codes import assembly, constraints
from kernels.floats import FORMATS, bias
from kernels.formats import FOLDED, block_of
from kernels.fp4_product import STEP, fp4_product_kernel
from kernels.fp4_product import default_tile as fp4_tile
from kernels.hadamard import hadamard_kernel, warps
from kernels.kv_attention import join_splits_kernel, kv_attention_kernel
from kernels.low_bit_matmul import add_splits_kernel, default_tile, dequantize_kernel, low_bit_matmul_kernel
from kernels.op import BLOCKS, LIMIT
from kernels.round_blocks import round_blocks_kernel
from kernels.round_inputs import grid, round_rows_kernel, widths
from kernels.scaled_matmul import default_tile as scaled_tile
from kernels.scaled_matmul import scaled_matmul_kernel

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
DTYPES = {"fp16": tl.float16, "bf16": tl.bfloat16}
MATRIX = ("HMMA", "HGMMA", "QGMMA", "IMMA", "IGMMA", "QMMA", "OMMA", "UTCHMMA", "UTCQMMA", "UTCIMMA", "UTCOMMA")
PACKED = re.compile(r"packed_element = 4.*?\} .*? : tensor<[^#]*(#ttg\.dot_op<\{.*?\}>|#\w+)>")  # the layout of bytes that inline assembly takes by four
ASSIGNED = re.compile(r"(%\w+)(?::\d+)? = \"?([\w.]+)\"?(.*)")
RECORD = Path(__file__).parent.parent / "assets" / "machine_code.json"
INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)(\S*)([^;]*);")


def machine_code(kernel, signature: dict, constants: dict, capability: int, warps: int, stages: int = 3) -> dict:
    """Facts about one compiled kernel, from the record where it holds them. Pointers and sizes count as multiples of 16."""
    types, names = signature | dict.fromkeys(constants, "constexpr"), kernel.arg_names
    signature = {name: types[name] for name in names}
    aligned = [n for n in signature if n.endswith("_ptr") or n in ("n_size", "k_size", "stride_x", "stride_codes", "stride_high", "size", "part_size")]
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(names.index(n),): v for n, v in constants.items()},
        attrs={(names.index(n),): [["tt.divisibility", 16]] for n in aligned},
    )
    key = hashlib.sha256(f"{source.hash()} {capability} {warps} {stages} {HOW}".encode()).hexdigest()[:24]
    sample = capability not in SAMPLED
    SAMPLED.add(capability)
    if key in KNOWN and not sample:
        return {"key": key, "fresh": False} | KNOWN[key]
    return {"key": key, "fresh": True} | compiled(source, capability, {"num_warps": warps, "num_stages": stages})


def compiled(source: ASTSource, capability: int, options: dict[str, int]) -> dict:
    """The same, compiled now."""
    built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    usage, sass = dumped(built.asm["cubin"], "--dump-resource-usage"), dumped(built.asm["cubin"], "-sass")
    code = [(int(address, 16), opcode, rest) for address, opcode, _, rest in INSTRUCTION.findall(sass)]
    return {
        "capability": capability, "registers": int(re.search(r"REG:(\d+)", usage)[1]), "stack": int(re.search(r"STACK:(\d+)", usage)[1]),
        "local": int(re.search(r"LOCAL:(\d+)", usage)[1]), "shared": built.metadata.shared, "matrix": sum(op in MATRIX for _, op, _ in code),
        "i2f": sum(op.startswith("I2F") for _, op, _ in code), "f2f": sum(op == "F2F" for _, op, _ in code), "loop": main_loop(code),
        "in_a_row": four_in_a_row(built.asm["ttgir"]), "opcodes": sorted({op for _, op, _ in code if op in MATRIX}),
        "in_registers": in_registers(built.asm["ttgir"]),
    }  # fmt: skip


def dumped(cubin: bytes, what: str) -> str:
    """What cuobjdump prints."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([CUOBJDUMP, what, file.name], capture_output=True, text=True, check=True).stdout


def four_in_a_row(ttgir: str) -> bool:
    """Whether inline assembly that takes four bytes gets four neighbours along K everywhere: it tells them apart by place, and a layout decides that."""
    for layout in PACKED.findall(ttgir):
        if not layout.startswith("#ttg"):
            layout = re.search(rf"^{layout} = (.*)$", ttgir, re.MULTILINE)[1]
        blocked = re.search(r"blocked<\{sizePerThread = \[\d+, (\d+)\].*order = \[1, 0\]", layout)
        linear = re.search(r"linear<\{register = \[\[0, 1\], \[0, 2\]", layout)
        width = re.search(r"kWidth = (\d+)", layout) or blocked
        if not linear and (width is None or int(width[1]) % 4):
            return False
    return True


def in_registers(ttgir: str) -> bool:
    """Whether what inline assembly unpacks is the left operand of every product where it was unpacked: not by way of shared memory or another layout."""
    made = {name: (op, re.findall(r"%\w+", rest)) for name, op, rest in ASSIGNED.findall(ttgir)}

    @cache
    def reaches(name: str) -> bool:
        op, rest = made.get(name, ("", []))
        return op == "tt.elementwise_inline_asm" or (op.startswith(("arith.", "tt.reshape", "tt.trans")) and any(map(reaches, rest)))

    return "= tt.dot " in ttgir and all(reaches(rest[0]) for op, rest in made.values() if op == "tt.dot")


def main_loop(code: list[tuple[int, str, str]]) -> int:
    """Instructions in the loop that holds the matrix products: from the target of a backward branch to the branch; 0 without one."""
    best = (0, 0)
    for address, opcode, rest in code:
        target = re.search(r"0x([0-9a-f]+)", rest)
        if opcode == "BRA" and target and int(target[1], 16) < address:
            body = [op for at, op, _ in code if int(target[1], 16) <= at <= address]
            best = max(best, (sum(op in MATRIX for op in body), len(body)))
    return best[1]


FACTS = ("capability", "registers", "stack", "local", "shared", "matrix", "i2f", "f2f", "loop", "in_a_row", "opcodes", "in_registers")
# What determines facts beside a kernel and its options: the compiler, and how they are read.
HOW = " ".join((triton.__version__, os.environ.get("TRITON_DEFAULT_FP_FUSION", ""), *map(inspect.getsource, (compiled, main_loop, four_in_a_row, in_registers)),
                PACKED.pattern, INSTRUCTION.pattern, *MATRIX))  # fmt: skip
KEPT = [] if "--record" in sys.argv[1:] or not RECORD.exists() else json.loads(RECORD.read_text())
KNOWN = {r["key"]: {name: r[name] for name in FACTS} for r in KEPT if r.keys() >= set(FACTS)}
for found in [value for name, module in list(sys.modules.items()) if name.startswith("kernels.") for value in vars(module).values()]:
    if isinstance(found, JITFunction):
        found.starting_line_number = 0  # which is in Triton's hash, though code that only moved is the same
SAMPLED: set[int] = set()  # GPUs of which this process has compiled a variant


POINTERS = {"codes_ptr": "*u8", "high_ptr": "*u8", "scale_ptr": "*bf16", "zero_ptr": "*fp16", "book_ptr": "*fp32", "nest_ptr": "*fp32"}
STRIDES = ("stride_codes", "stride_high", "groups", "scale_stride")
NF4_LIKE = tuple(i / 15 - 0.5 for i in range(16))


def weight_constants(bits: int, block: int, group: int, zero: bool, kind: str, scale: str, bf16: bool) -> dict:
    """What the product and the dequantized copy have in common. kind: "integer", "table" or a float's name."""
    name = kind if kind in FORMATS else ""
    return {
        "BITS": bits, "BLOCK_K": block, "GROUP": group, "ZERO": zero, "KIND": "float" if name else kind, "MANTISSA": FORMATS[name][1] if name else 0,
        "SCALE": scale, "RUN": 256, "FACTOR": 2.0 ** (15 - bias(name)) if name and not bf16 else 1.0,
        "ASM": assembly(bits, bf16, name, NF4_LIKE if kind == "table" else ()), "REGISTERS": constraints(bits),
    }  # fmt: skip


def low_bit(capability: int, bits: int, rows: int, dtype: str, kind: str = "integer", group: int = 128, scale: str = "number", zero: bool = False) -> dict:
    """The weight-only matmul."""
    block, bf16 = block_of(bits, group, kind == "table"), dtype == "bf16"
    tile = default_tile(rows, 8192, 64, bits, "float" if kind in FORMATS else kind, group, zero)
    constants = weight_constants(bits, block, group, zero, kind, scale, bf16) | {
        "BLOCK_N": tile.columns, "BLOCK_M": tile.rows, "SPLITS": 1, "EVEN": True, "DTYPE": DTYPES[dtype], "ASM_BF16": bf16, "PACKED": block,
    }  # fmt: skip
    types = {"x_ptr": f"*{dtype}"} | POINTERS | {"scale_ptr": "*bf16" if scale == "number" else "*u8"} | {"y_ptr": f"*{dtype}"}
    sizes = ("m_size", "n_size", "k_size", "steps", "stride_x", *STRIDES)
    if scale == "e4m3":  # as formats.Layout.step has it
        block = constants["BLOCK_K"] = FOLDED * block
    facts = machine_code(low_bit_matmul_kernel, types | dict.fromkeys(sizes, "i32"), constants, capability, tile.warps, tile.stages)
    name = f"sm_{capability} {bits}-bit {kind} {dtype} rows {rows} group {group} scale {scale}{' zero' if zero else ''}"
    per_thread = tile.columns * block / (tile.warps * 32) / -(-rows // tile.rows)
    plain = kind == "integer" and not zero
    return {"variant": name, "bits": bits, "kind": kind, "rows": rows, "plain": plain, "per_weight": round(facts["loop"] / per_thread, 2), **facts}


def others(capability: int) -> list[dict]:
    """The kernels around it: the sum of splits, the dequantized copy, rounding, and the W8A8 products."""
    sizes = dict.fromkeys(("n_size", "k_size", *STRIDES), "i32")
    copies = {
        f"dequantize {kind}": machine_code(
            dequantize_kernel, POINTERS | {"w_ptr": "*bf16"} | sizes, weight_constants(4, 128, 128, kind == "integer", kind, "number", False) | {"BLOCK_N": 64},
            capability, 4,
        )
        for kind in (("integer", "table") if capability == 90 else ("table",))
    }  # fmt: skip
    added = machine_code(add_splits_kernel, {"work_ptr": "*fp32", "y_ptr": "*bf16", "size": "i32"}, {"SPLITS": 4, "BLOCK": 1024}, capability, 4)
    rows = copies | {"add splits": added}
    kinds = {"int8": "*i8"} | ({"e4m3": "*fp8e4nv", "e5m2": "*fp8e5"} if capability >= 89 else {})
    for kind, k in [*((kind, 4096) for kind in kinds), ("int8", 53248)]:
        width, passes, count = widths(k)
        rows[f"rounding {kind} of {k}"] = machine_code(
            round_rows_kernel,
            {"x_ptr": "*bf16", "keep_ptr": "*fp32", "given_ptr": "*fp32", "codes_ptr": kinds[kind], "scale_ptr": "*fp32", "k_size": "i32", "stride_x": "i32",
             "part_size": "i32"},
            {"WIDTH": width, "PASSES": passes, "KEEP": kind == "int8", "GIVEN": False} | grid(kind), capability, count,
        )  # fmt: skip
    for kind, powers in (("e2m1", True), ("e2m1", False), ("e4m3", True)):
        constants = {"WIDTH": 1024, "SIZE": 32 if powers else 16, "POWERS": powers, "TOP": math.frexp(LIMIT[kind])[1] - 1, "CODES": False} | grid(kind)
        types = {"x_ptr": "*bf16", "y_ptr": "*bf16", "scale_ptr": "*bf16", "k_size": "i32", "stride_x": "i32", "unit": "fp32", "lift": "fp32"}
        rows[f"rounding blocks {kind} {'mx' if powers else 'nvfp4'}"] = machine_code(round_blocks_kernel, types, constants, capability, 4)
    for per in ("mx", "nvfp4") if capability >= 100 else ():
        for m in (16, 1024):
            rows[f"FP4 product {per} rows {m}"] = fp4(capability, per, m)
    for kind, m in (("int8", 16), ("int8", 1024), ("e4m3", 1024), ("e4m3", 512), ("e5m2", 16)):
        if kind in kinds:
            rows[f"{kind} product rows {m}"] = scaled(capability, kind, m, kinds[kind])
    return [{"variant": f"sm_{capability} {name}", "product": "product" in name, **facts} for name, facts in rows.items()]


def scaled(capability: int, kind: str, m: int, pointer: str) -> dict:
    """The W8A8 product, with outlier columns for int8 and blocks for wide float8 tiles."""
    blocks = kind == "e4m3" and m == 1024
    tile = scaled_tile(m, kind == "int8", blocks, capability)
    types = {"x_ptr": pointer, "w_ptr": pointer, "scale_x_ptr": "*fp32", "scale_w_ptr": "*fp32", "y_ptr": "*bf16", "plain_ptr": "*bf16", "columns_ptr": "*i32",
             "kept_ptr": "*i8"} | dict.fromkeys(("m_size", "n_size", "k_size", "stride_plain", "column_count"), "i32")  # fmt: skip
    constants = {
        "BLOCK_M": tile.rows, "BLOCK_N": tile.columns, "BLOCK_K": 128, "INTEGER": kind == "int8", "BLOCKS_X": blocks, "BLOCKS_W": blocks,
        "COLUMNS": kind == "int8" and m == 16, "EVEN": True, "DTYPE": tl.bfloat16,
    }  # fmt: skip
    return machine_code(scaled_matmul_kernel, types, constants, capability, tile.warps, tile.stages)


def fp4(capability: int, per: str, m: int) -> dict:
    """The product on FP4 units."""
    scale, tile = {"mx": "*u8", "nvfp4": "*fp8e4nv"}[per], fp4_tile(m, 8192, 32, 148)
    types = {"x_ptr": "*u8", "x_scale_ptr": scale, "w_ptr": "*u8", "w_scale_ptr": scale, "unit_ptr": "*fp32", "y_ptr": "*bf16"}
    types |= dict.fromkeys(("m_size", "n_size", "k_size", "steps"), "i32")
    constants = {"SIZE": BLOCKS[per], "BLOCK_K": STEP, "BLOCK_N": tile.columns, "BLOCK_M": tile.rows, "SPLITS": 1}
    return machine_code(fp4_product_kernel, types, constants, capability, tile.warps, tile.stages)


def attention(capability: int, bits: int) -> list[dict]:
    """Attention over a cache of heads of 128 channels, and the joining of its splits."""
    names = ("q", "key_codes", "key_scale", "key_low", "value_codes", "value_scale", "value_low", "keys", "values", "part", "peak", "total", "counts")
    kinds = {"key_codes": "*u8", "value_codes": "*u8", "part": "*fp32", "peak": "*fp32", "total": "*fp32", "counts": "*i64"}
    types = {f"{name}_ptr": kinds.get(name, "*bf16") for name in names}
    types |= dict.fromkeys(("tokens", "newest", "heads"), "i32") | {"factor": "fp32", "splits": "i32"}
    constants = {"D": 128, "BITS": bits, "HEADS": 8, "TOKENS": 32, "DTYPE": tl.bfloat16, "REGISTERS": constraints(bits), "ASM_BF16": True}
    constants |= {"ASM": assembly(bits, True), "COUNTED": True}
    facts = machine_code(kv_attention_kernel, types, constants, capability, 4)
    parts = {"part_ptr": "*fp32", "peak_ptr": "*fp32", "total_ptr": "*fp32", "y_ptr": "*bf16", "parts": "i32", "heads": "i32"}
    joined = machine_code(join_splits_kernel, parts, {"D": 128, "PARTS": 64}, capability, 4)
    return [
        {"variant": f"sm_{capability} attention {bits}-bit", "product": True, **facts, "per_code": round(facts["loop"] / (2 * 32 * 128 / 128), 2)},
        {"variant": f"sm_{capability} joining splits", **joined},
    ]


def turned(capability: int, sizes: tuple[int, int, int], kind: str) -> dict:
    """The Hadamard transform of one row."""
    pointer = {"": "*bf16", "int8": "*i8", "e4m3": "*fp8e4nv"}[kind]
    types = {"x_ptr": "*bf16", "signs_ptr": "*i8", "left_ptr": "*i8", "y_ptr": pointer, "scale_ptr": "*fp32"}
    types |= dict.fromkeys(("m_size", "runs", "a_size", "b_size", "c_size"), "i32") | {"factor": "fp32"}
    constants = {"ROWS": 1, "RUNS": 1, "A": sizes[0], "B": sizes[1], "C": sizes[2], "AXES": 2 if sizes[0] == 1 else 3, "GIVEN": sizes[0] == 32,
                 "PARTS": 2, "DTYPE": tl.bfloat16}  # fmt: skip
    facts = machine_code(hadamard_kernel, types, constants | {"ROUND": bool(kind)} | grid(kind or "int8"), capability, warps(sizes[0] * sizes[1] * sizes[2]))
    return {"variant": f"sm_{capability} hadamard {sizes} {kind}", "product": True, **facts}


VARIANTS = (
    *((bits, rows, dtype) for bits in (2, 3, 4, 8) for rows, dtype in ((1, "fp16"), (16, "bf16"))),
    (4, 1, "bf16"), (8, 1, "bf16"), (4, 64, "bf16"), (8, 64, "bf16"), (3, 64, "bf16"), (4, 32, "bf16"), (4, 1, "bf16", "integer", 128, "number", True),
    *((bits, 64, "bf16", "integer", 64, "number", True) for bits in (2, 3, 4)), (3, 32, "bf16", "integer", 32, "number", True),
    (2, 64, "bf16"), (4, 64, "bf16", "integer", 64), (8, 32, "bf16"), (2, 32, "bf16"), (3, 32, "bf16"), (4, 64, "bf16", "table", 64),
    (4, 64, "bf16", "e2m1", 32, "e8m0"), (4, 64, "bf16", "e2m1", 16, "e4m3"), (8, 64, "fp16", "e4m3", 32, "e8m0"),
    (4, 1, "fp16", "table", 64, "nested"), (4, 16, "bf16", "table", 64), (4, 1, "fp16", "e2m1", 32, "e8m0"), (4, 16, "bf16", "e2m1", 32, "e8m0"),
    (4, 1, "bf16", "e2m1", 16, "e4m3"), (8, 1, "fp16", "e4m3", 32, "e8m0"), (8, 16, "bf16", "e5m2", 0),
)  # fmt: skip

FEWER = ((4, 1, "fp16"), (3, 64, "bf16"), (4, 64, "bf16"), (2, 64, "bf16", "integer", 64, "number", True),
         (4, 1, "bf16", "table", 64), (4, 1, "bf16", "e2m1", 16, "e4m3"))  # fmt: skip


def datacenter_blackwell() -> list[dict]:
    """A few kernels of each kind for B200, whose matrix units are others than those of sm_120; `tests.gpu_rehearsal 100` compiles them all."""
    products = {f"FP4 product {per} rows {m}": fp4(100, per, m) for per in ("mx", "nvfp4") for m in (16, 1024)}
    products |= {f"{kind} product rows {m}": scaled(100, kind, m, pointer) for kind, m, pointer in (("int8", 16, "*i8"), ("e4m3", 1024, "*fp8e4nv"))}
    rows = [{"variant": f"sm_100 {name}", "product": True, **facts} for name, facts in products.items()]
    return [*rows, low_bit(100, 4, 1, "fp16"), low_bit(100, 4, 64, "bf16"), *attention(100, 4)]


def facts_of(capability: int) -> list[dict]:
    """All variants that are compiled for one GPU."""
    if capability == 100:
        return datacenter_blackwell()
    rows = [low_bit(capability, *variant) for variant in (VARIANTS if capability == 90 else FEWER)] + others(capability)
    rows += [row for bits in ((8, 4) if capability == 90 else (4,)) for row in attention(capability, bits)]
    shapes = (((1, 64, 64), ""), ((32, 16, 16), "int8"), *([((1, 64, 64), "e4m3")] if capability == 90 else []))
    return rows + [turned(capability, sizes, kind) for sizes, kind in shapes]


def main() -> None:
    """Everything to stdout; with --record compiled afresh, and to assets/machine_code.json, too."""
    with ProcessPoolExecutor(2) as pool:  # Hopper's variants take as long as the others' together
        found = [row for rows in pool.map(facts_of, (90, 80, 120, 100)) for row in rows]
    print(json.dumps(found))
    if "--record" in sys.argv[1:]:
        RECORD.write_text("[\n" + ",\n".join(json.dumps(row | {"triton": triton.__version__}) for row in found) + "\n]\n")


if __name__ == "__main__":
    os.nice(10)  # the app that the browser tests wait for goes first
    main()
