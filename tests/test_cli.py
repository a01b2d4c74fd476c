"""The command line as scripts see it: one JSON document, stable names, exit codes 2 and 130."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from explorer.__main__ import main
from explorer.methods import fields_of, methods

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
        (["--model", "no/such/model"], "neither a folder"),
        (["--model", "../../nowhere"], "neither a folder"),
        (["--evaluation", "poems"], "no text"),
        (["--text", "/no/such/file"], "cannot be read"),
        (["--length", "1"], "a length of 16 to"),
        (["--model", "no/such/model", "--html", "/no/such/folder/x.html"], "/no/such/folder/x.html cannot be written"),
    ],
)
def test_bad_input_is_exit_code_2_and_a_sentence(args: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["run", *args, "--store", str(tmp_path / "r.db")]) == 2
    out, err = capsys.readouterr()
    assert sentence in err and not out and "Traceback" not in err


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
    from explorer.store import Store

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
