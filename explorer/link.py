"""A state of the page as a link, and back: specs as words, controls as query parameters. Values are checked against the catalogue of methods.

A spec in words is its method and then name=value, with ":" between: "gptq:bits=3:group_size=64". Standard library and records only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import urlencode

from explorer.records import QuantSpec, Scalar

LONGEST = 4000  # characters of a query value that are looked at
COMPARED = 4
WHOLE = {"kv_bits": 16, "head_bits": 16}  # what the baseline keeps, whatever is asked of another
Catalogue = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Wanted:
    """What a link asks for. params: of the method, only valid ones. options: of the run. compared: specs. own: what the tab is set
    to. wrong: a sentence a value that was not taken. A compared spec that is None leaves its place, and so its colour, free.
    """

    tab: str = ""
    layer: str = ""
    model: str = ""
    method: str = ""
    params: dict[str, Scalar] = field(default_factory=dict)
    options: dict[str, Scalar] = field(default_factory=dict)
    compared: tuple[QuantSpec | None, ...] = ()
    own: dict[str, Scalar] = field(default_factory=dict)
    wrong: tuple[str, ...] = ()


def words(spec: QuantSpec, catalogue: Catalogue) -> str:
    """A spec as "gptq:bits=3:group_size=64"; what is at its default is left out."""
    rest = [f"{name}={bits}" for name, bits in (("kv_bits", spec.kv_bits), ("head_bits", spec.head_bits)) if bits != 16]
    return ":".join([spec.method, *(f"{name}={value}" for name, value in unusual(spec, catalogue)), *rest])


def unusual(spec: QuantSpec, catalogue: Catalogue) -> list[tuple[str, Scalar]]:
    """The parameters of a spec that are not at their default."""
    fields = fields_of(spec.method, catalogue) or {}
    return [(name, value) for name, value in spec.params if name not in fields or value != fields[name]["default"]]


def completed(fields: Mapping[str, Mapping[str, Any]], given: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Given parameters and the defaults of all others that are in force beside them, as `methods.spec_of` completes them."""
    values = {name: given.get(name, f["default"]) for name, f in fields.items()}
    return {name: values[name] for name, f in fields.items() if f["when"] is None or values[f["when"][0]] in f["when"][1]}


def spec_from(text: str, catalogue: Catalogue) -> QuantSpec | None:
    """The inverse of `words`, with every parameter in force; None when it names no method or a value that the method does not take."""
    method, *pairs = text.split(":")
    fields = fields_of(method, catalogue)
    if fields is None or any("=" not in pair for pair in pairs):
        return None
    given = dict(pair.split("=", 1) for pair in pairs)
    kv_bits, head_bits = KV_BITS.get(given.pop("kv_bits", "16")), HEAD_BITS.get(given.pop("head_bits", "16"))
    params = {name: typed(fields[name], value) if name in fields else None for name, value in given.items()}
    if kv_bits is None or head_bits is None or None in params.values():
        return None
    return QuantSpec(method, tuple(sorted(completed(fields, params).items())), kv_bits, head_bits)


KV_BITS = {"16": 16, "8": 8, "4": 4, "2": 2}
HEAD_BITS = {"16": 16, "8": 8, "4": 4}
SOURCES = {name: name for name in ("bundled", "wikitext2", "c4")}
TEXT_STAYS = " (a text of yours is never part of a link)"
COUNTS = {"sequences": (1, 1024), "seed": (0, 2**31 - 1)}
OTHERS = ("story", "step", "room")  # of Learn and Class, which read them


def fields_of(method: str, catalogue: Catalogue) -> dict[str, Mapping[str, Any]] | None:
    """{name: field} of a method in the catalogue, None when there is none."""
    return next(({f["name"]: f for f in m["fields"]} for m in catalogue if m["name"] == method), None)


def typed(given: Mapping[str, Any], text: str) -> Scalar | None:
    """A field's value from text; None when the field does not take it."""
    if given["kind"] in ("choice", "bool"):
        return next((value for value in given["choices"] if str(value) == text), None)
    if given["kind"] == "text":
        return text if len(text) <= LONGEST else None
    return amount(text, given["low"], given["high"], given["kind"] == "int")


