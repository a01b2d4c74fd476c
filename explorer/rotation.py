"""Rotation: an orthogonal Hadamard transform of a layer's inputs, with random signs. It preserves the function and spreads outliers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from kernels.hadamard import Turn, refuses
from kernels.hadamard import hadamard as turn_by_kernel

PALEY = (12, 20, 24, 28, 44)  # orders 4m that are no power of two and that `paley` builds


def _residues(q: int) -> Tensor:
    """[q, q] float32: +1 where j - i is a square modulo the prime q, -1 where it is not, 0 on the diagonal (Jacobsthal matrix)."""
    squares = {i * i % q for i in range(1, q)}
    character = torch.tensor([0.0] + [1.0 if i in squares else -1.0 for i in range(1, q)])
    return character[(torch.arange(q)[None, :] - torch.arange(q)[:, None]) % q]


def paley(order: int) -> Tensor:
    """A Hadamard matrix [order, order] of +-1: Paley's first construction for order - 1 = q = 3 mod 4, his second for order / 2 - 1 = q = 1 mod 4."""
    if order == 28:  # 27 is no prime; 13 = 1 mod 4 is
        core = torch.zeros(14, 14)
        core[0, 1:], core[1:, 0], core[1:, 1:] = 1, 1, _residues(13)
        return torch.kron(core, torch.tensor([[1.0, 1.0], [1.0, -1.0]])) + torch.kron(torch.eye(14), torch.tensor([[1.0, -1.0], [-1.0, -1.0]]))
    q = order - 1
    skew = torch.zeros(order, order)
    skew[0, 1:], skew[1:, 0], skew[1:, 1:] = 1, -1, _residues(q)
    return skew + torch.eye(order)


@cache
def hadamard(order: int) -> Tensor:
    """A Hadamard matrix [order, order] of +-1 for 1, 2, 4, ... and 2**a times an order in PALEY. ValueError for others."""
    if order in (1, *PALEY):
        return torch.ones(1, 1) if order == 1 else paley(order)
    if order % 2:
        raise ValueError(f"no Hadamard matrix of order {order} is known here")
    return torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), hadamard(order // 2))


def orders(width: int) -> tuple[int, int]:
    """(p, q) such that H_p x H_q acts on runs of p * q channels that fill `width`; p * q is `width` itself, or the largest power of two in it."""
    odd, power = width, 1
    while odd % 2 == 0:
        odd, power = odd // 2, power * 2
    special = next((m for m in PALEY if width % m == 0 and (width // m) & (width // m - 1) == 0), 0)
    if special:
        return special, width // special
    half = 1 << (power.bit_length() // 2)
    return power // half, half


@dataclass(frozen=True)
class Rotation:
    """x -> (x * signs) (I x H_p x H_q) / sqrt(p q), an orthogonal map of the last dimension (QuaRot, arXiv 2404.00456, section 3; signs after
    QuIP#, 2402.04396, section 3). signs [K], left [p, p] and right [q, q] of +-1, int8; computed in float32.
    """

    signs: Tensor
    left: Tensor
    right: Tensor

    @classmethod
    def of(cls, width: int, device: torch.device) -> Rotation:
        """The rotation of `width` channels; the same for the same width."""
        signs = torch.randint(0, 2, (width,), generator=torch.Generator().manual_seed(0), dtype=torch.int8) * 2 - 1
        p, q = orders(width)
        return cls(*(t.to(device, torch.int8) for t in (signs, hadamard(p), hadamard(q))))

    def _turn(self, x: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """x [..., K] float32 in runs of p * q, times H_p x H_q / sqrt(p q)."""
        p, q = left.shape[0], right.shape[0]
        return (left.float() @ x.reshape(-1, p, q) @ right.float()).reshape(x.shape) * (p * q) ** -0.5

    def apply(self, x: Tensor) -> Tensor:
        """x [..., K] -> [..., K] in x's dtype; on a GPU by one kernel."""
        if x.is_cuda and not refuses(Turn(self.signs, self.left, self.right)):
            return turn_by_kernel(x.reshape(-1, x.shape[-1]), self.signs, self.left, self.right.shape[0], "")[0].view(x.shape)
        return self._turn(x.float() * self.signs, self.left.T, self.right).to(x.dtype)

    def conjugate(self, matrix: Tensor) -> Tensor:
        """R^T S R for a symmetric S [K, K] where `apply` is x -> x R: the Gram matrix of turned inputs from that of the inputs."""
        return self.apply(self.apply(matrix).T)

    def invert(self, x: Tensor) -> Tensor:
        """The inverse of `apply`, [..., K] -> [..., K]."""
        return (self._turn(x.float(), self.left, self.right.T) * self.signs).to(x.dtype)
