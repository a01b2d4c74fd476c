"""transformers' own loop beside ours: measured in turn, the same tokens from both, and told in docs/RESULTS.md."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from assets import token_loops
from explorer import recordings


@pytest.fixture(scope="module")
def arms(tiny_folder: Path) -> tuple:
    return token_loops.made(str(tiny_folder))


def test_the_loops_run_the_same_model_and_count_the_same_work(arms: tuple) -> None:
    """In 16 bits both give the same logits; the parts multiply with every weight of the blocks and the head, once."""
    subject, (theirs, ours, *low) = arms
    prompt = subject.windows[:1, :20]
    with torch.no_grad():
        for ask in (lambda loop: loop.prefill(prompt), lambda loop: loop.step(prompt[:, :1])):
            logits = [ask(arm.loop).float() for arm in (theirs, ours)]
            assert (logits[0] - logits[1]).norm() / logits[0].norm() < 0.02
            assert all((ask(arm.loop).float() - logits[0]).norm() > 0 for arm in low), "low bits change the logits"
        multiplied = sum(layer.weight.shape[0] for layer in subject.originals.values()) + subject.loaded.model.lm_head.weight.shape[0]
        blocks = len(subject.loaded.model.model.layers)
        for arm, calls in ((theirs, 8 * blocks + 1), (ours, 5 * blocks + 1)):
            results = [call() for call in arm.parts(arm.loop)]
            attended = blocks * subject.loaded.model.config.hidden_size
            assert len(results) == calls and sum(result.numel() for result in results) == multiplied + attended
    assert theirs.loop.cache.layers[0].keys.shape[-2] == ours.loop.length == 21


def test_a_short_run_writes_rows_that_the_page_tells(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recordings, "ASSETS", tmp_path)
    assert "Not measured yet" in recordings.token_loops_table()
    token_loops.main(["--models", str(tiny_folder), "--rounds", "2", "--new", "3", "--output", str(tmp_path / "token_loops.json")])
    record = json.loads((tmp_path / "token_loops.json").read_text())
    assert [(row["loop"], row["weights"]) for row in record["rows"]] == [
        ("transformers", "16 bits"), ("ours", "16 bits"), ("ours", "4 bits"), ("ours", "4 bits, head too"),
    ]  # fmt: skip
    assert all(row["n"] == 6 and row["p20"] <= row["ms"] <= row["p80"] and row["parts_ms"] > 0 for row in record["rows"])
    first, table = record["rows"][0], recordings.token_loops_table().splitlines()
    assert first["times"] == [1, 1, 1] and len(table) == 2 + 4 + 2 and {line.count("|") for line in table[:6]} == {9}
    assert record["transformers"] in table[-1] and "2 rounds of 3 tokens" in table[-1]


def test_a_ratio_of_times_that_noise_has_eaten_is_none() -> None:
    assert token_loops.ratio([2.0, 8.0], [1.0, 2.0])[0] == pytest.approx(8**0.5)
    assert token_loops.ratio([1.0, 2.0], [0.1, -0.1]) is None
