"""A bug planted in a copy of a quantized model, or none, measured like any run: what the dashboards show of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from explorer import models
from explorer.faults import FAULTS, Fault, planted
from explorer.methods import Method
from explorer.metrics import NoRoom, Subject, metrics
from explorer.provenance import describe, name_of
from explorer.records import Answer, Event, Experiment, InputError, Measurement, Report, key_of, plain
from explorer.request import Request
from explorer.subjects import refusals, subject_of
from explorer.tasks import Engine, Task

TOKENS = 2048
MEASURED = ("quality", "layers", "integrity", "size", "sample")


def work(engine: Engine, model: str, method: str, params: dict[str, Any], fault: str = "", options: dict[str, Any] | None = None) -> Iterator[Event]:
    """Answer data: report (a Report as JSON, on TOKENS tokens unless `options`, further fields of Request, say otherwise); fault, a name in `bugs`,
    "" for the healthy run.

    The report's experiment names the bug among the parameters, so that it can never pass for the real one.
    """
    planting = _known(fault)
    experiment, chosen, texts = Request(model, method, params, **{"tokens": TOKENS} | (options or {})).prepare(engine.load.hub)
    if experiment.spec.is_baseline:
        raise InputError("Nothing is quantized in the baseline, so nothing can go wrong there; choose a quantized configuration.")
    if planting and (why := planting.refuses(chosen)):
        raise InputError(f"{planting.bug.title} cannot happen to {name_of(experiment.spec, chosen)}: {why}. Choose another bug or configuration.")
    if planting and planting.text:
        read = dataclasses.replace(experiment.calibration, digest=key_of(experiment.calibration.digest, fault)[:16])
        experiment, texts = dataclasses.replace(experiment, calibration=read), texts | {"calibration": planting.text(texts["calibration"])}
    subject = yield from subject_of(engine.load, experiment, chosen, texts)
    scored = experiment.evaluation
    rows, available = models.drawn(subject.loaded, texts["evaluation"], scored.tokens, scored.length, scored.seed, scored.bos)
    subject = dataclasses.replace(subject, windows=rows, available=available)
    if planting:
        if why := planting.refuses(chosen, subject):
            raise InputError(f"{planting.bug.title} cannot happen to {name_of(experiment.spec, chosen)}: {why}. Choose another bug or configuration.")
        subject = planted(planting, subject)
    report, lacking = yield from measured(subject, experiment, chosen, fault)
    circumstances = {"device": report.provenance["device"], "date": report.provenance["date"]}
    yield Answer("failure", {"report": plain(report), "fault": fault}, circumstances | ({"needs": min(lacking)} if lacking else {}))


def _known(name: str) -> Fault | None:
    if name and name not in FAULTS:
        raise InputError(f"There is no bug {str(name)[:40]!r}; choose one of {', '.join(FAULTS)}.")
    return FAULTS[name] if name else None


def measured(subject: Subject, experiment: Experiment, method: Method, fault: str) -> Iterator[Any]:
    """Yields Progress, returns (the Report of a subject on its windows, bytes that each metric for which memory lacked needs)."""
    spec = dataclasses.replace(experiment.spec, params=(*experiment.spec.params, ("planted", fault))) if fault else experiment.spec
    taken, lacking = [], []
    for name in MEASURED:
        try:
            for event in metrics()[name].measure(subject):
                if isinstance(event, Measurement):
                    taken.append(event)
                else:
                    yield event
        except NoRoom as error:
            lacking.append(error.needs)
    provenance = describe(subject, experiment, refusals(subject, method)) | {"label": name_of(spec, method) + (", with a bug" if fault else "")}
    return Report(dataclasses.replace(experiment, spec=spec), tuple(taken), provenance), lacking


TASK = Task("failure", work)
