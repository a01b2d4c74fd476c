"""The command line as scripts see it: one JSON document, stable names, exit codes 2, 3, 130 and 141."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from explorer.__main__ import main, parser
from explorer.commands import document, run, runner_of, sweep
from explorer.commands.run import parameters
from explorer.data import PASTE_LIMIT, bundled_text
from explorer.experiment import LocalRunner
from explorer.hub import Hub
from explorer.methods import fields_of, methods
from explorer.records import Event, InputError, Partial
from explorer.request import Request
from explorer.store import Store

ROOT = Path(__file__).parent.parent
STABLE = {
    "perplexity", "perplexity_delta", "bits_per_weight", "weight_bytes", "kld_mean", "kld_p99", "top1_agreement", "weight_error",
    "output_error", "decode_tokens_per_second", "time_to_first_token",
}  # fmt: skip


def test_run_prints_one_document_and_reads_it_back_from_the_store(tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture) -> None:
    args = [
        "run",
        "--model",
        str(tiny_folder),
        "--method",
        "rtn",
        "--bits",
        "4",
        "--granularity",
        "channel",
        "--tokens",
        "2048",
        "--json",
        "--store",
        str(tmp_path / "r.db"),
    ]
    documents = []
    for _ in range(2):
        assert main(args) == 0
        documents.append(json.loads(capsys.readouterr().out))
    first, second = documents
    assert {m["metric"] for m in first["measurements"]} >= STABLE
    assert first["experiment"]["spec"]["method"] == "rtn"
    assert not first["provenance"]["from_store"] and second["provenance"]["from_store"]
    assert first["measurements"] == second["measurements"]


def test_methods_lists_every_field(capsys: pytest.CaptureFixture) -> None:
    assert main(["methods", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["methods"]}
    assert rows.keys() == methods().keys()
    for name, method in methods().items():
        assert [f["name"] for f in rows[name]["fields"]] == [f.name for f in fields_of(method)]


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["--method", "magic"], "no method"),
        (["--bits", "11"], "bits cannot be"),
        (["--method", "nf4", "--bits", "4"], "no parameter"),
        (
            ["--granularity", "channel", "--group-size", "128"],
            "rtn does not use --group-size with granularity channel; leave it out, or give --granularity group",
        ),
        (["--symmetric", "false", "--full-range", "true"], "rtn does not use --full-range with symmetric false; leave it out, or give --symmetric true"),
        (["--method", "gptq", "--static-groups", "true"], "gptq does not use --static-groups with act-order true; leave it out, or give --act-order false"),
        (["--granularity", "rows", "--group-size", "128"], "granularity cannot be 'rows'"),
        (["--model", "no/such/model"], "neither a folder"),
        (["--model", "../../nowhere"], "neither a folder"),
        (["--evaluation", "poems"], "no text"),
        (["--text", "/no/such/file"], "cannot be read"),
        (["--text", __file__, "--evaluation", "wikitext2"], "--text is neither scored with --evaluation wikitext2 nor"),
        (["--text", __file__, "--evaluation", "bundled"], "--text is neither scored with --evaluation bundled nor"),
        (["--text", __file__, "--calibration", "pasted"], "--evaluation bundled nor calibrated on; nothing that is asked for reads inputs, so leave"),
        (["--text", __file__, "--calibration", "pasted", "--method", "nvfp4"], "nothing that is asked for reads inputs"),
        (["--text", os.devnull], "holds no text"),
        (["--evaluation", "pasted"], "give it with --text FILE"),
        (["--calibration", "pasted"], "give it with --text FILE"),
        (["--tokens", "1"], "Windows of 512 tokens need at least 512 to score, not 1; ask for more tokens or a smaller length"),
        (["--length", "1"], "a length of 16 to"),
        (["--model", "no/such/model", "--html", "/no/such/folder/x.html"], "/no/such/folder/x.html cannot be written"),
    ],
)
def test_bad_input_is_exit_code_2_and_a_sentence(args: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["run", *args, "--store", str(tmp_path / "r.db")]) == 2
    out, err = capsys.readouterr()
    assert sentence in err and not out and "Traceback" not in err


def test_a_text_file_may_be_longer_than_what_a_page_takes(tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture, monkeypatch) -> None:
    """It is known by its hash; a page, and any Request that does not say otherwise, keeps its own limit."""
    text = tmp_path / "long.txt"
    text.write_text(bundled_text("evaluation") + bundled_text("calibration"))
    assert text.stat().st_size > PASTE_LIMIT
    args = ["run", "--model", str(tiny_folder), "--method", "none", "--tokens", "256", "--length", "128", "--json", "--store", str(tmp_path / "r.db")]
    assert main([*args, "--text", str(text)]) == 0
    scored = json.loads(capsys.readouterr().out)["experiment"]["evaluation"]
    assert scored["source"] == "pasted" and scored["text"] == "" and scored["digest"] == hashlib.sha256(text.read_bytes()).hexdigest()[:16]
    with pytest.raises(InputError, match="paste at most 200,000"):
        Request(str(tiny_folder), "none", {}, evaluation="pasted", text=text.read_text()).prepare(Hub())
    monkeypatch.setattr(run, "FILE_LIMIT", 1000)
    assert main([*args, "--text", str(text)]) == 2 and "give one of at most" in capsys.readouterr().err


def test_your_text_must_be_there_where_it_is_read(tiny_folder: Path) -> None:
    """On the page too: only a method that reads inputs needs a calibration text."""
    for options in ({"evaluation": "pasted"}, {"calibration": "pasted"}):
        with pytest.raises(InputError, match="There is no text of yours to read"):
            Request(str(tiny_folder), "gptq", {}, **options).prepare(Hub())
    assert Request(str(tiny_folder), "rtn", {}, calibration="pasted").prepare(Hub())[0].calibration.source == "pasted"


def test_a_text_that_nothing_calibrates_on_is_refused_by_sweep_and_save_too(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    text = ["--text", __file__, "--calibration", "pasted", "--store", str(tmp_path / "r.db")]
    for argv in (["save", "--to", str(tmp_path / "out")], ["sweep", "--methods", "rtn,hqq"], ["sweep", "--methods", "fp8", "--activation", "token"]):
        assert main([*argv, *text]) == 2
        assert "nothing that is asked for reads inputs, so leave --text out" in capsys.readouterr().err
    for argv in (["--methods", "rtn,gptq"], ["--methods", "fp8", "--activation", "token,static"], ["--methods", "rtn", "--evaluation", "pasted"]):
        asked = sweep.asked_of(parser().parse_args(["sweep", *argv, *text]))
        assert asked["options"]["calibration"] == "pasted" and asked["options"]["text"] == Path(__file__).read_text()


def test_a_parameter_that_is_used_or_off_may_be_given() -> None:
    for flags in (
        "--method gptq --act-order false --static-groups true",
        "--symmetric false --full-range false",
        "--group-size 32",
        "--method gptq --static-groups false",
    ):
        assert parameters(parser().parse_args(["run", *flags.split()]))


def test_unknown_flag_is_exit_code_2() -> None:
    with pytest.raises(SystemExit) as caught:
        main(["run", "--colour", "red"])
    assert caught.value.code == 2


def test_interrupt_is_130_and_stores_nothing_half(tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    command = [sys.executable, "-m", "explorer", "run", "--method", "gptq", "--bits", "3", "--sequences", "4", "--store", str(path)]
    hear = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell ignores it for what it runs in the background
    options = {"cwd": ROOT, "stderr": subprocess.PIPE, "text": True, "env": {**os.environ, "PYTHONUNBUFFERED": "1"}, "preexec_fn": hear}
    with subprocess.Popen(command, **options) as process:
        for line in process.stderr:
            if line.startswith("quantize: 1"):
                break
        started = time.monotonic()
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait(30) == 130, rest
    assert time.monotonic() - started < 10
    assert "cancelled" in rest and "Traceback" not in rest
    stored = Store(path)
    rows = stored._db.execute("SELECT name FROM results").fetchall()
    stored.close()
    assert {name for (name,) in rows} <= {"activations"}, "only whole metrics may be there"


def test_reproduce_says_what_agrees_what_differs_and_what_cannot_be_run(tmp_path: Path, tiny_folder: Path, monkeypatch, capsys) -> None:
    from explorer import reproduce

    options = {"sequences": 1}
    row = lambda value, model=str(tiny_folder): reproduce.Published(model, "rtn", {"granularity": "channel"}, value, 0.01, "a paper", options)  # noqa: E731
    argv = ["reproduce", "--store", str(tmp_path / "r.db")]
    monkeypatch.setattr(reproduce, "PUBLISHED", (row(1.0), row(1.0, "no/such/model"), row(2.0, "no/such/model")))
    assert main([*argv, "--json"]) == 1
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [r["agrees"] for r in rows] == [False, None, None] and "neither a folder" in rows[1]["why_not"]
    monkeypatch.setattr(reproduce, "PUBLISHED", (row(rows[0]["found"], "some/model"),))
    assert main([*argv, "--folder", str(tiny_folder)]) == 0
    assert "agrees" in (out := capsys.readouterr().out) and "1 of 1 rows could be run, 1 agree" in out
    monkeypatch.setattr(reproduce, "PUBLISHED", tuple(dataclasses.replace(row(1.0, "no/such/model"), method=method) for method in ("awq", "gptq", "rtn")))
    assert main(argv) == 0 and (out := capsys.readouterr().out.splitlines())[-3].startswith("0 of 3 rows")
    assert out[-2].startswith("AWQ: its authors calibrate on 512 windows") and "crop each" in out[-1]
    assert main([*argv, "--model", "unheard"]) == 2


def test_what_refuses_one_published_row_leaves_the_others_to_be_run(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that cannot be had is asked for once."""
    from explorer import reproduce

    asked: list[str] = []

    class Refusing(LocalRunner):
        def run(self, model: str, method: str, params: dict, again: bool = False, **options: object) -> Iterator[Event]:
            asked.append(f"{Path(model).name} {method}")
            if method == "gptq":
                raise InputError("The memory lacks for this method.")
            yield from super().run(model, method, params, again, **options)

    gone = str(tiny_folder.parent / "gone")
    rows = [reproduce.Published(model, method, {}, 1.0, 0.01, "a paper", {"tokens": 128, "length": 64, "sequences": 1})
            for model in (str(tiny_folder), gone) for method in ("gptq", "none", "gptq", "rtn") if (model, method) != (gone, "gptq")]  # fmt: skip
    monkeypatch.setattr(reproduce, "last_report", lambda events, watch: next(event for event in events if isinstance(event, Partial)).report)
    found = list(reproduce.reproduce(Refusing(Store(":memory:")), tuple(rows), lambda event: None))
    assert asked == [f"{tiny_folder.name} {method}" for method in ("gptq", "none", "gptq", "rtn")] + ["gone none"]
    assert [bool(outcome.found) for outcome in found] == [False, True, False, True, False, False]
    assert found[0].why_not == "The memory lacks for this method." and found[4].why_not == found[5].why_not and "neither a folder" in found[4].why_not


