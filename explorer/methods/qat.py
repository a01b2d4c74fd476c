"""QAT: a short fine-tuning with the rounding inside the forward pass, taught by the 16-bit model on the calibration text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from explorer import sizes
from explorer.devices import free_memory
from explorer.input_statistics import InputStatistics
from explorer.likelihood import by_rows
from explorer.methods import Method, amount, choice
from explorer.qtensor import QuantizedTensor, group_view, quantize_affine
from explorer.records import InputError, Progress
from explorer.sizes import Weight
from kernels.linear16 import linear

BATCH = 4  # windows a step
KEPT = 2**29  # bytes of the teacher's distributions that are kept for the next time a window comes; others are computed anew
LEAST = 0.01  # of where a step starts: what it can shrink to


class _Round(torch.autograd.Function):
    """Learned-step rounding: w' = (clamp(round(w/s + zero), 0, top) - zero) s; straight through for weights inside the range, LSQ's slope for s.

    LSQ's factor on that slope (section 2.2) is for plain gradient descent; Adam, which trains here, divides any constant factor away, so there is none.
    """

    @staticmethod
    def forward(context: Any, weight: Tensor, step: Tensor, zero: float, top: int) -> Tensor:
        """weight [N, groups, G], step [N, groups, 1] -> the rounded weight."""
        place = weight / step + zero
        context.save_for_backward(place)
        context.grid = (zero, top)
        return (place.round().clamp(0, top) - zero) * step

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple:
        (place,), (zero, top) = context.saved_tensors, context.grid
        inside = (place >= 0) & (place <= top)
        slope = torch.where(inside, place.round() - place, place.clamp(0, top) - zero)  # d w' / d step (LSQ, equation 3)
        return gradient * inside, (gradient * slope).sum(-1, keepdim=True), None, None


def grid_of(bits: int) -> tuple[float, int]:
    """(the code that means 0, the highest code). With two bits no point lies on 0, which leaves two on either side: -1.5, -0.5, 0.5, 1.5 (Liu et
    al. 2025, ParetoQ, arXiv 2502.02631, section 3); with more bits 0 is the middle code.
    """
    return (1.5, 3) if bits == 2 else (2.0 ** (bits - 1), 2**bits - 1)


class LearnedStepLinear(nn.Module):
    """A linear layer whose weight [N, K] is rounded in every forward pass; weight and steps are trained in float32."""

    def __init__(self, layer: nn.Linear, bits: int, group_size: int) -> None:
        super().__init__()
        self.bits, self.shape = bits, layer.weight.shape
        groups = group_view(layer.weight.detach().float(), "group", group_size)
        self.weight = nn.Parameter(groups.clone())
        self.step = nn.Parameter(best_step(groups, bits))
        self.least = LEAST * self.step.detach()
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """x [..., K] -> [..., N] in x's dtype."""
        weight = _Round.apply(self.weight, self.step, *grid_of(self.bits)).view(self.shape)
        return linear(x, weight.to(x.dtype), self.bias)

    @torch.no_grad()
    def keep_positive(self) -> None:
        """After an update, which may take a step to zero or beyond, where its grid is turned around: raises such steps to their least."""
        self.step.copy_(torch.maximum(self.step, self.least))

    def tensor(self) -> QuantizedTensor:
        """The codes and steps that training ended with."""
        (zero, top), step = grid_of(self.bits), self.step.detach().bfloat16()
        codes = (self.weight.detach() / step.float() + zero).round().clamp(0, top).to(torch.uint8).view(self.shape)
        step = step.squeeze(-1)
        middle = torch.full_like(step, zero, dtype=torch.float32) if zero != 2 ** (self.bits - 1) else None
        return QuantizedTensor(codes, step, self.bits, middle, zero_bits=0)


def best_step(groups: Tensor, bits: int) -> Tensor:
    """[N, groups, 1]: where the steps start, the one of twenty shares of the largest weight that rounds with the least squared error."""
    zero, top = grid_of(bits)
    limit = groups.abs().amax(-1, keepdim=True) / (top - zero)
    limit = torch.where(limit > 0, limit, 1.0)
    best, least = limit, torch.full_like(limit, torch.inf)
    for share in range(20, 0, -1):
        step = limit * (share / 20)
        loss = (((groups / step + zero).round().clamp(0, top) - zero) * step - groups).square().sum(-1, keepdim=True)
        best, least = torch.where(loss < least, step, best), torch.minimum(loss, least)
    return best


