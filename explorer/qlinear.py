"""QuantizedLinear: a linear layer that runs on packed codes through the kernel chosen for it; and how layers are swapped in and out."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from explorer.qtensor import QuantizedTensor, concatenate, quantize_affine
from explorer.records import TOGETHER
from explorer.rotation import Rotation
from kernels.hadamard import Turn
from kernels.op import Activation, Packed, choose, ops, serving
from kernels.read_out import NEVER

HEAD = "lm_head"  # the output head's name in every supported family


class QuantizedLinear(nn.Module):
    """y = x W^T + b with W in low bits. What runs is the packed form and the input transform; `kernel` names it and `why` says why it is no fast
    one. `source` is the tensor it was made from, for `join`; whoever wants only the packed form in memory sets it to None. `looks`: see `Activation`;
    `turned_by`: what turns inputs, "" where nothing does.
    """

    def __init__(self, qtensor: QuantizedTensor, bias: Tensor | None, device: torch.device) -> None:
        super().__init__()
        self.source: QuantizedTensor | None = qtensor
        self.shape = tuple(qtensor.codes.shape)
        self.joined: tuple[tuple[int, ...], QuantizedLinear | None] = ((), None)  # what `join` made of this layer and the ones beside it
        weight = qtensor.weight()
        op, form, self.why = choose(weight, device)
        self.kernel = f"{op} ({form.name})"
        self.looks = weight.activation is not None and weight.activation.looks()
        packed = form.pack(weight)
        for name, tensor in packed.tensors.items():
            self.register_buffer(name, tensor.to(device))
        first = form.crossing(packed) if form.crossing else NEVER
        self.many = None if first == NEVER else (first, form.many)  # rows from which it runs another way, and which
        self._packed, self._run = Packed({name: getattr(self, name) for name in packed.tensors}, packed.meta), form.run
        self.register_buffer("inverse", None if qtensor.channel_scale is None else (1 / qtensor.channel_scale).bfloat16().to(device))
        turn = qtensor.rotation
        self.rotation = None if turn is None else Rotation(*(t.to(device) for t in (turn.signs, turn.left, turn.right)))
        self.register_buffer("bias", bias)
        # Looked up once: a module finds its buffers by a search that costs as much as a small operation, and this runs for every layer of every token.
        self._bias, self._turn = bias, None if self.inverse is None and turn is None else self._transform
        self._rotate, self.turned_by = (None, "") if turn is None else turning(self.rotation, None, device) or (self.rotation.apply, "torch operators")
        rounds = turn is not None and weight.activation is not None and form.rounded is not None
        if rounds and (found := turning(self.rotation, weight.activation, device)) is not None:
            both, self.turned_by = found
            self._run, self._turn = partial(_turned_and_rounded, form.rounded, both), None if self.inverse is None else self._scaled

    def forward(self, x: Tensor) -> Tensor:
        """x [..., K] -> [..., N], in x's dtype."""
        y = self.rows(x.reshape(-1, x.shape[-1]))
        return y.view(*x.shape[:-1], y.shape[-1])

    def rows(self, x: Tensor) -> Tensor:
        """x [M, K] -> [M, N], in x's dtype: `forward` without the reshaping, for the token loop."""
        return self.ready_rows(x if self._turn is None else self._turn(x))

    def ready_rows(self, x: Tensor) -> Tensor:
        """`rows` for inputs [M, K] that whatever made them has multiplied by `inverse`; only for layers without a rotation."""
        y = self._run(x, self._packed)
        return y if self._bias is None else y + self._bias

    def _scaled(self, x: Tensor) -> Tensor:
        return x * self.inverse

    def _transform(self, x: Tensor) -> Tensor:
        x = x if self.inverse is None else x * self.inverse
        return x if self._rotate is None else self._rotate(x)

    def lie_in(self, joined: QuantizedLinear, start: int, n: int) -> None:
        """Makes packed tensors views of those of a joined layer, from row `start` on, where these are the same bytes in the same order."""
        for name, tensor in self._packed.tensors.items():
            if tensor.is_mkldnn or name not in joined._packed.tensors:  # oneDNN's own blocks have no rows to view; nested scales are joined unfolded
                continue
            there = joined._packed.tensors[name][start : start + n]
            if there.shape == tensor.shape and torch.equal(there, tensor):
                self._packed.tensors[name] = there
                setattr(self, name, there)

    def own_bytes(self, others: Sequence[QuantizedLinear]) -> int:
        """Bytes of packed tensors that none of the others shares."""
        shared = {_place(tensor) for other in others for tensor in other._packed.tensors.values()}
        return sum(tensor.numel() * tensor.element_size() for tensor in self._packed.tensors.values() if _place(tensor) not in shared)

    def packed_bytes(self) -> dict[str, int]:
        """Bytes resident by tensor: measured from the tensors in use."""
        held = {name: getattr(self, name) for name in (*self._packed.tensors, "inverse") if getattr(self, name) is not None}
        held |= {} if self.rotation is None else vars(self.rotation)
        return {name: tensor.numel() * tensor.element_size() for name, tensor in held.items()}


