"""Results in SQLite by content address. Knows records only; every write is whole or not at all."""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from explorer.records import InputError, Measurement, measurement_from, plain

MIGRATIONS = (
    "CREATE TABLE results (key TEXT PRIMARY KEY, name TEXT NOT NULL, payload TEXT NOT NULL, created REAL NOT NULL)",
    "CREATE INDEX results_by_time ON results (created)",
)
LIMIT = 2 * 10**9  # bytes
WAIT = 10  # seconds that a process waits for another one's lock
LOCKED = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
PLACE, ROOM = "QUANTIZATION_EXPLORER_STORE", "QUANTIZATION_EXPLORER_STORE_BYTES"  # variables that the app and the command line both read


def place_from(environment: Mapping[str, str] = os.environ) -> Path:
    """Where results are kept."""
    return Path(environment.get(PLACE) or Path.home() / ".cache" / "quantization-explorer" / "results.db").absolute()


def bytes_from(environment: Mapping[str, str] = os.environ) -> int:
    """What results may fill, in bytes. Raises InputError for what is no such number."""
    given = environment.get(ROOM) or str(LIMIT)
    if not (given.isascii() and given.isdigit()):
        raise InputError(f"{ROOM} is a number of bytes such as {LIMIT}, not {given[:40]!r}.")
    return int(given)


class Store:
    """One SQLite file, in WAL mode. Safe to use from several threads and processes. Raises InputError when the file cannot be used.

    limit: bytes that results may fill; the oldest leave for a new one. The file keeps the room of those that left, and puts new ones there.
    """

    def __init__(self, path: Path | str, limit: int = LIMIT) -> None:
        self._lock, self._limit = threading.Lock(), limit
        try:
            if str(path) != ":memory:":
                Path(path).parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=WAIT, isolation_level=None, check_same_thread=False)
            self._log_ahead()
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._migrate()
        except (sqlite3.Error, OSError) as error:
            if _locked(error):
                raise InputError(f"Another process is writing to the result store {path}; try again when it is done.") from error
            raise InputError(f"The result store {path} cannot be opened ({error}); choose another place or remove the file.") from error

    def _log_ahead(self) -> None:
        """Puts the file in WAL mode. A new file is put there under a lock that SQLite refuses at once to a second process that asks for it, however long
        a connection may wait for others: that process asks again.
        """
        end = time.monotonic() + WAIT
        while True:
            try:
                self._db.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if not _locked(error) or time.monotonic() > end:
                    raise
                time.sleep(0.01)

    def _migrate(self) -> None:
        if self._version() >= len(MIGRATIONS):
            return  # nothing to write: a writer keeps nobody from reading
        self._db.execute("BEGIN IMMEDIATE")
        version = self._version()  # another process may have migrated it meanwhile
        for statement in MIGRATIONS[version:]:
            self._db.execute(statement)
        self._db.execute(f"PRAGMA user_version = {max(version, len(MIGRATIONS))}")
        self._db.execute("COMMIT")

    def _version(self) -> int:
        return self._db.execute("PRAGMA user_version").fetchone()[0]

    def get(self, key: str) -> tuple[list[Measurement], dict[str, Any]] | None:
        """(measurements, provenance) stored under a key, or None."""
        with self._lock:
            row = self._db.execute("SELECT payload FROM results WHERE key = ?", (key,)).fetchone()
        if row is None:
            return None
        data = json.loads(row[0])
        return [measurement_from(m) for m in data["measurements"]], data["provenance"]

    def put(self, key: str, name: str, measurements: Iterable[Measurement], provenance: dict[str, Any]) -> None:
        """Stores one metric's measurements with the circumstances they were taken in. A key that is there is replaced."""
        payload = json.dumps({"measurements": plain(list(measurements)), "provenance": plain(provenance)})
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._db.execute("INSERT OR REPLACE INTO results VALUES (?, ?, ?, ?)", (key, name, payload, time.time()))
                self._evict(key)
                self._db.execute("COMMIT")
            except BaseException:
                self._db.execute("ROLLBACK")
                raise

    def _evict(self, kept: str) -> None:
        """Deletes the oldest results until the rest fits; the one that was just written stays. Within its transaction."""
        oldest = "DELETE FROM results WHERE key IN (SELECT key FROM results WHERE key != ? ORDER BY created LIMIT 8)"
        while self._filled() > self._limit and self._db.execute(oldest, (kept,)).rowcount:
            pass

    def _filled(self) -> int:
        """Bytes of the pages that hold something."""
        pages, free, size = (self._db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size"))
        return (pages - free) * size

    def close(self) -> None:
        self._db.close()


def _locked(error: Exception) -> bool:
    """Whether another process holds a lock that this one needs."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in LOCKED
