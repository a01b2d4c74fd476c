"""Quantizing a model: every layer that a method accepts, one after the other or all in one training, with progress and refusals."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from explorer import architectures, models, offload, sizes
from explorer.calibration import sequential_statistics
from explorer.input_statistics import InputStatistics
from explorer.methods import Method, refuses_all
from explorer.metrics import Subject
from explorer.models import LoadedModel
from explorer.qlinear import QuantizedLinear, put, release, siblings
from explorer.qtensor import QuantizedTensor
from explorer.records import BY_CHOICE, InputError, Progress, TextRef


def quantize(subject: Subject, method: Method, calibration: TextRef, text: str) -> Iterator[Any]:
    """Quantizes every layer the method accepts; yields Progress, returns (subject with quantized layers, {layer: why it was skipped}).

    Leaves the model with its original layers in place. Raises InputError where the weights' shapes let the method accept none, or the method does not
    know the model.
    """
    loaded, originals = subject.loaded, subject.originals
    method = method.for_model(loaded.model.config.to_dict())
    skipped = {name: why for name, layer in originals.items() if (why := method.refuses(tuple(layer.weight.shape), name))}
    wanted = {name: layer for name, layer in originals.items() if name not in skipped}
    if not wanted and any(why not in BY_CHOICE for why in skipped.values()):  # rules that name no layer are the guard's to find
        raise InputError(refuses_all(method, {name: tuple(layer.weight.shape) for name, layer in originals.items()}))
    if loaded.ref.random:
        kept = {name: originals[name] for name in skipped}
        yield from architectures.making(loaded.ref.name, loaded.model, wanted, kept, getattr(method, "bits", 8), loaded.device)
    start = time.perf_counter()
    try:
        rows = None
        if method.reads_inputs():
            rows = models.windows(loaded, text, calibration.tokens, calibration.length, calibration.seed or None, calibration.bos)
        if method.of_model and loaded.offloaded:
            raise InputError(f"{method.title} trains the whole model, and {loaded.ref.name!r} does not fit this device whole; choose another method or model.")
        if method.of_model:
            for name, layer in wanted.items():
                finite(layer.weight, "weights", name)
            qtensors, losses = yield from method.train(loaded.model, wanted, functools.partial(put, loaded.model), rows)
            layers = {name: QuantizedLinear(q, wanted[name].bias, loaded.device) for name, q in qtensors.items()}
        else:
            qtensors, layers = yield from _layer_by_layer(loaded, method, wanted, rows)
            losses = []
    finally:
        for name, layer in wanted.items():
            put(loaded.model, name, layer)
    seconds = time.perf_counter() - start
    made = {"layers": layers, "qtensors": qtensors, "losses": tuple(losses), "quantize_seconds": seconds, "read": rows}
    return dataclasses.replace(subject, **made), skipped


def _layer_by_layer(loaded: LoadedModel, method: Method, wanted: dict[str, nn.Linear], rows: torch.Tensor | None) -> Iterator[Any]:
    """Yields Progress, returns ({name: QuantizedTensor}, {name: QuantizedLinear}). With calibration windows [W, T] each layer's inputs come
    from the layers already quantized, which are then in the model's place of the original ones. Layers that read the same inputs go together.
    """
    layers: dict[str, QuantizedLinear] = {}
    qtensors: dict[str, QuantizedTensor] = {}
    largest = max((layer.weight.numel() for layer in wanted.values()), default=0)
    squared = max((layer.in_features for name, layer in wanted.items() if rows is not None and method.reads_gram(name)), default=0)
    least = sizes.ROOM + sizes.beside(sizes.Weight({}, largest, widest=squared))

    def convert(names: Sequence[str], inputs: InputStatistics | None, rows: torch.Tensor | None = None) -> Iterator[Progress]:
        weights = {name: _weight(loaded, name, wanted[name]) for name in names}
        for name, weight in weights.items():
            finite(weight, "weights", name)
        for name, qtensor in method.quantize_together(weights, inputs, rows):
            layers[name] = QuantizedLinear(qtensor, wanted[name].bias, loaded.device)
            qtensors[name] = _kept(loaded, layers, name, qtensor)
            if loaded.offloaded:
                offload.require_room(loaded.device, least, len(qtensors), len(wanted))
            yield Progress("quantize", len(qtensors), len(wanted), name)

    if rows is None:
        for names in siblings(wanted):
            yield from convert(names, None)
        return qtensors, layers
    yield Progress("quantize", 0, len(wanted), "reading the calibration text")
    asked = {name: method.reads_gram(name) for name in wanted}
    for group, inputs, before in sequential_statistics(loaded, rows, asked):
        names = [name for name in group if name in wanted]
        finite(inputs.absmax, "inputs", names[0])  # the largest of values that hold NaN or infinity is one of them
        yield from convert(names, inputs, before.rows.to(loaded.device) if before and len(names) == len(group) else None)
        for name in names:
            put(loaded.model, name, layers[name])
        del inputs  # two Gram matrices need not be held at once
    return qtensors, layers


def _weight(loaded: LoadedModel, name: str, layer: nn.Linear) -> torch.Tensor:
    """A layer's weight [N, K] in bfloat16, on the device."""
    return architectures.weight(loaded.model, name, loaded.device) if loaded.ref.random else layer.weight.to(loaded.device)


def _kept(loaded: LoadedModel, layers: dict[str, QuantizedLinear], name: str, q: QuantizedTensor) -> QuantizedTensor:
    """What is kept of a layer's tensor beside its packed form: all of it, for an offloaded model on file, and of random weights the shape."""
    bare = release(layers, name, q) if loaded.ref.random or loaded.offloaded else q
    return offload.on_file(q, name) if loaded.offloaded else bare


def sound(loaded: LoadedModel) -> Iterator[Progress]:
    """Yields Progress while it looks at every weight of a model, the embedding's and the head's too. Raises InputError, as `finite`, for the first that
    holds NaN or infinities. No weight is copied: one that is mapped from a file is read once.
    """
    weights = list(loaded.model.named_parameters())
    for done, (name, weight) in enumerate(weights):
        if done % 16 == 0:
            yield Progress("check weights", done, len(weights), name)
        if weight.numel() and not torch.stack(weight.aminmax()).isfinite().all():
            finite(weight, "weights", name.removeprefix("model.").removesuffix(".weight"))


def finite(tensor: torch.Tensor, what: str, layer: str) -> torch.Tensor:
    """The tensor itself. Raises InputError naming the layer when it holds NaN or infinities, which no method can round."""
    if not tensor.isfinite().all():
        raise InputError(f"The {what} of layer {layer} hold NaN or infinities; the checkpoint is damaged or overflows in bfloat16. Choose another model.")
    return tensor
