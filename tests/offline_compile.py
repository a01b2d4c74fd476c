"""Compiles the kernels' variants for GPUs that are not here and prints facts about the machine code as JSON. Run without the interpreter."""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from pathlib import Path

import triton
from triton import language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels.low_bit_matmul import add_splits_kernel, block_of, dequantize_kernel, low_bit_matmul_kernel, tiles
from kernels.w8a8_int8_matmul import int8_kernel

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
DTYPES = {"fp16": tl.float16, "bf16": tl.bfloat16}
MATRIX = ("HMMA", "HGMMA", "QGMMA", "IMMA", "IGMMA", "QMMA")
INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)(\S*)([^;]*);")


def machine_code(kernel, signature: dict, constants: dict, capability: int, warps: int) -> dict:
    """Facts about one compiled kernel. Pointers and sizes count as multiples of 16."""
    signature = signature | dict.fromkeys(constants, "constexpr")
    names = list(signature)
    aligned = [n for n in signature if n.endswith("_ptr") or n in ("n_size", "k_size", "stride_x", "stride_codes", "stride_high", "size")]
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(names.index(n),): v for n, v in constants.items()},
        attrs={(names.index(n),): [["tt.divisibility", 16]] for n in aligned},
    )
    built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps, "num_stages": 3})
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"])
        file.flush()
        usage = subprocess.run([CUOBJDUMP, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True).stdout
        sass = subprocess.run([CUOBJDUMP, "-sass", file.name], capture_output=True, text=True, check=True).stdout
    code = [(int(address, 16), opcode, rest) for address, opcode, _, rest in INSTRUCTION.findall(sass)]
    return {
        "capability": capability, "registers": int(re.search(r"REG:(\d+)", usage)[1]), "stack": int(re.search(r"STACK:(\d+)", usage)[1]),
        "local": int(re.search(r"LOCAL:(\d+)", usage)[1]), "shared": built.metadata.shared, "matrix": sum(op in MATRIX for _, op, _ in code),
        "i2f": sum(op.startswith("I2F") for _, op, _ in code), "loop": main_loop(code),
    }  # fmt: skip


def main_loop(code: list[tuple[int, str, str]]) -> int:
    """Instructions in the loop that holds the matrix products: from the target of a backward branch to the branch; 0 without one."""
    best = (0, 0)
    for address, opcode, rest in code:
        target = re.search(r"0x([0-9a-f]+)", rest)
        if opcode == "BRA" and target and int(target[1], 16) < address:
            body = [op for at, op, _ in code if int(target[1], 16) <= at <= address]
            best = max(best, (sum(op in MATRIX for op in body), len(body)))
    return best[1]


def low_bit(capability: int, bits: int, rows: int, dtype: str, codebook: bool = False, zero: bool = False, group: int = 128) -> dict:
    """The weight-only matmul."""
    block = block_of(bits, group)
    block_m, block_n, _, warps = tiles(rows, 8192, 64)
    constants = {
        "BITS": bits, "BLOCK_K": block, "BLOCK_N": block_n, "BLOCK_M": block_m, "GROUP": group, "SPLITS": 1, "ZERO": zero, "CODEBOOK": codebook,
        "EVEN": True, "DTYPE": DTYPES[dtype], "ASSEMBLY": not codebook,
    }  # fmt: skip
    types = {"x_ptr": f"*{dtype}", "codes_ptr": "*u8", "high_ptr": "*u8", "scale_ptr": "*bf16", "zero_ptr": "*fp16", "book_ptr": "*fp32", "y_ptr": f"*{dtype}"}
    sizes = ("m_size", "n_size", "k_size", "steps", "stride_x", "stride_codes", "stride_high", "groups", "scale_stride")
    facts = machine_code(low_bit_matmul_kernel, types | dict.fromkeys(sizes, "i32"), constants, capability, warps)
    name = f"sm_{capability} {bits}-bit {dtype} rows {rows}" + (" codebook" if codebook else "") + (" zero" if zero else "")
    per_thread = block_n * block / (warps * 32)
    return {"variant": name, "bits": bits, "rows": rows, "plain": not codebook and not zero, "per_weight": round(facts["loop"] / per_thread, 2), **facts}


def others(capability: int) -> list[dict]:
    """The kernels around it: the sum of splits, the dequantized copy, the integer product."""
    pointers = {"codes_ptr": "*u8", "high_ptr": "*u8", "scale_ptr": "*bf16", "zero_ptr": "*fp16", "book_ptr": "*fp32", "w_ptr": "*bf16"}
    sizes = ("n_size", "k_size", "stride_codes", "stride_high", "groups", "scale_stride")
    grid = {"BITS": 4, "BLOCK_K": 128, "BLOCK_N": 64, "GROUP": 128, "ZERO": True, "CODEBOOK": False}
    copy = machine_code(dequantize_kernel, pointers | dict.fromkeys(sizes, "i32"), grid, capability, 4)
    added = machine_code(add_splits_kernel, {"work_ptr": "*fp32", "y_ptr": "*bf16", "size": "i32"}, {"SPLITS": 4, "BLOCK": 1024}, capability, 4)
    types = {
        "x_ptr": "*i8",
        "w_ptr": "*i8",
        "scale_x_ptr": "*fp32",
        "scale_w_ptr": "*fp32",
        "y_ptr": "*fp32",
        "m_size": "i32",
        "n_size": "i32",
        "k_size": "i32",
    }
    product = machine_code(int8_kernel, types, {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 128}, capability, 4)
    return [{"variant": f"sm_{capability} {name}", **facts} for name, facts in (("dequantize", copy), ("add splits", added), ("int8 product", product))]


VARIANTS = (
    *((bits, rows, dtype) for bits in (2, 3, 4, 8) for rows, dtype in ((1, "fp16"), (16, "bf16"))),
    (4, 1, "bf16"), (4, 64, "bf16"), (4, 1, "bf16", True), (4, 1, "bf16", False, True), (4, 1, "bf16", True, False, 32), (8, 64, "bf16"),
)  # fmt: skip

FEWER = ((4, 1, "fp16"), (3, 16, "bf16"), (4, 64, "bf16"), (4, 1, "bf16", True))  # on the GPUs whose loop is not counted

if __name__ == "__main__":
    rows = [low_bit(capability, *variant) for capability in (80, 90, 120) for variant in (VARIANTS if capability == 90 else FEWER)]
    print(json.dumps(rows + [row for capability in (80, 90, 120) for row in others(capability)]))
