"""A bug planted in a copy of a quantized model, or none, measured like any run: what the dashboards show of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from explorer import models
from explorer.experiment import describe
from explorer.faults import Fault, faults, planted
from explorer.methods import Method, label_of
from explorer.metrics import Subject, metrics
from explorer.records import Answer, Event, Experiment, InputError, Measurement, Progress, Report, key_of, plain
from explorer.request import Request
from explorer.subjects import refusals, subject_of
from explorer.tasks import Engine, Task

TOKENS = 2048
MEASURED = ("quality", "layers", "integrity", "size", "sample")


def work(engine: Engine, model: str, method: str, params: dict[str, Any], fault: str = "", tokens: int = TOKENS) -> Iterator[Event]:
    """Answer data: report (a Report as JSON, on `tokens` tokens), fault, title, story, seen (the last three "" without a fault).

    The report's experiment names the bug among the parameters, so that it can never pass for the real one.
    """
    bug = _known(fault)
    experiment, chosen, texts = Request(model, method, params, tokens=tokens).prepare()
    if experiment.spec.is_baseline:
        raise InputError("Nothing is quantized in the baseline, so nothing can go wrong there; choose a quantized configuration.")
    if bug and (why := bug.refuses(chosen)):
        raise InputError(f"{bug.title} cannot happen to {label_of(chosen)}: {why}. Choose another bug or configuration.")
    if bug and bug.text:
        read = dataclasses.replace(experiment.calibration, digest=key_of(experiment.calibration.digest, bug.name)[:16])
        experiment, texts = dataclasses.replace(experiment, calibration=read), texts | {"calibration": bug.text(texts["calibration"])}
    subject = yield from subject_of(engine.load, experiment, chosen, texts)
    rows = models.windows(subject.loaded, texts["evaluation"], experiment.evaluation.tokens, experiment.evaluation.length)
    subject = dataclasses.replace(subject, windows=rows)
    if bug:
        if why := bug.refuses(chosen, subject):
            raise InputError(f"{bug.title} cannot happen to {label_of(chosen)}: {why}. Choose another bug or configuration.")
        yield Progress("planting", 0, 1, bug.title)
        subject = planted(bug, subject)
    report = yield from measured(subject, experiment, chosen, bug)
    words = {"title": bug.title, "story": bug.story, "seen": bug.seen} if bug else {"title": "", "story": "", "seen": ""}
    yield Answer("failure", {"report": plain(report), "fault": fault} | words, {"device": report.provenance["device"], "date": report.provenance["date"]})


def _known(name: str) -> Fault | None:
    if name and name not in faults():
        raise InputError(f"There is no bug {str(name)[:40]!r}; choose one of {', '.join(faults())}.")
    return faults()[name] if name else None


def measured(subject: Subject, experiment: Experiment, method: Method, bug: Fault | None) -> Iterator[Any]:
    """Yields Progress, returns the Report of a subject on its windows."""
    spec = experiment.spec if bug is None else dataclasses.replace(experiment.spec, params=(*experiment.spec.params, ("planted", bug.name)))
    taken = []
    for name in MEASURED:
        for event in metrics()[name].measure(subject):
            if isinstance(event, Measurement):
                taken.append(event)
            else:
                yield event
    label = label_of(method) + (f" with a bug: {bug.title.lower()}" if bug else "")
    provenance = describe(subject, experiment, refusals(subject, method)) | {"label": label}
    return Report(dataclasses.replace(experiment, spec=spec), tuple(taken), provenance)


TASK = Task("failure", work)
