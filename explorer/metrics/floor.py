"""The noise floor of the divergence: how far the 16-bit model, computed in bfloat16, is from the same weights computed in float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from explorer.devices import free_memory
from explorer.likelihood import passes
from explorer.metrics import Metric, NoRoom, Subject, mean_interval
from explorer.metrics.quality import token_statistics
from explorer.models import LoadedModel
from explorer.records import Measurement, Progress

WINDOWS, BATCH = 8, 2  # scored at most, in one forward pass
ROOM = 0.4  # share of the free memory that float32 copies of the weights may take


def fits_in_float32(loaded: LoadedModel) -> bool:
    """Whether float32 copies of the weights fit beside the model."""
    return 4 * sum(p.numel() for p in loaded.model.parameters()) <= ROOM * free_memory(loaded.device)


def room(loaded: LoadedModel) -> float:
    """Bytes that must be free before the model is loaded, so that float32 copies then fit beside it."""
    return sum(4 * p.numel() / ROOM + p.nbytes for p in loaded.model.parameters())


@contextmanager
def in_float32(model: nn.Module) -> Iterator[None]:
    """The model with float32 parameters; buffers stay as they are, and the very same parameters come back at the end."""
    kept = [(parameter, parameter.data) for parameter in model.parameters()]
    try:
        for parameter, values in kept:
            parameter.data = values.float()
        yield
    finally:
        for parameter, values in kept:
            parameter.data = values


@torch.no_grad()
def measure(subject: Subject) -> Iterator[Progress | Measurement]:
    """KL(float32 || bfloat16), nats. Raises NoRoom for a model whose float32 copy does not fit."""
    model, rows, found = subject.loaded.model, subject.windows[:WINDOWS], []
    if not fits_in_float32(subject.loaded):
        raise NoRoom(room(subject.loaded))
    for batch in passes(model, rows, BATCH):
        yield Progress("noise of bfloat16", sum(map(len, found)), len(rows))
        rounded = model(batch, use_cache=False).logits[:, :-1].flatten(0, 1)
        with in_float32(model):
            exact = model(batch, use_cache=False).logits[:, :-1].flatten(0, 1)
        found.append(token_statistics(exact, rounded, batch[:, 1:].flatten())["kld"].view(len(batch), -1).cpu())
    kld = torch.cat(found)
    mean, low, high = mean_interval(kld)
    good = int(kld.isfinite().sum())
    yield Measurement("kld_floor", mean, "nats", low=None if low is None else max(0.0, low), high=high, n=good, bad=kld.numel() - good)


METRIC = Metric("floor", measure, of_model=True, order=1)
