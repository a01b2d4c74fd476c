"""GPTQ: rounds one input column at a time and lets the columns not yet rounded make up for the error."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from explorer.input_statistics import InputStatistics
from explorer.methods import Method, amount, choice
from explorer.qtensor import QuantizedTensor, affine_parameters, group_view
from explorer.rotation import Rotation

BLOCK = 128  # columns between two updates of all that remain (section 3.3, step 2)


@dataclass(frozen=True)
class Gptq(Method):
    """Rounding to nearest minimises the error of the weights; GPTQ minimises the error of the layer's *output* on calibration text. Columns
    are rounded in order, and after each one the remaining columns move along the inverse Hessian H = 2/n X^T X to cancel the output error
    it made. The weights end up farther from the original than with plain rounding, the outputs closer.
    """

    name: ClassVar[str] = "gptq"
    title: ClassVar[str] = "GPTQ"
    short: ClassVar[str] = "GPTQ"
    paper: ClassVar[str] = "Frantar et al. 2022, arXiv 2210.17323, section 3.3"
    needs_inputs: ClassVar[bool] = True

    bits: int = choice(4, 2, 3, 4, 5, 6, 7, 8, title="Bits", help="A code of b bits names 2^b grid points.")
    granularity: str = choice("group", "tensor", "channel", "group", title="Granularity", help="How many weights share one scale.")
    group_size: int = choice(64, 32, 64, 128, title="Group size", help="Weights along the inputs that share a scale.", when=("granularity", ("group",)))
    symmetric: bool = choice(True, title="Symmetric", help="Symmetric: zero is the middle code. Asymmetric: the grid spans min to max.", off="asymmetric")
    full_range: bool = choice(
        False, title="Full range", when=("symmetric", (True,)),
        help="Scale = largest weight / (2^b - 1) * 2, as GPTQ's authors' code has it: every code has a use. Off: / (2^(b-1) - 1), as "
        "in textbooks: only what corrects other columns' errors reaches the lowest code.",
    )  # fmt: skip
    act_order: bool = choice(True, title="Act-order", help="Round the columns with the largest inputs first, while most columns can still compensate.")
    static_groups: bool = choice(
        False, title="Static groups", when=("act_order", (False,)),
        help="Scales of groups from the original weights instead of the already compensated ones; act-order always does so.",
    )  # fmt: skip
    damping: float = amount(0.01, 0.0001, 1.0, title="Damping", help="Share of the mean diagonal added to the Hessian, for stability.")
    rotate: bool = choice(False, title="Rotated", help="Turn inputs and weights by a Hadamard matrix first, so that no channel stands out.")

    def quantize(self, weight: Tensor, inputs: InputStatistics | None, layer: str = "") -> QuantizedTensor:
        h = hessian(inputs)
        if not self.rotate:
            return quantize_with_hessian(self, weight, h)
        rotation = Rotation.of(weight.shape[1], weight.device)
        q = quantize_with_hessian(self, rotation.apply(weight), rotation.conjugate(h))
        return dataclasses.replace(q, rotation=rotation)

    def reads_gram(self, layer: str) -> bool:
        return True

    def inverts_gram(self, layer: str) -> bool:
        return True


def hessian(inputs: InputStatistics | None) -> Tensor:
    """H = 2/n X^T X, [K, K] float32, of n inputs X [n, K]."""
    if inputs is None or inputs.gram is None:
        raise ValueError("no Hessian without the Gram matrix of calibration inputs")
    return inputs.gram * (2.0 / inputs.tokens)


def inverse_factor(h: Tensor, damping: float) -> Tensor:
    """Upper Cholesky factor of the inverse of the damped H [K, K]; damping grows tenfold until H is positive definite."""
    mean = h.diagonal().mean()
    for _ in range(8):
        damped = h.clone()
        damped.diagonal().add_(damping * mean)
        factor, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(factor), upper=True)
            if not failed:
                return upper
        damping *= 10
    raise ValueError("the calibration inputs hold NaN or infinities, so no Hessian can be inverted")


def quantize_with_hessian(method: Gptq, weight: Tensor, h: Tensor) -> QuantizedTensor:
    """The algorithm on weight [N, K] float32 and H [K, K] float32. Groups are static (scales from the original weights) with act-order
    or on request, and taken from the current, already compensated weights otherwise.
    """
    w, h, bits = weight.clone(), h.clone(), method.bits
    dead = h.diagonal() == 0
    h[dead, dead] = 1
    w[:, dead] = 0
    n, k = w.shape
    size = {"tensor": k, "channel": k, "group": method.group_size}[method.granularity]
    scale, zero = affine_parameters(group_view(w, method.granularity, method.group_size), bits, method.symmetric, method.full_range)
    order = torch.argsort(h.diagonal(), descending=True) if method.act_order else torch.arange(k, device=w.device)
    w, h = w[:, order], h[order][:, order]
    upper = inverse_factor(h, method.damping)
    diagonal = upper.diagonal().tolist()
    groups, middle, top = (order // size).tolist(), 2 ** (bits - 1), 2**bits - 1
    live_groups = method.granularity == "group" and not method.act_order and not method.static_groups
    codes = torch.empty(k, n, dtype=torch.uint8, device=w.device)
    for start in range(0, k, BLOCK):
        stop = min(start + BLOCK, k)
        block = w[:, start:stop].T.contiguous()  # [columns, N]: a column is one run of memory
        errors = torch.empty_like(block)
        for i in range(stop - start):
            group = groups[start + i]
            if live_groups and (start + i) % size == 0:
                live = torch.cat([block[i:].T, w[:, stop : stop + size]], 1)[:, :size]  # what the columns of this group have become
                fresh, fresh_zero = affine_parameters(live.unsqueeze(1), bits, method.symmetric, method.full_range)
                scale[:, group] = fresh[:, 0]
                if zero is not None:
                    zero[:, group] = fresh_zero[:, 0]
            step, offset = scale[:, group].float(), middle if zero is None else zero[:, group]
            code = (block[i] / step).round_().add_(offset).clamp_(0, top)
            codes[start + i] = code
            errors[i] = (block[i] - (code - offset) * step) / diagonal[start + i]
            block[i + 1 :].addr_(upper[start + i, start + i + 1 : stop], errors[i], alpha=-1)
        w[:, stop:].addmm_(errors.T, upper[start:stop, stop:], alpha=-1)
    return QuantizedTensor(codes[torch.argsort(order)].T.contiguous(), scale, bits, zero)
