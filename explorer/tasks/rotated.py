"""What a Hadamard rotation does to the inputs of every layer: kurtosis and the largest channel against the median one, before and after."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from explorer import data, models
from explorer.calibration import advance, first_inputs, record_inputs
from explorer.metrics.activations import kurtosis
from explorer.models import blocks, linears
from explorer.provenance import circumstances
from explorer.records import Answer, Event, Progress
from explorer.rotation import Rotation
from explorer.tasks import Engine, Task

WINDOWS, LENGTH = 4, 512


def peak_ratio(x: torch.Tensor) -> float:
    """Largest absmax of a channel over the median channel's, of inputs [M, K]."""
    peaks = x.abs().amax(0)
    return (peaks.max() / peaks.median().clamp(min=1e-12)).item()


@torch.no_grad()
def work(engine: Engine, model: str) -> Iterator[Event]:
    """Answer data, lists over layers: layers, kurtosis_before, kurtosis_after, peak_before, peak_after. Inputs are of the 16-bit model on the first
    windows of the bundled evaluation text.
    """
    ref = models.resolve(model.strip(), engine.load.hub)
    loaded = yield from engine.load.checked(ref)
    rows = models.windows(loaded, data.bundled_text("evaluation"), WINDOWS * LENGTH, min(LENGTH, loaded.length), seed=0)
    batches, arguments = first_inputs(loaded, rows)
    names = {id(layer): name for name, layer in linears(loaded.model).items()}
    found: dict[str, list] = {key: [] for key in ("layers", "kurtosis_before", "kurtosis_after", "peak_before", "peak_after")}
    for index, block in enumerate(blocks(loaded.model)):
        yield Progress("rotate inputs", index, loaded.model.config.num_hidden_layers, f"block {index}")
        inside = {names[id(m)]: m for m in block.modules() if id(m) in names}
        for name, inputs in record_inputs(block, batches, arguments[index], inside).items():
            x = inputs.float()
            turned = Rotation.of(x.shape[1], x.device).apply(x)
            found["layers"].append(name.removeprefix("layers.").replace(".self_attn", "").replace(".mlp", "").replace(".", " "))
            for key, value in (("before", x), ("after", turned)):
                found[f"kurtosis_{key}"].append(round(kurtosis(value), 3))
                found[f"peak_{key}"].append(round(peak_ratio(value), 3))
        advance(block, batches, arguments[index])
    yield Answer("rotated", found, circumstances(loaded.device) | {"tokens": rows.numel()})


TASK = Task("rotated", work)
