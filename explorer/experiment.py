"""run(): the only place where model, method, metrics and store meet. A generator of events; closing it cancels the work."""

from __future__ import annotations

import dataclasses
import functools
import gc
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import torch
from torch import nn

from explorer import architectures, models
from explorer.calibration import sequential_inputs
from explorer.closure import code_version, modules_in
from explorer.devices import default_device, device_name
from explorer.held import Held
from explorer.hub import Hub
from explorer.methods import Method, build, refuses_all
from explorer.metrics import Metric, Subject, metrics
from explorer.models import LoadedModel
from explorer.provenance import describe, merged, name_of
from explorer.qlinear import QuantizedLinear, put, quantized_head, release
from explorer.qtensor import QuantizedTensor
from explorer.records import BY_CHOICE, Event, Experiment, InputError, Measurement, ModelRef, Progress, QuantSpec, Report, TextRef, key_of
from explorer.request import Request
from explorer.store import Store
from explorer.turns import Line, waiting


@functools.cache
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


@dataclass
class Loader:
    """Keeps the last model loaded, so that a second experiment on it starts at once; held: what was made of its layers last. hub: where models
    that are not here come from.
    """

    device: torch.device = field(default_factory=default_device)
    held: Held = field(default_factory=Held)
    hub: Hub = field(default_factory=Hub)
    _last: LoadedModel | None = None

    def __call__(self, ref: ModelRef) -> LoadedModel:
        if self._last is None or self._last.ref != ref:
            self._last = None
            self.held.clear()
            gc.collect()
            self._last = models.load(ref, self.device, self.hub)
        return self._last

    def fetch(self, ref: ModelRef) -> Iterator[Progress]:
        """Yields Progress until the model is on this disk; takes no turn, so that a download keeps nobody from computing."""
        yield from models.fetching(ref, self.device, self.hub)


def run(
    experiment: Experiment, method: Method, texts: dict[str, str], store: Store, load: Loader, line: Line | None = None, again: bool = False
) -> Iterator[Event]:
    """Yields Progress and Measurements, last a Report. What the store has is not computed again; each metric is stored when it is whole.

    texts: the evaluation and calibration text that the experiment's hashes name. line: where to wait when there is something to compute.
    again: measure what belongs to this device once more, and store that instead.
    """
    found, missing = look_up(experiment, store, load.device, again)
    unsaved = ""
    if missing:
        yield from load.fetch(experiment.model)
        with (line or Line()).place() as ahead:
            yield from waiting(ahead)
            found, missing = look_up(experiment, store, load.device, again)  # whoever was ahead may have measured the same
            if missing:
                for event in _measure(experiment, method, texts, load, missing):
                    if isinstance(event, _Whole):
                        unsaved = keep(store, event) or unsaved
                        found[event.name] = (event.measurements, event.provenance)
                    else:
                        yield event
    measurements = tuple(m for name in metrics() if name in found for m in found[name][0])
    provenance = merged({name: circumstances for name, (_, circumstances) in found.items()})
    provenance |= {"label": name_of(experiment.spec, method), "reads_inputs": method.reads_inputs()}
    yield Report(experiment, measurements, provenance | {"from_store": not missing, "measured_now": sorted(missing), "unsaved": unsaved})


def keep(store: Store, whole: _Whole) -> str:
    """Stores a metric's result; "" or, where the store cannot take it, why: what was measured is shown all the same."""
    try:
        store.put(whole.key, whole.name, whole.measurements, whole.provenance)
    except sqlite3.Error as error:
        return f"not stored: {error}"
    return ""


def look_up(experiment: Experiment, store: Store, device: torch.device, again: bool = False) -> tuple[dict[str, tuple], dict[str, tuple]]:
    """({metric name: what is stored}, {metric name: (metric, key) of what is not, or is to be measured again})."""
    found, missing = {}, {}
    for name, metric in metrics().items():
        if experiment.model.random and not metric.of_weights:
            continue
        key = metric_key(experiment, metric, device)
        stored = None if again and metric.per_device else store.get(key)
        if stored is None:
            missing[name] = (metric, key)
        else:
            found[name] = stored
    return found, missing


@dataclass(frozen=True)
class _Whole:
    """One metric, completely measured."""

    name: str
    key: str
    measurements: list[Measurement]
    provenance: dict[str, Any]


