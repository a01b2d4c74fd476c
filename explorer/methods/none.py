"""The baseline: weights stay in bfloat16. Everything else is compared with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from explorer.methods import Method
from explorer.records import BASELINE


@dataclass(frozen=True)
class Baseline(Method):
    """The model as it was trained, in bfloat16: 16 bits a weight. No layer is replaced, so its numbers are the reference for all others."""

    name: ClassVar[str] = "none"
    title: ClassVar[str] = "16-bit baseline (bfloat16)"
    short: ClassVar[str] = "16-bit baseline"

    def refuses(self, shape: tuple[int, int], layer: str = "") -> str:
        return BASELINE
