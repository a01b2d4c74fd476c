"""A model's configuration as data, by the name of a model: what the planner needs. No weight is read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from explorer import models
from explorer.records import Answer, Event, InputError
from explorer.tasks import Engine, Task


def work(engine: Engine, model: str) -> Iterator[Event]:
    """model: "demo", a folder, or a hub id. Answer data: config, the content of config.json."""
    ref = models.resolve(model.strip())
    folder = models.DEMO if ref.name == "demo" else Path(ref.name).expanduser()
    if not folder.is_dir():
        from huggingface_hub import hf_hub_download

        try:
            folder = Path(hf_hub_download(ref.name, "config.json", revision=ref.revision)).parent
        except Exception as error:  # the client raises a dozen unrelated types
            raise InputError(f"The configuration of {ref.name!r} could not be downloaded ({type(error).__name__}); paste its config.json instead.") from error
    yield Answer("architecture", {"config": json.loads((folder / "config.json").read_text()), "revision": ref.revision})


TASK = Task("architecture", work, turn="none", stored=False)
