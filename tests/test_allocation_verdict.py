"""What is concluded of an allocation beside one width for all: by sizes that can be compared, by window where both scored the same, and in memory."""

from __future__ import annotations

import random
import statistics

import pytest

from explorer.figures import allocation, charts

WINDOWS = [0.12, 0.15, 0.16, 0.13]


def allocation_said(mixed: dict, *uniforms: dict) -> str:
    """What the chart says of an allocation; each point: bits, and by how much its windows lie above or below WINDOWS or how many times they are them."""
    points = []
    for kind, given in (*(("uniform", one) for one in uniforms), ("mixed", mixed)):
        noise = [0.001 if i % 2 else -0.001 for i in range(4)] if kind == "mixed" else [0.0] * 4
        own = [given.get("times", 1.0) * w + given.get("move", 0.0) + n for w, n in zip(WINDOWS, noise, strict=True)]
        mean = statistics.fmean(own)
        point = {"kind": kind, "name": f"{given['bits']:g} bits for all", "predicted": mean, "kld": mean, "low": 0.9 * mean, "high": 1.1 * mean, "windows": own}
        points.append(point | given)
    return charts()["allocation"].summary({"points": points})


def test_an_allocation_is_judged_by_window_at_its_own_size() -> None:
    same = {"bits": 3.25}
    assert "as large and worse: spending the bits unevenly wins, paired over 4 windows" in allocation_said({"bits": 3.25, "move": -0.005}, same)
    assert "as large and better: here one width for all wins, paired over 4 windows" in allocation_said({"bits": 3.25, "move": 0.005}, same)
    assert "as large: no difference is shown, paired" in allocation_said(same, same)
    assert "is larger and worse: spending the bits unevenly wins" in allocation_said({"bits": 3.5, "times": 0.5}, {"bits": 4.25})
    assert "is smaller and better: here one width for all wins" in allocation_said({"bits": 3.5, "times": 2.0}, {"bits": 3.25})
    apart = {"bits": 3.25, "windows": None}
    assert "unevenly wins, by intervals that are not paired" in allocation_said({"bits": 3.25, "times": 0.5}, apart)
    assert "no difference is shown, by intervals" in allocation_said({"bits": 3.25, "times": 0.9}, apart)


def test_an_allocation_is_not_judged_by_a_width_that_stores_more_or_less() -> None:
    """Better than a smaller width or worse than a larger one decides nothing: the line between both does, and beyond its ends nothing."""
    three, four = {"bits": 3.0, "times": 1.0}, {"bits": 4.0, "times": 0.25}
    assert "nothing is concluded" in allocation_said({"bits": 3.5, "times": 0.5}, three)
    assert "nothing is concluded" in allocation_said({"bits": 3.5, "times": 0.5}, four)
    halfway = "one width for all would have 0.0700 nats at 3.500 bits; that is an interpolation"
    wins = allocation_said({"bits": 3.5, "times": 0.4}, four, three)
    assert halfway in wins and "nats below it: spending the bits unevenly wins, paired over 4 windows" in wins
    worse = allocation_said({"bits": 3.5, "times": 0.7}, four, three)
    assert halfway in worse and "nats above it: here one width for all is better, paired" in worse
    assert "cannot be told from that, paired over 4 windows" in allocation_said({"bits": 3.5, "times": 0.5}, four, three)
    bare = {"windows": None, "low": None, "high": None}
    assert "Without intervals nothing tells" in allocation_said({"bits": 3.5, "times": 0.4} | bare, four | bare, three | bare)
    loose = {"windows": None}
    assert "unevenly wins, by intervals that are not paired" in allocation_said({"bits": 3.5, "times": 0.3} | loose, four | loose, three | loose)
    assert "cannot be told from that, by intervals" in allocation_said({"bits": 3.5, "times": 0.45} | loose, four | loose, three | loose)


def test_the_spread_of_an_interpolation_is_that_of_windows_drawn_again() -> None:
    """First order against a bootstrap of what both widths and the allocation have on the same windows."""
    rng = random.Random(0)
    hard = [rng.expovariate(1) + 0.2 for _ in range(200)]
    below, above, ours = ([h * f * rng.uniform(0.8, 1.2) for h in hard] for f in (0.2, 0.05, 0.09))
    middle = allocation.interpolated({"kld": 0, "windows": below}, {"kld": 0, "windows": above}, 0.4)
    value, low, high = allocation.compared({"windows": ours}, middle)
    drawn = []
    for _ in range(2000):
        picked = [rng.randrange(200) for _ in range(200)]
        b, a, o = (statistics.fmean(values[i] for i in picked) for values in (below, above, ours))
        drawn.append(o - b**0.6 * a**0.4)
    assert value == pytest.approx(statistics.fmean(ours) - statistics.fmean(below) ** 0.6 * statistics.fmean(above) ** 0.4)
    assert (high - low) / 2 == pytest.approx(1.97 * statistics.stdev(drawn), rel=0.08)


def test_an_allocation_is_judged_in_memory_where_that_is_more_than_it_stores() -> None:
    three, four = {"bits": 3.0, "resident": 4.3}, {"bits": 4.0, "times": 0.25, "resident": 4.0}
    mixed = {"bits": 3.5, "times": 0.4}
    told = allocation_said(mixed | {"resident": 4.9}, four, three)
    assert "In memory it takes 4.900 bits a weight here, 40% more than it stores" in told and "4 bits for all takes 4.000" in told
    assert "in that memory one width for all is better, paired over 4 windows" in told
    assert "in that memory the allocation is better" in allocation_said(mixed | {"resident": 4.5}, four | {"resident": 4.6}, three)
    assert "in that memory no difference is shown" in allocation_said({"bits": 3.5, "times": 0.25, "resident": 4.5}, four, three)
    assert "nothing is concluded for memory" in allocation_said(mixed | {"resident": 3.9}, four, three)
    assert "In memory" not in allocation_said(mixed | {"resident": 3.55}, four, three) + allocation_said(mixed, four, three)