class Full(Store):
    """A store on a disk that is full."""

    def put(self, *args: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")


def test_a_result_that_the_store_cannot_keep_is_said_and_exit_code_3(tmp_path: Path, tiny_folder: Path, monkeypatch, capsys) -> None:
    """It is printed all the same."""
    monkeypatch.setattr("explorer.store.Store", Full)
    common = ["--model", str(tiny_folder), "--group-size", "32", "--store", str(tmp_path / "r.db"), "--json"]
    assert main(["run", "--tokens", "256", "--length", "64", *common]) == 3
    out, err = capsys.readouterr()
    assert json.loads(out)["measurements"] and err.splitlines()[-1].startswith("1 of the results could not be kept (not stored: database or disk is full)")
    assert main(["sensitivity", "--bits", "4", "--windows", "1", *common]) == 3
    out, err = capsys.readouterr()
    assert len(json.loads(out)["rows"]) == 12 and "could not be kept" in err
    assert main(["methods"]) == 0 and "could not" not in capsys.readouterr().err


def test_a_result_file_and_its_room_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """As in the app: one run must not cut the store of a server down to another size."""
    monkeypatch.setenv("QUANTIZATION_EXPLORER_STORE", str(tmp_path / "mine.db"))
    monkeypatch.setenv("QUANTIZATION_EXPLORER_STORE_BYTES", "5000000")
    args = parser().parse_args(["run"])
    assert args.store == tmp_path / "mine.db" and runner_of(args.store)._runner._store._limit == 5_000_000 and (tmp_path / "mine.db").exists()
    monkeypatch.setenv("QUANTIZATION_EXPLORER_STORE_BYTES", "2 GB")
    assert main(["run"]) == 2 and "number of bytes" in capsys.readouterr().err


@pytest.mark.parametrize(("after", "code", "said"), [("| true", 141, ""), ("> /dev/full", 3, "The output could not be written (No space left")])
def test_output_that_goes_nowhere_is_no_traceback(after: str, code: int, said: str) -> None:
    line = f"'{sys.executable}' -m explorer methods --json {after}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == code and "Traceback" not in done.stderr and "Exception" not in done.stderr and done.stderr.startswith(said)


def test_what_is_not_finite_is_a_text_in_the_document() -> None:
    assert json.loads(document({"value": float("nan"), "low": -float("inf")})) == {"value": "nan", "low": "-inf"}
