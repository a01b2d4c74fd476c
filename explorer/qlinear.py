"""QuantizedLinear: a linear layer that runs on packed codes through the kernel chosen for it; and how layers are swapped in and out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from explorer.qtensor import QuantizedTensor, concatenate
from explorer.rotation import Rotation
from kernels.op import Packed, choose


class QuantizedLinear(nn.Module):
    """y = x W^T + b with W in low bits. What runs is the packed form and the input transform; `kernel` names it and `why` says why it is no fast
    one. `source` is the tensor it was made from, for `join`; whoever wants only the packed form in memory sets it to None.
    """

    def __init__(self, qtensor: QuantizedTensor, bias: Tensor | None, device: torch.device) -> None:
        super().__init__()
        self.source: QuantizedTensor | None = qtensor
        weight = qtensor.weight()
        op, form, self.why = choose(weight, device)
        self.kernel = f"{op} ({form.name})"
        packed = form.pack(weight)
        for name, tensor in packed.tensors.items():
            self.register_buffer(name, tensor.to(device))
        self._packed, self._run = Packed({name: getattr(self, name) for name in packed.tensors}, packed.meta), form.run
        self.register_buffer("inverse", None if qtensor.channel_scale is None else (1 / qtensor.channel_scale).bfloat16().to(device))
        turn = qtensor.rotation
        self.rotation = None if turn is None else Rotation(*(t.to(device) for t in (turn.signs, turn.left, turn.right)))
        self.register_buffer("bias", bias)
        # Looked up once: a module finds its buffers by a search that costs as much as a small operation, and this runs for every layer of every token.
        self._bias, self._turn = bias, None if self.inverse is None and turn is None else self._transform

    def forward(self, x: Tensor) -> Tensor:
        """x [..., K] -> [..., N], in x's dtype."""
        y = self.rows(x.reshape(-1, x.shape[-1]))
        return y.view(*x.shape[:-1], y.shape[-1])

    def rows(self, x: Tensor) -> Tensor:
        """x [M, K] -> [M, N], in x's dtype: `forward` without the reshaping, for the token loop."""
        if self._turn is not None:
            x = self._turn(x)
        y = self._run(x, self._packed)
        return y if self._bias is None else y + self._bias

    def _transform(self, x: Tensor) -> Tensor:
        x = x if self.inverse is None else x * self.inverse
        return x if self.rotation is None else self.rotation.apply(x)

    def packed_bytes(self) -> dict[str, int]:
        """Bytes resident by tensor: measured from the tensors in use."""
        held = {name: getattr(self, name) for name in (*self._packed.tensors, "inverse") if getattr(self, name) is not None}
        held |= {} if self.rotation is None else vars(self.rotation)
        return {name: tensor.numel() * tensor.element_size() for name, tensor in held.items()}


def join(layers: Sequence[QuantizedLinear]) -> QuantizedLinear | None:
    """One layer that gives the outputs of several with the same inputs side by side; None where their formats or transforms differ.

    The codes are the same ones, one below the other, packed anew.
    """
    sources = [layer.source for layer in layers]
    if None in sources or (together := concatenate(sources)) is None:
        return None
    rows = [source.codes.shape[0] for source in sources]
    given = next((layer.bias for layer in layers if layer.bias is not None), None)
    biases = [] if given is None else [given.new_zeros(n) if layer.bias is None else layer.bias for n, layer in zip(rows, layers, strict=True)]
    bias = torch.cat(biases).detach() if biases else None
    joined = QuantizedLinear(together, bias, together.codes.device)
    joined.source = None
    return joined if all(layer.kernel == joined.kernel for layer in layers) else None


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
