"""Task: a question about a model that is no Report, answered by a generator of events that ends in an Answer. One file a task.

A task is called by name with plain values, from a page, a script or another process, and its answer is stored like a metric: under a hash of
its arguments, the model's revision, the code and, where it says so, the device. It raises InputError with a sentence on bad input.
"""

from __future__ import annotations

import importlib
import pkgutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from explorer import data, models
from explorer.closure import modules_in
from explorer.experiment import made_by, outdated, run
from explorer.loader import Loader
from explorer.records import Answer, Event, InputError, Partial, Report, key_of
from explorer.request import Request
from explorer.store import Store
from explorer.turns import Line, waiting
from kernels.timing import device_name


@dataclass(frozen=True)
class Task:
    """work(engine, **arguments) yields Progress and Reports, last an Answer; arguments are plain values, which it checks itself. Answers before
    the last are drafts of it, for a page that shows them grow; only the last is kept.

    An answer whose data say that it was "disturbed" is not kept; one whose provenance says that it "needs" so many bytes is found anew once they are free.

    turn: "none" for what answers in some 100 ms and never touches a loaded model's layers; "whole" for what computes alone from start to end;
    "own" for what runs experiments one by one through `engine.run`, each of which waits for its own turn, so that a sweep starves nobody.
    stored: whether the answer is kept. per_device: whether it belongs to the device it was found on.
    """

    name: str
    work: Callable[..., Iterator[Event]]
    turn: str = "whole"
    stored: bool = True
    per_device: bool = False


@cache
def tasks() -> dict[str, Task]:
    """Every TASK in this folder, by its name."""
    found = [importlib.import_module(f"{__name__}.{module.name}").TASK for module in pkgutil.iter_modules(__path__)]
    return {task.name: task for task in found}


@dataclass(frozen=True)
class Engine:
    """What a task works with. `line` is where experiments wait for their turn."""

    store: Store
    load: Loader
    line: Line

    def run(self, model: str, method: str, params: dict[str, Any], again: bool = False, **options: Any) -> Iterator[Event]:
        """An experiment, as `LocalRunner.run` takes it, without what is not whole."""
        experiment, chosen, texts = Request(model, method, params, **options).prepare(self.load.hub)
        with closing(run(experiment, chosen, texts, self.store, self.load, self.line, again)) as events:
            yield from (event for event in events if not isinstance(event, Partial))

    def report(self, model: str, method: str, params: dict[str, Any], **options: Any) -> Iterator[Event]:
        """The same without its last event, which is returned: `report = yield from engine.report(...)`."""
        for event in self.run(model, method, params, **options):
            if isinstance(event, Report):
                return event
            yield event
        raise RuntimeError("the run ended without a report")


def do(task: str, arguments: dict[str, Any], store: Store, load: Loader, line: Line) -> Iterator[Event]:
    """Yields a task's events, last its Answer, at once when it is stored. Raises InputError for a task or arguments that do not exist."""
    if task not in tasks():
        raise InputError(f"There is no task {str(task)[:40]!r}; there are {', '.join(tasks())}.")
    asked = tasks()[task]
    key = task_key(asked, arguments, load)
    stored = store.get(key) if asked.stored else None
    if stored is not None and not outdated(stored[1]["provenance"], load.device):
        yield Answer(task, stored[1]["data"], stored[1]["provenance"] | {"from_store": True})
        return
    if asked.turn != "whole":
        yield from _finish(asked, asked.work(Engine(store, load, line), **arguments), store, key)
        return
    if isinstance(model := arguments.get("model"), str):
        yield from load.fetch(models.resolve(model.strip(), load.hub))  # a download keeps nobody from computing
    with line.place() as ahead:
        yield from waiting(ahead)
        yield from _finish(asked, asked.work(Engine(store, load, Line()), **arguments), store, key)


def _finish(task: Task, events: Iterator[Event], store: Store, key: str) -> Iterator[Event]:
    """The events; an Answer is held back until it is known whether it is the last, which is stored before anyone sees it, unless other work disturbed
    its times: asked again, those are measured again.
    """
    last = None
    for event in events:
        if last is not None:
            yield last
        last = event if isinstance(event, Answer) else None
        if last is None:
            yield event
    if last is not None:
        if task.stored and not last.data.get("disturbed"):
            try:
                store.put(key, f"task {task.name}", [], {"data": last.data, "provenance": last.provenance})
            except sqlite3.Error as error:  # what was found is shown all the same
                last = replace(last, provenance=last.provenance | {"unsaved": f"not stored: {error}"})
        yield last


def task_key(task: Task, arguments: dict[str, Any], load: Loader) -> str:
    """The content address of an answer: arguments, which model exactly, code, bundled text, and the device where it matters."""
    name = arguments.get("model")
    revision = models.resolve(name.strip(), load.hub).revision if isinstance(name, str) and task.stored else ""
    code = (made_by(task.work.__module__, *modules_in("explorer.methods"), *modules_in("explorer.metrics")), data.bundled_digest()) if task.stored else ""
    return key_of("task", task.name, arguments, revision, code, device_name(load.device) if task.per_device else load.device.type)
