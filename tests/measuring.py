"""Runs that measure a part of what a run measures, for tests that look at no more; what a generator returns; what a kernel is called here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from explorer import experiment
from explorer.metrics import metrics
from kernels import native

ON_CPU = "cpu" if native.library()[0] is None else "native"  # the form that a CPU takes for integers without inputs to round


@contextmanager
def measuring(*names: str) -> Iterator[None]:
    """A run measures these metrics alone: what a test does not look at takes the time of those that do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "metrics", lambda: {name: metric for name, metric in metrics().items() if name in names})
        yield


def drained(steps: Iterator) -> Any:
    """What a generator returns, without what it yields."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def error(a: torch.Tensor, b: torch.Tensor) -> float:
    """How far a is from b, relative to b's norm."""
    return ((a - b).norm() / b.norm()).item()
