"""The low-bit matmul kernel on one small tile, step by step: a PyTorch mirror of what a program of it does, on a layer's own weights.

Every number of every step is computed here in the kernel's order and precision (codes exact in 16 bits, sums in float32). A test holds the last
step against the Triton kernel in its interpreter; the task kernel_check does the same for the tile that is shown.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from explorer import models
from explorer.qtensor import quantize_affine
from explorer.records import Answer, Event, InputError
from explorer.tasks import Engine, Task
from kernels.op import LowBitWeight
from kernels.packing import PLANES, pack_planar, swizzle

ROWS, TOKENS, STEPS = 4, 2, 2  # outputs, rows of x, runs of K that are shown
MAGIC = 1024.0  # a code OR-ed into the mantissa of the fp16 number 1024 is 1024 + code
BITS, GROUPS = (2, 3, 4, 8), (32, 64, 128)


def tile_of(weight: Tensor, bits: int, group: int, symmetric: bool, seed: int) -> tuple[Tensor, LowBitWeight, int]:
    """(x [TOKENS, K] float16, the weight [ROWS, K] in low bits, codes in a block) of a tile in the upper left corner of a weight [N, K]."""
    block = block_for(bits)
    k = max(STEPS * block, group)
    if weight.shape[0] < ROWS or weight.shape[1] < k:
        raise InputError(f"The layer is {weight.shape[0]} x {weight.shape[1]} and the tile needs {ROWS} x {k}; choose a smaller group or another layer.")
    tensor = quantize_affine(weight[:ROWS, :k].float(), bits, "group", group, symmetric)
    x = torch.randn(TOKENS, k, generator=torch.Generator().manual_seed(seed)).half()
    return x, tensor.weight(), block


def block_for(bits: int) -> int:
    """The smallest block of codes the kernel takes: planes of 16. The kernel itself takes up to 64 where groups are large enough."""
    return 16 * PLANES[bits]


def packed_of(w: LowBitWeight, bits: int, block: int) -> dict[str, Tensor]:
    """The bytes the kernel reads, see kernels/packing.py."""
    return pack_planar(swizzle(w.codes), block, bits)


def steps_of(x: Tensor, w: LowBitWeight, block: int) -> list[dict[str, Any]]:
    """What happens, in order. Each step has kind ("load", "unpack", "multiply", "scale", "store"), run (of K), plane, and the tensors it makes:
    bytes and high; codes and inputs (which columns); weights; x and part [ROWS, TOKENS]; scale and sum [ROWS, TOKENS]; y.
    """
    bits, planes = w.bits, PLANES[w.bits]
    width, n, k = block // planes, w.codes.shape[0], w.codes.shape[1]
    group, packed, order = k // w.scale.shape[1], packed_of(w, bits, block), order_of(width)
    together = planes if group >= block else group // width  # planes that share a scale
    total, found = torch.zeros(n, len(x)), []
    for run in range(k // block):
        span = (2 if bits == 3 else 1) * width
        raw = packed["codes"][:, run * span : (run + 1) * span]
        high = packed["high"][:, run * width : (run + 1) * width] if bits == 3 else None
        found.append({"kind": "load", "run": run, "bytes": raw.tolist(), "high": None if high is None else high.tolist()})
        part = torch.zeros(n, len(x))
        for plane in range(planes):
            columns = run * block + plane * width + order
            codes = plane_codes(raw, high, plane, bits, width)
            at = (run * block + plane * width) // group
            weights, zero = _floats(codes, w, at)
            found.append({"kind": "unpack", "run": run, "plane": plane, "codes": codes.tolist(), "inputs": columns.tolist(), "bytes": raw.tolist(),
                          "high": None if high is None else high.tolist(), "weights": weights.int().tolist(), "zero": zero})  # fmt: skip
            chunk = x[:, columns].float()
            part = part + weights @ chunk.T
            found.append({"kind": "multiply", "run": run, "plane": plane, "inputs": columns.tolist(), "weights": weights.int().tolist(),
                          "x": chunk.tolist(), "part": part.tolist()})  # fmt: skip
            if (plane + 1) % together == 0:
                scale = w.scale[:, at].float()
                total = total + part * scale.unsqueeze(1)
                found.append({"kind": "scale", "run": run, "plane": plane, "group": at, "scale": scale.tolist(), "part": part.tolist(), "sum": total.tolist()})
                part = torch.zeros(n, len(x))
    return [*found, {"kind": "store", "run": k // block - 1, "y": total.half().T.tolist()}]


def order_of(width: int) -> Tensor:
    """Which input meets byte i of a plane: inside every four bytes the order is 0, 2, 1, 3."""
    return swizzle(torch.arange(width).unsqueeze(0)).flatten()


def plane_codes(raw: Tensor, high: Tensor | None, plane: int, bits: int, width: int) -> Tensor:
    """The codes [ROWS, width] of a plane of loaded bytes, by a shift and a mask."""
    if bits == 8:
        return raw.int()
    if bits == 3:
        half = raw[:, width:] if plane >= 4 else raw[:, :width]
        return ((half.int() >> (plane % 4 * 2)) & 3) | (((high.int() >> plane) & 1) << 2)
    return (raw.int() >> (plane * bits)) & (2**bits - 1)


def _floats(codes: Tensor, w: LowBitWeight, at: int) -> tuple[Tensor, list[float] | None]:
    """(codes less their zero as float32, the zeros less the middle code or None), by the bit trick of kernels/codes.py."""
    middle = 2 ** (w.bits - 1)
    halves = (codes.short() | 0x6400).view(torch.float16)  # 1024 + code, exactly
    weights = (halves - (MAGIC + middle)).float()
    if w.zero is None:
        return weights, None
    zero = w.zero[:, at] - middle
    return weights - zero.unsqueeze(1), zero.tolist()


def work(engine: Engine, model: str, layer: str, bits: int = 4, group: int = 32, symmetric: bool = True, seed: int = 0) -> Iterator[Event]:
    """Answer data: steps (see `steps_of`), bits, group, block, width, planes, shape [ROWS, K] of the tile, inputs
    of the whole layer, tokens, exact (y in float32 by the plain meaning)."""
    if bits not in BITS or group not in GROUPS:
        raise InputError(f"The kernel shows {', '.join(map(str, BITS))} bits and groups of {', '.join(map(str, GROUPS))}.")
    weight = models.weight_of(models.trained(model, engine.load.hub), layer, engine.load.hub)
    x, w, block = tile_of(weight, bits, group, symmetric, seed)
    from kernels.op import multiply

    yield Answer("kernel_steps", {
        "steps": steps_of(x, w, block), "bits": bits, "group": group, "block": block, "width": block // PLANES[bits], "planes": PLANES[bits],
        "shape": list(w.codes.shape), "inputs": weight.shape[1], "tokens": len(x), "exact": multiply(x, w).tolist(), "layer": layer,
    })  # fmt: skip


TASK = Task("kernel_steps", work, turn="none", stored=False)
