"""The comparison as HTML: one column a configuration, the baseline first; units, signed differences, intervals, circumstances."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from explorer.chips import of_measurement, reachable
from explorer.figures import finite, places
from explorer.findings import awaited, doubt, drowned, in_16_bits, lacks, one_rate, origin, timed_at, timed_on
from explorer.gaps import in_part
from explorer.records import Measurement, Report, change, significant
from explorer.repeats import between
from explorer.speeds import judged
from explorer.vocabulary import FAILURES, WINDOWS, Term, term, terms

MORE = terms("kld_floor", "kld_median", "kld_max", "p_correct_change", "p_correct_rms")  # the noise floor, and what llama.cpp's perplexity tool reports
ELSEWHERE = "Measured on {}: times of two devices are never put side by side."
ORDERS = "A click orders the columns by this row."
SECTIONS = {
    "Quality": terms("perplexity_delta", "kld_mean", "kld_p99", "top1_agreement", "perplexity"),
    "Size": terms("bits_per_weight", "bits_per_weight_resident", "weight_bytes", "decode_copies", "decode_cache_bytes"),
    "Speed": terms("decode_speedup", "first_token_speedup", "decode_tokens_per_second", "decode_latency_p95", "time_to_first_token", "quantize_seconds"),
}


def further(reports: Sequence[Report]) -> tuple[Term, ...]:
    """A row for every number of the whole model that no list here names: what a new metric yields is shown without an entry."""
    known = {row.metric for rows in (MORE, *SECTIONS.values()) for row in rows}
    numbers = {m.metric: m for r in reports for m in r.measurements if not m.layer and isinstance(m.value, int | float) and m.metric not in known}
    return tuple(term(name, m.unit) for name, m in numbers.items())


def cell(row: Term, report: Report, base: Report | None, live: bool, device: str = "") -> str:
    """One table cell: the number, its interval, the difference to the baseline; live: and the button that sweeps the batch. device: whose times are
    shown, "" for those of any.
    """
    found = report.find(row.metric)
    if found is None and row.ratio and report.experiment.spec.is_baseline:
        return "<td class='empty'>the loop it is compared with</td>"
    if found is None:
        room = "<small>&nbsp;</small>" if report.missing else ""  # of the interval that is to come
        return f"<td class='empty'>{lacks(report)}{room}</td>"
    if row.by_device and device and (own := str(report.provenance.get("device", ""))) != device:
        return f"<td class='empty' title='{escape(ELSEWHERE.format(own), quote=True)}'>another device</td>"
    if not finite(found.value):
        return f"<td class='bad'>{escape(str(found.value))} {of_measurement(found, report)}<small>{found.bad:,} values not finite</small></td>"
    value = found.value * row.factor
    text = f"{'+' if row.signed and value > 0 else ''}{written(row, value, value)}"
    notes, interval = [], ""
    as_change = row.metric == "perplexity_delta"  # in percent, or a factor where that is large: the sign stands with the number
    if as_change:
        text = change(value, found.low, found.high)[0]
    if finite(found.low) and finite(found.high) and found.low != found.high:
        ends = f"{written(row, found.low * row.factor, value)} to {written(row, found.high * row.factor, value)}"
        notes.append(change(value, found.low, found.high)[1] if as_change else ends)
        unit = row.shown if not as_change else "times" if value > 100 else "%"
        interval = f"{(row.bounds or WINDOWS).words} {notes[0]} {unit}".strip()
    if found.bad:
        notes.append(f"{found.bad:,} values not finite")
    kind, note = verdict(row, found, report, base)
    notes += [told] if (told := doubt(report, row.metric) or note) else []
    lines = "".join(f"<small>{escape(part)}</small>" for part in notes)
    swept = f"<small>{batch_button(report.name, report.key)}</small>" if live and row.metric == "decode_tokens_per_second" else ""
    chip = of_measurement(found, report, interval)
    return f"<td class='{kind}' data-value='{found.value!r}'><span>{text}</span> {chip}{lines}{swept}</td>"


def written(row: Term, number: float, value: float) -> str:
    """A value of a row, or an end of its interval, with the digits of the value."""
    return significant(number, value) if row.digits is None else f"{number:,.{0 if abs(value) >= 1000 else row.digits}f}"


def batch_button(name: str, key: str) -> str:
    """A button beside a speed: the page's script asks for the batch sweep of the configuration of this name and key with it."""
    said = f"Sweep the batch of {name}: where other formats overtake it"
    about = f"aria-label='batch sweep of {escape(name, quote=True)}' title='{escape(said, quote=True)}'"
    return f"<button type='button' class='act' data-pick='batch:{escape(key, quote=True)}' {about}>batch sweep</button>"


