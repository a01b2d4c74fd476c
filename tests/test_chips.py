"""Provenance chips: every number in every table has one in its cell, row or heading, and it says what the report says."""

from __future__ import annotations

import dataclasses
import json
import re
from html.parser import HTMLParser

import pytest

from explorer.chips import KINDS, chip, kind_of, of_answer, reachable
from explorer.figures import charts
from explorer.figures.tradeoffs import point_of
from explorer.learn import progress
from explorer.recorded import SEEDS
from explorer.records import report_from
from explorer.report_page import as_html
from explorer.table import comparison
from explorer.ui.session import keys_of
from explorer.ui.tabs.planner.handlers import Plans, first
from explorer.ui.tabs.speed import kernel_tables
from explorer.ui.tabs.stepper.steps import grid
from explorer.ui.tabs.tradeoffs.points_table import points_table, report_card
from explorer.ui.tabs.trainer.results import sheet
from explorer.ui.tabs.weights.microscope import microscope
from explorer.verdict import questions

SEED = [report_from(data) for data in json.loads(SEEDS.read_text())]
NUMBER = re.compile(r"^[▲▼≈ ]*[+−-]?\d")  # what a cell with a number begins with


class Bare(HTMLParser):
    """Collects the cells with a number that no chip in their cell, row, column heading or caption speaks for."""

    def __init__(self) -> None:
        super().__init__()
        self.bare: list[str] = []
        self._cell: dict | None = None
        self._rows: list[list[dict]] = []
        self._captioned = self._captioning = False

    def handle_starttag(self, tag: str, attrs: list) -> None:
        if tag == "table":
            self._rows = []  # a figcaption before it may have spoken already
        if tag == "tr":
            self._rows.append([])
        if tag in ("td", "th"):
            self._cell = {"tag": tag, "text": "", "chip": False}
            self._rows[-1].append(self._cell)
        if tag in ("caption", "figcaption"):
            self._captioning, self._captioned = True, False
        if tag == "button" and "pv" in dict(attrs).get("class", "").split():
            if self._captioning:
                self._captioned = True
            elif self._cell:
                self._cell["chip"] = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._cell = None
        if tag in ("caption", "figcaption"):
            self._captioning = False
        if tag != "table":
            return
        if not self._captioned:
            heads = {i for i, cell in enumerate(self._rows[0]) if cell["chip"]} if self._rows else set()
            for row in self._rows:
                spoken = any(cell["chip"] for cell in row if cell["tag"] == "th") or row[-1]["chip"]
                self.bare += [c["text"] for i, c in enumerate(row) if c["tag"] == "td" and NUMBER.match(c["text"]) and not (c["chip"] or spoken or i in heads)]
        self._captioned = False

    def handle_data(self, data: str) -> None:
        if self._cell is not None:
            self._cell["text"] += data.strip()


def bare(html: str) -> list[str]:
    parser = Bare()
    parser.feed(html)
    return parser.bare


GROUP = {
    "label": "RTN 4-bit", "row": 0, "group": 0, "groups": 2, "rotated": False, "bits": 4, "low": -1.0, "high": 1.0, "scale": 0.1, "zero": None, "sharing": 2,
    "kind": "symmetric", "values": [0.1, -0.2], "codes": [9, 6], "dequantized": [0.1, -0.2], "errors": [0.0, 0.01], "start": 0, "words": ["0" * 32],
    "changed": 0, "sqnr": 20.0, "sqnr_group": 19.0, "bits_per_weight": 4.25, "zeros": 0.1, "zeros_all": 0.1, "rows_seen": 2, "shape": [2, 4], "width": 2,
}  # fmt: skip
TABLES = {
    "compare": lambda: comparison(SEED),
    "points": lambda: points_table([point_of(r, k, "recorded") for r, k in zip(SEED, keys_of(SEED), strict=True)]),
    "point's report": lambda: report_card(SEED[2], SEED[0], SEED),
    "microscope": lambda: microscope(GROUP),
    "microscope, planted": lambda: microscope(GROUP | {"changed": 1}),
    "kernel steps": lambda: grid([["0.5"]], ["k 0"], "row", "weights"),
    "planner": lambda: Plans(None).solved(*first())[1],
    "kernels": kernel_tables,
    "result sheet": lambda: sheet({"progress": progress.fresh(), "set": None}),
    "export": lambda: as_html(SEED[:2], "", comparison(SEED[:2]), "").split("How to repeat it</h2>")[0],
}


@pytest.mark.parametrize("name", TABLES)
def test_no_number_without_its_chip(name: str) -> None:
    html = TABLES[name]()
    assert "class='pv" in html and bare(html) == []
    assert bare(re.sub(r"<button[^>]*class='pv.*?</button>", "", html)), "the walk sees the numbers of this table"


def test_a_table_has_one_stop_for_tab() -> None:
    html, folded = comparison(SEED).split("<details>")
    assert folded.count("tabindex='0' class='pv") == 1
    assert html.count("tabindex='0' class='pv") == 1 and html.count("tabindex='-1' class='pv") > 40
    assert reachable("<p></p>") == "<p></p>"


def test_a_chip_says_what_the_report_says() -> None:
    found, report = SEED[2].find("kld_mean"), SEED[2]
    assert kind_of(found, report) == "measured" and kind_of(report.find("decode_limit"), report) == "estimated"
    shipped = dataclasses.replace(report, provenance={**report.provenance, "recorded": True})
    plain = dataclasses.replace(report, provenance={**report.provenance, "kernel_summary": "int4_matmul (reference) on 42 of 42 layers"})
    assert kind_of(found, shipped) == "recorded" and kind_of(found, plain) == "measured"
    assert kind_of(plain.find("decode_tokens_per_second"), plain) == "simulated", "the speed of the plain meaning is no kernel's speed"
    cell = next(part for part in comparison([SEED[0], report]).split("<td") if f"data-value='{found.value!r}'" in part)
    assert all(str(word) in cell for word in ("95% interval", f"{found.n:,}", report.provenance["device"], report.provenance["kernel_summary"]))
    assert "<i>" not in chip("measured", "<i>'") and set(KINDS) == {"measured", "simulated", "estimated", "recorded"}


@pytest.mark.parametrize("item", charts().values(), ids=lambda c: c.name)
def test_every_chart_says_how_its_numbers_came(item) -> None:
    told = of_answer(item, item.example)
    assert "class='pv" in told and of_answer(item, {}) == ""


def test_what_was_planted_is_not_called_measured() -> None:
    item = charts()["channels"]
    assert "simulated" in of_answer(item, item.example | {"strength": 4.0}) and "measured" in of_answer(item, item.example | {"strength": 1.0})


def test_the_three_answers_carry_both_kinds() -> None:
    html = questions(SEED[2], SEED[0], SEED)
    assert "aria-label='measured'" in html and "aria-label='estimated'" in html and "data-pick='batch:" in html


def test_a_report_without_its_parts_still_tells_its_size() -> None:
    """The recorded survey has no bytes by part: what it has is said, and beside a number nothing says that it was not measured."""
    few = ("bits_per_weight", "weight_bytes", "kld_mean", "perplexity_delta")
    report = dataclasses.replace(SEED[2], measurements=tuple(m for m in SEED[2].measurements if m.metric in few))
    html = questions(report, SEED[0], SEED)
    assert "stores 4.25 bits" in html and "times less" in html and "size was not measured" not in html
