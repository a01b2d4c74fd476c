"""Broken models as interview cards: the configurations a bug may be planted in, and how a diagnosis is graded. Pure functions; plants and runs nothing."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from explorer.bugs import BUGS
from explorer.learn.answers import brier
from explorer.records import Report, key_of

DIAGNOSIS, STEP, EVIDENCE = 0.6, 0.2, 0.2  # shares of the score


@dataclass(frozen=True)
class Setup:
    """A configuration in which each of the bugs can happen."""

    title: str
    method: str
    params: dict[str, Any]


SETUPS = (
    Setup("GPTQ, 4 bits, asymmetric, groups of 64", "gptq", {"bits": 4, "symmetric": False}),
    Setup("GPTQ, 4 bits, symmetric, groups of 64", "gptq", {"bits": 4}),
    Setup("AWQ, 4 bits, groups of 64", "awq", {"bits": 4}),
)


def draw(dice: random.Random) -> dict[str, Any]:
    """A case: {"setup": position in SETUPS, "bug": name}."""
    return {"setup": dice.randrange(len(SETUPS)), "bug": dice.choice(list(BUGS))}


def control(broken: Report, runs: Sequence[Report]) -> Report | None:
    """The attached run that is the same model and configuration without the bug, or None."""
    spec = broken.experiment.spec
    own = replace(spec, params=tuple(pair for pair in spec.params if pair[0] != "planted"))
    return next((r for r in runs if (r.experiment.model, r.experiment.spec) == (broken.experiment.model, own)), None)


def diagnosed(case: dict[str, Any], named: str, step: str, confidence: float, broken: Report, runs: Sequence[Report]) -> dict[str, Any]:
    """The graded diagnosis as a transcript keeps it: what was planted and named, the shares that were reached, score, Brier score, and in words why.

    named, step: names of bugs, as chosen. Evidence is whole with the configuration's own run without the bug, half with another run of the same width.
    """
    bug, found = BUGS[case["bug"]], control(broken, runs)
    beside = [r for r in runs if r.experiment.spec.get("bits") == broken.experiment.spec.get("bits")]
    shares = {"diagnosis": float(named == bug.name), "step": float(step == bug.name), "evidence": 1.0 if found else 0.5 if beside else 0.0}
    said = [f"{'Right' if named == bug.name else f'Not {BUGS[named].title.lower()}'}: {bug.title.lower()}. {bug.seen}"]
    said.append("The next step settles it." if step == bug.name else f"What settles it: {bug.settle}")
    if found:
        numbers = " against ".join(f"{_divergence(r)} nats" for r in (broken, found))
        said.append(f"{found.name} is the control: {numbers} without the bug, so the configuration is not to blame.")
    else:
        said.append(
            "No control: attach the run of the same configuration, which shows what it costs without the bug." + (" Half for the same width." if beside else "")
        )
    score = DIAGNOSIS * shares["diagnosis"] + STEP * shares["step"] + EVIDENCE * shares["evidence"]
    return {
        "planted": bug.name, "named": named, "step": step, "setup": SETUPS[case["setup"]].title, "run": key_of(broken.experiment), "score": round(score, 2),
        "brier": round(brier(confidence, shares["diagnosis"]), 4), "shares": shares, "said": said,
    }  # fmt: skip


def _divergence(report: Report) -> str:
    """Its KL divergence, where any token has one."""
    value = report.value("kld_mean")
    return f"{value:.3g}" if isinstance(value, int | float) and value == value else "no finite"
