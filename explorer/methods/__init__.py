"""Method: how a weight becomes a QuantizedTensor. One file a method, found by folder; nothing here runs or measures a model.

A method is a frozen dataclass. Its fields are its parameters: UI controls, CLI flags, README row, test cases and cache key all follow.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

from torch import Tensor

from explorer.input_statistics import InputStatistics
from explorer.qtensor import QuantizedTensor
from explorer.records import InputError, QuantSpec, key_of, plain
from explorer.sizes import Weight

TEXT_LIMIT = 10_000  # characters of a field of kind "text"


@dataclass(frozen=True)
class Field:
    """One parameter of a method, as a person sees it. `when` = (other field, values): shown and used only while the other has one."""

    name: str
    title: str
    kind: str  # "choice", "bool", "int", "float" or "text"
    default: Any
    choices: tuple = ()
    low: float | None = None
    high: float | None = None
    help: str = ""
    when: tuple[str, tuple] | None = None
    off: str = ""  # a word for "switched off" in names, such as "asymmetric"


def choice(default: Any, *choices: Any, title: str, help: str = "", when: tuple[str, tuple] | None = None, off: str = "") -> Any:
    """A dataclass field that takes one of a few values; a bool when the default is one, which needs no choices."""
    kind = "bool" if isinstance(default, bool) else "choice"
    meta = {"title": title, "kind": kind, "choices": choices or (False, True), "help": help, "when": when, "off": off}
    return dataclasses.field(default=default, metadata=meta)


def amount(default: float, low: float, high: float, *, title: str, help: str = "", when: tuple[str, tuple] | None = None) -> Any:
    """A dataclass field that takes a number between low and high; an integer when the default is one."""
    kind = "int" if isinstance(default, int) else "float"
    return dataclasses.field(default=default, metadata={"title": title, "kind": kind, "low": low, "high": high, "help": help, "when": when})


def text(default: str, *, title: str, help: str = "") -> Any:
    """A dataclass field that takes some lines of text, at most TEXT_LIMIT characters; the method's `check` reads them."""
    return dataclasses.field(default=default, metadata={"title": title, "kind": "text", "help": help})


