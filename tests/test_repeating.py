"""What leaves the page stands on its own: commands and a link that repeat what was measured, and a report that says what that was."""

from __future__ import annotations

import dataclasses
import hashlib
import shlex
from html import escape
from itertools import product
from pathlib import Path
from urllib.parse import parse_qsl

import pytest
import torch

from explorer.__main__ import parser
from explorer.commands.run import OPTIONS as FLAGS
from explorer.commands.run import circumstances, parameters, reads
from explorer.experiment import metric_key
from explorer.export import catalogue, command_of, commands, saving_of
from explorer.hub import Hub
from explorer.link import parse
from explorer.methods import build, spec_of
from explorer.metrics import metrics
from explorer.recorded import seeds
from explorer.records import Experiment, ModelRef, QuantSpec, Report, TextRef
from explorer.report_page import head, link_of, report_page
from explorer.request import Request
from explorer.version import written_by

METHODS, ALL = catalogue(), list(seeds())
TABS = ["compare", "weights"]


def variations() -> list[Report]:
    """The recorded reports, and one with every flag away from its default."""
    report = ALL[3]
    spec = dataclasses.replace(report.experiment.spec, kv_bits=4, head_bits=8)
    texts = {name: dataclasses.replace(getattr(report.experiment, name), length=256) for name in ("evaluation", "calibration")}
    evaluation = dataclasses.replace(texts["evaluation"], tokens=4096)
    calibration = dataclasses.replace(texts["calibration"], tokens=8 * 256, seed=7)
    return [*ALL, dataclasses.replace(report, experiment=dataclasses.replace(report.experiment, spec=spec, evaluation=evaluation, calibration=calibration))]


def keys(experiment: Experiment) -> list[str]:
    """Where the store keeps what is measured of an experiment."""
    return [metric_key(experiment, metric, torch.device("cpu")) for metric in metrics().values()]


def asked_by(command: str) -> Experiment:
    """The experiment that a command runs."""
    args = parser().parse_args(shlex.split(command)[3:])
    given = parameters(args)
    return Request(args.model, args.method, given, **circumstances(args, reads(args.method, given))).prepare(Hub())[0]


@pytest.mark.parametrize("whole", [False, True])
def test_the_command_repeats_the_experiment(whole: bool) -> None:
    """To the result's key, which also has the code in it; the model is the one that is here."""
    for report in variations():
        made, theirs = asked_by(command := command_of(report, whole)), report.experiment
        theirs = dataclasses.replace(theirs, model=made.model)
        assert made == theirs and keys(made) == keys(theirs), command


def test_a_short_command_spells_no_default_out_and_a_whole_one_all_that_counts() -> None:
    assert command_of(ALL[2]) == "python -m explorer run" and saving_of(ALL[2]) == "python -m explorer save --to my-model"
    assert command_of(ALL[0]) == "python -m explorer run --method none"
    given = command_of(variations()[-1]).split(" --")[2:]
    assert [part.split(" ")[0] for part in given] == ["kv-bits", "head-bits", "sequences", "seed", "length", "tokens"]
    flags = {word[2:].replace("-", "_") for word in command_of(ALL[3], whole=True).split() if word.startswith("--")}
    assert flags == {*dict(ALL[3].experiment.spec.params), *FLAGS, "model", "method", "evaluation"} and "--seed 0" in command_of(ALL[3], whole=True)
    assert "calibration" not in command_of(ALL[2], whole=True), "what reads none is no other experiment with another one"
    commit = dataclasses.replace(ALL[2], experiment=dataclasses.replace(ALL[2].experiment, model=ModelRef("Qwen/Qwen2.5-0.5B", "a1" * 20)))
    assert f"--model Qwen/Qwen2.5-0.5B@{'a1' * 20} " in command_of(commit, whole=True) and "@" not in command_of(commit)
    rules = QuantSpec.of("mixed", rules="*v_proj: rtn bits=8\n*: rtn bits=4")
    mixed = dataclasses.replace(ALL[2], experiment=dataclasses.replace(ALL[2].experiment, spec=rules))
    assert asked_by(command_of(mixed, whole=True)).spec == rules and "\n" not in command_of(mixed, whole=True)
    assert "version 0." in commands(ALL) and commands(ALL).count("--seed") == 2 and "--seed" not in commands(ALL, live=True)


