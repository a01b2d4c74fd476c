"""The error maps of all layers under a method that reads the layers' inputs or trains, which takes a pass over the whole model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from explorer import models
from explorer.methods import label_of
from explorer.metrics import Subject
from explorer.quantizing import quantize
from explorer.records import Answer, Event
from explorer.request import Request
from explorer.tasks import Engine, Task
from explorer.tasks.error_map import map_of

CELLS = 48  # a side: all layers of a model go into one answer


def work(engine: Engine, model: str, method: str, params: dict[str, Any], **options: Any) -> Iterator[Event]:
    """options: the further fields of Request, as the report has them. Answer data: label; layers, {name: what `map_of` gives}; skipped."""
    experiment, chosen, texts = Request(model, method, params, **options).prepare(engine.load.hub)
    engine.load.require(experiment, chosen)
    loaded = yield from engine.load.checked(experiment.model)
    subject = Subject(loaded, {}, {}, models.linears(loaded.model), torch.empty(0), 0.0)
    subject, skipped = yield from quantize(subject, chosen, experiment.calibration, texts["calibration"])
    here = torch.device("cpu")
    maps = {name: map_of(subject.originals[name].weight.float().cpu(), tensor.to(here), CELLS) for name, tensor in subject.qtensors.items()}
    yield Answer("error_maps", {"label": label_of(chosen), "layers": maps, "skipped": skipped})


TASK = Task("error_maps", work)
