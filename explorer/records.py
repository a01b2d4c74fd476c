"""The nouns every layer shares: what is asked (Experiment), what is found (Measurement, Report, Answer), and their address (key_of).

Standard library only. All records are frozen and serialise to JSON; a Report can be stored, sent to a browser and read back.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

Scalar = bool | int | float | str
OUTSIDE, UNNAMED, BASELINE = "outside the decoder blocks", "no rule names it", "the baseline keeps every layer in 16 bits"
TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))  # layers that read the same input, in the model's order
BUSY = 10.0  # percent of their time that threads wait for a core, from which on what was measured meanwhile is also other work's
BY_CHOICE = (OUTSIDE, UNNAMED, BASELINE)  # why a layer is in 16 bits although its method could round it


class InputError(ValueError):
    """A request that cannot be carried out. Its text is one sentence for a person: what is wrong and what to do."""


@dataclass(frozen=True)
class ModelRef:
    """A model and exactly which one: `name` is "demo", a hub id, a folder or "arch:" with an architecture; `revision` a commit or content hash."""

    name: str
    revision: str

    @property
    def random(self) -> bool:
        """Whether its weights are random: an architecture alone, whose text and perplexity mean nothing."""
        return self.name.startswith("arch:")


@dataclass(frozen=True)
class QuantSpec:
    """A method's name, its parameters, sorted by name, the bits of the KV cache and of the head. Plain data that outlives the method's code."""

    method: str
    params: tuple[tuple[str, Scalar], ...] = ()
    kv_bits: int = 16
    head_bits: int = 16

    @property
    def is_baseline(self) -> bool:
        """Whether nothing is quantized."""
        return self.method == "none" and self.kv_bits == 16 and self.head_bits == 16

    @classmethod
    def of(cls, method: str, **params: Scalar) -> QuantSpec:
        return cls(method, tuple(sorted(params.items())))

    def get(self, name: str, default: Scalar | None = None) -> Scalar | None:
        return dict(self.params).get(name, default)


@dataclass(frozen=True)
class TextRef:
    """A text by source ("bundled", "wikitext2", "c4", "pasted"), its hash, and how much of it is used.

    tokens: tokens used at most; length: tokens per window; text: the text itself when pasted, else empty. seed: which windows are drawn at random;
    0 takes the first ones of a calibration text. bos: where BOS stands, for a tokenizer that adds one: before each "window", or the "text" once.
    """

    source: str
    digest: str
    tokens: int
    length: int
    text: str = ""
    seed: int = 0
    bos: str = "window"


@dataclass(frozen=True)
class Experiment:
    """model x spec x evaluation text x calibration text: everything a person chooses."""

    model: ModelRef
    spec: QuantSpec
    evaluation: TextRef
    calibration: TextRef


@dataclass(frozen=True)
class Progress:
    """How far a stage is. `done` of `total` units; `detail` is a short human text such as the layer's name."""

    stage: str
    done: int
    total: int
    detail: str = ""


@dataclass(frozen=True)
class Measurement:
    """One fact: a number, a text or a small array, for one layer or (layer = "") for the whole model.

    how: "measured", "estimated" (arithmetic on a data sheet) or "recorded" (measured earlier, shipped). low and high bound the 95%
    interval where one is known; n counts what was averaged; bad counts NaN and infinities that were left out.
    """

    metric: str
    value: Any
    unit: str = ""
    layer: str = ""
    low: float | None = None
    high: float | None = None
    n: int = 0
    bad: int = 0
    how: str = "measured"


def disturbed(measurements: Iterable[Measurement]) -> bool:
    """Whether other work had the cores while tokens were timed."""
    return any(m.metric == "decode_waited" and m.value > BUSY for m in measurements)


