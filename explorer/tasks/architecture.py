"""A model's configuration as data, by the name of a model: what the planner needs. No weight is read."""

from __future__ import annotations

from collections.abc import Iterator

from explorer import models
from explorer.records import Answer, Event
from explorer.tasks import Engine, Task


def work(engine: Engine, model: str) -> Iterator[Event]:
    """model: "demo", a folder, a hub id or "arch:" with an architecture. Answer data: config, the content of config.json; revision."""
    ref = models.resolve(model.strip(), engine.load.hub)
    yield Answer("architecture", {"config": models.configuration(ref, engine.load.hub), "revision": ref.revision})


TASK = Task("architecture", work, turn="none", stored=False)
