"""The perturbed-prompt task on a tiny random model: what changes in a prompt, the paired test, and that the model is left as it was."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from explorer.experiment import LocalRunner
from explorer.loader import Loader
from explorer.models import linears
from explorer.records import Answer
from explorer.store import Store
from explorer.tasks import perturb
from explorer.tasks.perturb import KEPT, KINDS, changed, mcnemar, summary, wilson


def test_one_word_changes_and_never_the_last_ones() -> None:
    text = "The database server stores every table in one directory"
    for kind in KINDS:
        for seed in range(20):
            other = changed(text, kind, random.Random(seed))
            assert other != text and other.split(" ")[-KEPT:] == text.split(" ")[-KEPT:]
            assert abs(len(other.split(" ")) - len(text.split(" "))) <= 1
    assert changed("a b c", KINDS[0], random.Random(0)) == "a b c"


def test_paired_statistics() -> None:
    assert mcnemar(0, 0) == 1 and mcnemar(5, 5) == 1 and mcnemar(0, 10) == pytest.approx(2 / 1024)
    low, high = wilson(10, 100)
    assert low == pytest.approx(5.52, abs=0.01) and high == pytest.approx(17.44, abs=0.01)
    found = summary([True, False, False, True], [True, True, False, False])
    assert found["only_base"] == found["only_quantized"] == 1 and found["base"]["percent"] == 50 and found["p"] == 1


def test_the_baseline_against_itself_never_differs(store: Store, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perturb, "PROMPTS", 12)
    load = Loader(torch.device("cpu"))
    runner = LocalRunner(store, load)
    asked = {"model": str(tiny_folder), "method": "none", "params": {}}
    found = [event for event in runner.do("perturb", asked) if isinstance(event, Answer)][-1].data
    assert found["only_base"] == found["only_quantized"] == 0 and found["moved"] == 0 and found["prompts"] > 5
    again = list(runner.do("perturb", asked | {"method": "rtn", "params": {"bits": 2, "granularity": "channel"}}))[-1].data
    assert again["base"] == found["base"], "the same prompts whatever the method"
    head = list(runner.do("perturb", asked | {"options": {"head_bits": 4}}))[-1].data
    assert head["label"] == "16-bit weights, head 4-bit" and head["base"] == found["base"] and head["moved"] > 0, "the head is rounded too"
    assert all(isinstance(layer, torch.nn.Linear) for layer in linears(next(iter([load._last])).model).values())
