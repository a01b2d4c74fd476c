"""Per layer: how far the weights moved, how far the outputs moved on real inputs, and the weights' histogram with the code grid."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from explorer.calibration import block_inputs
from explorer.metrics import Metric, Subject, histogram
from explorer.records import Measurement, Progress

GRID_VALUES = 256


def relative(error: torch.Tensor, reference: torch.Tensor) -> float:
    """||error|| / ||reference||, Frobenius."""
    return (error.float().norm() / reference.float().norm().clamp(min=1e-30)).item()


@torch.no_grad()
def measure(subject: Subject) -> Iterator[Progress | Measurement]:
    """Inputs come from the 16-bit model on the first evaluation window, so a layer's output error is its own, not its predecessors'."""
    for index, count, inputs in block_inputs(subject.loaded, subject.windows[:1], subject.originals):
        yield Progress("layer errors", index, count, f"block {index}")
        for name, x in inputs.items():
            yield from _layer(subject, name, subject.originals[name], x)


def _layer(subject: Subject, name: str, original: torch.nn.Linear, inputs: torch.Tensor) -> Iterator[Measurement]:
    weight = subject.weight(name)
    qtensor = subject.qtensor(name) if name in subject.qtensors else None
    approximation = weight if qtensor is None else qtensor.dequantize()
    low, high, bins = span_of(weight, approximation)
    edges, before = histogram(weight, bins, low, high)
    after, grid = before, []
    if qtensor is not None:
        _, after = histogram(approximation, bins, low, high)
        grid = [round(v, 6) for v in qtensor.grid().tolist()[:GRID_VALUES]]
        reference = original(inputs)
        yield Measurement("weight_error", relative(approximation - weight, weight), "relative", name, n=weight.numel())
        yield Measurement("output_error", relative(subject.layers[name](inputs) - reference, reference), "relative", name, n=inputs.shape[0])
    yield Measurement("weight_histogram", {"edges": edges, "before": before, "after": after, "grid": grid}, "", name, n=weight.numel())


def span_of(weight: torch.Tensor, approximation: torch.Tensor, bins: int = 128) -> tuple[float, float, int]:
    """(low, high, number of bins) of a histogram that holds both: `bins` over the range of the weights, and as many more of that width as it takes."""
    low, high = weight.min().item(), weight.max().item()
    width = (high - low) / bins or 1.0
    below = max(0, math.ceil((low - approximation.min().item()) / width))
    above = max(0, math.ceil((approximation.max().item() - high) / width))
    return low - below * width, high + above * width, bins + below + above


METRIC = Metric("layers", measure, order=1)
