"""Outliers planted in a copy of a model without changing what it computes, and what int8 methods then do to it.

Wherever a normalisation feeds linear layers, some of its channels are made larger by a factor and the same columns of those layers smaller. With
a power of two every bfloat16 product stays the same to the last bit, so whatever a method loses, it loses to the outliers.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from explorer import data, models
from explorer.calibration import flowing
from explorer.flow import scaled
from explorer.methods import build, label_of
from explorer.metrics import Subject
from explorer.metrics.quality import METRIC as QUALITY
from explorer.models import LoadedModel
from explorer.provenance import circumstances
from explorer.quantizing import quantize
from explorer.records import Answer, Event, InputError, Measurement, Progress
from explorer.tasks import Engine, Task
from explorer.tasks.activations import checked

WINDOWS, LENGTH, CALIBRATION = 8, 128, 2  # many short windows: each is one value of the intervals
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "W8A8 per tensor": ("dynamic_int8", {"activation": "tensor"}), "W8A8 per token": ("dynamic_int8", {}), "LLM.int8()": ("llm_int8", {}),
    "SmoothQuant": ("smoothquant", {"alpha": 0.5}), "8-bit weights only": ("rtn", {"bits": 8, "granularity": "channel"}),
}  # fmt: skip
KEPT = ("kld_mean", "top1_agreement", "perplexity_delta")
CHECKED = 64  # tokens of the check that the function stays


@torch.no_grad()
def plant(loaded: LoadedModel, strength: float, channels: int, tokens: Tensor) -> list[int]:
    """Makes `channels` channels of every normalisation `strength` times larger and the columns that read them smaller, in place; the channels with
    the largest inputs in the first block. tokens [B, T] int64, to run once. Returns the channels. Raises InputError where no norm feeds a linear layer.
    """
    chosen = None
    for hidden, found in flowing(loaded, tokens):
        for group in found:
            if group.before is None or isinstance(group.before.module, nn.Linear):
                continue
            norm = group.before.module
            if chosen is None:
                chosen = norm(hidden).abs().amax((0, 1)).topk(min(channels, hidden.shape[-1])).indices
            factor = torch.ones(hidden.shape[-1], device=hidden.device).index_fill(0, chosen, strength)
            for name, value in scaled(group.before, 1 / factor).items():
                getattr(norm, name).copy_(value)
            for layer in group.layers:
                layer.weight[:, chosen] /= strength
    if chosen is None:
        raise InputError("In this model no normalisation feeds a linear layer directly, so outliers cannot be planted without changing it.")
    return chosen.tolist()


@torch.no_grad()
def distance(one: nn.Module, other: nn.Module, tokens: Tensor) -> tuple[float, float]:
    """(largest |difference| of the logits, the same over the largest |logit|) of two models on tokens [B, T]."""
    a, b = one(tokens, use_cache=False).logits.float(), other(tokens, use_cache=False).logits.float()
    gap = (a - b).abs().max().item()
    return gap, gap / a.abs().max().clamp(min=1e-30).item()


def work(engine: Engine, model: str, strength: float = 16.0, channels: int = 4) -> Iterator[Event]:
    """Answer data: strength, channels (which), methods ({name: {label, metric: [value, low, high]}} with the metrics in KEPT, kernel}), gap and
    gap_relative (of the logits in bfloat16), gap_float32 (relative), tokens. The loaded model is not touched: a copy is.
    """
    checked(strength, channels)
    loaded = yield from engine.load.checked(models.trained(model, engine.load.hub))
    length = min(512, loaded.length)
    rows = models.windows(loaded, data.bundled_text("evaluation"), WINDOWS * LENGTH, min(LENGTH, loaded.length), seed=0)
    reference, text = data.reference("bundled", "calibration", CALIBRATION * length, length)
    yield Progress("plant outliers", 0, 1, f"{channels} channels, {strength:g} times larger")
    planted = dataclasses.replace(loaded, model=copy.deepcopy(loaded.model))
    chosen = plant(planted, strength, channels, rows[:1, :CHECKED])
    gap, relative = distance(loaded.model, planted.model, rows[:1, :CHECKED])
    exact = _in_float32(loaded, strength, channels, rows[:1, :CHECKED])
    if exact > 1e-3:
        raise InputError(f"Planting changes what this model computes ({exact:.1e} of the largest logit), so nothing could be told from it.")
    found: dict[str, dict[str, Any]] = {}
    for index, (name, (method, params)) in enumerate(METHODS.items()):
        yield Progress("methods", index, len(METHODS), name)
        found[name] = yield from _measured(planted, build(method, params), reference, text, rows)
    yield Answer("outlier_dial", {
        "strength": strength, "channels": chosen, "methods": found, "gap": gap, "gap_relative": relative, "gap_float32": exact, "tokens": rows.numel(),
    }, circumstances(loaded.device))  # fmt: skip


def _in_float32(loaded: LoadedModel, strength: float, channels: int, tokens: Tensor) -> float:
    """The relative difference of the logits that planting makes in float32."""
    before = dataclasses.replace(loaded, model=copy.deepcopy(loaded.model).float())
    after = dataclasses.replace(loaded, model=copy.deepcopy(before.model))
    plant(after, strength, channels, tokens)
    return distance(before.model, after.model, tokens)[1]


def _measured(loaded: LoadedModel, method: Any, reference: Any, text: str, rows: Tensor) -> Iterator[Any]:
    """Yields Progress, returns {label, kernel, metric: [value, low, high]} of a method on a model."""
    subject = Subject(loaded, {}, {}, models.linears(loaded.model), rows, 0.0)
    subject, _ = yield from quantize(subject, method, reference, text)
    told: dict[str, Any] = {"label": label_of(method), "kernel": next((layer.kernel for layer in subject.layers.values()), "")}
    for event in QUALITY.measure(subject):
        if isinstance(event, Measurement) and event.metric in KEPT:
            told[event.metric] = [event.value, event.low, event.high]
        elif isinstance(event, Progress):
            yield event
    return told


TASK = Task("outlier_dial", work)
