"""Texts that models wrote, as HTML, side by side: recorded samples, and generations with each token shaded by what the baseline thinks of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

from explorer.chips import chip
from explorer.figures import places
from explorer.pieces import called
from explorer.records import Report, significant
from explorer.ui.session import is_baseline

SURPRISE = 10.0  # bits at which the shade is full: a probability below 0.1%


def samples(reports: Sequence[Report], base: Report | None = None) -> str:
    """The greedy continuation of each configuration, side by side; what differs from the baseline's, or from that of `base`, a healthy run, is marked."""
    left = "the baseline" if base is None else "the healthy run"
    base = base or next(filter(is_baseline, reports), None)
    start = None if base is None else base.value("sample_text")
    cards = []
    for i, report in zip(places(reports), reports, strict=True):
        text = report.value("sample_text")
        if text is None:
            continue
        same = len(text) if start is None else next((k for k, (a, b) in enumerate(zip(text, start, strict=False)) if a != b), len(text))
        kept, changed = (escape(part).replace("\n", "<i>↵</i> ") for part in (text[:same], text[same:]))
        body = kept + (f"<mark>{changed}</mark>" if changed else "")
        cards.append(f"<div class='sample'><h3><span class='swatch s{i % 5}'></span>{escape(report.name)}</h3><p>{body}</p></div>")
    prompt = escape(str(reports[0].provenance.get("prompt", ""))) if reports else ""
    intro = f"<p class='see'>After “<b>{prompt}</b>”, always the likeliest token; coloured from where it leaves {left}.</p>"
    return f"{intro}<div class='samples'>" + "".join(cards) + "</div>" if cards else "<p class='hint'>No text generated yet.</p>"


def texts(data: dict[str, Any], at: Sequence[int] = ()) -> str:
    """What `generate` found so far: a card a configuration, the baseline first. Numbers of a token show on hover, once all are written. at: the places of
    the configurations on the page, where they are not their positions.
    """
    runs = data.get("runs", [])
    if not runs:
        return "<p class='hint'>No text generated yet.</p>"
    p = data.get("provenance", {})
    how = chip("measured", "; ".join(filter(None, (str(p.get("device") or "on this machine"), "stored" if p.get("from_store") else ""))))
    columns = [column(i, run, runs[0], data["done"], how) for i, run in zip(at or range(len(runs)), runs, strict=True)]
    legend = (
        "<p class='hint'>Shade: how unlikely the 16-bit model finds the token in this text, from <span class='tk' style='--u:0'>certain</span> to "
        "<span class='tk' style='--u:1'>below 0.1%</span>. A frame marks the first token that is not the baseline's.</p>"
    )
    prompt = "".join(map(shown, data.get("prompt", [])))
    return f"<p class='asked' dir='auto'>{prompt}</p><div class='samples written'>{''.join(columns)}</div>{legend}"


def column(i: int, run: dict[str, Any], base: dict[str, Any], done: bool, how: str = "") -> str:
    """One configuration's text, with where it leaves the baseline and how much it repeats itself, the baseline's number beside it. how: their chip."""
    tokens = "".join(token(run, k, done) for k in range(len(run["ids"])))
    head = f"<h3><span class='swatch s{i % 5}'></span>{escape(run['label'])} {how}</h3>"
    return f"<div class='sample'>{head}<p class='notes'>{''.join(notes(run, base))}</p><p class='text' dir='auto'>{tokens}</p></div>"


def notes(run: dict[str, Any], base: dict[str, Any]) -> list[str]:
    """What is said above a text, as chips."""
    told = []
    if run is not base:
        parted = run["diverged"]
        told.append(
            f"<span class='chip'>leaves the baseline at token {parted + 1}</span>" if parted is not None else "<span class='chip'>same text so far</span>"
        )
    beside = "" if run is base else f", baseline {100 * base['repetition']:.0f}%"
    told.append(f"<span class='chip' title='share of 4-grams that occurred before'>{100 * run['repetition']:.0f}% repeats{beside}</span>")
    if run["cycle"]:
        loop = run["cycle"]
        alone = run is not base and not base["cycle"]
        words = f"loop of {loop['period']} token{'s' if loop['period'] > 1 else ''}, {loop['copies']} times"
        words += "" if alone or run is base else ", the baseline loops too"
        told.append(f"<span class='chip{' alarm' if alone else ''}'>{words}</span>")
    return told


def token(run: dict[str, Any], k: int, hover: bool) -> str:
    """One token, shaded by the baseline model's surprise."""
    p = run["p"][k]
    surprise = 1.0 if not p else min(1.0, -math.log2(p) / SURPRISE)
    kind = "tk parted" if k == run["diverged"] else "tk"
    title = f" title='{escape(said(run, k), quote=True)}'" if hover else ""
    return f"<span class='{kind}' style='--u:{surprise:.2f}'{title}>{shown(run['text'][k])}</span>"


def said(run: dict[str, Any], k: int) -> str:
    """The numbers of one token in words."""
    p, own, top, kl = (run[name][k] for name in ("p", "own", "top", "kl"))
    if None in (p, own, top, kl):
        return "Not finite: this configuration gives no probabilities here."
    first = f"{called(run['text'][k])}: the 16-bit model gives it {p:.3f} here, rank {run['rank'][k]}; this configuration {own:.3f}."
    other = "" if run["rank"][k] == 1 else f" The 16-bit model's own choice {called(run['top_text'][k])} has {top:.3f} here."
    return f"{first}{other} KL {significant(kl)} nats."


def shown(text: str) -> str:
    """A token's text, escaped, with line breaks and tabs as signs."""
    return escape(text).replace("\n", "<i>↵</i><br>").replace("\t", "<i>⇥</i> ")
