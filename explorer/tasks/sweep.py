"""A grid of experiments as one stream of events: each configuration waits for its own turn and is stored on its own, so a sweep can be cut and resumed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from explorer.grid import grid
from explorer.methods import catalogue
from explorer.records import Answer, Event, InputError, Progress
from explorer.tasks import Engine, Task


def work(
    engine: Engine, model: str, methods: list[str], bits: list[int], groups: list[int], options: dict[str, Any] | None = None,
) -> Iterator[Event]:  # fmt: skip
    """Yields Progress, and a Report for each configuration, the baseline's first; Answer data: done, failed ({name: sentence}), seconds.

    options: the further fields of a Request, such as kv_bits. A configuration that this model refuses is noted and passed over.
    """
    asked, start = grid(catalogue(), methods, bits, groups), time.perf_counter()
    failed: dict[str, str] = {}
    for done, one in enumerate(asked):
        name = " ".join([one.method, *(f"{key}={value}" for key, value in one.params)])
        yield Progress("sweep", done, len(asked), name)
        try:
            given = (options or {}) | ({"kv_bits": 16, "head_bits": 16} if one.method == "none" else {})
            for event in engine.run(model, one.method, dict(one.params), **given):
                if isinstance(event, Progress):
                    share = event.done / max(1, event.total)
                    event = Progress("sweep", done, len(asked), f"{name}, {event.stage} {share:.0%}" if event.stage != "waiting" else event.detail)
                yield event
        except InputError as error:
            if one.method == "none":
                raise
            failed[name] = str(error)
    yield Answer("sweep", {"done": len(asked) - len(failed), "failed": failed, "seconds": time.perf_counter() - start})


TASK = Task("sweep", work, turn="own", stored=False)
