"""Interviewer mode: constraint cards and broken models, and a transcript of answers with the runs attached as evidence. Keeps nothing itself."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from explorer.bugs import BUGS
from explorer.figures import finite
from explorer.learn.runs import FOLDER
from explorer.records import Report, change, key_of, significant

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


NUMBERS = {"bits": "bits_per_weight", "kld": "kld_mean", "perplexity_change": "perplexity_delta"}


def _cited(report: Report) -> dict[str, Any]:
    """A run as evidence: its numbers, each with its interval where it has one, [low, high], over how many windows, and where they come from."""
    numbers: dict[str, Any] = {}
    for name, metric in NUMBERS.items():
        found = report.find(metric)
        numbers[name] = found.value if found else None
        if found and found.low is not None and found.high is not None and found.low < found.high:
            numbers[f"{name}_interval"] = [found.low, found.high]
    p, windows = report.provenance, report.find("kld_windows")
    numbers |= {"windows": len(windows.value)} if windows and isinstance(windows.value, list) else {}
    where = {"model": report.experiment.model.name, "device": str(p.get("device", "")), "date": str(p.get("date", ""))}
    return {"run": key_of(report.experiment), "name": report.name, **numbers, **where, "origin": "recorded" if p.get("recorded") else "measured"}


def _numbers(run: dict[str, Any]) -> str:
    """What a cited run found, in words. It comes from a browser: what is no number is left out."""

    def ends(name: str) -> list[float | None]:
        found = run.get(f"{name}_interval")
        return found if isinstance(found, list) and len(found) == 2 and all(map(finite, found)) else [None, None]

    told = [f"{run['bits']:.3f} stored bits a weight"] if finite(run.get("bits")) else []
    if finite(run.get("perplexity_change")):
        words, interval = change(run["perplexity_change"], *ends("perplexity_change"))
        told.append(f"perplexity {words}{f' ({interval})' if interval else ''}")
    if finite(run.get("kld")):
        low, high = ends("kld")
        told.append(f"KL {significant(run['kld'])} nats{'' if low is None else f' ({significant(low)} to {significant(high)})'}")
    told += [f"over {run['windows']} windows"] if finite(run.get("windows")) else []
    return ", ".join([*told, f"{run.get('origin', '')} {run.get('date', '')}".strip()])


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
            parts.append(f"- evidence: run `{run['run']}`, {run['name']} on {run['model']} ({run['device']}): {_numbers(run)}")
    return "\n\n".join(parts) + "\n"


def diagnosis_lines(found: dict[str, Any]) -> list[str]:
    """A graded diagnosis in a transcript."""
    chosen = f"Diagnosis: {BUGS[found['named']].title}. Next step: {BUGS[found['step']].settle}"
    truth = f"Planted in {found['setup']}: {BUGS[found['planted']].title}; broken run `{found['run']}`."
    return [chosen, truth, f"Score {found['score']:.2f} of 1, Brier score {found['brier']:.3f}.", "\n".join(f"- {line}" for line in found["said"])]
