"""What goes into each layer of the 16-bit model: histogram, kurtosis, largest value by channel, and the outlier channels."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from explorer.calibration import block_inputs
from explorer.metrics import Metric, Subject, histogram
from explorer.records import Measurement, Progress

WINDOWS = 4
RATIO = 6.0  # a channel is an outlier when its absmax exceeds this many times the median channel's
THRESHOLD = 6.0  # LLM.int8(), arXiv 2208.07339, section 3.2: a feature whose magnitude reaches 6.0 anywhere


def kurtosis(values: Tensor) -> float:
    """Fourth standardised moment (3 for a normal distribution) of all values."""
    x = values.double().flatten()
    centred = x - x.mean()
    return (centred.pow(4).mean() / centred.pow(2).mean().pow(2)).item()


def outliers(absmax: Tensor) -> dict[str, list[int]]:
    """Channel indices by two rules, from the absmax of each channel [K]."""
    return {
        "ratio": torch.nonzero(absmax > RATIO * absmax.median()).flatten().tolist(),
        "llm_int8": torch.nonzero(absmax >= THRESHOLD).flatten().tolist(),
    }


@torch.no_grad()
def measure(subject: Subject) -> Iterator[Progress | Measurement]:
    for index, count, inputs in block_inputs(subject.loaded, subject.windows[:WINDOWS], subject.originals):
        yield Progress("activations", index, count, f"block {index}")
        for name, rows in inputs.items():
            bad = int((~rows.isfinite()).sum())
            x = rows.float().nan_to_num(0.0, 0.0, 0.0)
            absmax = x.abs().amax(0)
            edges, counts = histogram(x)
            yield Measurement("activation_histogram", {"edges": edges, "counts": counts}, "", name, n=x.numel(), bad=bad)
            yield Measurement("activation_absmax", [round(v, 4) for v in absmax.tolist()], "", name, n=x.shape[0], bad=bad)
            yield Measurement("activation_kurtosis", kurtosis(x), "", name, n=x.numel(), bad=bad)
            yield Measurement("outlier_channels", outliers(absmax), "", name, n=x.shape[1], bad=bad)


METRIC = Metric("activations", measure, of_model=True)
