"""Does a text repeat itself? The share of repeated n-grams and exact cycles, over any tokens. Standard library only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

PERIOD, COPIES = 128, 3  # the longest cycle looked for, and how many copies make one
SHORT = 12  # tokens that a cycle must cover: three equal tokens in a row are ordinary text ("===", "...", indentation)


def repetition(tokens: Sequence[Any], n: int = 4) -> float:
    """1 - different n-grams / all n-grams: 0 when none occurs twice; 0 for fewer than n tokens."""
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def cycle(tokens: Sequence[Any]) -> dict[str, int] | None:
    """The cycle that the text ends in: period (1 to PERIOD), copies (whole ones, at least COPIES), start (where the first begins), or None.

    The shortest period counts. The last copy may be cut off by the end.
    """
    for period in range(1, min(PERIOD, len(tokens) // COPIES) + 1):
        start = len(tokens) - period
        while start > 0 and tokens[start - 1] == tokens[start - 1 + period]:
            start -= 1
        length = len(tokens) - start
        if length >= max(COPIES * period, SHORT):
            return {"period": period, "copies": length // period, "start": start}
    return None
