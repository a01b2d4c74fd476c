"""Loader: the model that is loaded, kept for the next experiment on it, with what was made of its layers; and whether memory allows for more."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors import SafetensorError

from explorer import models
from explorer.checkpoint import weigh
from explorer.devices import default_device, free_memory
from explorer.held import Held
from explorer.hub import Hub
from explorer.methods import Method
from explorer.models import LoadedModel
from explorer.quantizing import sound
from explorer.records import Experiment, ModelRef, Progress, key_of
from explorer.sizes import resident


@dataclass
class Loader:
    """Keeps the last model loaded, so that a second experiment on it starts at once; held: what was made of its layers last. hub: where models
    that are not here come from. An offloaded model is loaded anew once there is room for it.
    """

    device: torch.device = field(default_factory=default_device)
    held: Held = field(default_factory=Held)
    hub: Hub = field(default_factory=Hub)
    _last: LoadedModel | None = None
    _sound: ModelRef | None = None

    def __call__(self, ref: ModelRef) -> LoadedModel:
        last = self._last
        if last is None or last.ref != ref or (last.offloaded and last.whole <= free_memory(self.device)):
            self._let_go()
            self._last = models.load(ref, self.device, self.hub)
        return self._last

    def checked(self, ref: ModelRef) -> Iterator[Any]:
        """Yields Progress, returns the model, once all of its weights were looked at. Raises InputError where they hold NaN or infinities."""
        yield Progress("load model", 0, 1, ref.name)
        loaded = self(ref)
        if not ref.random and self._sound != ref:
            yield from sound(loaded)
            self._sound = ref
        return loaded

    def require(self, experiment: Experiment, method: Method, ahead: bool = False) -> None:
        """Raises InputError where memory lacks for a method that trains the model, unless what it made is held. Reads the headers of the model's files
        and no weight. ahead: before its turn, when another model may still take memory that will be free then.
        """
        ref, last = experiment.model, self._last
        if not method.of_model or ref.random or self.held.get(made_key(experiment, method)) is not None:
            return
        here, on_gpu = last is not None and last.ref == ref, self.device.type == "cuda"
        if not (here or ahead):
            self._let_go()
        folder = models.folder_here(ref, self.hub)
        try:
            weight = weigh(folder) if folder else self.hub.weigh(self.hub.listing(f"{ref.name}@{ref.revision}"))
        except (OSError, SafetensorError):
            return  # whoever loads such files says what is wrong with them
        later = last.whole if ahead and last is not None and not here else 0.0
        read = experiment.calibration
        windows = (read.tokens // read.length, read.length)
        method.require(weight, windows, 0.0 if here else resident(weight, on_gpu), free_memory(self.device) + later, on_gpu)

    def _let_go(self) -> None:
        """Frees the memory of the model that is loaded, and of what was made of it."""
        self._last = None
        self.held.clear()
        gc.collect()

    def fetch(self, ref: ModelRef) -> Iterator[Progress]:
        """Yields Progress until the model is on this disk; takes no turn, so that a download keeps nobody from computing."""
        yield from models.fetching(ref, self.device, self.hub)


def made_key(experiment: Experiment, method: Method) -> str:
    """By what quantized layers are held: equal where the layers are."""
    read = experiment.calibration if method.reads_inputs() else None
    return key_of(experiment.model, dataclasses.replace(experiment.spec, kv_bits=16, head_bits=16), read)
