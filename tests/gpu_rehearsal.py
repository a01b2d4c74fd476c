"""Compiles for one GPU, without having one, what `python -m kernels --check` and a token loop launch there: same arguments, same specialization.

    python -m tests.gpu_rehearsal [--few] [capability [ops]]

Nothing is computed. Prints what did not compile or would not fit, and exits with 1 if anything did; some minutes a run, so it is no part of the gate.
--few: one case of each kind of codes, in bfloat16 and without the token loop, to see whether another Triton lays bytes out as the assembly expects.
"""

from __future__ import annotations

import os
import re
import sys
import time
from typing import Any

os.environ["TRITON_INTERPRET"] = "0"

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget

from kernels import fp4_product, hadamard, kv_attention, low_bit_matmul, round_blocks, round_inputs, scaled_matmul, token_step
from kernels.bench.check import relative_error, served
from kernels.op import REFERENCE, ops
from tests import pretended_gpu
from tests.offline_compile import dumped, four_in_a_row

SHARED = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024, 120: 99 * 1024}  # bytes that one program may use
LEAST_SHARED = 99 * 1024  # of any other GPU since Ampere
OPERATORS = (
    (low_bit_matmul, "low_bit_matmul"), (scaled_matmul, "scaled_matmul"), (scaled_matmul, "rounded_matmul"), (scaled_matmul, "round_inputs"),
    (round_inputs, "round_inputs"), (round_blocks, "round_blocks"), (round_blocks, "fp4_codes"),
    (fp4_product, "fp4_product"), (fp4_product, "fp4_codes"), (hadamard, "hadamard"), (kv_attention, "kv_attention"),
    (token_step, "turn_and_store"), (token_step, "add_and_norm"), (token_step, "gated"),
)  # fmt: skip


class Driver:
    """As much of Triton's driver as compiling takes."""

    def __init__(self, capability: int) -> None:
        self.get_current_target = lambda: GPUTarget("cuda", capability, 32)
        self.get_current_device = self.get_current_stream = lambda *_: 0


def kinds(cases: list[Any]) -> list[Any]:
    """The first case of each width, codebook and kind of zero, inputs and scale."""
    first: dict[tuple, Any] = {}
    for case in cases:
        inputs = getattr(case, "activation", None)
        parts = [getattr(case, name, None) for name in ("bits", "codebook", "symmetric", "scale", "kind")]
        first.setdefault((*parts, inputs and (inputs.kind, inputs.per, bool(inputs.columns))), case)
    return list(first.values())


def rehearse(capability: int, names: list[str], few: bool = False) -> int:
    """The number of cases that fail."""
    failed, compiled = 0, {}

    def compile_only(kernel, *args, grid, warmup, **options):
        built = compile_one(kernel, *args, grid=(1, 1, 1), warmup=True, **options)
        if id(built) not in compiled and not re.search("STACK:0 .*LOCAL:0 ", dumped(built.asm["cubin"], "--dump-resource-usage")):
            raise RuntimeError(f"{kernel.__name__} with {options} spills registers")
        compiled[id(built)] = built
        if not four_in_a_row(built.asm["ttgir"]):
            raise RuntimeError(f"{kernel.__name__} with {options} unpacks bytes that are no neighbours")
        if built.metadata.shared > SHARED.get(capability, LEAST_SHARED):
            raise RuntimeError(f"{kernel.__name__} takes {built.metadata.shared} bytes of shared memory")

    compile_one = triton.runtime.jit.JITFunction.run
    with pytest.MonkeyPatch.context() as patch:
        triton.runtime.driver.set_active(Driver(capability))
        patch.setattr(triton.runtime.jit.JITFunction, "run", compile_only)
        for module, name in OPERATORS:
            patch.setattr(module, name, getattr(module, name)._init_fn)
        with pretended_gpu.there(patch) as gpu:
            for op in (op for op in ops().values() if not names or op.name in names):
                for form in (form for form in op.gpu if form is not REFERENCE and form.capability <= capability):
                    start, before = time.monotonic(), len(compiled)
                    cases = kinds(served(op, form)) if few else served(op, form)
                    for case in cases:
                        for dtype in (torch.bfloat16,) if few else (torch.float16, torch.bfloat16):
                            try:
                                relative_error(op, form, case, dtype, gpu)
                            except Exception as error:  # whatever it is, the rest is worth knowing too
                                failed += 1
                                print(f"{op.name} ({form.name}) {dtype} {case}: {type(error).__name__}: {str(error)[:600]}", flush=True)
                    print(f"{op.name} ({form.name}): {len(cases)} cases, {len(compiled) - before} kernels, {time.monotonic() - start:.0f} s", flush=True)
            if not names and not few:
                decode(gpu)
                print(f"the token loop: {len(compiled)} kernels in all", flush=True)
    return failed


def decode(gpu: torch.device) -> None:
    """A prompt and two tokens of one block as wide as a small Llama's, for 16 bits and for low bits with a cache in 4 bits."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from explorer.llama import LlamaLoop
    from explorer.models import linears
    from explorer.qlinear import QuantizedLinear, put, quantized_head
    from explorer.qtensor import quantize_affine

    config = LlamaConfig(
        vocab_size=512, hidden_size=512, intermediate_size=1024, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=1, head_dim=128,
        max_position_embeddings=256, tie_word_embeddings=False, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(torch.bfloat16).eval().requires_grad_(False).to(gpu)
    prompt = torch.zeros(1, 70, dtype=torch.long, device=gpu)
    for kv_bits in (16, 4):
        loop = LlamaLoop(model, 80, kv_bits)
        loop.prefill(prompt)
        loop.step(prompt[:, :1])
        loop.step(prompt[:, :1])
        if kv_bits == 16:
            for name, layer in linears(model).items():
                put(model, name, QuantizedLinear(quantize_affine(layer.weight.float(), 4, "group", 128, True), None, gpu))
            put(model, "lm_head", quantized_head(model.lm_head, 8, gpu))


if __name__ == "__main__":
    few, words = "--few" in sys.argv[1:], [word for word in sys.argv[1:] if word != "--few"]
    sys.exit(min(1, rehearse(int(words[0]) if words else 90, words[1:], few)))
