"""Files that are there whole or not at all: what is written takes its place once it is finished, and after an error nothing of it is left."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from explorer.records import InputError

UNFINISHED = ".unfinished-"
MARK = "of-quantization-explorer"  # the one entry of a folder of that name, by which it is told from anybody else's
RUST = re.compile(r"\(os error (\d+)\)")  # how safetensors and tokenizers, which are written in it, tell an error of the system: in words only

NUMPY = re.compile(r"\d+ requested and \d+ written")  # and so numpy tells it, which keeps no number of the error


class NotWritten(InputError):
    """A sentence: what could not be written, why, and what to do. A command ends with exit code 3 on it."""


@contextmanager
def refused(target: Path) -> Iterator[None]:
    """What the system refuses inside becomes NotWritten; a pipe that nobody reads any more stays what it is."""
    try:
        yield
    except (InputError, BrokenPipeError):
        raise
    except Exception as error:
        told = RUST.search(str(error))
        if not isinstance(error, OSError) and not told:
            raise
        why = os.strerror(int(told[1])) if told else getattr(error, "strerror", "") or NUMPY.sub("no room for all of it", str(error))
        raise NotWritten(f"{target} could not be written ({why}); free some space, or choose another place.") from error


@contextmanager
def whole(folder: Path) -> Iterator[Path]:
    """Gives a path to write a new folder at; once all is written it is `folder`, which may be there already and empty. Raises NotWritten.

    A folder that is there may be a mount, which no other takes the place of: what is written moves into it.
    """
    target = folder.absolute()
    home = _home(target)
    with refused(folder), unfinished(home) as beside:
        made = beside / target.relative_to(home)
        yield made
        for part in beside.iterdir():
            if os.path.lexists(home / part.name):  # somebody else's, made meanwhile
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
            part.rename(home / part.name)


@contextmanager
def unfinished(home: Path) -> Iterator[Path]:
    """Gives a folder in another, for what is moved out of it once it is whole; gone at the end, unless this process is killed. Then its lock is gone, too,
    and `cleared` removes it.
    """
    with tempfile.TemporaryDirectory(dir=home, prefix=UNFINISHED, ignore_cleanup_errors=True) as beside, _locked(Path(beside)):
        made = Path(beside) / MARK
        made.mkdir()  # only now, so that one without a lock has no mark
        yield made


def cleared(target: Path) -> list[Path]:
    """Removes what was left unfinished where a file or folder is to be written, and gives the paths: only what bears the mark of `unfinished`, and of which
    the process that made it lives no more.
    """
    gone = []
    try:
        for left in sorted(_home(target.absolute()).glob(f"{UNFINISHED}*")):
            if [part.name for part in os.scandir(left)] == [MARK]:
                with _locked(left) as free:
                    if free:
                        shutil.rmtree(left)
                        gone.append(left)
    except OSError:  # another's, which stays; or no such place, for which whoever writes there has a sentence
        pass
    return gone


def _home(target: Path) -> Path:
    """The nearest folder of a path that is there."""
    return next(place for place in (target, *target.parents) if place.is_dir())


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Whether this process has got the lock of a folder, until the end. No where another has it, and where the disk has no locks."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        yield _lock(handle)
    finally:
        os.close(handle)


def _lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def write(path: Path, text: str) -> None:
    """Writes a text file in UTF-8. Raises NotWritten; a part of it would pass for the whole, so none is left."""
    with refused(path), path.open("w", encoding="utf-8") as file:
        try:
            file.write(text)
            file.flush()
        except BaseException:
            if path.is_file():  # and no device or pipe
                path.resolve().unlink()
            raise
