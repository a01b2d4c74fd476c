"""The comparison as HTML: one column a configuration, the baseline first; units, signed differences, intervals, circumstances."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from explorer.figures import finite, name_of
from explorer.records import Measurement, Report

# metric, title, factor, unit, digits, whether more is better (None: neither)
ROWS = (
    ("perplexity_delta", "Perplexity change, paired", 1, "%", 2, False),
    ("kld_mean", "KL divergence, mean", 1, "nats", 4, False),
    ("kld_p99", "KL divergence, 99th percentile", 1, "nats", 3, False),
    ("top1_agreement", "Same top token", 1, "%", 1, True),
    ("perplexity", "Perplexity", 1, "", 2, False),
    ("bits_per_weight", "Bits per weight, stored", 1, "", 3, False),
    ("weight_bytes", "Weights in memory", 1 / 2**20, "MiB", 2, False),
    ("decode_tokens_per_second", "Decoding", 1, "tokens/s", 0, True),
    ("time_to_first_token", "Time to first token", 1000, "ms", 1, False),
    ("decode_latency_p95", "Token latency, 95th percentile", 1000, "ms", 1, False),
    ("quantize_seconds", "Time to quantize", 1, "s", 2, None),
)
ABSOLUTE = ("perplexity_delta", "kld_mean", "kld_p99", "top1_agreement", "perplexity", "quantize_seconds")


def cell(found: Measurement | None, base: Measurement | None, row: tuple) -> str:
    """One table cell: the number, its interval, and the difference to the baseline."""
    metric, _, factor, _, digits, better = row
    if found is None:
        return "<td class='empty'>not measured</td>"
    if not finite(found.value):
        return f"<td class='bad'>{escape(str(found.value))}<small>{found.bad:,} values not finite</small></td>"
    value = found.value * factor
    text = f"{value:+,.{digits}f}" if metric == "perplexity_delta" and value else f"{value:,.{digits}f}"
    notes = []
    if finite(found.low) and finite(found.high) and found.low != found.high:
        notes.append(f"{found.low * factor:,.{digits}f} to {found.high * factor:,.{digits}f}")
    if found.bad:
        notes.append(f"{found.bad:,} values not finite")
    kind = ""
    if metric == "perplexity_delta" and found.low != found.high:
        unclear = finite(found.low) and found.low <= 0 <= found.high
        kind = "same" if unclear else "worse" if value > 0 else "better"
        notes += ["no measurable change"] if unclear else []
    elif metric not in ABSOLUTE and base is not None and base is not found and finite(base.value) and base.value:
        ratio = found.value / base.value
        overlap = finite(found.low) and finite(base.low) and found.low <= base.high and base.low <= found.high
        kind = "same" if overlap or abs(ratio - 1) < 0.005 else "better" if (ratio > 1) == better else "worse"
        notes.append(f"{100 * (ratio - 1):+.0f}%" + (", within the spread" if overlap else ""))
    return f"<td class='{kind}'>{text}" + "".join(f"<small>{escape(note)}</small>" for note in notes) + "</td>"


def head(report: Report, index: int) -> str:
    """A column's head: name, and how, where and by which kernel it was measured."""
    p = report.provenance
    how = "recorded" if p.get("recorded") else "from the store" if p.get("from_store") else "measured now"
    skipped = f"; {len(p['skipped'])} layers kept in 16 bits" if p.get("skipped") else ""
    kernel = escape(str(p.get("kernel_summary", "")) + skipped)
    title = escape("; ".join(p.get("kernel_why", [])) or kernel, quote=True)
    return (
        f"<th scope='col'><span class='swatch s{index % 5}'></span>{escape(name_of(report))}<span class='chip'>{how}</span>"
        f"<small>{escape(str(p.get('date', '')))}<br>{escape(str(p.get('device', '')))}</small><small title='{title}'>{kernel}</small></th>"
    )


def comparison(reports: Sequence[Report]) -> str:
    """The whole table."""
    if not reports:
        return "<p class='hint'>No results yet. Choose a method and press Run.</p>"
    base = next((r for r in reports if r.experiment.spec.method == "none"), None)
    rows = []
    for row in ROWS:
        cells = "".join(cell(r.find(row[0]), base.find(row[0]) if base else None, row) for r in reports)
        unit = f" <small>{row[3]}</small>" if row[3] else ""
        rows.append(f"<tr><th scope='row'>{row[1]}{unit}</th>{cells}</tr>")
    heads = "".join(head(r, i) for i, r in enumerate(reports))
    protocol = escape(str(reports[0].provenance.get("text", "")))
    legend = "Ranges are 95% intervals; for speeds the 20th to 80th percentile. Percentages compare with the baseline."
    body = f"<thead><tr><th></th>{heads}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return f"<div class='scroll' tabindex='0'><table class='compare'>{body}</table></div><p class='hint'>{legend} Scored on: {protocol}.</p>"


def samples(reports: Sequence[Report]) -> str:
    """The greedy continuation of each configuration, side by side, from the word where it leaves the baseline's marked."""
    base = next((r.value("sample_text") for r in reports if r.experiment.spec.method == "none"), None)
    cards = []
    for i, report in enumerate(reports):
        text = report.value("sample_text")
        if text is None:
            continue
        same = len(text) if base is None else next((k for k, (a, b) in enumerate(zip(text, base, strict=False)) if a != b), len(text))
        prompt = escape(str(report.provenance.get("prompt", "")))
        body = f"<b>{prompt}</b>{escape(text[:same])}<mark>{escape(text[same:])}</mark>"
        cards.append(f"<div class='sample'><h4><span class='swatch s{i % 5}'></span>{escape(name_of(report))}</h4><p>{body}</p></div>")
    return "<div class='samples'>" + "".join(cards) + "</div>" if cards else "<p class='hint'>No text generated yet.</p>"
