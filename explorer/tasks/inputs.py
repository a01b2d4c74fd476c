"""A sample of what enters one layer of the 16-bit model on calibration text, kept so that arithmetic on it needs no model."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from explorer import data, models
from explorer.calibration import advance, first_inputs, record_inputs
from explorer.pieces import pieces
from explorer.records import Answer, Event, InputError, Progress
from explorer.tasks import Engine, Task, do

TOKENS = 256


@torch.no_grad()
def work(engine: Engine, model: str, layer: str) -> Iterator[Event]:
    """Answer data: layer, tokens and channels, words (the token before each row, as text), inputs ([tokens, channels] bfloat16 in base64)."""
    loaded = yield from engine.load.checked(models.trained(model, engine.load.hub))
    layers = models.linears(loaded.model)
    if layer not in layers:
        raise InputError(f"The model has no layer {str(layer)[:60]!r}; choose one from the list.")
    length = min(TOKENS, loaded.length)
    rows = models.windows(loaded, data.bundled_text("calibration"), length, length)
    hidden, arguments = first_inputs(loaded, rows)
    blocks = models.blocks(loaded.model)
    for index, block in enumerate(blocks):
        yield Progress("inputs", index, len(blocks), f"block {index}")
        if any(module is layers[layer] for module in block.modules()):
            seen = record_inputs(block, hidden, arguments[index], {layer: layers[layer]})[layer].bfloat16().cpu()
            words = pieces(loaded.tokenizer, rows.flatten().tolist())
            packed = base64.b64encode(seen.contiguous().view(torch.uint8).numpy().tobytes()).decode()
            yield Answer("inputs", {"layer": layer, "tokens": seen.shape[0], "channels": seen.shape[1], "words": words, "inputs": packed})
            return
        advance(block, hidden, arguments[index])


def inputs_of(engine: Engine, model: str, layer: str) -> Iterator[Any]:
    """Yields Progress, returns (inputs [tokens, channels] float32, the token of each row): from the store, or as soon as the model is free."""
    found: Answer | None = None
    for event in do("inputs", {"model": model, "layer": layer}, engine.store, engine.load, engine.line):
        if isinstance(event, Answer):
            found = event  # read to the end: an answer is stored after its last event
        else:
            yield event
    if found is None:
        raise RuntimeError("the inputs ended without an answer")
    return unpacked(found.data), found.data["words"]


def unpacked(found: dict[str, Any]) -> Tensor:
    """The inputs of an answer, [tokens, channels] float32."""
    raw = torch.frombuffer(bytearray(base64.b64decode(found["inputs"])), dtype=torch.bfloat16)
    return raw.view(found["tokens"], found["channels"]).float()


TASK = Task("inputs", work)
