"""Metric: what is measured on a quantized model. One file a metric, found by folder; metrics know no methods, and of each other only what they share."""

from __future__ import annotations

import importlib
import math
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
from explorer.sequential import student_t

Interval = tuple[float, float | None, float | None]  # value, low, high; None where windows are too few or too alike to say


class NoRoom(Exception):
    """Raised by a metric for want of memory. needs: bytes of the device, free before the model is loaded, from which on there is room."""

    def __init__(self, needs: float) -> None:
        super().__init__(needs)
        self.needs = needs


@dataclass(frozen=True)
class Subject:
    """What metrics measure: the 16-bit model, its quantized layers, and evaluation windows [W, T] int64.

    losses: one a step, of a method that trains. read: the calibration windows it was quantized on, [W, T] int64, None when it read none.
    head: the quantized output head, None in 16 bits. available: windows that the whole evaluation text has.
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
    available: int = 0

    def weight(self, name: str) -> Tensor:
        """A layer's 16-bit weight [N, K] as float32, on the model's device."""
        return self.originals[name].weight.to(self.loaded.device).float()

    def qtensor(self, name: str) -> QuantizedTensor:
        """What a layer's weight was rounded to, on the model's device."""
        return self.qtensors[name].to(self.loaded.device)

    def require_memory(self) -> None:
        """Raises NoRoom where weights come from their files for every token: nobody waits for such a model to write, and its speed is the disk's."""
        if self.loaded.offloaded and len(self.layers) < len(self.originals):
            raise NoRoom(self.loaded.whole)

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
    serves every spec. order: those of a lower one are measured first: what people decide by (0), whether it is sound (1), what explains it (2), times (3).
    measure yields Progress at least every two seconds and Measurements; it may raise NoRoom.
    """

    name: str
    measure: Callable[[Subject], Iterator[Progress | Measurement]]
    per_device: bool = False
    of_model: bool = False
    of_weights: bool = False
    order: int = 2


@cache
def metrics() -> dict[str, Metric]:
    """Every METRIC in this folder by module name, in the order in which they are measured."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    found = {name: importlib.import_module(f"{__name__}.{name}").METRIC for name in names}
    return dict(sorted(found.items(), key=lambda pair: pair[1].order))


def mean_interval(values: Tensor) -> Interval:
    """(mean, low, high) over all finite values of windows [W, T], with a 95% interval.

    Tokens of one window depend on each other, and windows are what is drawn at random: a window gives one value, and the interval is Student's t with
    one degree of freedom less than there are windows. Where NaN leaves windows unequal, the mean is a ratio with the linearised error (Cochran 1977,
    Sampling Techniques, section 2.11). Not corrected for a finite text: with all windows scored, the interval is for texts like this one.
    """
    good = values.isfinite()
    counts, sums = good.sum(1).double(), values.double().where(good, 0.0).sum(1)
    total, windows = counts.sum().item(), int((counts > 0).sum())
    if not windows:
        return math.nan, None, None
    mean = sums.sum().item() / total
    if windows < 2:
        return mean, None, None
    error = (sums - mean * counts).square().sum().item()
    half = student_t(0.05, windows - 1) * math.sqrt(error * windows / (windows - 1)) / total
    return (mean, mean - half, mean + half) if half else (mean, None, None)


def window_means(values: Tensor) -> list[float]:
    """The mean over the finite values of each of windows [W, T], NaN where there is none: the value that a window gives to `mean_interval`."""
    return values.double().where(values.isfinite(), torch.nan).nanmean(1).tolist()


def quantile_interval(values: Tensor, share: float) -> Interval:
    """(value, low, high): the quantile of all finite values of windows [W, T], with a 95% interval: that of the share of values up to it, read back
    as quantiles (Woodruff 1952, Journal of the American Statistical Association 47, 635).
    """
    flat = values[values.isfinite()].double()
    if not flat.numel():
        return math.nan, None, None
    value = torch.quantile(flat, share).item()
    _, *ends = mean_interval((values <= value).double().where(values.isfinite(), torch.nan))
    if None in ends:
        return value, None, None
    low, high = (torch.quantile(flat, min(1.0, max(0.0, end))).item() for end in ends)
    return value, min(value, low), max(value, high)


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
