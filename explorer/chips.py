"""The provenance chip: one letter beside a number that says how it came to be; pointed at or focused it gives kernel, device, n and interval. HTML only.

Of a table all chips but the first leave the tab order: one is reached with Tab, the others from there with the arrow keys (assets/page.js).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from explorer.figures import Chart, finite
from explorer.findings import counted, dated, doubt
from explorer.records import Measurement, Report
from explorer.vocabulary import LOOP, term

KINDS = {
    "measured": "run here, on this machine, now or earlier",
    "simulated": "run on something changed by hand, or without the low-bit kernel that would do it",
    "estimated": "arithmetic on data sheets, sizes or predictions, not run",
    "recorded": "measured when the project was made, and shipped with it",
}
INSIDE, REACHED = "tabindex='-1' class='pv", "tabindex='0' class='pv"


def chip(kind: str, detail: str = "", reached: bool = True) -> str:
    """A chip; kind: one of KINDS, detail: the rest in words. reached: whether Tab stops at it."""
    how = escape(detail or KINDS[kind], quote=True)
    return f"<button type='button' {REACHED if reached else INSIDE} {kind}' aria-label='{kind}' data-how='{how}'>{kind[0].upper()}</button>"


def reachable(table: str) -> str:
    """A table whose chips are out of the tab order, with the first one put back."""
    return table.replace(INSIDE, REACHED, 1)


def legend() -> str:
    """All letters with their words."""
    return "<p class='pv-legend'>" + " ".join(f"<span>{chip(kind)} {kind}</span>" for kind in KINDS) + "</p>"


def kind_of(found: Measurement, report: Report) -> str:
    """One of KINDS. A speed is simulated where no low-bit kernel ran, because the weights were dequantized at every step."""
    p = report.provenance
    if found.how == "estimated":
        return "estimated"
    if term(found.metric).source == LOOP and "reference" in str(p.get("kernel_summary", "")):
        return "simulated"
    return "recorded" if p.get("recorded") or found.how == "recorded" else "measured"


def of_measurement(found: Measurement, report: Report, interval: str = "") -> str:
    """The chip of one number of a report, out of the tab order. interval: in words, such as "95% interval 0.1 to 0.2"."""
    p = report.provenance
    kind = kind_of(found, report)
    over = counted(found, report)
    facts = [" ".join(filter(None, (interval, over))), *(str(p.get(name, "")) for name in ("device", "kernel_summary")), dated(report, found.metric)]
    facts += [doubt(report, found.metric), "no low-bit kernel serves it, so it says nothing about one" if kind == "simulated" else ""]
    return chip(kind, "; ".join(filter(None, facts)), reached=False)


def of_metrics(reports: Sequence[Report], metrics: Sequence[str]) -> str:
    """A chip for each kind of number among these metrics of reports, with the configurations, n, devices and kernels behind them."""
    behind: dict[str, dict[str, None]] = {}
    for report in reports:
        for found in report.measurements:
            if found.metric in metrics:
                p = report.provenance
                over = counted(found, report)
                facts = behind.setdefault(kind_of(found, report), {})
                told = [p.get("kernel_summary", ""), p.get("device", ""), dated(report, found.metric), *filter(None, [doubt(report, found.metric)])]
                facts[f"{report.name}{f', {over}' if over else ''}: {', '.join(told)}"] = None
    return " ".join(chip(kind, "; ".join(list(facts)[:5])) for kind, facts in behind.items())


def of_answer(chart: Chart, data: Mapping[str, Any]) -> str:
    """The chips of a chart's numbers. data: a task's answer, with its "provenance" where it has one and what was "planted" in it."""
    if not data:
        return ""
    p = data.get("provenance", {})
    facts = "; ".join(str(p[name]) for name in ("device", "date") if p.get(name)) or "on this machine, for this view"
    facts += "; stored" if p.get("from_store") else ""
    run = "simulated" if planted(data) else "recorded" if data.get("recorded") else "measured"
    note = "; on values changed by hand" if run == "simulated" else ""
    shown = [run if kind == "measured" else kind for kind in chart.kinds(dict(data))]
    return " ".join(chip(kind, f"{KINDS[kind]}; {facts}{note}" if kind != "estimated" else "") for kind in shown)


def planted(data: Mapping[str, Any]) -> bool:
    """Whether an answer is about values that someone put in."""
    strength = data.get("strength", 1)
    return bool(data.get("planted") or data.get("typed") or data.get("changed")) or (finite(strength) and strength > 1)
