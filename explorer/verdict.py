"""The guard's findings, verdicts for a table and the three answers as HTML; where the ladder that judges them is read. All texts are escaped here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from explorer.answers import Answered, answers
from explorer.chips import of_metrics
from explorer.detectors import sentence, verdicts
from explorer.figures import places
from explorer.figures.ladder import ends, rungs_for
from explorer.findings import UNSURE, Finding, drowned, level, one_rate
from explorer.recorded import seeds, survey
from explorer.records import Report
from explorer.table import batch_button, source

WORDS = {"ok": "✓ no failure found", "unknown": "? not measured", "suspicious": "! suspicious", "broken": "✕ broken"}
PASSED = WORDS | {"ok": "✓ passed"}  # of a single check
PARTLY = "<span class='level unknown'>? partly checked</span>"


def rungs(report: Report, others: Sequence[Report] = ()) -> list[Report]:
    """The ladder of a report's model and text: recorded, some of its widths by the seeds and the survey, or among the other reports of the page."""
    return rungs_for(report, [*seeds(), *survey().values(), *others])


def chip(kind: str, words: Mapping[str, str] = WORDS) -> str:
    """A level as a chip; its sign tells it apart without colour."""
    return f"<span class='level {kind}'>{words[kind]}</span>"


def mark(report: Report, kind: str) -> str:
    """The level of a report as a chip; of one that is not whole it is not said that all was looked at."""
    return PARTLY if report.missing and kind == UNSURE else chip(kind)


def graded(report: Report, others: Sequence[Report] = ()) -> str:
    """How good a report is, on the ladder of its model, in a few words; "" where there is no ladder."""
    if drowned(report):
        return "quality: as good as lossless"
    at = ends("kld_mean", report, rungs(report, others))
    if at is None:
        return ""
    return f"quality: worse than RTN at {at[0].bits:.2f} bits" if at[0].end == "fewer" else f"quality: like RTN at {at[0]}"


def findings(found: Sequence[Finding]) -> str:
    """All findings as a list, the worst first."""
    order = {"broken": 0, "suspicious": 1, "unknown": 2, "ok": 3}
    rows = (f"<li>{chip(f.level, PASSED)} {escape(f.says)} <small>{escape(f.limit)}</small></li>" for f in sorted(found, key=lambda f: order[f.level]))
    return f"<ul class='findings'>{''.join(rows)}</ul>"


def verdict(report: Report, base: Report | None, others: Sequence[Report] = (), runs: Sequence[dict[str, Any]] = ()) -> list[Finding]:
    """Findings on a report; runs: what `generate` found for the baseline and this configuration, when it did."""
    written = [run["ids"] for run in runs]
    return verdicts(report, base, rungs(report, others), *reversed(written)) if len(written) == 2 else verdicts(report, base, rungs(report, others))


def judged(reports: Sequence[Report]) -> list[str]:
    """Whether each report shows a failure, the reason on hover, and how good it is; the baseline has neither."""
    base = next((r for r in reports if r.experiment.spec.is_baseline), None)
    shown = []
    for report in reports:
        found = [] if report.experiment.spec.is_baseline else verdict(report, base, reports)
        sign = f"<span title='{escape(sentence(found), quote=True)}'>{mark(report, level(found))}</span><small>{graded(report, reports)}</small>"
        shown.append(sign if found else "")
    return shown


def guard(reports: Sequence[Report], data: dict[str, Any] | None = None) -> str:
    """One verdict a configuration, its evidence in a fold. data: a generation whose runs are these reports, the baseline first."""
    base = next((r for r in reports if r.experiment.spec.is_baseline), None)
    quantized = [(i, r) for i, r in zip(places(reports), reports, strict=True) if not r.experiment.spec.is_baseline]
    if not quantized:
        return "<p class='hint'>Nothing quantized is on the page: run a configuration, and the guard looks at it.</p>"
    runs = (data or {}).get("runs", [])
    cards = []
    for at, (i, report) in enumerate(quantized, start=1):
        pair = [runs[0], runs[at]] if len(runs) == len(quantized) + 1 and runs[at]["label"] == report.name else []
        found = verdict(report, base, reports, pair)
        mark = PARTLY if level(found) == UNSURE else chip(level(found))
        how = of_metrics([report], ("kld_mean",))
        head = f"<h3><span class='swatch s{i % 5}'></span>{escape(report.name)} {mark} {how}</h3><p>{escape(sentence(found))}</p>"
        cards.append(f"<article class='guarded'>{head}<details><summary>{len(found)} checks</summary>{findings(found)}</details></article>")
    return f"<div class='guard'>{''.join(cards)}</div>"


def answer(given: Answered) -> str:
    """An answer; one that rests on facts stands out before them."""
    facts = "".join(f"<li>{escape(fact)}</li>" for fact in given.facts)
    return f"<p><b>{escape(given.text)}</b></p><ul>{facts}</ul>" if facts else f"<p>{escape(given.text)}</p>"


def questions(report: Report, base: Report | None, others: Sequence[Report] = (), live: bool = True) -> str:
    """The three questions of one configuration as a card. live: as in `comparison`."""
    report = one_rate([report, *others])[0]
    told = answers(report, base, rungs(report, others))
    rows = (f"<h4>{escape(a.question)} {mark(report, a.level) if a.level else ''}</h4><div>{answer(a)}</div>" for a in told)
    how = of_metrics([report], ("kld_mean", "decode_speedup", "decode_tokens_per_second", "decode_limit"))
    swept = f" {batch_button(report.name, report.key)}" if live else ""
    head = f"<h3>{escape(report.name)} {how} <span class='chip'>{source(report)}</span>{swept}</h3>"
    return f"<article class='three'>{head}{''.join(rows)}</article>" if told else ""
