"""Interviewer mode: constraint cards and broken models, and a transcript of answers with the runs attached as evidence. Keeps nothing itself."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from explorer.bugs import BUGS
from explorer.learn.runs import FOLDER
from explorer.records import Report, key_of

TEXT_LIMIT = 4000  # characters of an answer, and of what the Planner says
BROKEN = "broken"  # the card that hands over a model with a bug


@dataclass(frozen=True)
class Card:
    """A task as an interviewer sets it. ask: the constraint; evidence: which run or number would support an answer; points: what a good one covers."""

    name: str
    title: str
    level: str
    ask: str
    evidence: str
    points: tuple[str, ...]
    see: str


@cache
def cards() -> dict[str, Card]:
    """Name -> Card, from cards.toml."""
    rows = tomllib.loads((FOLDER / "cards.toml").read_text())
    return {name: Card(name, **{**row, "points": tuple(row["points"])}) for name, row in rows.items()}


def entry(
    card: Card, answer: str, confidence: float, met: Sequence[int], evidence: Sequence[Report], diagnosis: dict[str, Any] | None = None, planned: str = ""
) -> dict[str, Any]:
    """One answer as it goes into a transcript: its evidence by run id, with the numbers of the runs. diagnosis: of a broken model, as graded.
    planned: what the Planner answered, where that is evidence.
    """
    return (
        ({"diagnosis": diagnosis} if diagnosis else {})
        | ({"planned": planned} if planned else {})
        | {
            "card": card.name,
            "answer": str(answer)[:TEXT_LIMIT],
            "confidence": confidence,
            "met": sorted({i for i in met if 0 <= i < len(card.points)}),
            "evidence": [_cited(report) for report in evidence],
        }
    )


def _cited(report: Report) -> dict[str, Any]:
    numbers = {"bits": report.value("bits_per_weight"), "kld": report.value("kld_mean"), "perplexity_change": report.value("perplexity_delta")}
    where = {"model": report.experiment.model.name, "device": report.provenance.get("device", "")}
    return {"run": key_of(report.experiment), "name": report.name, **numbers, **where}


def markdown(entries: Sequence[dict[str, Any]]) -> str:
    """The transcript for people. Text of answers stands in quotes, so that it cannot pass for structure."""
    parts = ["# Interview transcript"]
    for number, found in enumerate(entries, 1):
        card = cards()[found["card"]]
        quoted = "\n".join(f"> {line}" for line in (found["answer"] or "(no answer)").splitlines())
        parts += [f"## {number}. {card.title} ({card.level})", card.ask, quoted, f"Confidence: {100 * found['confidence']:.0f}%."]
        parts += diagnosis_lines(found["diagnosis"]) if "diagnosis" in found else []
        parts.append("\n".join(f"- [{'x' if i in found['met'] else ' '}] {point}" for i, point in enumerate(card.points)))
        parts += [f"- evidence: the Planner, estimated: {found['planned']}"] if found.get("planned") else []
        for run in found["evidence"]:
            numbers = ", ".join(f"{run[key]:.4g} {unit}" for key, unit in (("bits", "bits a weight"), ("kld", "nats"), ("perplexity_change", "% perplexity"))
                                if isinstance(run[key], int | float))  # fmt: skip
            parts.append(f"- evidence: run `{run['run']}`, {run['name']} on {run['model']} ({run['device']}): {numbers}")
    return "\n\n".join(parts) + "\n"


def diagnosis_lines(found: dict[str, Any]) -> list[str]:
    """A graded diagnosis in a transcript."""
    chosen = f"Diagnosis: {BUGS[found['named']].title}. Next step: {BUGS[found['step']].settle}"
    truth = f"Planted in {found['setup']}: {BUGS[found['planted']].title}; broken run `{found['run']}`."
    return [chosen, truth, f"Score {found['score']:.2f} of 1, Brier score {found['brier']:.3f}.", "\n".join(f"- {line}" for line in found["said"])]
