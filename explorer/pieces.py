"""Tokens as the text that each adds, so that side by side they read as the text they make."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

BROKEN = "\ufffd"  # what a tokenizer shows for bytes that are no character
LONGEST = 4  # bytes of a character, each of which may be a token
AROUND = 8  # tokens before, with which a token is read


def pieces(tokenizer: Any, ids: Sequence[int], before: Sequence[int] = ()) -> list[str]:
    """The text that each of some tokens adds after those before it; joined, it is the whole text. A token read by itself may be less: tokenizers drop the
    space at a text's beginning, and a character may lie in several tokens. Then it is the last one's, and the others add "".
    """
    ids = [*before[-AROUND:], *ids]
    known, start = 0, min(len(before), AROUND)  # the first token that is read along, and the first whose text is still to come
    found = []
    for end in range(start + 1, len(ids) + 1):
        already, text = tokenizer.decode(ids[known:start]), tokenizer.decode(ids[known:end])
        if text.endswith(BROKEN) and end - start < LONGEST and end < len(ids):
            found.append("")
            continue
        found.append(text[len(already) :])
        known, start = start, end
    return found


def called(piece: str) -> str:
    """A token's piece in quotes, and in words where it is no character yet."""
    return repr(piece) if piece else "the beginning of a character"
