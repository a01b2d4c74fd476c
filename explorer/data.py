"""Where text comes from: the bundled held-out text, WikiText-2 and C4 by `datasets`, or pasted text. Knows nothing of models."""

from __future__ import annotations

import hashlib
import urllib.error
import urllib.request
from functools import cache
from http.client import HTTPException
from pydoc_data.topics import topics
from typing import Any

from explorer.records import InputError, TextRef

SOURCES = ("bundled", "wikitext2", "c4", "pasted")
PASTE_LIMIT = 200_000  # characters
FILE_LIMIT = 16_000_000  # bytes of a text file that a command takes: its tokenizer needs 150 bytes of memory for each
C4_DOCUMENTS = 2048  # of about 430 tokens: three times the 128 windows of 2,048 that papers calibrate on


def bundled_text(half: str) -> str:
    """One of two disjoint halves of the reference topics that every CPython ships: "calibration" or "evaluation".

    Topics alternate between the halves in alphabetical order. Some topics repeat each other's sections, so a paragraph counts only where it
    comes first: no paragraph is in both halves, or twice in one.
    """
    halves: tuple[list[str], list[str]] = ([], [])
    seen: set[str] = set()
    for index, name in enumerate(sorted(topics)):
        for paragraph in topics[name].strip().split("\n\n"):
            words = " ".join(paragraph.split())
            if words not in seen:
                seen.add(words)
                halves[index % 2].append(paragraph.strip("\n"))
    return "\n\n".join(halves[half != "calibration"])


@cache
def bundled_digest() -> str:
    """A hash of both halves, which another CPython may have otherwise."""
    return hashlib.sha256("".join(map(bundled_text, ("calibration", "evaluation"))).encode()).hexdigest()[:16]


def text_of(source: str, half: str, pasted: str = "", limit: int = PASTE_LIMIT) -> str:
    """The text of a source for a half, "calibration" or "evaluation". limit: characters a pasted one may have. Raises InputError when it cannot be had."""
    if source == "bundled":
        return bundled_text(half)
    if source == "pasted":
        if len(pasted) > limit:
            raise InputError(f"The pasted text has {len(pasted):,} characters; paste at most {limit:,}.")
        return pasted
    if source not in SOURCES:
        raise InputError(f"There is no text {str(source)[:40]!r}; choose one of {', '.join(SOURCES)}.")
    return _from_hub(source, half)


def _from_hub(source: str, half: str) -> str:
    import datasets
    from huggingface_hub import constants

    try:
        if not constants.HF_HUB_OFFLINE and not _answers(constants.ENDPOINT):  # its client would try for half a minute, aloud, before it looks in its cache
            constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
            try:
                return _text(source, half)
            finally:
                constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = False
        return _text(source, half)
    except Exception as error:  # the client raises a dozen unrelated types when there is no network
        raise InputError(f"{source} could not be loaded ({type(error).__name__}); it needs a network. Choose the bundled text or paste your own.") from error


def _answers(endpoint: str) -> bool:
    """Whether anything answers at an address, within three seconds."""
    try:
        urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=3).close()
    except urllib.error.HTTPError as error:
        error.close()  # it answers
    except (OSError, HTTPException):
        return False
    return True


def _text(source: str, half: str) -> str:
    """A source's half, by the hub's own client: from the network, or from its cache when it works offline."""
    import datasets

    if source == "wikitext2":
        split = "train" if half == "calibration" else "test"
        rows = datasets.load_dataset("Salesforce/wikitext", "wikitext-2-raw-v1", split=split)
        return "\n\n".join(rows["text"])
    split = "train" if half == "calibration" else "validation"
    stream = datasets.load_dataset("allenai/c4", "en", split=split, streaming=True)
    return "\n\n".join(row["text"] for row in stream.take(C4_DOCUMENTS))


def reference(source: str, half: str, tokens: int, length: int, pasted: str = "", seed: int = 0, bos: str = "window", limit: int = PASTE_LIMIT) -> Any:
    """(TextRef, text): the record that goes into keys, with the text's hash, and the text itself. The record holds a pasted text that a page could take,
    so that it can be asked for again; a longer one is known by its hash alone.
    """
    text = text_of(source, half, pasted, limit)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return TextRef(source, digest, tokens, length, pasted if source == "pasted" and len(pasted) <= PASTE_LIMIT else "", seed, bos), text
