"""How a decoder block hands tensors on: which linear layers read the same one, and what before them could take a scale of its channels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# A linear layer and the one beside it whose outputs become its inputs channel by channel: values are mixed over tokens only, gated products linear in `up`.
CHAINS = {"o_proj": "v_proj", "out_proj": "v_proj", "dense": "v_proj", "down_proj": "up_proj", "fc2": "fc1"}

CLOSE = 2**-7  # relative; bfloat16 itself is within 2^-9


@dataclass(frozen=True)
class Before:
    """The operator that gives some layers their inputs: a normalisation with a weight, or a linear layer. rows [K] int64: which of its outputs each
    input channel scales with; several do with one where query heads share a value head.
    """

    module: nn.Module
    rows: Tensor


@dataclass(frozen=True)
class Group:
    """Linear layers that read the same tensor; `before` is None where a scale of its channels can go nowhere."""

    layers: list[nn.Linear]
    before: Before | None


def groups(block: nn.Module, hidden: Tensor, arguments: dict[str, Any]) -> list[Group]:
    """The linear layers of a block in order of execution, found by running it on hidden [B, T, H]."""
    given: dict[int, nn.Module] = {}
    read: dict[int, list[nn.Linear]] = {}
    held = []  # keeps addresses from being used again

    def after(module: nn.Module, args: tuple, output: Any) -> None:
        held.append(output)
        given[output.data_ptr()] = module

    def before(module: nn.Linear, args: tuple) -> None:
        held.append(args[0])
        read.setdefault(args[0].data_ptr(), []).append(module)

    handles = [m.register_forward_hook(after) for m in block.modules() if _is_norm(m, hidden.shape[-1])]
    handles += [m.register_forward_pre_hook(before) for m in block.modules() if isinstance(m, nn.Linear)]
    try:
        block(hidden, **arguments)
    finally:
        for handle in handles:
            handle.remove()
    return [Group(layers, _of_norm(block, given.get(address), layers[0]) or _of_linear(block, layers)) for address, layers in read.items()]


def _is_norm(module: nn.Module, width: int) -> bool:
    weight = getattr(module, "weight", None)
    return "norm" in type(module).__name__.lower() and weight is not None and weight.shape == (width,)


def _of_norm(block: nn.Module, norm: nn.Module | None, layer: nn.Linear) -> Before | None:
    if norm is None or not getattr(block, "do_layer_norm_before", True):  # where a norm comes after the sum, the residual stream reads it too
        return None
    return Before(norm, torch.arange(layer.in_features, device=layer.weight.device))


def _of_linear(block: nn.Module, layers: list[nn.Linear]) -> Before | None:
    parent, name = next((part, name) for part in block.modules() for name, child in part.named_children() if child is layers[0])
    source = getattr(parent, CHAINS.get(name, ""), None)
    if len(layers) > 1 or not isinstance(source, nn.Linear) or layers[0].in_features % source.out_features:
        return None
    if name == "fc2" and not isinstance(getattr(parent, "activation_fn", None), nn.ReLU):  # ReLU lets a positive factor through, GELU does not
        return None
    if getattr(getattr(parent, "config", None), "clip_qkv", None) is not None:
        return None
    rows = torch.arange(source.out_features, device=source.weight.device)
    share = layers[0].in_features // source.out_features
    return Before(source, rows if share == 1 else rows.view(-1, 1, parent.head_dim).expand(-1, share, -1).flatten())


def scaled(before: Before, scale: Tensor) -> dict[str, Tensor]:
    """{parameter: its value} of the operator when its outputs, as the layers' input channels [K], are divided by scale; in the parameter's dtype."""
    module = before.module
    each, one = row_scale(before, scale).to(module.weight.device), _one(module)
    divided = {"weight": (module.weight.float() + one) / (each.unsqueeze(1) if isinstance(module, nn.Linear) else each) - one}
    if getattr(module, "bias", None) is not None:
        divided["bias"] = module.bias.float() / each
    return {name: value.to(module.weight.dtype) for name, value in divided.items()}


def stores(before: Before, scale: Tensor) -> bool:
    """Whether the operator, once `scaled` has rounded it to its dtype, multiplies by what it should to within CLOSE. A norm that stores its distance
    from 1 does not where the scale is large: that distance is then almost -1, and what is left of the multiplier is mostly rounding. ValueError as in
    `row_scale`.
    """
    module, each = before.module, row_scale(before, scale)
    if isinstance(module, nn.Linear):
        return True
    each, one = each.to(module.weight.device), _one(module)
    wanted, found = (module.weight.float() + one) / each, scaled(before, scale)["weight"].float() + one
    return bool(((found - wanted).abs() <= CLOSE * wanted.abs()).all())


def _one(module: nn.Module) -> float:
    """What an operator adds to its weight before it multiplies: 1 for Gemma's norms."""
    return 1.0 if "gemma" in type(module).__name__.lower() else 0.0


def row_scale(before: Before, scale: Tensor) -> Tensor:
    """A scale of the input channels [K] as one of the operator's outputs. ValueError where channels of one output differ."""
    rows = before.rows.to(scale.device)
    each = torch.ones(int(rows.max()) + 1, device=scale.device).index_copy(0, rows, scale)
    if not torch.equal(each[rows], scale):
        raise ValueError("input channels that are one output of the operator before have different scales")
    return each