def turning(rotation: Rotation, activation: Activation | None, device: torch.device) -> tuple[Callable, str] | None:
    """(what turns inputs [M, K], and rounds them in the same pass where they are rounded; its name), None where no form of the op serves it. What it holds
    is the rotation's own.
    """
    op, turn = ops()["hadamard"], Turn(rotation.signs, rotation.left, rotation.right, activation)
    form, _ = serving(op, turn, device)
    return None if form is None else (partial(form.run, packed=form.pack(turn)), f"{op.name} ({form.name})")


def _turned_and_rounded(multiply: Callable, turn: Callable, x: Tensor, packed: Packed) -> Tensor:
    return multiply(x, *turn(x), packed)


def _place(tensor: Tensor) -> int:
    """Where a tensor's memory is; tensors in oneDNN's own layout share none and say none."""
    return id(tensor) if tensor.is_mkldnn else tensor.untyped_storage().data_ptr()


def join(layers: Sequence[QuantizedLinear]) -> QuantizedLinear | None:
    """One layer that gives the outputs of several with the same inputs side by side; None where their formats or transforms differ.

    The codes are the same ones, one below the other, packed anew. Made once; the layers' packed tensors become views of it where they can.
    """
    members = tuple(map(id, layers))
    if layers[0].joined[0] == members:
        return layers[0].joined[1]
    sources = [layer.source for layer in layers]
    if None in sources or (together := concatenate(sources)) is None:
        return None
    rows = [source.codes.shape[0] for source in sources]
    given = next((layer.bias for layer in layers if layer.bias is not None), None)
    biases = [] if given is None else [given.new_zeros(n) if layer.bias is None else layer.bias for n, layer in zip(rows, layers, strict=True)]
    joined = QuantizedLinear(together, torch.cat(biases).detach() if biases else None, together.codes.device)
    joined.source = None
    if any(layer.kernel != joined.kernel for layer in layers):
        return None
    for layer, start, n in zip(layers, itertools.accumulate([0, *rows[:-1]]), rows, strict=True):
        layer.lie_in(joined, start, n)
    layers[0].joined = (members, joined)
    return joined


def siblings(names: Iterable[str]) -> list[list[str]]:
    """The names in order, those that TOGETHER puts beside each other in one list."""
    found: dict[tuple[str, ...], list[str]] = {}
    for name in names:
        place, _, own = name.rpartition(".")
        found.setdefault((place, *next((group for group in TOGETHER if own in group), (own,))), []).append(name)
    return list(found.values())


def release(layers: dict[str, QuantizedLinear], name: str, qtensor: QuantizedTensor) -> QuantizedTensor:
    """Forgets the unpacked codes of a layer once those it can be joined with are there too; for models whose codes would not fit twice.

    Gives the tensor back without its codes and scales, which is enough to count what it stores.
    """
    place, _, own = name.rpartition(".")
    for group in TOGETHER:
        members = [layers.get(f"{place}.{part}") for part in group]
        if own in group and all(members):
            join(members)
        if own in group and not all(members):
            break
    else:
        for part in next((group for group in TOGETHER if own in group), (own,)):
            layers[f"{place}.{part}"].source = None
    shapes = {field: getattr(qtensor, field).to("meta") for field in ("codes", "scale", "zero") if getattr(qtensor, field) is not None}
    return dataclasses.replace(qtensor, **shapes)


def quantized_head(head: nn.Linear, bits: int, device: torch.device) -> QuantizedLinear:
    """The output head [V, K] rounded to nearest: 8 bits with one scale a row, 4 bits in groups of 64 (of K where 64 does not divide it). A head that
    shares its tensor with the embedding gets codes of its own, and the embedding stays.
    """
    group = bits < 8 and head.weight.shape[1] % 64 == 0
    parts = [quantize_affine(rows.float(), bits, "group" if group else "channel", 64, True) for rows in head.weight.split(16384)]
    layer = QuantizedLinear(concatenate(parts), head.bias, device)
    layer.source = None
    return layer


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
