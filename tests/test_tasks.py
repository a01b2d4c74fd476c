"""Tasks: stored by everything that determines them, refused with a sentence, and right against plain arithmetic."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest
import torch

from explorer import models, tasks
from explorer.experiment import LocalRunner
from explorer.hub import Hub
from explorer.records import Answer, Event, InputError, Progress
from explorer.store import Store
from explorer.tasks import Engine, Task
from explorer.turns import Line

LAYER = "layers.1.mlp.down_proj"


def answer(events: Iterator[Event]) -> Answer:
    return list(events)[-1]


def test_group_shows_what_becomes_of_its_weights(store: Store) -> None:
    asked = {"model": "demo", "layer": LAYER, "method": "rtn", "params": {"bits": 4, "group_size": 64}, "row": 3, "group": 2}
    data = answer(LocalRunner(store).do("group", asked)).data
    weight = models.weight_of(models.resolve("demo", Hub()), LAYER, Hub()).float()
    assert data["values"] == weight[3, 128:192].tolist() and data["width"] == 64 and data["start"] == 128
    scale = torch.tensor(max(map(abs, data["values"])) / 7).bfloat16().item()
    assert data["scale"] == pytest.approx(scale) and data["zero"] is None
    assert [(code - 8) * scale for code in data["codes"]] == pytest.approx(data["dequantized"])
    assert len(data["words"]) == 8 and [int(data["words"][0][28 - 4 * i : 32 - 4 * i], 2) for i in range(8)] == data["codes"][:8]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"row": 10**6}, "has rows 0 to"), ({"method": "gptq"}, "needs the model's inputs"), ({"layer": "layers.9.x"}, "no layer"),
        ({"params": {"bits": 9}}, "bits cannot be"),
    ],
)  # fmt: skip
def test_bad_arguments_are_a_sentence(store: Store, change: dict, sentence: str) -> None:
    asked = {"model": "demo", "layer": LAYER, "method": "rtn", "params": {}} | change
    with pytest.raises(InputError, match=sentence):
        list(LocalRunner(store).do("group", asked))
    with pytest.raises(InputError, match="no task"):
        list(LocalRunner(store).do("magic", {}))


def test_answers_are_stored_by_arguments_and_wait_their_turn(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def work(engine: Engine, number: int) -> Iterator[Event]:
        calls.append(number)
        yield Answer("count", {"number": number})

    monkeypatch.setattr(tasks, "tasks", lambda: {"count": Task("count", work)})
    monkeypatch.setattr(tasks, "made_by", lambda *modules: "")  # this file is no part of the product
    line = Line()
    load = LocalRunner(store)._load
    first = answer(tasks.do("count", {"number": 1}, store, load, line))
    again = answer(tasks.do("count", {"number": 1}, store, load, line))
    assert first.data == again.data and again.provenance["from_store"] and not first.provenance
    with line.place():
        events = tasks.do("count", {"number": 2}, store, load, line)
        assert next(events).stage == "waiting" and calls == [1]
    assert answer(events).data == {"number": 2}
    assert not line._waiting


def test_an_answer_that_was_seen_is_stored_and_a_draft_is_not(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def work(engine: Engine) -> Iterator[Event]:
        yield Answer("grow", {"done": False})
        yield Progress("grow", 1, 2)
        yield Answer("grow", {"done": True})

    monkeypatch.setattr(tasks, "tasks", lambda: {"grow": Task("grow", work)})
    monkeypatch.setattr(tasks, "made_by", lambda *modules: "")  # this file is no part of the product
    load = LocalRunner(store)._load
    ask = partial(tasks.do, "grow", {}, store, load, Line())
    seen = ask()
    assert next(seen).data == {"done": False}
    seen.close()  # whoever asked is gone after a draft
    assert [event.data["done"] for event in ask() if isinstance(event, Answer)] == [False, True]
    store._db.execute("DELETE FROM results")
    last = next(event for event in ask() if isinstance(event, Answer) and event.data["done"])  # gone as soon as it has the last one
    assert not last.provenance and [event.provenance for event in ask()] == [{"from_store": True}]
