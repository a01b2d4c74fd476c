"""One HTML page that keeps what a page shows and needs nothing else: what was measured, on what, when, the comparison, figures, and what repeats it.

Knows records and figures; plotly only gives its script, so that the page needs no network.
"""

from __future__ import annotations

import datetime
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from html import escape

from explorer.chips import legend, of_metrics
from explorer.export import ASSETS, COMMIT, TOKENS, catalogue, command_of, held, intro, reads, section, usual_length
from explorer.figures import figures, places
from explorer.findings import awaited
from explorer.gaps import absent
from explorer.link import query
from explorer.records import Report
from explorer.table import comparison, source
from explorer.verdict import judged, questions
from explorer.version import written_by

FACTS = {"device": "Device", "kernel_summary": "Kernel", "text": "Evaluation text", "calibration": "Calibration", "torch": "torch",
         "transformers": "transformers", "date": "Measured"}  # fmt: skip


def report_page(reports: Sequence[Report], layer: str, address: str = "") -> str:
    """`as_html` with the comparison, the three answers, the style and the script of the explorer's own page. layer: the one whose figures are drawn, "" for
    none. address: of the page that it is made on, "" for none.
    """
    style, script = (ASSETS.joinpath(name).read_text() for name in ("style.css", "page.js"))
    return as_html(reports, layer, comparison(reports, judged(reports), live=False) + asked(reports), style, script, address)


def asked(reports: Sequence[Report]) -> str:
    """The three answers on each quantized configuration; "" where there is none."""
    base = next((r for r in reports if r.experiment.spec.is_baseline), None)
    cards = "".join(questions(r, base, reports, live=False) for r in reports)
    return cards and f"<section><h2>Three questions everybody asks</h2><div id='answers'>{cards}</div></section>"


def as_html(reports: Sequence[Report], layer: str, table: str, style: str, page: str = "() => {}", address: str = "") -> str:
    """One page that needs nothing else. table: the comparison as HTML; style: CSS; page: the page's script, for its chips and tables. Figures that no
    report has numbers for are left out.
    """
    from plotly.offline import get_plotlyjs

    measured = {m.metric for report in reports for m in report.measurements}
    parts, drawings = [], {}
    for figure in figures().values():
        if measured.issuperset(figure.needs):
            drawings[figure.name] = figure.draw(reports, layer)
            words = f"{of_metrics(reports, figure.needs)} {escape(' '.join((figure.summary(reports, layer), absent(reports, figure.needs))).strip())}"
            parts.append(
                f"<section><h2>{escape(figure.title)}</h2><p>{escape(figure.see)}</p><div id='{figure.name}'></div><p class='summary'>{words}</p>"
                f"<details><summary>Why</summary><p>{escape(figure.why)}</p></details></section>"
            )
    origins = intro(live=False) + "".join(f"{section(r)}{_facts(r)}" for r in reports) + held(reports)
    # "</" would end the script element, whatever it stands in.
    data = json.dumps(drawings).replace("</", "<\\/")
    own = PAGE.replace("DARK", " ".join(re.findall(r"\.dark {([^}]*)}", style)))
    script = f"for (const [name, f] of Object.entries({data})) Plotly.newPlot(name, f.data, f.layout, {{displaylogo: false, responsive: true}});"
    title = f"Quantization report: {escape(', '.join(dict.fromkeys(r.experiment.model.name for r in reports)))}"
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{title}</title><style>{style}{own}</style></head><body><h1>{title}</h1>{head(reports, address)}{legend()}{table}{''.join(parts)}"
        f"<h2 id='repeat'>How to repeat it</h2>{origins}<script>{get_plotlyjs()}</script><script>{script}</script>"
        f"<script>({page.rstrip()})()</script></body></html>"
    )


def head(reports: Sequence[Report], address: str = "") -> str:
    """What was measured, on what, when and by what: what is true of the whole page, as HTML. address: as in `report_page`."""

    def each(name: str, before: str = "") -> str:
        """What the reports' provenance says under a name, each once."""
        return "; ".join(dict.fromkeys(f"{before}{told}" for r in reports if (told := r.provenance.get(name))))

    dates = sorted({date for r in reports for date in (r.provenance.get("date"), *r.provenance.get("dates", {}).values()) if date})
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    told = {
        "Model": "; ".join(dict.fromkeys(f"{r.experiment.model.name}, revision {r.experiment.model.revision}" for r in reports)),
        "Evaluation text": each("text"), "Configurations": "; ".join(r.name for r in reports), "Device": each("device"), "Kernels": each("kernel_summary"),
        "Versions": ", ".join(filter(None, (each("torch", "torch "), each("transformers", "transformers ")))),
        "Measured": " to ".join(dict.fromkeys((dates or [""])[:1] + dates[-1:])) + f" ({'; '.join(dict.fromkeys(map(source, reports)))})",
        "Written": f"{now} by {written_by()}",
    }  # fmt: skip
    return _listed({name: escape(said) for name, said in told.items() if said} | {"Again": _again(reports, address)})


