"""Which configurations a sweep holds: methods x bits x groups as plain data, from the methods' fields. Standard library only."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
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


def grid(catalogue: Sequence[dict[str, Any]], methods: Sequence[str], bits: Sequence[int], groups: Sequence[int]) -> list[Configuration]:
    """All configurations of these methods, each once, the 16-bit baseline first and cheap methods before those that read calibration text.

    catalogue: methods with their fields as JSON. A method without a choice of bits or groups stands once where another stands many times; a width or
    group that a method does not offer is left out for it. groups: sizes, CHANNEL for one scale an output channel. Raises InputError with a sentence
    when nothing is left or more than LIMIT.
    """
    known = {entry["name"]: entry for entry in catalogue}
    for name in methods:
        if name not in known:
            raise InputError(f"There is no method {str(name)[:40]!r}; choose from {', '.join(known)}.")
    found: dict[Configuration, None] = {}
    for name in sorted(methods, key=lambda name: (known[name]["needs_inputs"], list(methods).index(name))):
        found |= dict.fromkeys(Configuration(name, params) for params in points(known[name], bits, groups))
    quantized = [c for c in found if c.method != "none"]
    if not quantized:
        raise InputError("No configuration is left; choose at least one method, and bits and group sizes that it offers.")
    if len(quantized) > LIMIT:
        raise InputError(f"These are {len(quantized)} configurations; choose fewer, at most {LIMIT}.")
    return [Configuration("none", ()), *quantized]


def points(entry: dict[str, Any], bits: Sequence[int], groups: Sequence[int]) -> list[tuple[tuple[str, Any], ...]]:
    """The parameters of one method over the axes that it has."""
    fields = {field["name"]: field for field in entry["fields"]}
    axes: list[list[dict[str, Any]]] = []
    if "bits" in fields:
        axes.append([{"bits": width} for width in bits if width in fields["bits"]["choices"]])
    if "group_size" in fields:
        grouped = {"granularity": "group"} if "granularity" in fields else {}
        axes.append([grouped | {"group_size": size} for size in groups if size in fields["group_size"]["choices"]])
        if CHANNEL in groups and "granularity" in fields:
            axes[-1].append({"granularity": "channel"})
    merged = [dict(pair for part in parts for pair in part.items()) for parts in itertools.product(*axes)]
    return [tuple(sorted(params.items())) for params in merged]