@dataclass(frozen=True)
class Report:
    """An experiment, what was measured, and under which circumstances (device, versions, kernels, skipped layers)."""

    experiment: Experiment
    measurements: tuple[Measurement, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """A short name for tables and legends, such as "GPTQ 4-bit g64"; made by the method when the report was. It says where layers got another format."""
        name, instead = str(self.provenance.get("label") or self.experiment.spec.method), self.provenance.get("instead")
        return f"{name} ({instead})" if instead else name

    @property
    def key(self) -> str:
        """Its address on pages: a recorded report, one that is being measured and one that was stopped have others than the whole one that is measured of the
        same experiment, so that none takes another's place.
        """
        kind = "recorded" if self.provenance.get("recorded") else "" if not self.missing else "stopped" if self.stopped else "partial"
        return key_of(self.experiment, kind) if kind else key_of(self.experiment)

    @property
    def missing(self) -> tuple[str, ...]:
        """Names of the metrics that are still to be measured; () of a whole report."""
        return tuple(self.provenance.get("missing", ()))

    @property
    def stopped(self) -> bool:
        """Whether nobody measures what is missing any more."""
        return bool(self.missing and self.provenance.get("stopped"))

    def find(self, metric: str, layer: str = "") -> Measurement | None:
        """The measurement of this metric and layer, or None."""
        return next((m for m in self.measurements if m.metric == metric and m.layer == layer), None)

    def value(self, metric: str, layer: str = "") -> Any:
        """Its value, or None where it was not measured."""
        found = self.find(metric, layer)
        return None if found is None else found.value

    def refused(self) -> dict[str, str]:
        """Layer name -> why its method could not round it, so that it stayed in 16 bits although that was asked for."""
        return {name: why for name, why in self.provenance.get("skipped", {}).items() if why not in BY_CHOICE}

    def by_layer(self, metric: str) -> dict[str, Any]:
        """Layer name -> value, in the model's order."""
        return {m.layer: m.value for m in self.measurements if m.metric == metric and m.layer}


@dataclass(frozen=True)
class Partial:
    """What a run has measured so far: a report of the metrics that are whole, which names those that are `missing`. Others follow, last the Report;
    whoever needs a result passes it over.
    """

    report: Report


@dataclass(frozen=True)
class Answer:
    """What a task found: JSON-ready data, and the circumstances it was found in (device, versions, whether it came from the store)."""

    task: str
    data: dict[str, Any]
    provenance: dict[str, Any] = field(default_factory=dict)


Event = Progress | Measurement | Partial | Report | Answer


def plain(value: Any) -> Any:
    """Records to JSON-ready data; NaN and infinities become the strings "nan", "inf", "-inf" so that nothing is lost silently."""
    if dataclasses.is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    return value


def number(value: Any) -> Any:
    """The inverse of `plain` for one value or nested lists of them."""
    if isinstance(value, list):
        return [number(v) for v in value]
    return float(value) if value in ("nan", "inf", "-inf") else value


def significant(value: float, beside: float | None = None) -> str:
    """A number as text with three significant digits, never in powers of ten; an end or half of an interval takes the decimals of the value beside it."""
    size = abs(value if beside is None else beside)
    decimals = max(0, 2 - math.floor(math.log10(size))) if size and math.isfinite(size) else 0
    return f"{value:,.{min(decimals, 9)}f}"


def fitting(value: float, half: float) -> str:
    """A number with the digits that half of its interval leaves: down to the place of that half's second digit."""
    if not (math.isfinite(value) and math.isfinite(half) and half > 0):
        return significant(value)
    place = math.floor(math.log10(half)) - 1
    return f"{round(value, -place):,.{min(9, max(0, -place))}f}"


def change(value: float, low: float | None = None, high: float | None = None) -> tuple[str, str]:
    """(a change in percent as text, its 95% interval as text, "" without one). Beyond 100% it is a factor with the digits that its interval leaves:
    hundredths of a percent of a model that is a hundred times worse are none.
    """
    known = low is not None and high is not None and math.isfinite(low) and math.isfinite(high)
    if not value > 100:
        return f"{value:+.2f}%", f"{low:+.2f} to {high:+.2f}" if known else ""
    half = (high - low) / 200 if known else 0.0
    factor, *ends = (fitting(1 + part / 100, half) for part in ((value, low, high) if known else (value,)))
    return f"×{factor}", " to ".join(ends)


def key_of(*parts: Any) -> str:
    """A content address: the first 32 hex digits of SHA-256 over canonical JSON."""
    text = json.dumps(plain(list(parts)), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def measurement_from(data: dict) -> Measurement:
    """A Measurement from its JSON form."""
    return Measurement(**{**data, "value": number(data["value"]), "low": number(data["low"]), "high": number(data["high"])})


def experiment_from(data: dict) -> Experiment:
    """An Experiment from its JSON form."""
    spec = QuantSpec(
        data["spec"]["method"], tuple((n, v) for n, v in data["spec"]["params"]), data["spec"].get("kv_bits", 16), data["spec"].get("head_bits", 16)
    )
    return Experiment(ModelRef(**data["model"]), spec, TextRef(**data["evaluation"]), TextRef(**data["calibration"]))


def report_from(data: dict) -> Report:
    """A Report from its JSON form."""
    return Report(experiment_from(data["experiment"]), tuple(map(measurement_from, data["measurements"])), data["provenance"])
