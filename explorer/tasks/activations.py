"""One layer's inputs before and after a transform that keeps the product: planted outliers, SmoothQuant, a rotation; and what int8 makes of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from explorer import models
from explorer.input_statistics import InputStatistics
from explorer.methods.smoothquant import SmoothQuant
from explorer.metrics import histogram
from explorer.metrics.activations import kurtosis
from explorer.qtensor import quantize_affine
from explorer.records import Answer, Event, InputError
from explorer.rotation import Rotation
from explorer.tasks import Engine, Task
from explorer.tasks.error_map import digits
from explorer.tasks.inputs import inputs_of
from kernels.op import Activation, round_activation, split_outliers

TRANSFORMS = ("none", "smooth", "rotate")
SORTED, TALL, WIDE = 1024, 64, 96  # channels in the sorted plot at most; tokens and channels of the heat map
EDGES = [round(-127.5 + 3 * i, 1) for i in range(86)]  # of the histogram: three int8 codes a bin
INT8 = {
    "16-bit inputs": None, "W8A8 per tensor": Activation("int8", "tensor"), "W8A8 per token": Activation("int8"),
    "LLM.int8()": Activation("int8", threshold=6.0),
}  # fmt: skip


@dataclass(frozen=True)
class Pair:
    """Inputs [M, K] and the weight [N, K] they meet, float32. `peaks` [K]: largest |input| by channel on other tokens, which SmoothQuant reads."""

    inputs: Tensor
    weight: Tensor
    peaks: Tensor

    @classmethod
    def of(cls, inputs: Tensor, weight: Tensor) -> Pair:
        """The second half of the tokens, calibrated on the first."""
        half = len(inputs) // 2
        return cls(inputs[half:], weight, inputs[:half].abs().amax(0))

    def scaled(self, factor: Tensor) -> Pair:
        """Channels of the inputs times factor [K], columns of the weight divided by it: the product stays."""
        return Pair(self.inputs * factor, self.weight / factor, self.peaks * factor)

    def planted(self, strength: float, channels: int) -> Pair:
        """The largest channels `strength` times larger."""
        factor = torch.ones_like(self.peaks)
        factor[self.peaks.topk(min(channels, len(factor))).indices] = strength
        return self.scaled(factor)

    @cached_property
    def columns(self) -> Tensor:
        """The largest |weight| of each column, [1, K]."""
        return self.weight.abs().amax(0, keepdim=True)

    def factor(self, alpha: float) -> Tensor:
        """What SmoothQuant multiplies the inputs by, [K]; its scales depend on the largest weight of each column only."""
        return 1 / SmoothQuant(alpha=alpha).quantize(self.columns, InputStatistics.of(self.peaks.unsqueeze(0), gram=False)).channel_scale

    def smoothed(self, alpha: float) -> Pair:
        """As SmoothQuant scales them."""
        return self.scaled(self.factor(alpha))

    def rotated(self) -> Pair:
        """Both turned by the same Hadamard matrix."""
        turn = Rotation.of(self.weight.shape[1], self.weight.device)
        inputs = turn.apply(self.inputs)
        return Pair(inputs, turn.apply(self.weight), inputs.abs().amax(0))

    @cached_property
    def rounded(self) -> Tensor:
        """The weight after int8 with a scale a row, [N, K] float32."""
        return quantize_affine(self.weight, 8, "channel", 0, symmetric=True).dequantize()

    def error(self, activation: Activation | None, exact: Tensor | None = None) -> float:
        """||y' - y|| / ||y|| of the product with int8 weights (a scale a row) and inputs rounded as given."""
        exact = self.inputs @ self.weight.T if exact is None else exact
        inputs = self.inputs if activation is None else rounded(self.inputs, activation)
        return ((inputs @ self.rounded.T - exact).norm() / exact.norm().clamp(min=1e-30)).item()


def rounded(inputs: Tensor, activation: Activation) -> Tensor:
    """What inputs [M, K] float32 become: rounded, but for the columns that stay in 16 bits."""
    rest, columns = split_outliers(inputs, activation)
    codes, scale = round_activation(rest, activation)
    values = codes.float() * scale
    return values if columns is None else values.index_copy(1, columns, inputs[:, columns])


