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
from explorer.saving import Format, Prepared, card, choose, note, save
from explorer.saving.beforehand import check_asked
from explorer.subjects import subject_of
from explorer.tasks import Engine, Task
from explorer.writing import NotWritten, refused

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
    archive = zipped(made, target, card(target, made, name, command, report), plain(report), command)
    yield Answer("checkpoint", {"path": archive, "name": name, "format": target.title, "note": note(target, made), "bytes": Path(archive).stat().st_size}, {})


def zipped(made: Prepared, form: Format, words: str, record: dict[str, Any], command: str) -> str:
    """The path of an archive of the checkpoint, alone in a folder of its own. Raises InputError where it cannot be written; then nothing is left."""
    try:
        with refused(Path(tempfile.gettempdir())):
            folder = Path(tempfile.mkdtemp(prefix="quantization-"))
            try:
                save(made, form, folder / "model", words, record)
                archive = shutil.make_archive(str(folder / "checkpoint"), "zip", folder / "model")
                shutil.rmtree(folder / "model")
                return archive
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
    except NotWritten as error:  # whose sentence names a folder of the server
        raise InputError(f"The server could not write the checkpoint; try again later, or in a checkout of the project run: {command}") from error


TASK = Task("checkpoint", work, stored=False)
