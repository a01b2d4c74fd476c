"""Compiles for one GPU, without having one, every kernel that `python -m kernels --check` launches there: same arguments, same specialization.

    TRITON_INTERPRET=0 python -m tests.gpu_rehearsal [capability [ops]]

Nothing is computed. Prints what did not compile or would not fit, and exits with 1 if anything did; a few minutes a run, so it is no part of the gate.
"""

from __future__ import annotations

import os
import sys
import time

os.environ["TRITON_INTERPRET"] = "0"

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget

from kernels import hadamard, kv_attention, low_bit_matmul, round_inputs, scaled_matmul
from kernels.bench.check import relative_error, served
from kernels.op import REFERENCE, ops
from tests import pretended_gpu

SHARED = {80: 163 * 1024, 90: 227 * 1024, 120: 99 * 1024}  # bytes that one program may use
OPERATORS = (
    (low_bit_matmul, "low_bit_matmul"), (scaled_matmul, "scaled_matmul"), (scaled_matmul, "rounded_matmul"), (scaled_matmul, "round_inputs"),
    (round_inputs, "round_inputs"), (hadamard, "hadamard"), (kv_attention, "kv_attention"),
)  # fmt: skip


class Driver:
    """As much of Triton's driver as compiling takes."""

    def __init__(self, capability: int) -> None:
        self.get_current_target = lambda: GPUTarget("cuda", capability, 32)
        self.get_current_device = self.get_current_stream = lambda *_: 0


def rehearse(capability: int, names: list[str]) -> int:
    """The number of cases that fail."""
    failed, compiled = 0, {}

    def compile_only(kernel, *args, grid, warmup, **options):
        built = compile_one(kernel, *args, grid=(1, 1, 1), warmup=True, **options)
        compiled[id(built)] = built
        if built.metadata.shared > SHARED[capability]:
            raise RuntimeError(f"{kernel.__name__} takes {built.metadata.shared} bytes of shared memory")

    compile_one = triton.runtime.jit.JITFunction.run
    with pytest.MonkeyPatch.context() as patch:
        triton.runtime.driver.set_active(Driver(capability))
        patch.setattr(triton.runtime.jit.JITFunction, "run", compile_only)
        for module, name in OPERATORS:
            patch.setattr(module, name, getattr(module, name)._init_fn)
        with pretended_gpu.there(patch) as gpu:
            for op in (op for op in ops().values() if not names or op.name in names):
                for form in (form for form in op.gpu if form is not REFERENCE):
                    start, before = time.monotonic(), len(compiled)
                    cases = served(op, form)
                    for case in cases:
                        for dtype in (torch.float16, torch.bfloat16):
                            try:
                                relative_error(op, form, case, dtype, gpu)
                            except Exception as error:  # whatever it is, the rest is worth knowing too
                                failed += 1
                                print(f"{op.name} ({form.name}) {dtype} {case}: {type(error).__name__}: {str(error)[:600]}", flush=True)
                    print(f"{op.name} ({form.name}): {len(cases)} cases, {len(compiled) - before} kernels, {time.monotonic() - start:.0f} s", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(min(1, rehearse(int(sys.argv[1]) if len(sys.argv) > 1 else 90, sys.argv[2:])))
