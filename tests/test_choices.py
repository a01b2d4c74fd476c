"""Multiple choice: the items, the scores against a plain forward pass, the counts of what changed, and the task on the bundled model."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from explorer.__main__ import main
from explorer.experiment import LocalRunner
from explorer.hub import Hub
from explorer.loader import Loader
from explorer.models import resolve
from explorer.recorded import SEEDS
from explorer.records import Answer, Event, InputError, TextRef, report_from
from explorer.request import Request
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


class Asked(list):
    """A runner that notes what it is asked and answers with one row."""

    def do(self, task: str, arguments: dict[str, Any]) -> Iterator[Event]:
        Request(arguments["model"], arguments["method"], arguments["params"], **arguments["options"])  # has a field for every option
        self.append(arguments["options"])
        shares = {"right": 1, "flips": 1, "percent": 50.0, "low": 40.0, "high": 60.0}
        counts = {"items": 2, "prompts": 2, "lost": 0, "gained": 0, "moved": 0, "only_base": 0, "only_quantized": 0, "kinds": []}
        found = counts | {"label": "x", "base": shares, "quantized": shares, "p": 1.0, "difference": 0.0, "low": None, "high": None}
        yield Answer(task, found, {"device": "here"})


@pytest.mark.parametrize(("source", "words"), [("bundled", "bundled"), ("pasted", "yours"), ("wikitext2", "WikiText-2")])
@pytest.mark.parametrize("name", ["choices", "robustness"])
def test_the_page_asks_about_the_text_of_its_reports(name: str, source: str, words: str) -> None:
    pytest.importorskip("gradio", reason="needs gradio, which the page is made of")
    from explorer.ui.tabs.text import EXPERIMENTS, row_by_row

    reports = [report_from(data) for data in json.loads(SEEDS.read_text())]
    text, read = TextRef(source, "0", 8192, 512, "My own text." if source == "pasted" else "", bos="text"), TextRef("bundled", "1", 8 * 512, 512, seed=3)
    reports = [dataclasses.replace(r, experiment=dataclasses.replace(r.experiment, evaluation=text, calibration=read)) for r in reports[:3]]
    asked = Asked()
    shell = SimpleNamespace(shelf=SimpleNamespace(pick=lambda keys: reports), runner=asked)
    *_, (line, *_) = row_by_row(shell, next(one for one in EXPERIMENTS if one.name == name), [])
    assert len(asked) == 2 and f"text: {words}." in line
    for options in asked:
        assert (options["evaluation"], options["text"], options["bos"]) == (source, text.text, "text")
        assert (options["calibration"], options["sequences"], options["seed"], options["length"]) == ("bundled", 8, 3, 512)


def test_a_report_is_asked_for_as_it_was_measured() -> None:
    """Every field of a Request that a report says; a text that calibrates is not lost to the one that is scored."""
    pytest.importorskip("gradio", reason="needs gradio, which the page is made of")
    from explorer.ui.asking import configuration, with_options

    report = report_from(json.loads(SEEDS.read_text())[3])
    read = TextRef("pasted", "1", 4 * 512, 512, "My own text.", seed=7)
    spec = dataclasses.replace(report.experiment.spec, kv_bits=4, head_bits=8)
    report = dataclasses.replace(report, experiment=dataclasses.replace(report.experiment, spec=spec, calibration=read))
    found, unsaid = configuration(report, scored=True), {"model", "tokens", "text_limit"}
    assert found.keys() == {field.name for field in dataclasses.fields(Request)} - unsaid, "a new field of a Request is asked for, too"
    assert (found["evaluation"], found["calibration"], found["text"], found["seed"]) == ("bundled", "pasted", "My own text.", 7)
    assert found["kv_bits"] == 4 and found["head_bits"] == 8 and found["sequences"] == 4
    assert with_options(report)["options"] == {name: found[name] for name in configuration(report) if name not in ("method", "params")}


def test_the_command_takes_texts_as_run_does(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    asked, text = Asked(), tmp_path / "t.txt"
    text.write_text("My own text.")
    monkeypatch.setattr("explorer.commands.choices.runner_of", lambda store: asked)
    assert main(["choices", "--text", str(text), "--length", "256", "--store", str(tmp_path / "r.db")]) == 0
    assert "Text: pasted." in capsys.readouterr().out
    own = ["--text", str(text), "--calibration", "pasted", "--sequences", "4", "--seed", "2", "--head-bits", "8"]
    assert main(["choices", "--method", "gptq", *own, "--store", str(tmp_path / "r.db")]) == 0
    first, second = asked
    assert (first["evaluation"], first["text"], first["length"], first["calibration"]) == ("pasted", "My own text.", 256, "bundled")
    names = ("evaluation", "calibration", "text", "sequences", "seed", "head_bits")
    assert [second[name] for name in names] == ["bundled", "pasted", "My own text.", 4, 2, 8] and "tokens" not in second
    assert main(["choices", "--text", str(text), "--calibration", "pasted", "--store", str(tmp_path / "r.db")]) == 2
    assert "nothing that is asked for reads inputs" in capsys.readouterr().err