def _again(reports: Sequence[Report], address: str) -> str:
    """What gives this page again, as HTML: the link of the page it was made on, else the command of its last report."""
    link = link_of(reports)
    if address.startswith(("http://", "https://")) and link:
        return f"<a href='{escape(address + link, quote=True)}'>{escape(address + link)}</a>, or <a href='#repeat'>by commands</a>"
    if len(reports) > 2 or not reports:
        return "<a href='#repeat'>by commands</a>"
    return f"<code>{escape(shlex.join([*shlex.split(command_of(reports[-1], whole=True)), '--html', 'report.html']))}</code>"


def link_of(reports: Sequence[Report]) -> str:
    """The query string that opens a page with these reports; "" where no link can say what they are over: a text of the visitor's own, another length or
    amount of text than a page scores, several draws of calibration text.
    """
    if not reports:
        return ""
    model, evaluation = reports[0].experiment.model, reports[0].experiment.evaluation
    drawn = {(c.source, c.tokens // c.length, c.seed) for r in reports if reads(r) for c in (r.experiment.calibration,)} or {("bundled", 16, 0)}
    usual = all((r.experiment.evaluation.tokens, r.experiment.evaluation.length) == (TOKENS, usual_length(r.experiment)) for r in reports)
    if len(drawn) > 1 or not usual or "pasted" in (evaluation.source, *next(iter(drawn))):
        return ""
    options = {"evaluation": evaluation.source, **dict(zip(("calibration", "sequences", "seed"), *drawn, strict=True))}
    at = {place: r.experiment.spec for place, r in zip(places(reports), reports, strict=True) if not r.experiment.spec.is_baseline}
    name = f"{model.name}@{model.revision}" if COMMIT.fullmatch(model.revision) else model.name
    compared = [at.get(place) for place in range(1, max(at, default=0) + 1)]
    return "?" + query("compare", "", name, reports[-1].experiment.spec, options, compared, catalogue())


def _facts(report: Report) -> str:
    told = {said: str(report.provenance[name]) for name, said in FACTS.items() if report.provenance.get(name)}
    told |= {"Incomplete": awaited(report)} if report.missing else {}
    return _listed({name: escape(said) for name, said in told.items()})


def _listed(told: Mapping[str, str]) -> str:
    """What is said of each name, already escaped, as HTML."""
    return f"<dl class='facts'>{''.join(f'<dt>{name}</dt><dd>{said}</dd>' for name, said in told.items())}</dl>"


PAGE = """
:root { color-scheme: light dark; --body-text-color: #1e293b; --body-text-color-subdued: #475569; --border-color-primary: #cbd5e1; --body-background-fill: #fff;
  --background-fill-primary: #fff; --background-fill-secondary: #f1f5f9; }
@media screen and (prefers-color-scheme: dark) { :root { --body-text-color: #f1f5f9; --body-text-color-subdued: #a8b3c4; --border-color-primary: #3f4d63;
  --body-background-fill: #0f172a; --background-fill-primary: #0f172a; --background-fill-secondary: #1e293b; DARK } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2rem auto; padding: 0 1rem; color: var(--body-text-color);
  background: var(--body-background-fill); }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--background-fill-secondary); padding: .6rem; border-radius: 6px; }
.facts { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; }
.facts dt { font-weight: 500; } .facts dd { margin: 0; overflow-wrap: anywhere; }
a { color: var(--link); }
.three { margin-bottom: .7rem; }
@media print { section, tr, .three, .facts { break-inside: avoid; } h2, h3 { break-after: avoid; } section:has(.three) { break-inside: auto; }
  .scroll { overflow: visible; } [data-copy] { display: none; } details::details-content { content-visibility: visible; } }
"""  # DARK: what the style says of the page's class of that name; paper stays white