@dataclass(frozen=True)
class Qat(Method):
    """Post-training methods choose codes for fixed weights; training lets the weights move to where rounding hurts least. Rounding has no
    gradient, so it is passed straight through; the steps are learned too. The teacher is the 16-bit model itself: the student learns to give
    its whole distribution, which needs little text. At 2 and 3 bits it loses a fraction of what plain rounding does; GPTQ with zeros at 3 bits and a
    lattice at 2 (QuIP#) lose less still in the survey (docs/RESULTS.md), and train nothing.
    """

    name: ClassVar[str] = "qat"
    title: ClassVar[str] = "QAT (learned step, distilled)"
    short: ClassVar[str] = "QAT"
    paper: ClassVar[str] = "Esser et al. 2019, LSQ, arXiv 1902.08153; distillation: Liu et al. 2023, LLM-QAT, arXiv 2305.17888"
    needs_inputs: ClassVar[bool] = True
    of_model: ClassVar[bool] = True

    bits: int = choice(2, 2, 3, 4, title="Bits", help="A code of b bits names 2^b grid points.")
    group_size: int = choice(64, 32, 64, 128, title="Group size", help="Weights along the inputs that share a step.")
    steps: int = amount(100, 1, 2000, title="Steps", help="Optimiser steps of 4 windows each; more sequences of calibration text help.")
    rate: float = amount(1e-3, 1e-6, 1e-2, title="Learning rate", help="Of Adam, falling to zero along a cosine.")

    def quantize(self, weight: Tensor, inputs: InputStatistics | None, layer: str = "") -> QuantizedTensor:
        """Where training starts from: plain rounding."""
        return quantize_affine(weight, self.bits, "group", self.group_size, symmetric=True)

    def require(self, weight: Weight, windows: tuple[int, int], resident: float, free: float, on_gpu: bool) -> None:
        count, length = windows
        _require([s for s in weight.matrices if not self.refuses(s)], weight.vocabulary, min(BATCH, count) * length, resident, free, on_gpu)

    def train(self, model: nn.Module, layers: dict[str, nn.Linear], put: Callable[[str, nn.Module], None], rows: Tensor) -> Iterator[Any]:
        """Trains the layers, each put into `model` under its name, on windows [W, T]; yields Progress, returns ({name: QuantizedTensor}, losses).

        The caller puts the original layers back.
        """
        batches = rows.split(BATCH)
        _require_room(model, layers, batches[0])
        yield Progress("train", 0, self.steps, "rounds the weights that training starts from")
        students = {name: LearnedStepLinear(layer, self.bits, self.group_size) for name, layer in layers.items()}
        for name, student in students.items():
            put(name, student)
        optimiser = torch.optim.Adam([p for s in students.values() for p in (s.weight, s.step)], lr=self.rate, betas=(0.9, 0.95))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, self.steps)
        taught: dict[int, Tensor] = {}
        losses: list[float] = []
        for step in range(self.steps):
            which = step % len(batches)
            if (target := taught.get(which)) is None:
                for name, layer in layers.items():
                    put(name, layer)
                target = _teach(model, batches[which])
                for name, student in students.items():
                    put(name, student)
                if (len(taught) + 1) * target.nbytes <= KEPT:
                    taught[which] = target
            with torch.enable_grad():
                found = model(batches[which], use_cache=False).logits.float().log_softmax(-1)
                loss = nn.functional.kl_div(found, target.float(), log_target=True, reduction="none").sum(-1).mean()
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
            optimiser.step()
            for student in students.values():
                student.keep_positive()
            schedule.step()
            losses.append(loss.item())
            yield Progress("train", step + 1, self.steps, f"divergence {losses[-1]:.3f} nats")
        return {name: student.tensor() for name, student in students.items()}, losses


@torch.no_grad()
def _teach(model: nn.Module, batch: Tensor) -> Tensor:
    """Log-distribution of the model as it stands after each token of windows [W, T]: [W, T, V] bfloat16."""
    logits = model(batch, use_cache=False).logits
    return by_rows(lambda rows: rows.float().log_softmax(-1).bfloat16(), logits.flatten(0, 1)).view(logits.shape)


def _require_room(model: nn.Module, layers: dict[str, nn.Linear], batch: Tensor) -> None:
    """Raises InputError, before anything is trained, where the device lacks the memory that training takes."""
    shapes = [tuple(layer.weight.shape) for layer in layers.values()]
    _require(shapes, model.get_input_embeddings().weight.shape[0], batch.numel(), 0.0, free_memory(batch.device), batch.device.type == "cuda")


def _require(shapes: Sequence[tuple[int, int]], vocabulary: int, tokens: int, resident: float, free: float, on_gpu: bool) -> None:
    """The same for layers with weights [N, K] of these shapes and so many tokens a step, of the `free` bytes, of which the model itself will take
    `resident`.
    """
    weights = sum(n * k for n, k in shapes)
    needs = sizes.training(weights, tokens * vocabulary, tokens * sum(n + k for n, k in shapes)) + KEPT
    if needs + resident > free:
        raise InputError(
            f"Training {weights / 1e9:.2f} billion weights takes about {needs / 1e9:,.1f} GB beside the model ({sizes.TRAINED} bytes a weight)"
            f"{f', the model itself {resident / 1e9:,.1f} GB' if resident else ''}, and {'the GPU' if on_gpu else 'this machine'} has {free / 1e9:,.1f} GB "
            "free. Choose a smaller model, shorter windows, or a method that quantizes a layer at a time, such as gptq."
        )
