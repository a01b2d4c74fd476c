"""Input scales folded into the operators before the layers, so that whoever loads a checkpoint need not multiply by them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from explorer.calibration import flowing
from explorer.flow import Before, row_scale, scaled, stores
from explorer.metrics import Subject
from explorer.qtensor import QuantizedTensor


@torch.no_grad()
def folded(subject: Subject) -> tuple[dict[str, QuantizedTensor], dict[str, Tensor]]:
    """(every quantized layer, without its input scale where the operator before takes it; {parameter by its path in the model: what it becomes}).

    Nothing is changed in place. A scale stays where layers that read the same inputs have different ones, or nothing before can take it
    or store it closely enough.
    """
    model = subject.loaded.model
    names = {layer: name for name, layer in subject.originals.items()}
    paths = {part: path for path, part in model.named_modules()}
    layers, changed = dict(subject.qtensors), dict[str, Tensor]()
    tokens = torch.zeros(1, 4, dtype=torch.long, device=subject.loaded.device)
    for _, found in flowing(subject.loaded, tokens):
        for group in found:
            readers = [names[layer] for layer in group.layers]
            scale = _shared([layers.get(name) for name in readers])
            source = None if group.before is None else names.get(group.before.module)
            if scale is None or not _takes(group.before, scale, layers.get(source)):
                continue
            layers |= {name: dataclasses.replace(layers[name], channel_scale=None) for name in readers}
            values = scaled(group.before, scale)
            if source in layers:
                layers[source] = _rows_divided(layers[source], row_scale(group.before, scale))
                values.pop("weight")
            changed |= {f"{paths[group.before.module]}.{name}": value for name, value in values.items()}
    return layers, changed


def _shared(readers: Sequence[QuantizedTensor | None]) -> Tensor | None:
    """The input scale [K] that all of them have, None where they differ or have none."""
    scales = [None if q is None else q.channel_scale for q in readers]
    same = all(scale is not None and scales[0] is not None and torch.equal(scale, scales[0]) for scale in scales)
    return scales[0] if same else None


def _takes(before: Before | None, scale: Tensor, q: QuantizedTensor | None) -> bool:
    """Whether the operator can take this scale; q: its quantized weight, None where it has none."""
    if before is None:
        return False
    try:
        if not stores(before, scale):
            return False
    except ValueError:  # of a linear layer, one of whose outputs is channels that differ
        return False
    return q is None or (q.codebook is None and q.scale_bits is None and not q.extra_bits and q.scale.shape[0] in (1, q.codes.shape[0]))


def _rows_divided(q: QuantizedTensor, each: Tensor) -> QuantizedTensor:
    """The weight [N, K] with row n divided by each[n]: only scales change, rounded to their dtype."""
    n = q.codes.shape[0]
    scale, zero = (None if values is None else values.expand(n, -1) for values in (q.scale, q.zero))
    return dataclasses.replace(q, scale=(scale.float() / each.unsqueeze(1)).to(q.scale.dtype), zero=zero)