def test_a_text_of_the_visitors_own_is_in_the_commands_of_what_read_it(tmp_path: Path) -> None:
    """With the calibration text pasted, the baseline's command asked for a text that it does not read, which `run` refuses."""
    (tmp_path / "TEXT.txt").write_text(text := "One word and another one, and so on. " * 2000)
    kinds = {"calibration": TextRef("pasted", hashlib.sha256(text.encode()).hexdigest()[:16], 8192, 512, text)}
    own = [dataclasses.replace(r, experiment=dataclasses.replace(r.experiment, **kinds)) for r in ALL[:4]]
    for report, reads_it in zip(own, (False, False, False, True), strict=True):
        for whole in (False, True):
            command = command_of(report, whole)
            assert ("pasted" in command and "--text TEXT.txt" in command) == reads_it == ("TEXT.txt" in command)
            assert keys(asked_by(command.replace("TEXT.txt", str(tmp_path / "TEXT.txt")))) == keys(
                dataclasses.replace(report.experiment, model=asked_by(command_of(ALL[0])).model)
            )
    assert saving_of(own[2]) == saving_of(ALL[2]) and saving_of(own[3]) == "", "no text is sent along with a checkpoint's command"
    assert f"whose SHA-256 begins with {kinds['calibration'].digest}" in commands(own) and "TEXT.txt" not in commands(own[:3])
    assert not link_of(own) and link_of(own[:3]), "no link has a text of the visitor's own"


def test_the_link_of_a_report_opens_what_it_shows() -> None:
    found = parse(parse_qsl(link_of(ALL)[1:], keep_blank_values=True), METHODS, TABS)
    assert not found.wrong and list(found.compared) == [r.experiment.spec for r in ALL[1:]] and found.model == "demo" and found.options == {}
    placed = [ALL[0], dataclasses.replace(ALL[3], provenance=ALL[3].provenance | {"place": 2})]
    found = parse(parse_qsl(link_of(placed)[1:], keep_blank_values=True), METHODS, TABS)
    assert found.compared == (None, ALL[3].experiment.spec), "its colour stays"
    assert link_of(variations()[-1:]) == "" and link_of([]) == "", "a page scores neither another length nor another amount of text"
    other = dataclasses.replace(ALL[3].experiment.calibration, seed=5)
    seeded = dataclasses.replace(ALL[3], experiment=dataclasses.replace(ALL[3].experiment, calibration=other))
    assert "seed=5" in link_of([ALL[0], seeded]) and link_of([ALL[3], seeded]) == ""


def test_the_report_says_what_was_measured_on_what_when_and_by_what() -> None:
    page = report_page(ALL, "layers.3.mlp.down_proj", "https://host.org/lab/")
    top = page[page.index("<body>") : page.index("<table class='compare'")]
    p = ALL[1].provenance
    for said in (ALL[0].experiment.model.revision, p["text"], p["device"], p["torch"], p["kernel_summary"], f"by {written_by()}", "(recorded)"):
        assert str(said) in top
    dates = {date for r in ALL for date in (r.provenance["date"], *r.provenance["dates"].values())}
    assert f"{min(dates)} to {max(dates)}" in top
    assert f"<a href='{escape('https://host.org/lab/' + link_of(ALL), quote=True)}'>" in top
    alone = head(ALL[:2])
    assert f"{command_of(ALL[1], whole=True)} --html report.html</code>" in alone and "href" not in head(ALL[:2], "javascript:x//")
    asked = page[page.index("Three questions") : page.index("Perplexity against bits")]
    assert asked.count("Is this number good?") == 4 and "data-pick" not in asked, "all but the baseline, and no button that asks a server"


def test_the_command_that_saves_quantizes_the_same() -> None:
    assert saving_of(ALL[0]) == "" and ALL[0].experiment.spec.is_baseline
    for report, whole in product([*ALL[1:4], variations()[-1]], (False, True)):
        args = parser().parse_args(shlex.split(saving_of(report, whole=whole))[3:])
        theirs = dataclasses.replace(report.experiment.spec, kv_bits=16, head_bits=16)
        assert spec_of(build(args.method, parameters(args))) == theirs and str(args.to) == "my-model"
        calibration = report.experiment.calibration
        assert (args.calibration, args.sequences * calibration.length, args.seed) == (calibration.source, calibration.tokens, calibration.seed)
        assert (args.length or 512) == calibration.length or not whole
    shown = commands(ALL[:2])
    assert shown.count("explorer save") == 1 and shown.count("explorer run") == 2