@dataclass(frozen=True)
class Method:
    """Base of all methods. needs_inputs: `quantize` gets what calibration text shows of the layer's inputs, else None."""

    name: ClassVar[str]
    title: ClassVar[str]
    short: ClassVar[str]  # how names of configurations begin, such as "GPTQ"
    paper: ClassVar[str] = ""
    needs_inputs: ClassVar[bool] = False
    of_model: ClassVar[bool] = False  # whether it sees the whole model, by `train` as in qat.py, instead of one layer at a time
    by_name: ClassVar[bool] = False  # whether a layer's name decides how it is rounded

    def quantize(self, weight: Tensor, inputs: InputStatistics | None, layer: str = "") -> QuantizedTensor:
        """weight [N, K] float32 of the named layer -> QuantizedTensor. `refuses` has been asked before."""
        raise NotImplementedError

    def quantize_together(self, weights: dict[str, Tensor], inputs: InputStatistics | None, rows: Tensor | None) -> Iterator[tuple[str, QuantizedTensor]]:
        """Yields (layer, QuantizedTensor) for layers that read the same inputs, all that there are of q/k/v or gate/up among them. weights [N, K] in the
        model's dtype by layer. rows [K] int64: which output of the operator before them each input channel is, None where no operator could take a
        scale of these channels, see explorer/flow.py, or nothing was calibrated.
        """
        for layer, weight in weights.items():
            yield layer, self.quantize(weight.float(), inputs, layer)

    @classmethod
    def quantize_each(
        cls, own: Mapping[str, Method], weights: dict[str, Tensor], inputs: InputStatistics | None, rows: Tensor | None
    ) -> Iterator[tuple[str, QuantizedTensor]]:
        """As `quantize_together`, for layers that each have a method of this class with parameters of its own, own[layer]. What layers with one input
        share is shared among those of equal parameters, and a scale of the input only where these are all.
        """
        for method in dict.fromkeys(own[layer] for layer in weights):
            alike = {layer: weight for layer, weight in weights.items() if own[layer] == method}
            yield from method.quantize_together(alike, inputs if method.reads_inputs() else None, rows if len(alike) == len(weights) else None)

    def reads_inputs(self) -> bool:
        """Whether this configuration needs the layer's inputs; only methods with `needs_inputs` may."""
        return self.needs_inputs

    def reads_gram(self, layer: str) -> bool:
        """Whether of the named layer's inputs it also needs the Gram matrix, which is most of the work and 4 K^2 bytes; only if it reads inputs at all."""
        return False

    def inverts_gram(self, layer: str) -> bool:
        """Whether it inverts that matrix, which must then come from several times as many inputs as it has rows, or damping decides."""
        return False

    def for_model(self, config: Mapping[str, Any]) -> Method:
        """The method for a model with this config.json: itself, unless a layer's place in the model decides how it is rounded. Raises InputError."""
        return self

    def check(self) -> str:
        """A sentence that says why these parameters mean nothing together, "" when they do."""
        return ""

    def require(self, weight: Weight, windows: tuple[int, int], resident: float, free: float, on_gpu: bool) -> None:
        """Raises InputError where a method that trains finds less memory than it takes beside a model of this weight, on calibration windows [W, T].
        resident: bytes that the model itself will take of the `free` ones. Asked before a weight is read.
        """

    def modules(self) -> set[str]:
        """The modules that determine the result, with what they import."""
        return {type(self).__module__}

    def refuses(self, shape: tuple[int, int], layer: str = "") -> str:
        """Why the weight of this shape [N, K] of a layer cannot be quantized ("" when it can): the layer is then kept in 16 bits and reported."""
        group = getattr(self, "group_size", 0) if getattr(self, "granularity", "group") == "group" else 0
        return f"group size {group} does not divide its {shape[1]} inputs" if group and shape[1] % group else ""

    def stored_as(self, shape: tuple[int, int], layer: str = "") -> str:
        """The format that a layer with a weight of this shape [N, K] gets in place of the one that was asked for, "" where it gets that one."""
        return ""


def refuses_all(method: Method, shapes: Mapping[str, tuple[int, int]]) -> str:
    """Why a method can quantize none of the layers with these weights [N, K], and which other values could; "" where it can quantize one."""
    reasons = {name: method.refuses(shape, name) for name, shape in shapes.items()}
    if not all(reasons.values()):
        return ""
    fields = {field.name: field for field in fields_of(type(method))}
    able = [
        f"{field.title.lower()} {value}"
        for field in (fields[name] for name in ("group_size", "granularity") if name in fields)
        for value in field.choices
        if (other := dataclasses.replace(method, **{field.name: value})) != method and not all(other.refuses(shape, name) for name, shape in shapes.items())
    ]
    why = "; ".join(dict.fromkeys(reasons.values()))
    return f"{label_of(method)} quantizes none of the {len(shapes)} layers: {why}. Choose {' or '.join(able) or 'another method'}."


@cache
def methods() -> dict[str, type[Method]]:
    """Name -> class of every method in this folder, the baseline first, then by name."""
    found = {}
    for module in pkgutil.iter_modules(__path__):
        for item in vars(importlib.import_module(f"{__name__}.{module.name}")).values():
            if isinstance(item, type) and issubclass(item, Method) and item is not Method:
                found[item.name] = item
    return dict(sorted(found.items(), key=lambda pair: (pair[0] != "none", pair[0])))


def fields_of(method: type[Method]) -> tuple[Field, ...]:
    """The parameters of a method, in the order of its class."""
    return tuple(Field(name=f.name, default=f.default, **f.metadata) for f in dataclasses.fields(method))


