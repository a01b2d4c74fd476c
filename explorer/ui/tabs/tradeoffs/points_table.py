"""The points of the Trade-offs tab as HTML: a table whose names open a point's report, and that report beside its baseline. All texts are escaped here."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from explorer.chips import chip, reachable
from explorer.figures import finite
from explorer.figures.tradeoffs import comparable, milliseconds
from explorer.records import Report, change, fitting, significant
from explorer.table import ELSEWHERE, batch_button, comparison
from explorer.ui.session import is_baseline
from explorer.verdict import questions

BUSY = "machine busy: no conclusion"
HEADS = ("bits/weight", "KL, nats", "change in perplexity, %", "times as fast as 16 bits", "ms a token", "quantize, s")
TIMES = HEADS[-3:]
START = "<p class='hint'>Click a point, or a name in the table below: its report opens here.</p>"


def numbers(point: dict[str, Any], timed: bool = True) -> list[tuple[float | None, str]]:
    """(value, the same with half its interval, a ratio's from low to high, as HTML) under each of HEADS; a button beside the time sweeps the batch.
    timed: whether its times are of the device whose times are shown; those of another are left out.
    """

    def one(metric: str, form: str = "") -> tuple[float | None, str]:
        value, low, high = point["metrics"].get(metric, [None, None, None])
        if not finite(value):
            return None, ""
        half = (high - low) / 2 if finite(low) and finite(high) and low != high else None
        if metric == "perplexity_delta" and value > 100:
            return value, change(value, low, high)[0] + ("" if half is None else f" ± {fitting(half / 100, half / 100)}")
        if metric == "decode_speedup":
            return value, f"{value:.2f}" + ("" if half is None else f"<small>{low:.2f} to {high:.2f}</small>") + late
        if not form:
            return value, significant(value) + ("" if half is None else f" ± {significant(half, value)}")
        return value, f"{value:{form}}" + ("" if half is None else f" ± {half:{form.lstrip('+')}}")

    late = f"<small title='{escape(point['disturbed'], quote=True)}'>{BUSY}</small>" if point.get("disturbed") else ""
    rate = point["metrics"].get("decode_tokens_per_second", [None])[0]
    time = (None, "")
    if shown := milliseconds(point).replace(" ms", ""):
        middle, _, ends = shown.partition(" ")
        time = 1000 / rate, f"{middle}<small>{ends.strip('()')}</small>{late}<small>{batch_button(point['name'], point['key'])}</small>"
    quality = [one("bits_per_weight", ".3f"), one("kld_mean"), one("perplexity_delta", "+.2f")]
    return [*quality, *([one("decode_speedup"), time, one("quantize_seconds", ".1f")] if timed else [(None, "")] * len(TIMES))]


def points_table(points: Sequence[dict[str, Any]]) -> str:
    """The points, least divergence first; a click on a heading orders the rows by it."""
    shown = sorted((p for p in points if p["method"] != "none"), key=lambda p: p["metrics"].get("kld_mean", [None])[0] or 0.0)
    rows, device = [], comparable({"points": points, "view": "latency"})[2]
    for p in shown:
        name = f"<button type='button' class='act name' data-pick='report:{escape(p['key'], quote=True)}'>{escape(p['name'])}</button>"
        timed = p["device"] == device
        told = f" title='{escape(ELSEWHERE.format(p['device']), quote=True)}'"
        found = zip(HEADS, numbers(p, timed), strict=True)
        cells = "".join(
            f"<td data-value='{'' if value is None else value!r}'{'' if timed or head not in TIMES else told}>{text}</td>" for head, (value, text) in found
        )
        kind = "recorded" if p["origin"] == "recorded" else "measured"
        rows.append(f"<tr><th scope='row'>{name}</th>{cells}<td>{chip(kind, p['device'], reached=False)} {escape(p['origin'])}</td></tr>")
    order = "aria-sort='none' tabindex='0' title='Order the rows by this column'"
    heads = "".join(f"<th scope='col' {order}>{name}</th>" for name in HEADS)
    head = f"<thead><tr><th scope='col'>configuration</th>{heads}<th scope='col'>origin</th></tr></thead>"
    whole = reachable(f"<table class='compare points'>{head}<tbody>{''.join(rows)}</tbody></table>")
    return f"<div class='scroll tall' tabindex='0' role='region' aria-label='all points'>{whole}</div>"


def report_card(found: Report, base: Report | None, others: Sequence[Report]) -> str:
    """A point's report: its numbers beside the baseline's, the three answers, and a button that puts it into Compare."""
    if is_baseline(found):
        return comparison([found])
    add = f"<button type='button' class='act' data-pick='compare:{found.key}'>Put it into Compare</button>"
    return f"<p class='see'><b>{escape(found.name)}</b> {add}</p>{comparison([*filter(None, [base]), found])}{questions(found, base, others)}"
