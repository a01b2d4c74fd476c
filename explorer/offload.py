"""Offload: how a model runs that does not fit its device. 16-bit weights stay in their files and go to the device a layer at a time; codes, which only
metrics and checkpoints read, go to a file. What stays on the device is packed.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from explorer.devices import free_memory
from explorer.qtensor import QuantizedTensor
from explorer.records import InputError


class Streamed(nn.Linear):
    """A linear layer whose weight [N, K] stays where it is, mapped from its file, and goes to the inputs' device for the length of a product."""

    def forward(self, x: Tensor) -> Tensor:
        """x [..., K] on the device -> [..., N]."""
        return F.linear(x, self.weight.to(x.device), self.bias)

    def _apply(self, fn, recurse=True):
        weight = self._parameters.pop("weight")
        try:
            return super()._apply(fn, recurse)
        finally:
            self._parameters["weight"] = weight


def streamed(layers: dict[str, nn.Linear]) -> None:
    """Makes these layers Streamed; moving their model to a device then leaves their weights behind."""
    for layer in layers.values():
        layer.__class__ = Streamed


def streams(model: nn.Module) -> bool:
    """Whether a weight of the model, as it stands, goes to the device at each use."""
    return any(isinstance(module, Streamed) for module in model.modules())


def on_file(q: QuantizedTensor, layer: str) -> QuantizedTensor:
    """The same tensor on the CPU, its codes [N, K] mapped from a temporary file that is gone when they are. Raises InputError when the disk is full."""
    size, folder = q.codes.numel(), tempfile.gettempdir()
    if (free := shutil.disk_usage(folder).free) < 1.1 * size:
        raise InputError(
            f"The codes of layer {layer} need {size / 1e9:.2f} GB of disk and {folder} has {free / 1e9:.2f} GB free; "
            "make room, or name a larger place in TMPDIR."
        )
    with tempfile.NamedTemporaryFile(prefix="quantization-explorer-") as file:
        codes = torch.from_file(file.name, shared=True, size=size, dtype=torch.uint8).view(q.codes.shape)
    codes.copy_(q.codes)
    return dataclasses.replace(dataclasses.replace(q, codes=q.codes[:0]).to(torch.device("cpu")), codes=codes)


def require_room(device: torch.device, least: float, done: int, layers: int) -> None:
    """Raises InputError, before the system ends the process, when less than `least` bytes of the device are free after `done` of `layers`."""
    if (free := free_memory(device)) < least:
        raise InputError(
            f"The memory is full after {done} of {layers} layers: {free / 1e9:.1f} GB are free and the next layers need {least / 1e9:.1f}. "
            "Take fewer bits, a smaller model or a larger machine."
        )
