"""Input statistics: all that calibrated methods read of a layer's inputs, summed batch by batch so that no input is kept. Knows no model and no method."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

ROWS = 2048  # inputs that are held in float32 at once


@dataclass(frozen=True)
class InputStatistics:
    """What is known of the calibration inputs X [M, K] of layers that read the same tensor, in float32 on the inputs' device.

    tokens: M. absmax, mean_abs, mean_square [K]: the largest |x|, the mean |x| and the mean x^2 of each channel. gram [K, K]: X^T X, a sum over tokens;
    None where it was not asked for.
    """

    tokens: int
    absmax: Tensor
    mean_abs: Tensor
    mean_square: Tensor
    gram: Tensor | None = None

    @classmethod
    def of(cls, inputs: Tensor, gram: bool = True) -> InputStatistics:
        """Of inputs [M, K] that are at hand."""
        sums = InputSums(gram)
        sums.add(inputs)
        return sums.statistics()


class InputSums:
    """The sums behind InputStatistics while inputs come in. gram: whether the Gram matrix is summed too, which takes 4 K^2 bytes, at K = 28,672 3.3 GB, and
    most of the time.

    float32 is enough: beside float64 a Gram matrix is off by 2e-7 of its norm after 2,048 tokens and by 5e-7 after 262,144 (measured, 256 channels), where
    bfloat16 has rounded each input by up to 4e-3.
    """

    def __init__(self, gram: bool) -> None:
        self._with_gram, self._tokens = gram, 0

    def add(self, inputs: Tensor) -> None:
        """inputs [..., K] of any floating dtype."""
        for part in inputs.flatten(0, -2).split(ROWS):
            x = part.float()
            if not self._tokens:
                self._absmax, self._abs, self._square = x.new_zeros(3, x.shape[1])
                self._gram = x.new_zeros(x.shape[1], x.shape[1]) if self._with_gram else None
            low, high = x.aminmax(dim=0)
            self._absmax = torch.stack([self._absmax, -low, high]).amax(0)
            self._abs += x.abs().sum(0)
            self._square += x.square().sum(0)
            if self._gram is not None:
                self._gram.addmm_(x.T, x)
            self._tokens += len(x)

    def statistics(self) -> InputStatistics:
        """What all inputs so far say. ValueError before the first."""
        if not self._tokens:
            raise ValueError("no inputs were seen")
        return InputStatistics(self._tokens, self._absmax, self._abs / self._tokens, self._square / self._tokens, self._gram)
