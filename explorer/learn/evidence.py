"""What bears on a card of interviewer mode: a predicate a card over the attached runs and the planned model. Pure functions of reports."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import permutations

from explorer.records import Report

SEVENTY = (60e9, 80e9)  # parameters of what counts as a 70B
W8A8 = ("dynamic_int8", "smoothquant", "llm_int8")
UNREAD = "none read"  # what a report of a method says that calibrates on nothing
CLOSE = 0.3  # bits a weight by which equal storage may differ


def _bits(run: Report) -> float:
    return float(run.value("bits_per_weight") or 16)


def _one_percent(run: Report) -> bool:
    change = run.find("perplexity_delta")
    return _bits(run) <= 8.1 and change is not None and change.high is not None and change.high < 1


def _any_pair(runs: Sequence[Report], fits: Callable[[Report, Report], bool]) -> bool:
    return any(fits(a, b) for a, b in permutations(runs, 2))


def _other_text(a: Report, b: Report) -> bool:
    read = all(run.provenance.get("calibration", UNREAD) != UNREAD for run in (a, b))  # a method that reads no text is no different for it
    return read and a.experiment.spec == b.experiment.spec and a.experiment.calibration != b.experiment.calibration


BEARS: dict[str, Callable[[Sequence[Report], float], bool]] = {
    "seventy": lambda runs, planned: SEVENTY[0] < planned < SEVENTY[1],
    "one-percent": lambda runs, _: any(map(_one_percent, runs)),
    "four-bits": lambda runs, _: _any_pair(runs, lambda a, b: abs(_bits(a) - _bits(b)) <= CLOSE and 3.9 < _bits(a) < 5),
    "two-bits": lambda runs, _: any(_bits(run) <= 2.3 for run in runs),
    "slow": lambda runs, _: any(run.find("decode_tokens_per_second") for run in runs),
    "exclaim": lambda runs, _: any(run.by_layer("output_error") for run in runs),
    "calibrate": lambda runs, _: _any_pair(runs, _other_text),
    "w8a8": lambda runs, _: _any_pair(runs, lambda a, b: _bits(a) < 5 and b.experiment.spec.method in W8A8),
    "shrink-cache": lambda runs, _: {4, 8} <= {run.experiment.spec.kv_bits for run in runs},
}


def bears(card: str, runs: Sequence[Report], planned: float = 0.0) -> bool:
    """Whether what is attached bears on a card. planned: parameters of the model whose plan is attached, 0 for none."""
    return BEARS[card](runs, planned) if card in BEARS else bool(runs)