def verdict(row: Term, found: Measurement, report: Report, base: Report | None) -> tuple[str, str]:
    """(better, worse, same or "", the difference to the baseline in words)."""
    if row.metric == "perplexity_delta" and finite(found.low) and finite(found.high) and found.low != found.high:
        if found.low <= 0 <= found.high:
            return "same", "no measurable change"
        return ("worse" if found.value > 0 else "better"), ""
    if row.metric == "kld_mean" and drowned(report):
        return "same", "not told from rounding to bfloat16"
    if row.ratio:
        known = {"faster": "better", "slower": "worse", "same": "same"}.get(judged(report, row.metric), "")
        inside = finite(found.low) and finite(found.high) and found.low <= 1 <= found.high
        apart = f"no more than runs differ, a factor of {factor:.2f}" if finite(factor := between(row.metric)) else "how far runs differ is not known"
        return known, "" if known != "same" else "no measurable difference" if inside else apart
    start = base.find(row.metric) if base is not None and base is not report else None
    if not row.relative or start is None or not finite(start.value) or not start.value:
        return "", ""
    ratio = found.value / start.value
    if ratio == 1 and not finite(found.low):
        return "", ""  # an exact size, and the same
    overlap = finite(found.low) and finite(start.low) and found.low <= start.high and start.low <= found.high
    if overlap or abs(ratio - 1) < 0.005:
        return "same", f"{100 * (ratio - 1):+.0f}%, within the spread" if overlap else ""
    change = f"{ratio:.1f} times" if ratio >= 2 else f"{100 * (ratio - 1):+.0f}%"
    return ("better" if (ratio > 1) == row.more else "worse"), change


def source(report: Report) -> str:
    """Where a report's numbers come from, of one that is not whole that it is not; and why they are not kept."""
    if report.missing:
        return "incomplete, stopped" if report.stopped else "being measured"
    return ", ".join(filter(None, (origin(report.provenance), report.provenance.get("unsaved"))))


def dated(report: Report, live: bool = True) -> str:
    """The same, and since when a stored one is there: it may be another visitor's; and whether there are gaps, which on a live page Run fills."""
    found, date = source(report), report.provenance.get("date")
    if in_part(report):
        return f"{found} in part{'; Run measures the rest' if live else ''}"
    return f"{found}, measured {date}" if found == "stored" and date else found


def circumstances(reports: Sequence[Report]) -> str:
    """The rows that say how, where and by which kernel each column was measured."""
    rows = [("Kernel", [kernel(r) for r in reports])]
    rows += [(title, [escape(str(r.provenance.get(title.lower(), ""))) for r in reports]) for title in ("Device", "Calibration")]
    found = [escape(awaited(r)) if r.stopped else f"{source(r)}{' in part' if in_part(r) else ''}" for r in reports]
    rows.append(("Origin", [f"{told}, {escape(str(r.provenance.get('date', '')))}" for told, r in zip(found, reports, strict=True)]))
    return "".join(f"<tr class='how'><th scope='row'>{title}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>" for title, cells in rows)


def kernel(report: Report) -> str:
    """Which kernel ran, why it is not a faster one, and what was skipped."""
    p = report.provenance
    attention = report.find("decode_attention")
    parts = [
        *(str(p.get(name, "")) for name in ("kernel_summary", "kernel_turns", "kernel_rows")),
        *p.get("kernel_why", []),
        p.get("offloaded", ""),
        p.get("untied", ""),
        p.get("stored", ""),
    ]
    parts += [f"attention: {attention.value}"] if attention else []
    return "<br>".join(escape(str(part)) for part in [*parts, *in_16_bits(report)] if part)