def build(name: str, params: dict[str, Any]) -> Method:
    """A method from its name and parameters. Raises InputError with a sentence on anything unknown, of the wrong type or out of range."""
    known = methods()
    if name not in known:
        raise InputError(f"There is no method {str(name)[:40]!r}; choose one of {', '.join(known)}.")
    fields = {field.name: field for field in fields_of(known[name])}
    for unknown in params.keys() - fields.keys():
        allowed = ", ".join(fields) or "no parameters"
        raise InputError(f"{name} has no parameter {str(unknown)[:40]!r}; it takes {allowed}.")
    method = known[name](**{key: _checked(name, fields[key], value) for key, value in params.items()})
    if wrong := method.check():
        raise InputError(wrong)
    return method


def from_text(name: str, params: dict[str, str]) -> dict[str, Any]:
    """Parameters written as text, as the types that the method's fields ask for; what cannot be converted stays, for `build` to refuse."""
    fields = {field.name: field for field in fields_of(methods()[name])} if name in methods() else {}
    return {key: _typed(fields[key], value) if key in fields else value for key, value in params.items()}


def _typed(field: Field, text: str) -> Any:
    if field.kind == "choice":
        return next((c for c in field.choices if str(c) == text), text)
    if field.kind == "bool":
        return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}.get(text.lower(), text)
    if field.kind == "text":
        return text
    try:
        return float(text)
    except ValueError:
        return text


def _checked(method: str, field: Field, value: Any) -> Any:
    if field.kind in ("choice", "bool"):
        for allowed in field.choices:
            if type(allowed) is type(value) and allowed == value:
                return value
        raise InputError(f"{method}: {field.name} cannot be {str(value)[:40]!r}; choose one of {', '.join(map(str, field.choices))}.")
    if field.kind == "text":
        if isinstance(value, str) and len(value) <= TEXT_LIMIT:
            return "\n".join(line.strip() for line in value.replace(";", "\n").splitlines() if line.strip())
        raise InputError(f"{method}: {field.name} must be a text of at most {TEXT_LIMIT:,} characters.")
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not field.low <= value <= field.high or (field.kind == "int" and value != int(value)):
        raise InputError(f"{method}: {field.name} cannot be {str(value)[:40]!r}; give a number from {field.low:g} to {field.high:g}.")
    return int(value) if field.kind == "int" else float(value)


def spec_of(method: Method) -> QuantSpec:
    """The spec with every parameter in force: fields whose `when` does not hold take their default, so equal work has an equal key."""
    values = {f.name: getattr(method, f.name) for f in fields_of(type(method))}
    params = {f.name: values[f.name] for f in fields_of(type(method)) if f.when is None or values[f.when[0]] in f.when[1]}
    return QuantSpec.of(method.name, **params)


def catalogue() -> list[dict[str, Any]]:
    """Every method with its fields as plain data, for scripts and for the page, which must not wait for torch. reads_inputs: with its defaults."""
    return [
        {"name": m.name, "title": m.title, "paper": m.paper, "needs_inputs": m.needs_inputs, "reads_inputs": m().reads_inputs(), "fields": plain(fields_of(m))}
        for m in methods().values()
    ]


def label_of(method: Method) -> str:
    """A short name such as "GPTQ 4-bit g64": bits and granularity always, other parameters where they differ from the default."""
    params = dict(spec_of(method).params)
    parts = [method.short]
    if "bits" in params:
        parts.append(f"{params.pop('bits')}-bit")
    granularity, group = params.pop("granularity", "group"), params.pop("group_size", None)
    parts += [f"g{group}"] if group else [f"per-{granularity}"] if granularity != "group" else []
    parts += [params.pop(name) for name in ("element", "format") if name in params]
    for field in fields_of(type(method)):
        value = params.get(field.name, field.default)
        if value != field.default:
            word = field.title.lower()
            if field.kind == "text":
                parts.append(f"({value.replace(chr(10), '; ')})" if len(value) < 60 else f"({value.count(chr(10)) + 1} rules, {key_of(value)[:4]})")
                continue
            parts.append((word if value else field.off or f"no {word}") if field.kind == "bool" else f"{word} {value}")
    return " ".join(parts)
