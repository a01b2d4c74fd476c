"""Multiple choice: the items, the scores against a plain forward pass, the counts of what changed, and the task on the bundled model."""

from __future__ import annotations

import json

import pytest
import torch

from explorer.__main__ import main
from explorer.experiment import LocalRunner
from explorer.hub import Hub
from explorer.loader import Loader
from explorer.models import resolve
from explorer.records import Answer, InputError
from explorer.store import Store
from explorer.tasks.choices import CONTEXT, CONTINUATION, NEAR, items, scores, summary


@pytest.fixture(scope="module")
def load() -> Loader:
    return Loader(torch.device("cpu"))


@pytest.fixture(scope="module")
def runner(load: Loader) -> LocalRunner:
    return LocalRunner(Store(":memory:"), load)


def test_an_item_has_its_own_end_first_and_three_of_the_neighbourhood() -> None:
    passages = torch.arange(8)[:, None].expand(-1, CONTEXT + CONTINUATION)
    found = items(passages)
    assert found.shape == (8, 4, CONTEXT + CONTINUATION) and (found[..., :CONTEXT] == passages[:, None, :CONTEXT]).all()
    assert found[1, :, -1].tolist() == [1, *(1 + ahead for ahead in NEAR)]


def test_scores_are_those_of_a_plain_pass(load: Loader) -> None:
    model = load(resolve("demo", Hub())).model
    batch = torch.randint(0, 4000, (2, 4, CONTEXT + CONTINUATION), generator=torch.Generator().manual_seed(0))
    batch[:, :, :CONTEXT] = batch[:, :1, :CONTEXT].clone()
    with torch.no_grad():
        found, logits = scores(model, batch), model(batch.flatten(0, 1), use_cache=False).logits.float()
    plain = -torch.nn.functional.cross_entropy(logits[:, CONTEXT - 1 : -1].flatten(0, 1), batch.flatten(0, 1)[:, CONTEXT:].flatten(), reduction="none")
    torch.testing.assert_close(found, plain.view(2, 4, CONTINUATION).sum(-1), rtol=5e-3, atol=0.3)


def test_what_changed_is_counted_in_both_directions() -> None:
    right, wrong, other = [0.0, -1, -1, -1], [-1.0, 0, -1, -1], [-1.0, -1, 0, -1]
    nan = [float("nan")] * 4
    before = torch.tensor([right] * 6 + [wrong] * 4)
    after = torch.tensor([right] * 3 + [wrong] * 2 + [nan] + [right, wrong, other, wrong])
    found = summary(before, after)
    assert (found["lost"], found["gained"], found["moved"]) == (3, 1, 1)
    assert (found["base"]["right"], found["quantized"]["right"]) == (6, 4) and found["difference"] == pytest.approx(-20)
    assert found["p"] == pytest.approx(2 * (1 + 4) / 16) and found["low"] < found["difference"] < found["high"]


def test_the_task_and_the_command(runner: LocalRunner, capsys: pytest.CaptureFixture, tmp_path) -> None:
    with pytest.raises(InputError, match="Ask for 16 to"):
        list(runner.do("choices", {"model": "demo", "method": "rtn", "params": {}, "count": 3}))
    with pytest.raises(InputError, match="no trained weights"):
        list(runner.do("choices", {"model": "arch:qwen2.5-0.5b", "method": "rtn", "params": {}}))
    assert main(["choices", "--method", "none", "--count", "16", "--store", str(tmp_path / "store.sqlite"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["base"]["percent"] > 50, "far above guessing"
    assert found["base"] == found["quantized"] and (found["lost"], found["gained"], found["moved"], found["p"]) == (0, 0, 0, 1.0)
    two = next(e for e in runner.do("choices", {"model": "demo", "method": "rtn", "params": {"bits": 2}, "count": 16}) if isinstance(e, Answer)).data
    assert two["base"] == found["base"] and two["quantized"]["right"] < two["base"]["right"] and two["lost"] > two["gained"]
