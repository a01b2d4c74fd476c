"""Sensitivity: a layer rounded alone scores what a whole run of it would, rows come from the store, and inputs are those of the unchanged model."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from explorer import data, experiment, models
from explorer.__main__ import main, parser
from explorer.commands.sensitivity import params_of
from explorer.experiment import LocalRunner
from explorer.hub import Hub
from explorer.loader import Loader
from explorer.methods import Method, build, fields_of, methods
from explorer.records import Answer, InputError, Measurement
from explorer.store import Store
from explorer.tasks import sensitivity


@pytest.fixture(scope="module")
def load() -> Loader:
    return Loader()


def finish(events: Iterator) -> Answer:
    return list(events)[-1]


def test_sensitivity_of_one_layer_equals_a_run_of_the_whole_model(store: Store, load: Loader) -> None:
    """Starting at the layer's block gives what the full model gives, and the model comes back to the bit."""
    loaded = load(models.resolve("demo", Hub()))
    before = [p.clone() for p in loaded.model.parameters()]
    text = data.bundled_text("calibration")
    rows = models.windows(loaded, text, 2 * 512, 512)
    name = "layers.3.mlp.down_proj"
    with sensitivity.in_float32(loaded.model):
        scorer = sensitivity.Scorer(loaded, rows)
        weight = build("rtn", {"bits": 3}).quantize(scorer.originals[name].weight, None).dequantize()
        found = scorer.score(name, weight)
        with torch.no_grad():
            reference = loaded.model(rows, use_cache=False).logits[:, :-1].flatten(0, 1).log_softmax(-1)
            own = scorer.originals[name].weight.data
            scorer.originals[name].weight.data = weight
            logits = loaded.model(rows, use_cache=False).logits[:, :-1].flatten(0, 1).log_softmax(-1)
            scorer.originals[name].weight.data = own
        exact = (reference.exp() * (reference - logits)).sum(-1).mean().item()
        assert scorer.score(name, own)["kld"] < 1e-9, "an unchanged layer costs nothing"
        assert len(found["kld_windows"]) == 2 and sum(found["kld_windows"]) / 2 == pytest.approx(found["kld"], rel=1e-6), "layers are paired by them"
    assert found["kld"] == pytest.approx(exact, rel=1e-4) and found["kld_low"] < found["kld"] < found["kld_high"]
    assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(before, loaded.model.parameters(), strict=True))
    assert not any("forward" in vars(block) for block in models.blocks(loaded.model))


def test_sensitivity_streams_stores_by_layer_and_resumes(store: Store, tiny_folder: Path) -> None:
    asked = {"model": str(tiny_folder), "method": "rtn", "params": {"group_size": 32}, "bits": [2, 4], "windows": 1}
    runner = LocalRunner(store)
    events = runner.do("sensitivity", asked)
    cut = []
    for event in events:
        cut.append(event)
        if sum(isinstance(e, Measurement) for e in cut) == 6:
            break
    events.close()
    done = list(runner.do("sensitivity", asked))
    rows = done[-1].data["rows"]
    assert rows[:6] == [e.value for e in cut if isinstance(e, Measurement)], "the layers measured before the cut come from the store"
    assert {row["bits"] for row in rows} == {2, 4} and len(rows) == 2 * 12 and len(done[-1].data["kept"]) == 2, "80 inputs are not divided by 32"
    method = build("rtn", {"bits": 4, "group_size": 32})
    loaded = runner._load(models.resolve(str(tiny_folder), Hub()))
    layer = models.linears(loaded.model)[rows[1]["layer"]]
    assert rows[1]["stored_bits"] == method.quantize(layer.weight.float(), None).stored_bits()
    with pytest.raises(InputError, match="choose one of"):
        finish(runner.do("sensitivity", asked | {"method": "nf4"}))
    assert finish(runner.do("sensitivity", asked)).provenance["from_store"]


def test_arithmetic_is_not_mixed_and_float32_comes_once_there_is_room(store: Store, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that began where memory was short, and one that ended there, both asked again with enough of it."""
    asked = {"model": str(tiny_folder), "method": "rtn", "params": {"group_size": 32}, "bits": [4], "windows": 1}
    runner = LocalRunner(store)
    with monkeypatch.context() as patch:
        patch.setattr(sensitivity, "fits_in_float32", lambda loaded: False)
        rough = finish(runner.do("sensitivity", asked))
        patch.setattr(experiment, "free_memory", lambda device: 0)
        assert finish(runner.do("sensitivity", asked)).provenance["from_store"]
    exact = finish(runner.do("sensitivity", asked))
    assert "bfloat16" in rough.data["text"] and "float32" in exact.data["text"]
    assert not {row["kld"] for row in rough.data["rows"]} & {row["kld"] for row in exact.data["rows"]}
    monkeypatch.setattr(sensitivity, "fits_in_float32", lambda loaded: False)
    assert finish(runner.do("sensitivity", asked)).data == exact.data


def test_gptq_sensitivity_reads_inputs_of_the_unchanged_model(store: Store, tiny_folder: Path) -> None:
    asked = {"model": str(tiny_folder), "method": "gptq", "params": {"group_size": 32}, "bits": [3], "windows": 1, "sequences": 1}
    assert len(finish(LocalRunner(store).do("sensitivity", asked)).data["rows"]) == 12


def test_sensitivity_gives_a_method_only_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """One with neither groups nor a choice of symmetry takes no flag of the command; every method of the list can be asked for."""

    @dataclass(frozen=True)
    class Midrise(Method):
        name, title, short, bits = "midrise", "Midrise", "Midrise", 4

    able = [name for name, one in methods().items() if not one.of_model and "bits" in {field.name for field in fields_of(one)}]
    asked = {name: params_of(Namespace(method=name, group_size=32, symmetric="true")) for name in able}
    assert "symmetric" not in asked["hqq"] and asked["rtn"] == {"group_size": 32, "symmetric": True}
    assert params_of(Namespace(method="rtn", group_size=32, symmetric="False")) == {"group_size": 32, "symmetric": False}
    assert all(sensitivity.checked(name, params, (4,), 1) for name, params in asked.items())
    monkeypatch.setattr("explorer.methods.methods", lambda: {"midrise": Midrise})
    assert params_of(Namespace(method="midrise", group_size=32, symmetric="true")) == {} == params_of(Namespace(method="none such"))


def test_the_command_takes_symmetric_as_run_does(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    for words, params in (([], {}), (["--symmetric", "true"], {"symmetric": True}), (["--symmetric", "false"], {"symmetric": False})):
        assert params_of(parser().parse_args(["sensitivity", *words])) == {"group_size": 64, **params}
    assert main(["sensitivity", "--symmetric", "perhaps", "--store", str(tmp_path / "r.db")]) == 2
    assert "symmetric cannot be 'perhaps'" in capsys.readouterr().err
