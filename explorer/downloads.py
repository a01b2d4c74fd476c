"""Models on disk: downloads into a cache with a byte cap, each file checked against the hub's hash; what is complete stays usable offline. No torch."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any

from explorer.hub import ELSE, INDEX, WEIGHTS, Hub, HubFile, HubSettings, Listing, refusal, split_id
from explorer.records import InputError, ModelRef, Progress

CHUNK = 2**20
DONE = ".complete"


def folder_of(settings: HubSettings, name: str, commit: str) -> Path:
    """Where a model of the hub is, or would be, in the cache."""
    return settings.cache / name.replace("/", "--") / commit


def found(settings: HubSettings, ref: ModelRef) -> Path | None:
    """The folder of a model that is wholly on this machine, or None. Marks it as used."""
    folder = folder_of(settings, ref.name, ref.revision)
    if (folder / DONE).is_file():
        os.utime(folder / DONE)
        return folder
    if settings.shared is not None:
        folder = settings.shared / f"models--{ref.name.replace('/', '--')}" / "snapshots" / ref.revision
        if whole(folder):
            return folder
    return None


def whole(folder: Path) -> bool:
    """Whether a folder of the hub's own client has a configuration and all of its weights."""
    if not (folder / "config.json").is_file():
        return False
    names = {path.name for path in folder.iterdir() if WEIGHTS.fullmatch(path.name)}
    totals = {int(m[1]) for name in names if (m := re.fullmatch(r"model-\d{5}-of-(\d{5})\.safetensors", name))}
    return "model.safetensors" in names or ((folder / INDEX).is_file() and any(len(names) >= total for total in totals))


def newest(settings: HubSettings, name: str) -> ModelRef | None:
    """The model of this name, "owner/name" or "owner/name@commit", that is on this machine and was used last: what an offline start takes."""
    repository, revision = split_id(name)
    marks = [p for p in (settings.cache / repository.replace("/", "--")).glob(f"*/{DONE}") if revision in ("main", p.parent.name)]
    if marks:
        return ModelRef(repository, max(marks, key=lambda p: p.stat().st_mtime).parent.name)
    if settings.shared is not None:
        pinned = settings.shared / f"models--{repository.replace('/', '--')}" / "refs" / revision
        commit = pinned.read_text().strip() if pinned.is_file() else revision
        ref = ModelRef(repository, commit)
        return ref if re.fullmatch(r"[0-9a-f]{40}", commit) and found(settings, ref) else None
    return None


def check_disk(settings: HubSettings, listing: Listing) -> None:
    """Raises InputError when a download would not fit the cache's cap or the disk."""
    if listing.size > settings.cache_bytes:
        raise InputError(
            f"{listing.name!r} has {listing.size / 1e9:,.1f} GB of files; at most {settings.cache_bytes / 1e9:,.1f} GB are kept. Choose a smaller model."
        )
    settings.cache.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(settings.cache).free + sum(size for _, size, _ in entries(settings))
    if listing.size * 1.2 > free:
        raise InputError(f"{listing.name!r} needs {listing.size * 1.2 / 1e9:,.1f} GB of disk and {free / 1e9:,.1f} GB can be had. Choose a smaller model.")


def entries(settings: HubSettings) -> list[tuple[float, int, Path]]:
    """(time of last use, bytes, folder) of every model in the cache, half-fetched ones too; the least recently used first."""
    listed = []
    for folder in settings.cache.glob("*/*"):
        if folder.is_dir():
            mark = folder / DONE
            used = (mark if mark.is_file() else folder).stat().st_mtime
            listed.append((used, sum(p.stat().st_size for p in folder.iterdir()), folder))
    return sorted(listed)


def make_room(settings: HubSettings, listing: Listing) -> None:
    """Removes the least recently used models until this one fits the cap and the disk. A model that is open stays readable until it is closed."""
    own = folder_of(settings, listing.name, listing.commit)
    others = [(size, folder) for _, size, folder in entries(settings) if folder != own]
    held = sum(size for size, _ in others)
    for size, folder in others:
        if held + listing.size <= settings.cache_bytes and listing.size * 1.2 <= shutil.disk_usage(settings.cache).free:
            return
        shutil.rmtree(folder, ignore_errors=True)
        held -= size


def fetch(hub: Hub, listing: Listing) -> Iterator[Progress]:
    """Downloads what is missing; yields Progress in MB, returns the folder. Closing it stops the download, and the next one goes on from there.

    Raises InputError with a sentence when the hub fails, is too slow, sends less than it said, or other bytes than it said.
    """
    settings = hub.settings
    folder = folder_of(settings, listing.name, listing.commit)
    check_disk(settings, listing)
    make_room(settings, listing)
    folder.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + settings.deadline
    before = 0
    try:
        with (folder / ".lock").open("w") as lock:
            while not _locked(lock):
                _in_time(until, listing, before)
                yield Progress("download", 0, 1, f"{listing.name}: another run is fetching it")
                time.sleep(0.2)
            for file in listing.files:
                if not (folder / file.name).is_file():
                    for here in _fetch_file(hub, listing, file, folder / f"{file.name}.part"):
                        _in_time(until, listing, before + here)
                        yield Progress("download", int((before + here) / 1e6), max(1, int(listing.size / 1e6)), f"MB of {listing.name}, {file.name}")
                before += file.size
            (folder / DONE).touch()
    except OSError as error:
        raise InputError(f"{listing.name!r} could not be written to the model cache ({error.strerror or error}); make room on the disk, {ELSE}.") from error
    return folder


def _locked(lock: Any) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _in_time(until: float, listing: Listing, got: int) -> None:
    if time.monotonic() > until:
        raise InputError(
            f"The download of {listing.name!r} took too long and stopped at {got / 1e6:,.0f} of {listing.size / 1e6:,.0f} MB. Run again to go on from there."
        )


def _fetch_file(hub: Hub, listing: Listing, file: HubFile, part: Path) -> Iterator[int]:
    """Yields the bytes that are there so far; puts the file in place when it is whole and its hash is right."""
    digest = hashlib.sha256()
    with part.open("ab+") as out:
        out.seek(0)
        while chunk := out.read(CHUNK):
            digest.update(chunk)
        here = out.tell()
        if here < file.size:
            with _reading(listing, hub.settings), hub.open(listing, file.name, start=here) as answer:
                if here and answer.status == 200:  # ranges are ignored: from the start
                    out.truncate(0)
                    digest, here = hashlib.sha256(), 0
                while chunk := answer.read1(CHUNK):
                    out.write(chunk)
                    digest.update(chunk)
                    here += len(chunk)
                    if here > file.size:
                        break
                    yield here
    if here < file.size:
        raise InputError(f"The download of {file.name} of {listing.name!r} broke off at {here:,} of {file.size:,} bytes. Run again to go on from there.")
    if here > file.size or (file.sha256 and digest.hexdigest() != file.sha256):
        part.unlink()
        raise InputError(f"{file.name} of {listing.name!r} came damaged: its content is not what the hub lists. It was removed; run again to fetch it anew.")
    part.rename(part.with_name(file.name))


@contextmanager
def _reading(listing: Listing, settings: HubSettings) -> Iterator[None]:
    """Network errors while a body is read, as sentences; errors of the disk pass."""
    try:
        yield
    except HTTPException as error:
        raise refusal(listing.name, error, settings) from error
    except OSError as error:
        if isinstance(error, TimeoutError | ConnectionError) or error.errno is None:
            raise refusal(listing.name, error, settings) from error
        raise
