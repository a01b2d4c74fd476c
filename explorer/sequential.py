"""When to stop looking: bounds that stay honest although one looks again and again while the data come in. Standard library only."""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist, fmean, stdev

ALPHA = 0.05
LEAST = 1e-7  # error budget below which a look decides nothing
LEAST_VALUES = 8  # with fewer, Student's t at such small budgets leans on the values being normal


def spent(share: float, alpha: float = ALPHA) -> float:
    """The error that may have been spent once `share` (0 to 1) of the data has been seen: alpha at the end, almost nothing early.

    The O'Brien-Fleming type spending function of Lan and DeMets 1983, Biometrika 70, 659: 2 - 2 Phi(z(alpha/2) / sqrt(share)).
    """
    if share <= 0:
        return 0.0
    normal = NormalDist()
    return 2 - 2 * normal.cdf(normal.inv_cdf(1 - alpha / 2) / math.sqrt(min(share, 1.0)))


def within(t: float, df: int) -> float:
    """P(|T| <= t) of Student's t with df degrees of freedom, exact (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(df))
    cosine, sine = math.cos(angle) ** 2, math.sin(angle)
    term = total = 1.0 if df % 2 == 0 else math.cos(angle)
    for i in range(2 if df % 2 == 0 else 3, df - 1, 2):
        term *= cosine * (i - 1) / i
        total += term
    if df % 2 == 0:
        return sine * total
    return 2 / math.pi * (angle + (sine * total if df > 1 else 0.0))


@lru_cache(1024)  # a visitor's number of windows gives the looks, and so the probabilities
def student_t(outside: float, df: int) -> float:
    """The t with P(|T| > t) = outside."""
    low, high = 0.0, 1e4
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if 1 - within(middle, df) > outside else (low, middle)
    return high


def bound(values: list[float], seen: float, before: float, alpha: float = ALPHA) -> tuple[float, float]:
    """(low, high) for the mean of independent values at a look, when `seen` of all data has been seen and `before` at the look before it.

    This look may err with probability spent(seen) - spent(before). The looks' errors add up to at most alpha whatever the correlation between
    them (union bound), so the bound is conservative: over all looks together, the true mean is outside some interval with at most alpha.
    Infinite where the budget or the sample is too small to say anything.
    """
    budget, n = spent(seen, alpha) - spent(before, alpha), len(values)
    if budget < LEAST or n < LEAST_VALUES:
        return -math.inf, math.inf
    middle, half = fmean(values), student_t(budget, n - 1) * stdev(values) / math.sqrt(n)
    return middle - half, middle + half


def looks(total: int, first: int) -> list[int]:
    """After how many units to look: first, twice that, ..., total. Doubling spends almost nothing early, so the last look is hardly wider than one
    look at all the data would be.
    """
    found = []
    while first < total:
        found.append(first)
        first *= 2
    return [*found, total]