def checked(strength: float, channels: int) -> None:
    """Raises InputError unless the strength is 1 to 1,024 and the channels are 1 to 64."""
    if not 1 <= strength <= 1024 or not 1 <= channels <= 64:
        raise InputError("Outliers take a strength from 1 to 1,024 in 1 to 64 channels.")


@torch.no_grad()
def work(
    engine: Engine, model: str, layer: str, transform: str = "none", alpha: float = 0.5, strength: float = 1.0, channels: int = 4
) -> Iterator[Event]:  # fmt: skip
    """Answer data: layer, transform, alpha, strength, shape [tokens, channels], before and after (see `_told`), errors ({what: [before, after]}),
    smooth_error (SmoothQuant at this alpha, inputs per token), hist_edges, strongest ([index, token] of the largest input).
    """
    checked(strength, channels)
    if transform not in TRANSFORMS or not 0 <= alpha <= 1:
        raise InputError(f"The transform is one of {', '.join(TRANSFORMS)}, with an alpha from 0 to 1.")
    inputs, words = yield from inputs_of(engine, model, layer)
    weight = models.weight_of(models.trained(model, engine.load.hub), layer, engine.load.hub).float()
    before = Pair.of(inputs, weight).planted(strength, channels)
    smooth = before.smoothed(alpha)
    after = {"none": before, "smooth": smooth, "rotate": before.rotated()}[transform]
    exact = before.inputs @ before.weight.T
    order = before.inputs.abs().amax(0).argsort(descending=True)[:SORTED]
    yield Answer("activations", {
        "layer": layer, "transform": transform, "alpha": alpha, "strength": strength, "channels": channels, "shape": list(before.inputs.shape),
        "order": order.tolist(), "before": _told(before, order), "after": _told(after, order), "hist_edges": EDGES,
        "errors": {name: [before.error(a, exact), after.error(a, exact) if after is not before else None] for name, a in INT8.items()},
        "smooth_error": smooth.error(Activation("int8"), exact), "strongest": _strongest(before, words[len(words) // 2 :]),
    })  # fmt: skip


def _strongest(pair: Pair, words: list[str]) -> list[Any]:
    """[index, token] of the row with the largest input."""
    at = int(pair.inputs.abs().amax(1).argmax())
    return [at, words[at]]


def _told(pair: Pair, order: Tensor) -> dict[str, Any]:
    """inputs and weights: the largest magnitude of each channel in `order`; heat: the largest |input| by block of tokens and channels; counts of
    the inputs over their scale per tensor, in int8 codes (EDGES), and the share of them that becomes 0; kurtosis; ratio: of the largest channel
    to the median one, for inputs and weights.
    """
    peaks, columns = pair.inputs.abs().amax(0), pair.weight.abs().amax(0)
    tall, wide = -(-pair.inputs.shape[0] // TALL), -(-pair.inputs.shape[1] // WIDE)
    blocks = torch.nn.functional.pad(pair.inputs.abs(), (0, -pair.inputs.shape[1] % wide, 0, -pair.inputs.shape[0] % tall))
    heat = blocks.unflatten(0, (-1, tall)).unflatten(2, (-1, wide)).amax((1, 3))
    codes = pair.inputs * (127 / peaks.max().clamp(min=1e-12))
    counts = histogram(codes, len(EDGES) - 1, EDGES[0], EDGES[-1])[1]
    ratio = [(p.max() / p.median().clamp(min=1e-12)).item() for p in (peaks, columns)]
    return {
        "inputs": digits(peaks[order]), "weights": digits(columns[order]), "heat": digits(heat), "block": [tall, wide], "counts": counts,
        "zeros": (codes.abs() < 0.5).float().mean().item(),
        "kurtosis": kurtosis(pair.inputs), "ratio": ratio, "largest": peaks.max().item(),
    }  # fmt: skip


TASK = Task("activations", work, turn="none", stored=False)
