"""Metric: what is measured on a quantized model. One file a metric, found by folder; metrics do not know methods or each other."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from explorer.models import LoadedModel
from explorer.qlinear import HEAD, QuantizedLinear, swapped
from explorer.qtensor import QuantizedTensor
from explorer.records import Measurement, Progress


@dataclass(frozen=True)
class Subject:
    """What metrics measure: the 16-bit model, its quantized layers, and evaluation windows [W, T] int64.

    losses: one a step, of a method that trains. read: the calibration windows it was quantized on, [W, T] int64, None when it read none.
    head: the quantized output head, None in 16 bits.
    Outside of `quantized()` the model in `loaded` runs with its original 16-bit layers.
    """

    loaded: LoadedModel
    layers: dict[str, QuantizedLinear]
    qtensors: dict[str, QuantizedTensor]
    originals: dict[str, nn.Linear]
    windows: Tensor
    quantize_seconds: float
    kv_bits: int = 16
    losses: tuple[float, ...] = ()
    read: Tensor | None = None
    head: QuantizedLinear | None = None

    def quantized(self) -> AbstractContextManager[None]:
        """A `with` in which the model runs with its quantized layers in place."""
        if self.head is None:
            return swapped(self.loaded.model, self.layers, self.originals)
        return swapped(self.loaded.model, self.layers | {HEAD: self.head}, self.originals | {HEAD: self.loaded.model.get_output_embeddings()})


@dataclass(frozen=True)
class Metric:
    """A family of measurements that are taken and cached together.

    of_weights: it means something for random weights too.
    per_device: the result belongs to the device it was measured on. of_model: it does not depend on the quantization, so one result
    serves every spec. measure yields Progress at least every two seconds and Measurements.
    """

    name: str
    measure: Callable[[Subject], Iterator[Progress | Measurement]]
    per_device: bool = False
    of_model: bool = False
    of_weights: bool = False


@cache
def metrics() -> dict[str, Metric]:
    """Every METRIC in this folder, by module name."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return {name: importlib.import_module(f"{__name__}.{name}").METRIC for name in names}


def mean_interval(values: Tensor, segment: int = 64) -> tuple[float, float, float]:
    """(mean, low, high): mean of finite values [n] with a 95% interval from the means of runs of `segment` consecutive ones.

    Neighbouring tokens are not independent, so the interval comes from segments (batch means), with Student's t at 1.96 plus its
    first-order correction (1.96 + 2.4 / df). NaN for both bounds with fewer than three segments.
    """
    values = values.double()
    mean = values.mean().item() if values.numel() else float("nan")
    count = values.numel() // segment
    if count < 3:
        return mean, float("nan"), float("nan")
    means = values[: count * segment].view(count, segment).mean(-1)
    half = (1.96 + 2.4 / (count - 1)) * (means.std() / count**0.5).item()
    return mean, mean - half, mean + half


def histogram(values: Tensor, bins: int = 128, low: float | None = None, high: float | None = None) -> tuple[list[float], list[int]]:
    """(edges [bins + 1], counts [bins]) of the finite values, over their range or the one given."""
    flat = values.detach().flatten().float().cpu()
    flat = flat[flat.isfinite()]
    low = flat.min().item() if low is None else low
    high = flat.max().item() if high is None else high
    if not high > low:
        low, high = low - 0.5, low + 0.5
    counts = torch.histc(flat, bins, low, high)
    return [round(e, 6) for e in torch.linspace(low, high, bins + 1).tolist()], counts.int().tolist()
