"""Faults: bugs that quantized models really have, planted in a copy of a run. Each changes what a kernel or a loader would, nothing else."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from explorer.bugs import BUGS, Bug
from explorer.calibration import block_inputs
from explorer.methods import Method
from explorer.metrics import Subject
from explorer.qlinear import QuantizedLinear
from explorer.qtensor import QuantizedTensor

HALF_MAX = 65504.0  # the largest float16


@dataclass(frozen=True)
class Fault:
    """How a bug is planted. change: of one tensor; plant: of the whole subject; text: of the calibration text; one of the three is given. needs: why
    it cannot happen to a tensor, "" when it can.
    """

    bug: Bug
    change: Callable[[QuantizedTensor], QuantizedTensor] | None = None
    plant: Callable[[Subject], Subject] | None = None
    text: Callable[[str], str] | None = None
    needs: Callable[[QuantizedTensor], str] = lambda q: ""

    def refuses(self, method: Method, subject: Subject | None = None) -> str:
        """Why this bug cannot happen to a method (or to the tensors it made), "" when it can."""
        if self.text is not None:
            return "" if method.reads_inputs() else "the method reads no calibration text"
        clauses = {self.needs(q) for q in subject.qtensors.values()} if subject else set()
        return "" if not clauses or "" in clauses else min(clauses)


def planted(fault: Fault, subject: Subject) -> Subject:
    """A copy of the subject with the bug in it; the one that was given stays as it is."""
    if fault.plant is not None:
        return fault.plant(subject)
    if fault.change is None:
        return subject
    qtensors = {name: q if fault.needs(q) else fault.change(q) for name, q in subject.qtensors.items()}
    return rebuilt(subject, qtensors)


def rebuilt(subject: Subject, qtensors: dict[str, QuantizedTensor]) -> Subject:
    """The subject with other tensors in its layers; layers whose tensor is the same one are shared."""
    layers = {}
    for name, q in qtensors.items():
        same = q is subject.qtensors[name]
        layers[name] = subject.layers[name] if same else QuantizedLinear(q, subject.originals[name].bias, subject.loaded.device)
    return dataclasses.replace(subject, qtensors=qtensors, layers=layers)


def zero_off_by_one(q: QuantizedTensor) -> QuantizedTensor:
    zero = torch.full_like(q.scale, 2 ** (q.bits - 1), dtype=torch.float32) if q.zero is None else q.zero
    return dataclasses.replace(q, zero=zero + 1, zero_bits=0 if q.zero is None else q.zero_bits)


def stale_scale(q: QuantizedTensor) -> QuantizedTensor:
    scale = q.scale.clone()
    scale[:, 1] = scale[:, 0]
    return dataclasses.replace(q, scale=scale)


def transposed_scales(q: QuantizedTensor) -> QuantizedTensor:
    return dataclasses.replace(q, scale=q.scale.T.reshape(q.scale.shape))


def swapped_nibbles(q: QuantizedTensor) -> QuantizedTensor:
    return dataclasses.replace(q, codes=q.codes.unflatten(1, (-1, 2)).flip(-1).flatten(1))


class HalfOutput(nn.Module):
    """A layer whose output passes through float16 at 2**shift times its size, as partial sums do before the scale is applied."""

    def __init__(self, layer: QuantizedLinear, shift: int) -> None:
        super().__init__()
        self.layer, self.factor, self.kernel, self.why = layer, 2.0**shift, layer.kernel, layer.why

    def forward(self, x: Tensor) -> Tensor:
        return ((self.layer(x).float() * self.factor).half().float() / self.factor).to(x.dtype)

    def packed_bytes(self) -> dict[str, int]:
        return self.layer.packed_bytes()


class Kept(nn.Module):
    """A layer that says it runs on codes and runs on the 16-bit weight."""

    def __init__(self, original: nn.Linear, claimed: QuantizedLinear) -> None:
        super().__init__()
        self.original, self.kernel, self.why = original, claimed.kernel, claimed.why

    def forward(self, x: Tensor) -> Tensor:
        return self.original(x)

    def packed_bytes(self) -> dict[str, int]:
        return {"codes": self.original.weight.numel() * self.original.weight.element_size()}


@torch.no_grad()
def overflow(subject: Subject) -> Subject:
    """In the last layer of the middle block: the power of two takes its largest output on the first window to four times float16's range or more."""
    names = list(subject.layers)
    block = sorted({name.split(".")[1] for name in names}, key=int)
    name = [n for n in names if n.split(".")[1] == block[len(block) // 2]][-1]
    inputs = next(x[name] for _, _, x in block_inputs(subject.loaded, subject.windows[:1], {name: subject.originals[name]}) if name in x)
    largest = subject.layers[name](inputs).float().abs().max().clamp(min=1e-20)
    shift = int(torch.log2(HALF_MAX / largest).ceil().item()) + 2
    return dataclasses.replace(subject, layers=subject.layers | {name: HalfOutput(subject.layers[name], shift)})


def fallback(subject: Subject) -> Subject:
    """The last third of the layers."""
    names = list(subject.layers)[-max(1, len(subject.layers) // 3) :]
    kept = {name: Kept(subject.originals[name], subject.layers[name]) for name in names}
    return dataclasses.replace(subject, layers=subject.layers | kept)


def shuffled(text: str) -> str:
    """The text's characters in random order: what calibration text looks like to a model whose tokenizer it was not made for."""
    letters = list(text)
    random.Random(0).shuffle(letters)
    return "".join(letters)


def _affine(q: QuantizedTensor) -> str:
    return "it has no zero-point: its codes are indices into a table" if q.codebook is not None else ""


def _grouped(q: QuantizedTensor) -> str:
    return "" if q.scale.shape[1] > 1 and q.scale.shape[0] > 1 else "it has one scale a row, not one a group"


def _narrow(q: QuantizedTensor) -> str:
    return "" if q.bits <= 4 and q.codes.shape[1] % 2 == 0 else "its codes fill whole bytes"


FAULTS = {
    fault.bug.name: fault
    for fault in (
        Fault(BUGS["zero"], change=zero_off_by_one, needs=_affine),
        Fault(BUGS["stale"], change=stale_scale, needs=_grouped),
        Fault(BUGS["overflow"], plant=overflow),
        Fault(BUGS["calibration"], text=shuffled),
        Fault(BUGS["fallback"], plant=fallback),
        Fault(BUGS["nibbles"], change=swapped_nibbles, needs=_narrow),
        Fault(BUGS["transposed"], change=transposed_scales, needs=_grouped),
    )
}
