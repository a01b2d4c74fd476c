"""How far the order of sums alone moves a result: measured with nothing stored, and told in docs/RESULTS.md."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from assets.summation import divergences
from explorer import calibration, docs


def test_every_order_is_measured_and_none_is_kept() -> None:
    name, klds = divergences("rtn", {"bits": 4}, (2, 1))
    assert name == "RTN 4-bit g64" and klds[0] == klds[1] > 0 and calibration.BATCH == 4, "rounding reads no calibration text"


def test_the_page_of_results_says_how_far_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "assets").mkdir()
    monkeypatch.setattr(docs, "ROOT", tmp_path)
    assert "Not measured yet" in docs.summation()
    record = {"batches": [4, 1], "rows": [{"name": "GPTQ 3-bit g64", "klds": [0.1, 0.102]}], "device": "a CPU", "torch": "2", "date": "today"}
    (tmp_path / "assets" / "summation.json").write_text(json.dumps(record))
    assert "with 4, 1 windows" in docs.summation() and "GPTQ 3-bit g64 0.100, 0.102 nats, 2.0% apart" in docs.summation()