def comparison(reports: Sequence[Report], judged: Sequence[str] = (), live: bool = True) -> str:
    """The whole table. judged: a verdict on each report, as HTML; live: on a page whose server can measure more."""
    if not reports:
        return "<p class='hint'>No results yet. Choose a method and press Run.</p>"
    reports = one_rate(reports)
    base = next((r for r in reports if r.experiment.spec.is_baseline), None)
    marked = zip(places(reports), reports, strict=True)
    swatches = (f"<span class='swatch s{i % 5}'></span>{escape(r.name)}<span class='chip'>{escape(dated(r, live))}</span>" for i, r in marked)
    width = 80 / len(reports)  # percent, the same while a column fills
    heads = "".join(f"<th scope='col' style='width:{width:.0f}%'>{content}</th>" for content in swatches)
    check = f"<th scope='row' tabindex='0' data-how='{escape(FAILURES, quote=True)}'>Failure check</th>"
    bodies = [f"<tbody><tr>{check}{''.join(f'<td>{verdict}</td>' for verdict in judged)}</tr></tbody>"] if judged else []
    for title, rows in SECTIONS.items():
        bodies.append(
            f"<tbody><tr class='section'><th scope='rowgroup' colspan='{len(reports) + 1}'>{title}</th></tr>{lines(rows, reports, base, live)}</tbody>"
        )
    section = f"<tr class='section'><th scope='rowgroup' colspan='{len(reports) + 1}'>How it was measured</th></tr>"
    top = f"<table class='compare'><thead><tr><th scope='col'>{escape(model_of(reports[0]))}</th>{heads}</tr></thead>"
    second = top.replace("'compare'", "'compare more'")
    folded = reachable(f"{second}<tbody>{lines((*MORE, *further(reports)), reports, base, live)}</tbody></table>")
    factor = between("first_token_speedup")
    first = f", of first tokens {factor:.2f}" if finite(factor) else ""
    legend = (
        "Ranges are 95% intervals, for speeds the 20th to 80th percentile of single tokens, for the first token the lowest to highest run. "
        "Better and worse: than the baseline, beyond the interval; ≈: not beyond it; sizes are exact. A speed-up is of two loops that ran in turn in one run, "
        f"its interval that of the rounds within this run; another run of the same work lies within a factor of {between():.2f} of their mean{first} "
        "(the recorded survey), and only what is beyond that, too, gets a sign. Times of different runs get none, because a machine's pace changes from minute "
        "to minute. Point at a row's name to read what it is, click it to order the columns by it; point at a number or its letter to see how it came to be."
    )
    protocol = escape(str(reports[0].provenance.get("text", "")))
    whole = reachable(f"{top}{''.join(bodies)}<tbody>{section}{circumstances(reports)}</tbody></table>")
    named = "More: bfloat16's noise, median and largest divergence, correct token, all else that was measured"
    more = f"<details><summary>{named}</summary><div class='scroll'>{folded}</div></details>"
    return f"<div class='scroll' tabindex='0'>{whole}</div>{more}<p class='hint'>{legend} Scored on: {protocol}.</p>"


def lines(rows: Sequence[Term], reports: Sequence[Report], base: Report | None, live: bool) -> str:
    """Rows of the table as HTML."""
    found, device = [], timed_on([timed_at(r) for r in reports])
    for row in rows:
        unit = f" <small>{row.shown}</small>" if row.shown else ""
        about = escape(f"{row.help} {ORDERS}".strip(), quote=True)
        head = f"<th scope='row' aria-sort='none' tabindex='0' data-how='{about}'>{row.title}{unit}</th>"
        found.append(f"<tr>{head}" + "".join(cell(row, r, base, live, device) for r in reports) + "</tr>")
    return "".join(found)


def model_of(report: Report) -> str:
    """The model's name and the start of its revision."""
    ref = report.experiment.model
    return f"{ref.name} @ {ref.revision[:8]}"
