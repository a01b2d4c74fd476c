"""Are the packed weights what they should be? Per layer: each column group's error, offset, neighbours exchanged, kernel against its meaning.

What a detector needs to name a bug. Everything is compared in the space where codes live: after a method's channel scales and rotation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from explorer.calibration import block_inputs
from explorer.likelihood import losses, passes
from explorer.metrics import Metric, Subject
from explorer.metrics.layers import relative
from explorer.qtensor import QuantizedTensor, quantize_affine
from explorer.records import Measurement, Progress
from kernels.op import LowBitWeight, dequantize, multiply, per_group

ROWS = 128  # inputs of a layer that its output is compared on
READ = 4  # windows of the calibration text that the model's own perplexity is taken on
SHOWN = 256  # column groups of a layer that are told apart


@torch.no_grad()
def measure(subject: Subject) -> Iterator[Progress | Measurement]:
    """Inputs are the 16-bit model's on the first evaluation window."""
    if not subject.qtensors:
        return
    if subject.read is not None:
        yield Progress("integrity", 0, 1, "reading the calibration text")
        model, found = subject.loaded.model, []
        for part in passes(model, subject.read[:READ], READ):
            found.append(losses(model(part, use_cache=False).logits[:, :-1].flatten(0, 1), part[:, 1:].flatten()))
        tokens = torch.cat(found)
        yield Measurement("calibration_perplexity", math.exp(min(tokens.mean().item(), 700.0)), n=len(tokens))
    wanted = {name: layer for name, layer in subject.originals.items() if name in subject.qtensors}
    for index, count, inputs in block_inputs(subject.loaded, subject.windows[:1], wanted):
        yield Progress("integrity", index, count, f"block {index}")
        for name, x in inputs.items():
            found, bad = outputs(subject, name, wanted[name], x[:ROWS])
            found |= packed_weight(subject.qtensor(name), subject.weight(name))
            yield Measurement("integrity", {key: rounded(value) for key, value in found.items()}, "", name, n=min(ROWS, len(x)), bad=bad)


def rounded(value: Any) -> Any:
    """Numbers to five significant digits, and lists of them: the report stays small. Only finite ones: a dashboard reads None for the rest."""
    if isinstance(value, list):
        return [rounded(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return value


def packed_weight(q: QuantizedTensor, weight: Tensor) -> dict[str, Any]:
    """Of a weight [N, K] float32 and what became of it: group_error (relative, by column group, the first SHOWN), offset_steps (mean error in steps of the
    grid, over groups whose scale is not 0, None with a codebook), exchanged_error (relative, with each even column exchanged for the next), transposed_error
    (relative, with the scales read in the other order; None with one scale a row). The last two are small only where that undoes a mistake.
    """
    wanted = weight if q.channel_scale is None else weight * q.channel_scale
    wanted = wanted if q.rotation is None else q.rotation.apply(wanted)
    view = q.weight()
    got = dequantize(view)
    n, k = got.shape
    parts, theirs = got.view(n, q.scale.shape[1], -1), wanted.view(n, q.scale.shape[1], -1)
    error = (parts - theirs).square().sum((0, 2)) / theirs.square().sum((0, 2)).clamp(min=1e-30)
    steps = per_group(q.scale, n, k).expand(n, k)
    offset = None if q.codebook is not None else ((got - wanted) / steps)[steps != 0].mean().item()
    exchanged = got.view(n, k // 2, 2).flip(-1).reshape(n, k) if k % 2 == 0 else got
    return {
        "group_error": error.sqrt()[:SHOWN].tolist(),
        "offset_steps": offset,
        "exchanged_error": relative(exchanged - wanted, wanted),
        "transposed_error": transposed_error(view, wanted),
    }


def transposed_error(weight: LowBitWeight, wanted: Tensor) -> float | None:
    """The smaller relative error of a weight whose scales [R, G] are read as [G, R] transposed, or the other way round."""
    rows, groups = weight.scale.shape
    if min(rows, groups) < 2:
        return None
    readings = weight.scale.reshape(groups, rows).T, weight.scale.T.reshape(rows, groups)
    return min(relative(dequantize(weight._replace(scale=scale)) - wanted, wanted) for scale in readings)


def outputs(subject: Subject, name: str, original: nn.Linear, x: Tensor) -> tuple[dict[str, Any], int]:
    """Of a layer's outputs on inputs x [M, K]: kernel_error (relative, the running form against its plain meaning) and rounding_error (relative, of
    rounding to nearest with as many bits and groups instead); and how many outputs are not finite.
    """
    q, weight = subject.qtensor(name), subject.weight(name)
    got = subject.layers[name](x).float()
    got = got if original.bias is None else got - original.bias.float()
    size = weight.shape[1] // q.scale.shape[1]
    bits = max(2, min(8, round(q.code_bits or q.bits)))
    plain = quantize_affine(weight, bits, "group", size, q.zero is None)
    exact = x.float() @ weight.T
    return {
        "kernel_error": relative(got - multiply(q.transform(x.float()), q.weight()), exact),
        "rounding_error": relative(x.float() @ plain.dequantize().T - exact, exact),
    }, int((~got.isfinite()).sum())


METRIC = Metric("integrity", measure, order=1)