def amount(text: str, low: float, high: float, whole: bool) -> int | float | None:
    """A number between low and high, None for anything else."""
    try:
        value = float(text)
    except ValueError:
        return None
    if not low <= value <= high or (whole and value != int(value)):
        return None
    return int(value) if whole else value


def query(
    tab: str, layer: str, model: str, spec: QuantSpec, options: Mapping[str, Scalar], compared: Sequence[QuantSpec | None], catalogue: Catalogue,
    own: Mapping[str, Scalar] | None = None,
) -> str:  # fmt: skip
    """The query string of a state; parameters and options that are at their defaults are left out. own: what the tab itself is set to."""
    pairs: list[tuple[str, Any]] = [("tab", tab), ("layer", layer), ("model", model), ("method", spec.method), *unusual(spec, catalogue)]
    pairs += [(name, value) for name, value in options.items() if name in OPTIONS and value != OPTIONS[name]]
    here = [(f"{tab}.{name}", value) for name, value in (own or {}).items()]
    last = max((at for at, one in enumerate(compared, start=1) if one), default=0)
    shown = [("with", words(one, catalogue) if one else "") for one in compared[:last]]
    return urlencode([*((name, value) for name, value in pairs if value != ""), *here, *shown])


OPTIONS: dict[str, Scalar] = {"evaluation": "bundled", "calibration": "bundled", "sequences": 16, "seed": 0, **WHOLE}


def parse(
    pairs: Sequence[tuple[str, str]], catalogue: Catalogue, tabs: Sequence[str], linked: Mapping[str, Mapping[str, Mapping[str, Any]]] | None = None
) -> Wanted:
    """What the query parameters (name, value) ask for. linked: by tab, what it can be set to, as fields of the catalogue's form.

    What is unknown or out of range is left out and named in `wrong`, but for the names that others read: OTHERS, and gradio's own, "__" in front.
    """
    last = {name: value[:LONGEST] for name, value in pairs if name not in OTHERS and not name.startswith("__")}
    wrong: list[str] = []

    def take(name: str, read: Callable[[str], Any]) -> Any:
        """The value of a name as it is read; None where it is not there, or not to be had, which is noted."""
        text = last.pop(name, None)
        value = None if text is None else read(text)
        if text is not None and value is None:
            wrong.append(f"{name} {text[:40]!r}{TEXT_STAYS if text == 'pasted' else ''}")
        return value

    method = take("method", {m["name"]: m["name"] for m in catalogue}.get) or ""
    reads: dict[str, Callable[[str], Any]] = {name: partial(typed, given) for name, given in (fields_of(method, catalogue) or {}).items()}
    params = {name: take(name, read) for name, read in reads.items()}
    allowed = {"evaluation": SOURCES, "calibration": SOURCES, "kv_bits": KV_BITS, "head_bits": HEAD_BITS}
    options = {name: take(name, values.get) for name, values in allowed.items()}
    options |= {name: take(name, partial(amount, low=low, high=high, whole=True)) for name, (low, high) in COUNTS.items()}
    tab = take("tab", {name: name for name in tabs}.get) or ""
    own = {name: take(f"{tab}.{name}", partial(typed, given)) for name, given in (linked or {}).get(tab, {}).items()}
    layer, model = (last.pop(name, "")[:200] for name in ("layer", "model"))
    last.pop("with", None)
    specs = [(value, spec_from(value[:LONGEST], catalogue)) for name, value in pairs if name == "with"]
    wrong += [f"with {value[:40]!r}" for at, (value, spec) in enumerate(specs) if (spec is None and value) or at >= COMPARED]
    wrong += [f"{name[:40]} {value[:40]!r}" for name, value in last.items()]
    taken = (spec for value, spec in specs[:COMPARED] if spec is not None or not value)
    return Wanted(tab, layer, model, method, there(params), there(options), tuple(taken), there(own), tuple(wrong))


def there(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that are not None."""
    return {name: value for name, value in values.items() if value is not None}
