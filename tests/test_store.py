"""Store: what goes in comes out, writes are whole, several processes can write, a broken file is one clear sentence."""

from __future__ import annotations

import contextlib
import math
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from explorer.records import InputError, Measurement
from explorer.store import Store


def test_round_trip(store: Store) -> None:
    rows = [Measurement("perplexity", math.nan, low=1.0, high=2.0), Measurement("sample_text", "text")]
    store.put("k", "quality", rows, {"device": "cpu"})
    back, provenance = store.get("k")
    assert math.isnan(back[0].value) and back[1] == rows[1] and provenance == {"device": "cpu"}
    assert store.get("other") is None


def test_a_failed_write_leaves_the_old_row(store: Store) -> None:
    store.put("k", "quality", [Measurement("a", 1)], {})
    with pytest.raises(TypeError):
        store.put("k", "quality", [Measurement("a", object())], {})
    assert store.get("k")[0][0].value == 1


def test_two_processes_write_at_once(tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    Store(path).close()
    code = (
        "import sys; from explorer.store import Store; from explorer.records import Measurement\n"
        "s = Store(sys.argv[1])\n"
        "for i in range(100): s.put(f'{sys.argv[2]}-{i}', 'm', [Measurement('a', i)], {})"
    )
    running = [subprocess.Popen([sys.executable, "-c", code, str(path), name]) for name in "ab"]
    assert [p.wait(60) for p in running] == [0, 0]
    opened = Store(path)
    assert all(opened.get(f"{name}-{i}") for name in "ab" for i in range(100))
    opened.close()


def test_a_new_store_waits_for_the_process_that_makes_the_same_one(tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")  # what a second process meets is refused at once, whatever its connection would wait
        threading.Timer(0.2, other.execute, ["COMMIT"]).start()
        with contextlib.closing(Store(path)) as store:
            store.put("k", "m", [Measurement("a", 1)], {})
            assert store.get("k")


def test_broken_file_is_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    path.write_bytes(b"this is no database" * 100)
    with pytest.raises(InputError, match="cannot be opened"):
        Store(path)


def test_a_writer_keeps_nobody_from_opening_and_reading(tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    first = Store(path)
    first.put("k", "m", [Measurement("a", 1)], {})
    first._db.execute("BEGIN IMMEDIATE")
    second = Store(path)
    assert second.get("k")[0][0].value == 1
    second.close()
    first.close()


def test_a_store_that_another_process_is_making_is_not_to_be_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, connect = tmp_path / "r.db", sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda path, timeout, **options: connect(path, timeout=0.1, **options))
    with contextlib.closing(connect(path, isolation_level=None)) as other:
        other.execute("PRAGMA journal_mode = WAL")
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(InputError, match="Another process is writing to the result store") as caught:
            Store(path)
    assert "try again" in str(caught.value) and "remove" not in str(caught.value)


def test_a_store_of_a_later_version_keeps_it(tmp_path: Path) -> None:
    Store(tmp_path / "r.db").close()
    with contextlib.closing(sqlite3.connect(tmp_path / "r.db")) as later:
        later.execute("PRAGMA user_version = 99")
        Store(tmp_path / "r.db").close()
        assert later.execute("PRAGMA user_version").fetchone() == (99,)


def test_the_oldest_results_leave_when_the_store_is_full(tmp_path: Path) -> None:
    """The newest always stays, even alone larger than all; the file stops growing."""
    store = Store(tmp_path / "r.db", limit=300_000)
    for i in range(60):
        store.put(str(i), "m", [Measurement("text", "x" * 20_000)], {})
    kept = [i for i in range(60) if store.get(str(i))]
    assert kept == list(range(kept[0], 60)) and 4 < len(kept) < 20
    assert (tmp_path / "r.db").stat().st_size < 500_000
    store.put("big", "m", [Measurement("text", "x" * 600_000)], {})
    assert store.get("big") and not store.get("59")
    store.close()
