"""QuIP#: two bits a weight from a lattice of eight dimensions, after a rotation that makes weights look normal, with error feedback."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from explorer import lattice
from explorer.input_statistics import InputStatistics
from explorer.methods import Method, choice
from explorer.methods.gptq import hessian, inverse_factor
from explorer.qtensor import QuantizedTensor
from explorer.rotation import Rotation

STEP = 0.96  # of a row's root mean square: the scale of least squared error for normal weights, found by measurement
DAMPING, TINY = 0.01, 1e-35


@dataclass(frozen=True)
class Quip(Method):
    """Four grid points a weight are too coarse, but eight weights together can choose among 2^16 points, and those of the lattice E8 lie
    densest. A Hadamard rotation first makes rows look normal, which is what the codebook is shaped for; then runs of eight columns are
    rounded in order, and the columns after them make up for the output error, as in GPTQ. The paper then fine-tunes (section 5); this does not.
    """

    name: ClassVar[str] = "quip"
    title: ClassVar[str] = "QuIP# without fine-tuning (E8 lattice, 2 bits)"
    short: ClassVar[str] = "QuIP# 2-bit"
    paper: ClassVar[str] = "Tseng et al. 2024, arXiv 2402.04396, sections 3 and 4"
    needs_inputs: ClassVar[bool] = True

    rotate: bool = choice(True, title="Rotated", help="Turn inputs and weights by a Hadamard matrix first, so that rows look normal.", off="not rotated")
    feedback: bool = choice(True, title="Feedback", help="Let later columns make up for the error of earlier ones (LDLQ).", off="no feedback")

    def reads_inputs(self) -> bool:
        return self.feedback

    def reads_gram(self, layer: str) -> bool:
        return self.feedback

    def inverts_gram(self, layer: str) -> bool:
        return self.feedback

    def refuses(self, shape: tuple[int, int], layer: str = "") -> str:
        return f"runs of {lattice.WIDTH} do not divide its {shape[1]} inputs" if shape[1] % lattice.WIDTH else ""

    def quantize(self, weight: Tensor, inputs: InputStatistics | None, layer: str = "") -> QuantizedTensor:
        rotation = Rotation.of(weight.shape[1], weight.device) if self.rotate else None
        w = rotation.apply(weight) if rotation else weight
        scale = root_mean_square(w) * STEP
        if self.feedback:
            h = hessian(inputs)
            scale, points = with_feedback(w, scale, rotation.conjugate(h) if rotation else h)
        else:
            points = lattice.coordinates(*lattice.nearest_point(w.reshape(-1, lattice.WIDTH) / scale.repeat_interleave(w.shape[1] // lattice.WIDTH, 0)))
        codes, zero = lattice.to_codes(points.reshape(w.shape)), torch.full_like(scale, lattice.MIDDLE)
        q = QuantizedTensor(codes, (scale * lattice.CODE_STEP).bfloat16(), 4, zero, zero_bits=0, code_bits=2)
        return dataclasses.replace(q, rotation=rotation)


def root_mean_square(w: Tensor) -> Tensor:
    """[N, 1] of w [N, K]; TINY for a row of zeros, because no lattice point is zero."""
    largest = w.abs().amax(-1, keepdim=True).clamp(min=TINY)
    return (largest * (w / largest).square().mean(-1, keepdim=True).sqrt()).clamp(min=TINY)


def with_feedback(w: Tensor, scale: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """(scale [N, 1], lattice points [N, K]) for w [N, K] and H [K, K]. Columns that make up for others are larger than the weights were, so a first
    pass finds how large, and the second rounds at that scale; last, each row takes the scale of least output error for its points.
    """
    h = h if h.any() else torch.eye(len(h), device=h.device)  # inputs of zeros say nothing, so all columns count alike
    factor = inverse_factor(h, DAMPING)
    _, rounded = feed_back(w / scale, factor)
    scale = scale * root_mean_square(rounded) * STEP
    points, _ = feed_back(w / scale, factor)
    along = points @ h
    best = (along * w).sum(-1, keepdim=True) / (along * points).sum(-1, keepdim=True)
    return torch.where((best / scale - 1).abs() < 0.5, best, scale), points


def feed_back(w: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    """(lattice points [N, K], what each of them was rounded from [N, K]) for w [N, K]; factor: upper Cholesky factor of the inverse Hessian."""
    w, points = w.clone(), torch.empty_like(w)
    for start in range(0, w.shape[1], lattice.WIDTH):
        stop = start + lattice.WIDTH
        points[:, start:stop] = lattice.coordinates(*lattice.nearest_point(w[:, start:stop]))
        error = w[:, start:stop] - points[:, start:stop]
        w[:, stop:] -= error @ torch.linalg.solve_triangular(factor[start:stop, start:stop], factor[start:stop, stop:], upper=True)
    return points, w
