"""Which configurations a sweep holds: methods x bits x groups x further parameters as plain data, from the methods' fields. Standard library only."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from explorer.records import InputError

LIMIT = 200  # configurations of one sweep
CHANNEL = 0  # the group size that means one scale for a whole output channel


@dataclass(frozen=True)
class Configuration:
    """One point of a grid: a method and its parameters, as `Runner.run` takes them."""

    method: str
    params: tuple[tuple[str, Any], ...]


def grid(
    catalogue: Sequence[dict[str, Any]], methods: Sequence[str], bits: Sequence[int], groups: Sequence[int], further: Mapping[str, Sequence[str]] | None = None
) -> list[Configuration]:
    """All configurations of these methods, each once, the 16-bit baseline first and cheap methods before those that read calibration text.

    catalogue: methods with their fields as JSON. A method without a choice of bits or groups stands once where another stands many times; a width or
    group that a method does not offer is left out for it. groups: sizes, CHANNEL for one scale an output channel. further: values, as text, of other
    parameters by name, for the methods that have them. Raises InputError with a sentence when nothing is left, or more than LIMIT, or when no
    method here takes a further value, or the other parameters switch it off in all of them.
    """
    known = {entry["name"]: entry for entry in catalogue}
    for name in methods:
        if name not in known:
            raise InputError(f"There is no method {str(name)[:40]!r}; choose from {', '.join(known)}.")
    for name, values in (further or {}).items():
        fields = [field for method in methods for field in known[method]["fields"] if field["name"] == name]
        for value in values:
            if not any(offered(field, value) for field in fields):
                offers = " or ".join(dict.fromkeys(span(field) for field in fields))
                raise InputError(f"{name} cannot be {value[:40]!r}: " + (f"it takes {offers}." if fields else "none of these methods has it."))
    found: dict[Configuration, None] = {}
    for name in sorted(methods, key=lambda name: (known[name]["needs_inputs"], list(methods).index(name))):
        found |= dict.fromkeys(Configuration(name, params) for params in points(known[name], bits, groups, further or {}))
    quantized = [c for c in found if c.method != "none"]
    if not quantized:
        raise InputError("No configuration is left; choose at least one method, and bits and group sizes that it offers.")
    used = {name for one in quantized for name, _ in one.params}
    for name, values in (further or {}).items():
        if name not in used and any(value.lower() != "false" for value in values):
            when = [field["when"] for method in methods for field in known[method]["fields"] if field["name"] == name and field["when"]]
            only = "".join(f" only with {other} {' or '.join(map(str, needed)).lower()}" for other, needed in when[:1])
            raise InputError(f"No configuration here uses {name}{only and f', which is used{only}'}; leave it out, or choose the others otherwise.")
    if len(quantized) > LIMIT:
        raise InputError(f"These are {len(quantized)} configurations; choose fewer, at most {LIMIT}.")
    return [Configuration("none", ()), *quantized]


def taken(catalogue: Sequence[dict[str, Any]], methods: Sequence[str], bits: Sequence[int], groups: Sequence[int]) -> dict[str, dict[str, bool]]:
    """{what is asked for, such as "7 bits": {a method with such a choice: whether it takes this one}}."""
    found: dict[str, dict[str, bool]] = {f"{width} bits": {} for width in bits} | {_group(size): {} for size in groups}
    for entry in (entry for entry in catalogue if entry["name"] in methods):
        fields = {field["name"]: field["choices"] for field in entry["fields"]}
        for width in bits if "bits" in fields else ():
            found[f"{width} bits"][entry["name"]] = width in fields["bits"]
        for size in groups if "group_size" in fields else ():
            found[_group(size)][entry["name"]] = "granularity" in fields if size == CHANNEL else size in fields["group_size"]
    return found


def _group(size: int) -> str:
    return "single scale an output channel" if size == CHANNEL else f"groups of {size}"


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def left_out(catalogue: Sequence[dict[str, Any]], methods: Sequence[str], bits: Sequence[int], groups: Sequence[int]) -> str:
    """Which of the asked bits and groups a grid leaves out for a method that lacks them, such as "left out: hqq and qat have no 7 bits"; "" for none."""
    lacking = {what: [name for name, has in by.items() if not has] for what, by in taken(catalogue, methods, bits, groups).items()}
    told = "; ".join(f"{_listed(names)} {'have' if names[1:] else 'has'} no {what}" for what, names in lacking.items() if names)
    return f"left out: {told}" if told else ""


def check_taken(catalogue: Sequence[dict[str, Any]], methods: Sequence[str], bits: Sequence[int], groups: Sequence[int]) -> None:
    """Raises InputError where bits or groups are asked for that no method here takes."""
    if never := [what for what, by in taken(catalogue, methods, bits, groups).items() if not any(by.values())]:
        raise InputError(
            f"{', '.join(methods)}: no {' and no '.join(never)} here. Leave out what none takes; `python -m explorer methods` tells what each does."
        )


def offered(field: dict[str, Any], text: str) -> list[Any]:
    """[the value that a text means for a parameter], [] where it takes none like it."""
    if field["kind"] in ("choice", "bool"):
        return [choice for choice in field["choices"] if str(choice).lower() == text.lower()]
    if field["kind"] == "text":
        return [text]
    try:
        value = float(text)
    except ValueError:
        return []
    return [value] if field["low"] <= value <= field["high"] and (field["kind"] == "float" or value.is_integer()) else []


def span(field: dict[str, Any]) -> str:
    """What a parameter takes, in words."""
    return ", ".join(map(str, field["choices"])) if field["choices"] else f"{field['low']:g} to {field['high']:g}"


def points(entry: dict[str, Any], bits: Sequence[int], groups: Sequence[int], further: Mapping[str, Sequence[str]]) -> list[tuple[tuple[str, Any], ...]]:
    """The parameters of one method over the axes that it has, without those that mean nothing beside the others."""
    fields = {field["name"]: field for field in entry["fields"]}
    axes: list[list[dict[str, Any]]] = []
    if "bits" in fields:
        axes.append([{"bits": width} for width in bits if width in fields["bits"]["choices"]])
    if "group_size" in fields:
        grouped = {"granularity": "group"} if "granularity" in fields else {}
        axes.append([grouped | {"group_size": size} for size in groups if size in fields["group_size"]["choices"]])
        if CHANNEL in groups and "granularity" in fields:
            axes[-1].append({"granularity": "channel"})
    axes += [[{name: value} for text in values for value in offered(fields[name], text)] for name, values in further.items() if name in fields]
    merged = [dict(pair for part in parts for pair in part.items()) for parts in itertools.product(*axes)]
    return list(dict.fromkeys(tuple(sorted((n, v) for n, v in params.items() if n not in further or meant(fields, n, params))) for params in merged))


def meant(fields: Mapping[str, dict[str, Any]], name: str, params: Mapping[str, Any]) -> bool:
    """Whether a parameter is used beside the others."""
    when = fields[name]["when"]
    return when is None or params.get(when[0], fields[when[0]]["default"]) in when[1]
