"""run(): the only place where model, method, metrics and store meet. A generator of events; closing it cancels the work."""

from __future__ import annotations

import dataclasses
import functools
import gc
import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch

from explorer import architectures, models
from explorer.closure import code_version, modules_in
from explorer.devices import free_memory, quiet
from explorer.loader import Loader, made_key
from explorer.methods import Method, build
from explorer.metrics import Metric, NoRoom, Subject, metrics
from explorer.provenance import describe, merged, name_of
from explorer.qlinear import put, quantized_head
from explorer.quantizing import quantize
from explorer.records import Event, Experiment, Measurement, Partial, Progress, QuantSpec, Report, disturbed, key_of
from explorer.request import Request
from explorer.store import Store
from explorer.turns import Line, waiting
from kernels.timing import device_name


@functools.lru_cache(256)  # a visitor's rules name any set of methods
def made_by(*modules: str) -> str:
    """What computes a result, for its key: these modules and what they import, every kernel, torch, and transformers, which runs the model."""
    return key_of(code_version(*modules, *modules_in("kernels")), torch.__version__, version("transformers"))


def metric_key(experiment: Experiment, metric: Metric, device: torch.device) -> str:
    """The content address of one metric's result: everything that determines it."""
    spec = QuantSpec("none") if metric.of_model else experiment.spec
    method = build(spec.method, dict(spec.params))
    calibration = experiment.calibration if method.reads_inputs() else None
    code = made_by(__name__, metric.measure.__module__, *sorted(method.modules()))
    where = device_name(device) if metric.per_device else device.type
    return key_of(experiment.model, spec, experiment.evaluation, calibration, metric.name, code, where)


def run(
    experiment: Experiment, method: Method, texts: dict[str, str], store: Store, load: Loader, line: Line | None = None, again: bool = False
) -> Iterator[Event]:
    """Yields Progress and Measurements, last a Report. What the store has is not computed again; each metric is stored when it is whole. A Partial comes
    once all metrics of an order are whole, while others are not.

    texts: the evaluation and calibration text that the experiment's hashes name. line: where to wait when there is something to compute.
    again: measure what belongs to this device once more, and store that instead.
    """
    found, missing = look_up(experiment, store, load.device, again)
    unsaved = ""
    if again:
        load.held.clear()
    if missing:
        if quantizes(missing):
            load.require(experiment, method, ahead=True)
        yield from load.fetch(experiment.model)
        with (line or Line()).place() as ahead:
            yield from waiting(ahead)
            found, missing = look_up(experiment, store, load.device, again)  # whoever was ahead may have measured the same
            if missing:
                if at := order(missing, found):
                    yield Partial(assembled(experiment, method, found, missing, unsaved))
                for event in _measure(experiment, method, texts, load, missing):
                    if not isinstance(event, _Whole):
                        yield event
                        continue
                    unsaved = keep(store, event) or unsaved
                    found[event.name] = (event.measurements, event.provenance)
                    at, before = order(missing, found), at
                    if at > before:
                        yield Partial(assembled(experiment, method, found, missing, unsaved))
    yield assembled(experiment, method, found, missing, unsaved)


def order(asked: Iterable[str], found: Collection[str]) -> int:
    """The order of the metric that is measured next, of those asked for that were not found; 0 when all were."""
    return min((metrics()[name].order for name in asked if name not in found), default=0)


def assembled(experiment: Experiment, method: Method, found: dict[str, tuple], asked: Iterable[str], unsaved: str) -> Report:
    """The report of what was found, {metric name: (measurements, provenance)}. asked: the metrics that the store lacked; those not found yet are missing."""
    measurements = tuple(m for name in metrics() if name in found for m in found[name][0])
    provenance = merged({name: circumstances for name, (_, circumstances) in found.items()})
    provenance |= {"label": name_of(experiment.spec, method), "reads_inputs": method.reads_inputs(), "from_store": not asked, "unsaved": unsaved}
    provenance |= {"measured_now": sorted(set(asked) & set(found))}
    missing = [name for name in asked if name not in found]
    return Report(experiment, measurements, provenance | ({"missing": missing} if missing else {}))


def keep(store: Store, whole: _Whole) -> str:
    """Stores a metric's result; "" or, where the store cannot take it, why: what was measured is shown all the same."""
    try:
        store.put(whole.key, whole.name, whole.measurements, whole.provenance)
    except sqlite3.Error as error:
        return f"not stored: {error}"
    return ""


def outdated(provenance: dict[str, Any], device: torch.device) -> bool:
    """Whether what is stored lacked memory ("needs", bytes) that is free now."""
    return "needs" in provenance and provenance["needs"] <= free_memory(device)


def look_up(experiment: Experiment, store: Store, device: torch.device, again: bool = False) -> tuple[dict[str, tuple], dict[str, tuple]]:
    """({metric name: what is stored}, {metric name: (metric, key) of what is not, is to be measured again, or lacked memory that is free now}).

    Times that other work disturbed are measured again once the machine is quiet.
    """
    found, missing = {}, {}
    for name, metric in metrics().items():
        if experiment.model.random and not metric.of_weights:
            continue
        key = metric_key(experiment, metric, device)
        stored = store.get(key)
        late = stored is not None and metric.per_device and (again or (disturbed(stored[0]) and quiet()))
        if stored is None or late or outdated(stored[1], device):
            missing[name] = (metric, key)
        else:
            found[name] = stored
    return found, missing


