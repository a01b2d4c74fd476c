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
from explorer.models import Dense
from explorer.qlinear import QuantizedLinear, join
from kernels import linear16


class Product(NamedTuple):
    """run: rows [M, K] -> [M, N], N = N1 + N2 + ..., side by side in the order of the layers. name: what runs; shape: (N, K); read: bytes of weights
    that a call reads; copied: bytes it holds beside the layers' own tensors; beyond: bytes it reads more than those have, where joining changes that:
    nested scales are read unfolded, a shared input scale once.
    """

    run: Callable[[Tensor], Tensor]
    name: str
    shape: tuple[int, int]
    read: int
    copied: int = 0
    beyond: int = 0
    inverse: Tensor | None = None


def product(layers: Sequence[nn.Module], after_norm: bool = False) -> Product:
    """One product of layers [N, K] with the same K; layers of different formats run one after the other. after_norm: whether a normalisation before
    can take the layers' input scale.
    """
    if all(type(layer) in (nn.Linear, Dense) for layer in layers):
        return _dense(layers)
    if len(layers) > 1 and all(type(layer) is QuantizedLinear for layer in layers) and (joined := join(layers)) is not None:
        size, *apart = (sum(layer.packed_bytes().values()) for layer in (joined, *layers))
        told = joined.kernel, joined.shape, size, joined.own_bytes(layers), size - sum(apart)
        if after_norm and joined.inverse is not None and joined.rotation is None:
            return Product(joined.ready_rows, *told, joined.inverse)
        return Product(joined.rows, *told)
    return _apart(layers)


def _apart(layers: Sequence[nn.Module]) -> Product:
    names = dict.fromkeys(getattr(layer, "kernel", linear16.name() if type(layer) is Dense else "torch linear") for layer in layers)
    runs = [layer.rows if type(layer) is QuantizedLinear else layer for layer in layers]
    shapes = [_shape(layer) for layer in layers]
    read = sum(sum(layer.packed_bytes().values()) if hasattr(layer, "packed_bytes") else layer.weight.nbytes for layer in layers)
    run = runs[0] if len(runs) == 1 else lambda x: torch.cat([run(x) for run in runs], -1)
    return Product(run, "; ".join(names), (sum(shape[0] for shape in shapes), shapes[0][1]), read)


def _shape(layer: nn.Module) -> tuple[int, int]:
    """(N, K) of a layer, or of the one that it wraps."""
    own = next(inner for inner in layer.modules() if isinstance(inner, QuantizedLinear | nn.Linear))
    return own.shape if isinstance(own, QuantizedLinear) else tuple(own.weight.shape)


def _dense(layers: Sequence[nn.Linear]) -> Product:
    """16-bit layers. On a CPU with bfloat16 units a copy in oneDNN's own layout, which reads a single row's weights three times faster, where there is memory
    for it.
    """
    first = layers[0].weight
    size = sum(layer.weight.nbytes for layer in layers)
    shape = (sum(layer.weight.shape[0] for layer in layers), first.shape[1])
    bias = _biases(layers)
    if first.device.type != "cpu" or first.dtype != torch.bfloat16:
        return Product(partial(F.linear, weight=_shared(layers), bias=bias), "torch linear", shape, size)
    if size > spare_memory(first.device):
        return _apart(layers)  # weights may be mapped from a file: sharing would copy them
    if not linear16.has_units():
        return Product(partial(linear16.linear, weight=_shared(layers), bias=bias), linear16.name(), shape, size)
    weight = first if len(layers) == 1 else torch.cat([layer.weight for layer in layers])
    packed = torch.ops.mkldnn._reorder_linear_weight.default(weight.detach(), 1)
    linear = torch.ops.mkldnn._linear_pointwise.default
    return Product(lambda x: linear(x, packed, bias, "none", [], ""), "oneDNN bfloat16 linear", shape, size, size)


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
