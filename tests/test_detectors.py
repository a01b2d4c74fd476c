"""Every bug planted on the bundled model is named by its detector, and no healthy run is; the parts that need no model, against plain cases."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator

import pytest
import torch

from explorer.answers import answers, ladder, place
from explorer.bugs import BUGS
from explorer.detectors import named, nibbles, sentence, verdicts
from explorer.experiment import LocalRunner
from explorer.faults import FAULTS, planted, zero_off_by_one
from explorer.findings import BROKEN, OK, Evidence, level
from explorer.hub import Hub
from explorer.methods import build
from explorer.metrics.integrity import packed_weight
from explorer.recorded import LADDER, SEEDS, SURVEY
from explorer.records import Answer, InputError, Measurement, Report, report_from
from explorer.repetition import cycle, repetition
from explorer.store import Store

RECORDED = [report_from(data) for file in (SURVEY, SEEDS, LADDER) for data in json.loads(file.read_text())]
FEW = {"tokens": 1024, "length": 128, "sequences": 16}


class Lab:
    """Measured copies by (method, bug), each made once."""

    def __init__(self, store: Store) -> None:
        self.runner, self.kept = LocalRunner(store), {}

    def report(self, method: str, fault: str = "", **params: object) -> Report:
        key = method, fault, tuple(params.items())
        if key not in self.kept:
            asked = {"model": "demo", "method": method, "params": params, "fault": fault, "options": FEW}
            answer = next(e for e in self.runner.do("failure", asked) if isinstance(e, Answer))
            self.kept[key] = report_from(answer.data["report"])
        return self.kept[key]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    store = Store(tmp_path_factory.mktemp("lab") / "r.db")
    yield Lab(store)
    store.close()


@pytest.mark.parametrize("fault", [name for name, fault in FAULTS.items() if fault.text is None])
def test_the_guard_names_the_planted_bug(lab: Lab, fault: str) -> None:
    found = verdicts(lab.report("rtn", fault, bits=4), None)
    assert named(found) == fault and level(found) == BROKEN
    words = sentence(found)
    assert words.startswith("Broken: ") and any(character.isdigit() for character in words)


def test_wrong_calibration_is_named_and_right_calibration_is_not(lab: Lab) -> None:
    assert named(verdicts(lab.report("gptq", "calibration", bits=4), None)) == "calibration"
    healthy = lab.report("gptq", bits=4)
    assert not named(verdicts(healthy, None)) and level(verdicts(healthy, None)) == OK
    assert lab.report("gptq", "calibration", bits=4).find("kld_mean").low > healthy.find("kld_mean").value


@pytest.mark.parametrize(
    ("method", "params"),
    [("rtn", {"bits": 4}), ("nf4", {}), ("rtn", {"bits": 3, "symmetric": False}), ("nvfp4", {"activation": "block"}), ("mxfp", {"activation": "block"})],
)
def test_healthy_runs_have_no_finding(lab: Lab, method: str, params: dict) -> None:
    found = verdicts(lab.report(method, **params), None)
    assert [f.name for f in found if f.bad] == [] and len(found) >= 10 and "No sign of failure" in sentence(found)


def test_a_layer_that_rounding_leaves_as_it_is_is_no_fallback(lab: Lab) -> None:
    """One of zeros alone, or of weights that lie on the grid already: exact on codes. With weights that changed it is one that does not run on them."""
    report, name = lab.report("rtn", bits=4), "layers.3.self_attn.o_proj"

    def exact(*metrics: str) -> Report:
        found = (dataclasses.replace(m, value=0.0) if m.layer == name and m.metric in metrics else m for m in report.measurements)
        return dataclasses.replace(report, measurements=tuple(found))

    assert level(verdicts(exact("weight_error", "output_error"), None)) == OK
    assert named(verdicts(exact("output_error"), None)) == "fallback"
    every = dataclasses.replace(report, measurements=tuple(dataclasses.replace(m, value=0.0) if m.metric == "weight_error" else m for m in report.measurements))
    assert "fallback" not in [f.name for f in verdicts(every, None)]


def test_a_bug_in_a_few_layers_is_named_with_them(lab: Lab) -> None:
    """K-quants round most layers of this model to more than 4 bits, so that only some can have their nibbles swapped."""
    found = next(f for f in verdicts(lab.report("kquant", "nibbles"), None) if f.name == "nibbles")
    assert found.level == BROKEN and 0 < len(found.layers) < 42 and all("down_proj" in name for name in found.layers)


def test_what_undoing_a_bug_does_is_said_of_every_layer_that_has_it() -> None:
    """At most so many times in the layers that are named: the largest of their ratios; at least so many times where none is."""

    def found(exchanged: list[float]) -> str:
        parts = (Measurement("integrity", {"exchanged_error": e}, "", f"layers.{i}.mlp.up_proj") for i, e in enumerate(exchanged))
        whole = (Measurement("weight_error", 1.0, "", f"layers.{i}.mlp.up_proj") for i in range(len(exchanged)))
        return nibbles(Evidence(dataclasses.replace(RECORDED[0], measurements=(*parts, *whole)), None, ())).says

    assert "the error of the weights falls to at most 0.12 times what it is: the order of codes within a byte is swapped in 2 of 3" in found([0.08, 1.5, 0.12])
    assert found([1.5, 1.25]) == "With neighbouring columns exchanged the error of a layer's weights is at least 1.25 times what it is."


def test_a_copy_with_a_bug_never_passes_for_the_run(lab: Lab) -> None:
    healthy, broken = lab.report("rtn", bits=4), lab.report("rtn", "stale", bits=4)
    assert broken.experiment != healthy.experiment and ("planted", "stale") in broken.experiment.spec.params and "bug" in broken.name
    assert healthy.value("bits_per_weight") == broken.value("bits_per_weight") == 4.25
    groups = broken.value("integrity", "layers.0.mlp.down_proj")["group_error"]
    assert groups[1] > 2 * max(groups[0], groups[2])


@pytest.mark.parametrize(
    ("method", "fault", "why"), [("nf4", "zero", "no zero-point"), ("rtn", "calibration", "no calibration text"), ("none", "zero", "baseline")]
)
def test_bugs_that_cannot_happen_are_refused(store: Store, method: str, fault: str, why: str) -> None:
    with pytest.raises(InputError, match=why):
        list(LocalRunner(store).do("failure", {"model": "demo", "method": method, "params": {}, "fault": fault}))
    with pytest.raises(InputError, match="There is no bug"):
        list(LocalRunner(store).do("failure", {"model": "demo", "method": method, "params": {}, "fault": "gremlins"}))


def test_every_bug_has_words_and_a_way_to_plant_it() -> None:
    assert list(BUGS) == list(FAULTS)
    for fault in FAULTS.values():
        assert sum(way is not None for way in (fault.change, fault.plant, fault.text)) == 1


def test_planting_leaves_the_subject_as_it_is(lab: Lab, store: Store) -> None:
    from explorer.request import Request
    from explorer.subjects import subject_of

    experiment, method, texts = Request("demo", "rtn", {"bits": 4}).prepare(Hub())
    events = subject_of(lab.runner._load, experiment, method, texts)
    with pytest.raises(StopIteration) as end:
        while True:
            next(events)
    subject = end.value.value
    before = {name: q.scale.clone() for name, q in subject.qtensors.items()}
    for name in ("stale", "transposed", "zero", "nibbles", "fallback"):
        copy = planted(FAULTS[name], subject)
        assert copy is not subject and any(copy.layers[layer] is not subject.layers[layer] for layer in copy.layers)
    assert all(torch.equal(subject.qtensors[name].scale, scale) for name, scale in before.items())


def changed(report: Report, **values: float) -> Report:
    return dataclasses.replace(report, measurements=tuple(dataclasses.replace(m, value=values.get(m.metric, m.value)) for m in report.measurements))


def test_garbage_without_a_bug_is_said_to_be_that() -> None:
    two = next(r for r in RECORDED if r.name == "RTN 2-bit g64" and r.find("kld_p99"))
    found = verdicts(two, RECORDED[0], ladder(RECORDED, two))
    assert level(found) == BROKEN and not named(found) and f"changes by ×{1 + two.value('perplexity_delta') / 100:.0f};" in sentence(found)


def test_the_verdict_on_old_reports_says_what_was_not_checked() -> None:
    old = next(r for r in RECORDED if r.name == "GPTQ 4-bit g64" and r.find("kld_p99"))
    found = verdicts(dataclasses.replace(old, measurements=tuple(m for m in old.measurements if m.metric != "integrity")), None)
    assert "not checked" in sentence(found) and level(found) == "unknown"


def test_nothing_finite_is_broken() -> None:
    report = next(r for r in RECORDED if r.name == "GPTQ 4-bit g64" and r.find("kld_p99"))
    lost = dataclasses.replace(report, measurements=tuple(
        dataclasses.replace(m, value=math.nan, low=math.nan, high=math.nan, bad=512) if m.metric in ("kld_mean", "perplexity_delta", "perplexity") else m
        for m in report.measurements))  # fmt: skip
    assert named(verdicts(lost, None)) == "overflow" and "cannot be said" in place(lost, [])


@pytest.mark.parametrize("name", ["q3_k", "q6_k"])
def test_a_block_without_a_scale_does_not_hide_a_shifted_layer(name: str) -> None:
    weight = 0.02 * torch.randn(16, 512, generator=torch.Generator().manual_seed(0))
    weight[:, :16] *= 1e-4  # too small for the whole numbers that scales are
    q = build("kquant", {"format": name}).quantize(weight, None)
    assert (q.scale == 0).any() and abs(packed_weight(q, weight)["offset_steps"]) < 0.05
    assert packed_weight(zero_off_by_one(q), weight)["offset_steps"] == pytest.approx(-1, abs=0.05)


def test_repetition_and_cycles() -> None:
    assert repetition("abcdefgh") == 0 and repetition("ab") == 0 and repetition([7] * 13) == pytest.approx(0.9)
    assert cycle("the end" * 4) == {"period": 7, "copies": 4, "start": 0}
    assert cycle("xy" + "abc" * 5 + "a") == {"period": 3, "copies": 5, "start": 2}
    assert cycle([5] * 12) == {"period": 1, "copies": 12, "start": 0} and cycle([1, 2] + [5] * 9) is None
    assert cycle("once upon a time there was no cycle here") is None and cycle("") is None
    assert cycle(list(range(128)) * 3)["period"] == 128 and cycle(list(range(129)) * 3) is None


def test_ladder_takes_plain_rounding_of_the_same_model_only() -> None:
    report = next(r for r in RECORDED if r.name == "GPTQ 4-bit g64")
    names = [r.name for r in ladder(RECORDED, report)]
    assert names[0].startswith("RTN 8-bit") and all("asymmetric" in n for n in names) and len({n.split()[1] for n in names}) == len(names) == 7
    other = dataclasses.replace(report, experiment=dataclasses.replace(report.experiment, model=dataclasses.replace(report.experiment.model, revision="x")))
    assert ladder(RECORDED, other) == []


def test_answers_follow_the_numbers() -> None:
    base, gptq = (next(r for r in RECORDED if r.name == name and r.find("bits_per_weight_resident")) for name in ("16-bit baseline", "GPTQ 4-bit g64"))
    size, good, garbage = answers(gptq, base, ladder(RECORDED, gptq))
    facts = " ".join(size.facts)
    assert "4.25 bits" in facts and "stayed in 16 bits" in facts and gptq.provenance["kernel_summary"] in facts
    assert size.text.startswith("2.") and "times smaller" in size.text and "% of a token's time" in size.text and len(size.text) < 120
    assert "between" in good.text and "better than its size" in good.text
    assert garbage.level in ("ok", "unknown") and answers(base, base) == []
    assert "(embedding, norms and head)" in facts, "of the parts that stayed in 16 bits"
    spec = dataclasses.replace(gptq.experiment.spec, head_bits=8)
    skipped = gptq.provenance | {"skipped": {"layers.0.mlp.up_proj": "for a test"}}
    headless = dataclasses.replace(gptq, experiment=dataclasses.replace(gptq.experiment, spec=spec), provenance=skipped)
    assert "(embedding and norms, and 1 skipped layer)" in " ".join(answers(headless, base, [])[0].facts)
    assert "worse than" in place(changed(gptq, kld_mean=9.0), ladder(RECORDED, gptq)) and "no ladder" in place(gptq, [])
