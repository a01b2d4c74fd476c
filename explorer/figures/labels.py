"""Which points of a figure have their names written beside them: those whose names have room. No figure of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

LETTER, LINE = 0.01, 0.06  # of a narrow figure's width and of its height, that a letter and a line of text take


def brief(point: dict[str, Any]) -> str:
    """A point's name without what stands in brackets after it."""
    return point["name"].partition(" (")[0]


def spaced(marks: Sequence[tuple[str, str, float, float]], xs: Sequence[float], ys: Sequence[float]) -> dict[str, str]:
    """{key: where its name stands, "top right" or, at the right end, "top left"} of the marks (key, name, x, y) whose names meet none of those given before
    them. xs, ys: what the axes span, as linear as they are drawn.
    """
    taken: list[tuple[float, float, float]] = []
    found = {}
    for key, name, x, y in marks:
        across, up = ((at - min(span)) / ((max(span) - min(span)) or 1.0) for at, span in ((x, xs), (y, ys)))
        width = LETTER * len(name)
        turned = across + width > 1
        start = across - width if turned else across
        if all(start + width <= other or other + wide <= start or abs(up - above) > LINE for other, wide, above in taken):
            taken.append((start, width, up))
            found[key] = "top left" if turned else "top right"
    return found
