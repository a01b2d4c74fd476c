"""How far the speed-up of the same work differs from run to run: what an interval over one run's rounds cannot know. No torch.

Configurations that run the same kernel on the same bytes do the same work whatever their codes are, so a survey holds repetitions without running any twice.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cache
from statistics import fmean
from typing import NamedTuple

from explorer.findings import busy, known
from explorer.recorded import survey
from explorer.records import Report
from explorer.sequential import student_t


class Spread(NamedTuple):
    """means: the geometric mean of each work's speed-ups and of how many runs; deviation: of a run's logarithm from its work's, and its degrees of freedom."""

    means: dict[str, tuple[float, int]]
    deviation: float
    free: int

    def factor(self, runs: int = 1) -> float:
        """The true speed-up lies within the mean of so many runs times or divided by this, with 95% confidence."""
        return math.exp(student_t(0.05, self.free) * self.deviation / math.sqrt(runs))

    def told(self) -> str:
        """In a sentence."""
        mean, runs = max(self.means.values(), key=lambda found: found[1])
        two = self.factor() ** math.sqrt(2)
        return (
            f"The same kernel on the same bytes was {mean:.2f} times as fast as 16 bits in the mean of {runs} runs, single runs within a factor of "
            f"{self.factor():.2f} of their mean (95%): two rows tell a difference only beyond a factor of {two:.2f}."
        )


def work(report: Report) -> str:
    """What is equal for reports whose token takes the same work: kernels, bytes of all weights and bytes read a token; "" where one is not known
    or other work disturbed the times.
    """
    weights, limit, rate = (known(report, name) for name in ("weight_bytes", "decode_limit", "decode_bandwidth"))
    if not (weights and limit and rate and limit.value) or busy(report):
        return ""
    return f"{report.provenance.get('kernel_summary', '')}, {weights.value:.0f} bytes, {rate.value / limit.value:.0f} a token"


def spread(runs: Iterable[tuple[str, float]]) -> Spread | None:
    """From (work, speed-up) of runs on one device; the variance of the logarithms is pooled over groups of equal work. None with fewer than 5 degrees
    of freedom.
    """
    groups: dict[str, list[float]] = {}
    for name, value in runs:
        if name and value > 0:
            groups.setdefault(name, []).append(math.log(value))
    free = sum(len(logs) - 1 for logs in groups.values())
    if free < 5:
        return None
    squares = sum((log - fmean(logs)) ** 2 for logs in groups.values() for log in logs)
    return Spread({name: (math.exp(fmean(logs)), len(logs)) for name, logs in groups.items()}, math.sqrt(squares / free), free)


@cache
def between(metric: str = "decode_speedup") -> float:
    """The factor within which a single run's speed-up, of decoding or of the first token, lies of the mean of runs of the same work, with 95% confidence, as
    the recorded survey shows it on the machine that it was made on; infinite where that repeats too little, so that nothing is judged.
    """
    found = spread((work(report), speedup.value) for report in survey().values() if (speedup := known(report, metric)))
    return found.factor() if found else math.inf
