"""A model's configuration as data, by the name of a model: what the planner needs. No weight is read."""

from __future__ import annotations

from collections.abc import Iterator

from explorer import models
from explorer.checkpoint import read_config
from explorer.records import Answer, Event
from explorer.tasks import Engine, Task


def work(engine: Engine, model: str) -> Iterator[Event]:
    """model: "demo", a folder, a hub id or "arch:" with an architecture; one that can be planned but not loaded, such as one that is already quantized, too.
    Answer data: config, the content of config.json.
    """
    name, hub = model.strip(), engine.load.hub
    folder = models.named_folder(name, hub)
    yield Answer("architecture", {"config": read_config(folder) if folder else models.configuration(models.resolve(name, hub), hub)})


TASK = Task("architecture", work, turn="none", stored=False)
