"""Product: what several layers that read the same input compute, as one matrix product where their formats allow it. Changes no layer's result."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from explorer.devices import spare_memory
from explorer.qlinear import QuantizedLinear, join


class Product(NamedTuple):
    """run: rows [M, K] -> [M, N1 + N2 + ...], side by side in the order of the layers. copied: bytes it holds beside the layers' own tensors."""

    run: Callable[[Tensor], Tensor]
    copied: int = 0


def product(layers: Sequence[nn.Module]) -> Product:
    """One product of layers [N, K] with the same K; layers of different formats run one after the other."""
    if all(type(layer) is nn.Linear for layer in layers):
        return _dense(layers)
    if len(layers) > 1 and all(type(layer) is QuantizedLinear for layer in layers) and (joined := join(layers)) is not None:
        return Product(joined.rows, sum(joined.packed_bytes().values()))
    runs = [layer.rows if type(layer) is QuantizedLinear else layer for layer in layers]
    return Product(runs[0]) if len(runs) == 1 else Product(lambda x: torch.cat([run(x) for run in runs], -1))


def _dense(layers: Sequence[nn.Linear]) -> Product:
    """16-bit layers. On a CPU a copy in oneDNN's own layout, which reads a single row's weights three times faster, where there is memory for it."""
    first = layers[0].weight
    size = sum(layer.weight.numel() * first.element_size() for layer in layers)
    bias = _biases(layers)
    if first.device.type == "cpu" and first.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported() and size < spare_memory(first.device):
        weight = first if len(layers) == 1 else torch.cat([layer.weight for layer in layers])
        packed = torch.ops.mkldnn._reorder_linear_weight.default(weight.detach(), 1)
        linear = torch.ops.mkldnn._linear_pointwise.default
        return Product(lambda x: linear(x, packed, bias, "none", [], ""), size)
    return Product(partial(F.linear, weight=_shared(layers), bias=bias))


def _biases(layers: Sequence[nn.Linear]) -> Tensor | None:
    if all(layer.bias is None for layer in layers):
        return None
    return torch.cat([layer.weight.new_zeros(layer.weight.shape[0]) if layer.bias is None else layer.bias for layer in layers]).detach()


def _shared(layers: Sequence[nn.Linear]) -> Tensor:
    """The weights one below the other, [N1 + N2 + ..., K]. The layers keep their values but from now on are views of this tensor: no second copy."""
    weights = [layer.weight.detach() for layer in layers]
    rows, first = [weight.shape[0] for weight in weights], weights[0]
    if all(b.data_ptr() == a.data_ptr() + a.nbytes and _storage(a) == _storage(b) for a, b in itertools.pairwise(weights)):
        return first.as_strided((sum(rows), first.shape[1]), (first.shape[1], 1))
    together = torch.cat(weights)
    for layer, part in zip(layers, together.split(rows), strict=True):
        layer.weight.data = part
    return together


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
