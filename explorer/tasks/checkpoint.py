"""A quantized model as one file to take away: the checkpoint that `save` writes, in a zip archive."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from explorer import models
from explorer.provenance import name_of
from explorer.records import Answer, Event, InputError, Progress, plain
from explorer.request import Request
from explorer.saving import Prepared, card, choose, note, save
from explorer.saving.beforehand import check_asked
from explorer.subjects import subject_of
from explorer.tasks import Engine, Task

MOST = 256 * 2**20  # bytes of the 16-bit weights of a model that is handed out through a page


def work(
    engine: Engine, model: str, method: str, params: dict[str, Any], command: str, options: dict[str, Any] | None = None, form: str = "auto"
) -> Iterator[Event]:
    """options: of the experiment, such as its calibration text; command: what writes the same in a shell, for the card; form: as in `saving.choose`.

    Answer data: path of the archive, which the caller deletes; name, format, note (what the format does not keep), bytes.
    """
    experiment, chosen, texts = Request(model, method, params, **(options or {})).prepare(engine.load.hub)
    check_asked(experiment, chosen, models.configuration(experiment.model, engine.load.hub), form)
    yield Progress("load model", 0, 1, model)
    weights = 2 * sum(p.numel() for p in engine.load(experiment.model).model.parameters())
    if weights > MOST:
        raise InputError(f"A model of {weights / 2**20:,.0f} MiB is too large for a page; in a checkout of the project run: {command}")
    report = yield from engine.report(model, method, params, **(options or {}))
    made = Prepared.of((yield from subject_of(engine.load, experiment, chosen, texts)))
    target, name = choose(made, form), name_of(experiment.spec, chosen)
    yield Progress("write", 0, 1, target.title)
    folder = Path(tempfile.mkdtemp(prefix="quantization-"))
    try:
        save(made, target, folder / "model", card(target, made, name, command, report), plain(report))
        archive = shutil.make_archive(str(folder / "checkpoint"), "zip", folder / "model")
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder / "model")
    yield Answer("checkpoint", {"path": archive, "name": name, "format": target.title, "note": note(target, made), "bytes": Path(archive).stat().st_size}, {})


TASK = Task("checkpoint", work, stored=False)