def _measure(experiment: Experiment, method: Method, texts: dict[str, str], load: Loader, missing: dict) -> Iterator[Any]:
    weights = any(not metric.of_model for metric, _ in missing.values())
    with released() as hold:
        subject, skipped = yield from prepared(experiment, method, texts, load, hold, weights)
        provenance = describe(subject, experiment, skipped)
        for name, (metric, key) in missing.items():
            taken = []
            for event in metric.measure(subject):
                if isinstance(event, Measurement):
                    taken.append(event)
                yield event
            yield _Whole(name, key, taken, provenance)
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
    yield Progress("load model", 0, 1, experiment.model.name)
    loaded = load(experiment.model)
    text = experiment.evaluation
    rows, available = models.drawn(loaded, texts["evaluation"], text.tokens, text.length, text.seed)
    subject = Subject(loaded, {}, {}, models.linears(loaded.model), rows, 0.0, experiment.spec.kv_bits, available=available)
    hold(subject)
    if not weights:
        return subject, {}
    subject, skipped = yield from quantize(subject, method, experiment.calibration, texts["calibration"])
    if experiment.spec.head_bits == 16:
        return subject, skipped
    yield Progress("quantize", len(subject.layers), len(subject.layers), "the head")
    head = quantized_head(loaded.model.get_output_embeddings(), experiment.spec.head_bits, loaded.device)
    return dataclasses.replace(subject, head=head), skipped


def quantize(subject: Subject, method: Method, calibration: TextRef, text: str) -> Iterator[Any]:
    """Quantizes every layer the method accepts; yields Progress, returns (subject with quantized layers, {layer: why it was skipped}).

    Leaves the model with its original layers in place. Raises InputError where the weights' shapes let the method accept none.
    """
    loaded, originals = subject.loaded, subject.originals
    skipped = {name: why for name, layer in originals.items() if (why := method.refuses(tuple(layer.weight.shape), name))}
    wanted = {name: layer for name, layer in originals.items() if name not in skipped}
    if not wanted and any(why not in BY_CHOICE for why in skipped.values()):  # rules that name no layer are the guard's to find
        raise InputError(refuses_all(method, {name: tuple(layer.weight.shape) for name, layer in originals.items()}))
    if loaded.ref.random:
        kept = {name: originals[name] for name in skipped}
        yield from architectures.making(loaded.ref.name, loaded.model, wanted, kept, getattr(method, "bits", 8), loaded.device)
    start = time.perf_counter()
    try:
        rows = models.windows(loaded, text, calibration.tokens, calibration.length, calibration.seed or None) if method.reads_inputs() else None
        if method.of_model:
            for name, layer in wanted.items():
                finite(layer.weight, "weights", name)
            qtensors, losses = yield from method.train(loaded.model, wanted, functools.partial(put, loaded.model), rows)
            layers = {name: QuantizedLinear(q, wanted[name].bias, loaded.device) for name, q in qtensors.items()}
        else:
            qtensors, layers = yield from _layer_by_layer(loaded, method, wanted, rows)
            losses = []
    finally:
        for name, layer in wanted.items():
            put(loaded.model, name, layer)
    seconds = time.perf_counter() - start
    made = {"layers": layers, "qtensors": qtensors, "losses": tuple(losses), "quantize_seconds": seconds, "read": rows}
    return dataclasses.replace(subject, **made), skipped


def _layer_by_layer(loaded: LoadedModel, method: Method, wanted: dict[str, nn.Linear], rows: torch.Tensor | None) -> Iterator[Any]:
    """Yields Progress, returns ({name: QuantizedTensor}, {name: QuantizedLinear}). With calibration windows [W, T] each layer's inputs come
    from the layers already quantized, which are then in the model's place of the original ones.
    """
    layers: dict[str, QuantizedLinear] = {}
    qtensors: dict[str, QuantizedTensor] = {}

    def convert(names: Sequence[str], inputs: torch.Tensor | None, rows: torch.Tensor | None = None) -> Iterator[Progress]:
        weights = {name: architectures.weight(loaded.model, name, loaded.device) if loaded.ref.random else wanted[name].weight for name in names}
        for name, weight in weights.items():
            finite(weight, "weights", name)
        for name, qtensor in method.quantize_together(weights, inputs, rows):
            layers[name] = QuantizedLinear(qtensor, wanted[name].bias, loaded.device)
            qtensors[name] = release(layers, name, qtensor) if loaded.ref.random else qtensor
            yield Progress("quantize", len(qtensors), len(wanted), name)

    if rows is None:
        for name in wanted:
            yield from convert([name], None)
        return qtensors, layers
    yield Progress("quantize", 0, len(wanted), "reading the calibration text")
    for group, before in sequential_inputs(loaded, rows):
        names = [name for name in group if name in wanted]
        if names:
            shared = finite(group[names[0]], "inputs", names[0]).float()
            yield from convert(names, shared, before.rows if before and len(names) == len(group) else None)
        for name in names:
            put(loaded.model, name, layers[name])
    return qtensors, layers


def finite(tensor: torch.Tensor, what: str, layer: str) -> torch.Tensor:
    """The tensor itself. Raises InputError naming the layer when it holds NaN or infinities, which no method can round."""
    if not tensor.isfinite().all():
        raise InputError(f"The {what} of layer {layer} hold NaN or infinities; the checkpoint is damaged or overflows in bfloat16. Choose another model.")
    return tensor


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