def quantizes(missing: dict[str, tuple]) -> bool:
    """Whether any of the metrics that `look_up` misses is of the quantized model."""
    return any(not metric.of_model for metric, _ in missing.values())


@dataclass(frozen=True)
class _Whole:
    """One metric, completely measured."""

    name: str
    key: str
    measurements: list[Measurement]
    provenance: dict[str, Any]


def _measure(experiment: Experiment, method: Method, texts: dict[str, str], load: Loader, missing: dict) -> Iterator[Any]:
    with released() as hold:
        subject, skipped = yield from prepared(experiment, method, texts, load, hold, quantizes(missing))
        provenance = describe(subject, experiment, skipped)
        for step, (name, (metric, key)) in enumerate(missing.items(), 1):
            taken, lack = [], {}
            try:
                for event in metric.measure(subject):
                    if isinstance(event, Measurement):
                        taken.append(event)
                        yield event
                    else:
                        yield dataclasses.replace(event, stage=f"measurement {step} of {len(missing)}, {event.stage}")
            except NoRoom as error:
                lack = {"needs": error.needs}
            yield _Whole(name, key, taken, provenance | lack)
        del subject


@contextmanager
def released() -> Iterator[Callable[[Subject], None]]:
    """Gives a function that takes a subject; at the end, however it comes, its model has its own layers again and memory is freed."""
    held: list[Subject] = []
    try:
        yield held.append
    finally:
        for subject in held:
            for name, layer in subject.originals.items():
                put(subject.loaded.model, name, layer)
            if subject.loaded.ref.random:
                architectures.empty(subject.originals)
        held.clear()
        gc.collect()


def prepared(
    experiment: Experiment, method: Method, texts: dict[str, str], load: Loader, hold: Callable[[Subject], None], weights: bool = True
) -> Iterator[Any]:
    """Loads and quantizes; yields Progress, returns (Subject, {layer: why it was skipped}). weights: whether layers are quantized at all."""
    if weights:
        load.require(experiment, method)
    loaded = yield from load.checked(experiment.model)
    text = experiment.evaluation
    rows, available = models.drawn(loaded, texts["evaluation"], text.tokens, text.length, text.seed, text.bos)
    subject = Subject(loaded, {}, {}, models.linears(loaded.model), rows, 0.0, experiment.spec.kv_bits, available=available)
    hold(subject)
    if not weights:
        return subject, {}
    subject, skipped = yield from quantized_once(load, subject, experiment, method, texts["calibration"])
    if experiment.spec.head_bits == 16:
        return subject, skipped
    yield Progress("quantize", len(subject.layers), len(subject.layers), "the head")
    head = quantized_head(loaded.model.get_output_embeddings(), experiment.spec.head_bits, loaded.device)
    return dataclasses.replace(subject, head=head), skipped


def quantized_once(load: Loader, bare: Subject, experiment: Experiment, method: Method, text: str) -> Iterator[Any]:
    """What `quantize` returns of a subject whose layers are not quantized yet; from memory where the same was made before and is still held."""
    key = made_key(experiment, method)
    kept = None if experiment.model.random else load.held.get(key)
    if kept is None:
        subject, skipped = yield from quantize(bare, method, experiment.calibration, text)
        if not experiment.model.random:
            load.held.put(key, subject)
        return subject, skipped
    made = {name: getattr(kept, name) for name in ("layers", "qtensors", "losses", "quantize_seconds", "read")}
    refused = {name: method.refuses(tuple(layer.weight.shape), name) for name, layer in bare.originals.items() if name not in kept.layers}
    return dataclasses.replace(bare, **made), refused


class LocalRunner:
    """Runs experiments in this process, one at a time. What the UI and the CLI call."""

    def __init__(self, store: Store, load: Loader | None = None) -> None:
        self._store, self._load, self._line = store, load or Loader(), Line()

    def models(self) -> list[str]:
        """Models that need no download."""
        return ["demo", *architectures.architectures()]

    def run(self, model: str, method: str, params: dict[str, Any], again: bool = False, **options: Any) -> Iterator[Event]:
        """run() on an experiment made from plain input; options: the further fields of Request. Raises InputError with one sentence on bad input."""
        experiment, chosen, texts = Request(model, method, params, **options).prepare(self._load.hub)
        yield from run(experiment, chosen, texts, self._store, self._load, self._line, again)

    def do(self, task: str, arguments: dict[str, Any]) -> Iterator[Event]:
        """A task's events, last its Answer; see explorer.tasks, which is built on experiments and so cannot be imported before them."""
        from explorer.tasks import do

        yield from do(task, arguments, self._store, self._load, self._line)


def last_report(events: Iterator[Event], watch: Callable[[Event], None] = lambda event: None) -> Report:
    """Drains a run and returns its report; `watch` sees every event. Closes the run on any error."""
    try:
        for event in events:
            watch(event)
            if isinstance(event, Report):
                return event
        raise RuntimeError("the run ended without a report")
    finally:
        events.close()
