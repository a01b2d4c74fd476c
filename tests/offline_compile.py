"""Compiles the kernel's variants for GPUs that are not here and prints facts about the machine code as JSON. Run without the interpreter."""

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

from kernels.low_bit_matmul import low_bit_matmul_kernel, tiles

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
POINTERS = {"fp16": ("*fp16", tl.float16), "bf16": ("*bf16", tl.bfloat16)}


def facts(capability: int, bits: int, rows: int, dtype: str, codebook: bool, zero: bool) -> dict:
    """Registers, stack, shared memory and instructions of one variant."""
    block_m, block_n, warps = tiles(rows, 4096)
    pointer, activation = POINTERS[dtype]
    constants = {
        "BITS": bits, "BLOCK_K": 128, "BLOCK_N": block_n, "BLOCK_M": block_m, "BLOCKS_PER_GROUP": 1, "BLOCKS": 32, "ZERO": zero,
        "MIDDLE": 2 ** (bits - 1), "CODEBOOK": codebook, "ACTIVATION": activation,
    }  # fmt: skip
    types = {
        "x_ptr": pointer, "codes_ptr": "*u8", "scale_ptr": "*bf16", "zero_ptr": "*fp16", "book_ptr": "*fp32", "y_ptr": pointer, "m_size": "i32",
        "n_size": "i32", "k_size": "i32", "stride_x": "i32", "stride_codes": "i32", "groups": "i32", "scale_stride": "i32",
    }  # fmt: skip
    signature = types | dict.fromkeys(constants, "constexpr")
    names = list(signature)
    aligned = ("x_ptr", "codes_ptr", "scale_ptr", "zero_ptr", "book_ptr", "y_ptr", "n_size", "k_size", "stride_x", "stride_codes")
    source = ASTSource(
        fn=low_bit_matmul_kernel,
        signature=signature,
        constexprs={(names.index(n),): v for n, v in constants.items()},
        attrs={(names.index(n),): [["tt.divisibility", 16]] for n in aligned},
    )
    kernel = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps, "num_stages": 3})
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = subprocess.run([CUOBJDUMP, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True).stdout
        sass = subprocess.run([CUOBJDUMP, "-sass", file.name], capture_output=True, text=True, check=True).stdout
    opcodes = re.findall(r"/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)", sass)
    return {
        "variant": f"sm_{capability} {bits}-bit {dtype} rows {rows}" + (" codebook" if codebook else "") + (" zero" if zero else ""),
        "capability": capability, "codebook": codebook, "registers": int(re.search(r"REG:(\d+)", usage)[1]),
        "stack": int(re.search(r"STACK:(\d+)", usage)[1]), "local": int(re.search(r"LOCAL:(\d+)", usage)[1]), "shared": kernel.metadata.shared,
        "matrix": sum(op in ("HMMA", "HGMMA", "QGMMA") for op in opcodes), "i2f": sum(op.startswith("I2F") for op in opcodes),
    }  # fmt: skip


if __name__ == "__main__":
    variants = [
        (4, 1, "fp16", False, False),
        (4, 64, "bf16", False, True),
        (4, 1, "bf16", True, False),
        (8, 1, "fp16", False, False),
        (8, 128, "bf16", False, False),
    ]
    print(json.dumps([facts(capability, *variant) for capability in (80, 90, 120) for variant in variants]))
