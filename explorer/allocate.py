"""Which bit-width each layer gets under a budget of stored bits: an exact knapsack over measured losses. Standard library only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from explorer.records import TOGETHER, InputError


@dataclass(frozen=True)
class Option:
    """One layer at one width: `cost` in stored bits, every scale and zero counted; `loss` in any unit that adds up over layers, here nats of KL. also:
    further layers that get the same width; cost and loss are of all of them.
    """

    layer: str
    bits: int
    cost: int
    loss: float
    also: tuple[str, ...] = ()


@dataclass(frozen=True)
class Point:
    """An assignment that no other beats in both cost and loss. `last`: the option of the last layer, `before`: the point of the layers before it."""

    cost: int
    loss: float
    last: Option | None = None
    before: Point | None = None

    def assignment(self) -> dict[str, Option]:
        """Layer name -> its option."""
        found, point = [], self
        while point is not None and point.last is not None:
            found.append(point.last)
            point = point.before
        return {layer: option for option in reversed(found) for layer in (option.layer, *option.also)}


def frontier(layers: Sequence[Sequence[Option]]) -> list[Point]:
    """All assignments (one option a layer) that are optimal for some budget, by rising cost and falling total loss.

    Exact for any costs: layer by layer, each kept point is extended by each option and what another point beats is dropped (Nemhauser and
    Ullmann 1969, Discrete dynamic programming and capital allocation). The number of points stays below the number of distinct total costs,
    which for layers of one family of sizes is some thousands. Raises InputError when a layer has no option with a finite loss.
    """
    points = [Point(0, 0.0)]
    for options in layers:
        usable = [option for option in options if math.isfinite(option.loss)]
        if not usable:
            name = options[0].layer if options else "without a name"
            raise InputError(f"No width of the layer {name[:60]} has a finite loss, so no assignment holds; measure more widths.")
        grown = sorted((p.cost + option.cost, p.loss + option.loss, i, j) for i, option in enumerate(usable) for j, p in enumerate(points))
        kept = list[Point]()
        for cost, loss, i, j in grown:
            if not kept or loss < kept[-1].loss:
                kept.append(Point(cost, loss, usable[i], points[j]))
        points = kept
    return points


def best(points: Sequence[Point], budget: float) -> Point:
    """The frontier's point of least loss that costs at most `budget` stored bits. Raises InputError when even the smallest costs more."""
    fitting = [p for p in points if p.cost <= budget]
    if not fitting:
        raise InputError(f"The smallest assignment takes {points[0].cost:,} bits, more than the budget of {math.floor(budget):,}; raise it.")
    return fitting[-1]


def options_of(rows: Sequence[dict[str, Any]]) -> list[list[Option]]:
    """Options by layer from the rows of a sensitivity answer: dicts with layer, bits, stored_bits and kld."""
    layers: dict[str, list[Option]] = {}
    for row in rows:
        loss = row["kld"] if isinstance(row["kld"], int | float) else math.inf
        layers.setdefault(row["layer"], []).append(Option(row["layer"], row["bits"], row["stored_bits"], loss))
    return list(layers.values())


def together(layers: Sequence[Sequence[Option]]) -> list[list[Option]]:
    """The options of layers that vLLM runs as one matrix, and which a file must hold alike for it, as options of one layer: at the widths that all of them
    have. Raises InputError where they have none in common.
    """
    groups: dict[tuple[str, ...], list[Sequence[Option]]] = {}
    for options in layers:
        place, _, own = options[0].layer.rpartition(".")
        groups.setdefault((place, *next((kind for kind in TOGETHER if own in kind), (own,))), []).append(options)
    return [_alike(members) for members in groups.values()]


def _alike(members: Sequence[Sequence[Option]]) -> list[Option]:
    widths = [{option.bits: option for option in options} for options in members]
    found = [_one([own[bits] for own in widths]) for bits in widths[0] if all(bits in own for own in widths)]
    if not found:
        names = ", ".join(options[0].layer[:60] for options in members)
        raise InputError(f"The layers {names} run as one and were measured at no width that all of them have; measure them at the same widths.")
    return found


def _one(options: Sequence[Option]) -> Option:
    first, *rest = options
    return Option(first.layer, first.bits, sum(o.cost for o in options), sum(o.loss for o in options), tuple(o.layer for o in rest))


def uniform(rows: Sequence[dict[str, Any]], bits: int) -> tuple[int, float]:
    """(stored bits, summed loss) of all layers at one width."""
    chosen = [row for row in rows if row["bits"] == bits]
    return sum(row["stored_bits"] for row in chosen), sum(float(row["kld"]) for row in chosen)


def rules(assignment: dict[str, Option], method: str, params: dict[str, Any]) -> str:
    """The assignment as rules of the method "mixed": the most frequent width as the last, general rule, one rule for each other layer."""
    widths = [option.bits for option in assignment.values()]
    usual = max(sorted(set(widths)), key=widths.count)
    extra = "".join(f" {name}={str(value).lower() if isinstance(value, bool) else value}" for name, value in sorted(params.items()))
    lines = [f"{layer}: {method} bits={option.bits}{extra}" for layer, option in assignment.items() if option.bits != usual]
    return "\n".join([*lines, f"*: {method} bits={usual}{extra}"])
