"""QuantizedLinear: a linear layer that runs on packed codes through the kernel chosen for it; and how layers are swapped in and out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from explorer.qtensor import QuantizedTensor
from explorer.rotation import Rotation
from kernels.op import Packed, choose


class QuantizedLinear(nn.Module):
    """y = x W^T + b with W in low bits. Holds only the packed form and the input transform; `kernel` names what runs and `why` says why it
    is no fast one.
    """

    def __init__(self, qtensor: QuantizedTensor, bias: Tensor | None, device: torch.device) -> None:
        super().__init__()
        weight = qtensor.weight()
        op, form, self.why = choose(weight, device)
        self.kernel = f"{op} ({form.name})"
        packed = form.pack(weight)
        for name, tensor in packed.tensors.items():
            self.register_buffer(name, tensor.to(device))
        self._names, self._meta, self._run = tuple(packed.tensors), packed.meta, form.run
        self.register_buffer("inverse", None if qtensor.channel_scale is None else (1 / qtensor.channel_scale).bfloat16().to(device))
        turn = qtensor.rotation
        self.rotation = None if turn is None else Rotation(*(t.to(device) for t in (turn.signs, turn.left, turn.right)))
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., K] -> [..., N], in x's dtype."""
        packed = Packed({name: getattr(self, name) for name in self._names}, self._meta)
        x = x if self.inverse is None else x * self.inverse
        x = x if self.rotation is None else self.rotation.apply(x)
        y = self._run(x.reshape(-1, x.shape[-1]), packed)
        y = y.view(*x.shape[:-1], y.shape[-1])
        return y if self.bias is None else y + self.bias

    def packed_bytes(self) -> dict[str, int]:
        """Bytes resident by tensor: measured from the tensors in use."""
        held = {name: getattr(self, name) for name in (*self._names, "inverse") if getattr(self, name) is not None}
        held |= {} if self.rotation is None else vars(self.rotation)
        return {name: tensor.numel() * tensor.element_size() for name, tensor in held.items()}


def put(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Puts a layer at a name as `models.linears` gives it."""
    path = name if name.split(".")[0] in dict(model.named_children()) else f"model.{name}"
    parent, _, leaf = path.rpartition(".")
    setattr(model.get_submodule(parent), leaf, layer)


@contextmanager
def swapped(model: nn.Module, layers: dict[str, nn.Module], originals: dict[str, nn.Linear]) -> Iterator[None]:
    """The model with these layers in place of its own, for the length of a `with`."""
    for name, layer in layers.items():
        put(model, name, layer)
    try:
        yield
    finally:
        for name in layers:
            put(model, name, originals[name])
