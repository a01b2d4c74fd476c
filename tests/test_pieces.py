"""Tokens as text: joined they are what was typed, also where a character has several tokens or a token read alone would lose its space."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer

from explorer.experiment import LocalRunner
from explorer.models import DEMO
from explorer.pieces import BROKEN, pieces
from explorer.store import Store
from explorer.ui import written

TEXTS = ("🙂🙂 and so on", "لماذا يفقد النموذج الدقة؟", " a  plain\n text\t", "é", "日本語 🏳️‍🌈")


@pytest.mark.parametrize("text", TEXTS)
def test_side_by_side_they_are_their_text(text: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    ids = tokenizer(text, add_special_tokens=False).input_ids
    for cut in range(len(ids) + 1):
        told, before = pieces(tokenizer, ids[cut:], ids[:cut]), tokenizer.decode(ids[:cut])
        assert len(told) == len(ids) - cut
        assert before.endswith(BROKEN) or before + "".join(told) == text
    assert "".join(pieces(tokenizer, ids[:-1])) == tokenizer.decode(ids[:-1]), "a text that ends within a character"


def test_a_token_keeps_its_space() -> None:
    """As models of the Llama 2 family read it: the mark of a space at a text's beginning is none."""
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate("▁abc")}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    ids = tokenizer.encode("ab c a").ids
    assert tokenizer.decode(ids[3:5]) == "c", "by itself its space is lost"
    assert pieces(tokenizer, ids) == ["", "a", "b", " ", "c", " ", "a"] and pieces(tokenizer, ids[3:], ids[:3]) == [" ", "c", " ", "a"]


def test_a_prompt_comes_back_as_it_was_typed(tiny_folder: Path) -> None:
    asked = {"model": str(tiny_folder), "specs": [], "prompt": TEXTS[0], "new": 8}
    data = list(LocalRunner(Store(":memory:")).do("generate", asked))[-1].data
    assert "".join(data["prompt"]) == TEXTS[0] and "".join(data["forced"]["text"]) == TEXTS[0] + "".join(data["runs"][0]["text"])
    [run] = data["runs"]
    assert len(run["text"]) == len(run["ids"]) and TEXTS[0] in written.texts(data)
    assert "the beginning of a character" in written.said(run | {"text": [""] * 8}, 0)
