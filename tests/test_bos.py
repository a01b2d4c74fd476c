"""BOS: a tokenizer that begins texts with it gets it before every window and prompt; one that does not, as the demo's, gets none."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from explorer import models, reproduce
from explorer.data import bundled_text
from explorer.experiment import LocalRunner, last_report
from explorer.hub import Hub
from explorer.loader import Loader
from explorer.models import LoadedModel
from explorer.records import InputError, key_of
from explorer.request import Request
from explorer.store import Store
from explorer.tasks.choices import CONTEXT, CONTINUATION
from explorer.tasks.perturb import next_token
from tests import architectures

CPU = torch.device("cpu")
TEXT = bundled_text("evaluation")
TEMPLATE = {
    "type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<|end|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose tokenizer begins every text with BOS, as those of Gemma and LLaMA do."""
    made = architectures.make("llama", tmp_path_factory.mktemp("bos") / "model")
    tokenizer = json.loads((made / "tokenizer.json").read_text())
    at = next(token["id"] for token in tokenizer["added_tokens"] if token["content"] == "<|end|>")
    tokenizer["post_processor"] = TEMPLATE | {"special_tokens": {"<|end|>": {"id": "<|end|>", "ids": [at], "tokens": ["<|end|>"]}}}
    (made / "tokenizer.json").write_text(json.dumps(tokenizer))
    return made


@pytest.fixture(scope="module")
def loaded(folder: Path) -> LoadedModel:
    return models.load(models.resolve(str(folder), Hub()), CPU, Hub())


@pytest.fixture(scope="module")
def ids(loaded: LoadedModel) -> torch.Tensor:
    """The text's tokens, without BOS."""
    return loaded.tokenizer(TEXT, return_tensors="pt", add_special_tokens=False).input_ids[0]


def test_each_window_begins_with_bos_and_holds_one_token_of_text_less(loaded: LoadedModel, ids: torch.Tensor) -> None:
    bos = models.bos_of(loaded.tokenizer)
    assert bos == loaded.tokenizer.bos_token_id
    rows = models.windows(loaded, TEXT, 8 * 64, 64)
    assert rows.shape == (8, 64) and rows.dtype == torch.long and (rows[:, 0] == bos).all() and torch.equal(rows[:, 1:].flatten(), ids[: 8 * 63])
    some, have = models.drawn(loaded, TEXT, 8 * 64, 64, seed=3)
    assert (
        have == len(ids) // 63 and (some[:, 0] == bos).all() and {*map(tuple, some.tolist())} <= {*map(tuple, models.windows(loaded, TEXT, 10**9, 64).tolist())}
    )
    assert torch.equal(models.windows(loaded, TEXT, 8 * 64, 64, bos="").flatten(), ids[: 8 * 64])


def test_the_papers_windows_are_cut_from_a_text_that_begins_once(loaded: LoadedModel, ids: torch.Tensor) -> None:
    """As in GPTQ's code: the whole text by the tokenizer with its special tokens, then windows end to end."""
    theirs = loaded.tokenizer(TEXT, return_tensors="pt").input_ids[0]
    rows = models.windows(loaded, TEXT, 10**9, 64, bos="text")
    assert (
        torch.equal(rows.flatten(), theirs[: len(theirs) // 64 * 64]) and rows[0, 0] == models.bos_of(loaded.tokenizer) and torch.equal(rows[0, 1:], ids[:63])
    )
    assert all(row.options["bos"] == "text" for row in reproduce.PUBLISHED)


def test_where_bos_stands_is_part_of_the_key(folder: Path) -> None:
    asked = Request(str(folder), "gptq", {}, length=64)
    keys = {key_of(dataclasses.replace(asked, bos=bos).prepare(Hub())[0]) for bos in ("window", "text")}
    assert len(keys) == 2
    with pytest.raises(InputError, match="before each window or before the text once, not 'twice'"):
        dataclasses.replace(asked, bos="twice").prepare(Hub())


def test_prompts_begin_with_bos(loaded: LoadedModel) -> None:
    """Of the sample, of the Text tab and of perturbed prompts."""
    assert models.prompt(loaded, "The table")[0].tolist() == loaded.tokenizer("The table").input_ids
    with torch.no_grad():
        expected = loaded.model(torch.tensor([loaded.tokenizer("The table").input_ids])).logits[0, -1].argmax()
        assert next_token(loaded, "The table") == expected


def test_reports_say_that_windows_begin_with_bos(folder: Path, store: Store) -> None:
    runner, options = LocalRunner(store, Loader(CPU)), {"tokens": 512, "length": 64, "sequences": 2}
    params = {"granularity": "channel"}
    each, once = (last_report(runner.run(str(folder), "gptq", params, bos=bos, **options)) for bos in ("window", "text"))
    assert "8 of" in each.provenance["text"] and "windows of 64 tokens, each begun with BOS, drawn at random" in each.provenance["text"]
    assert "in windows of 64, each begun with BOS, seed 0" in each.provenance["calibration"]
    assert "windows of 64 tokens of the text begun once with BOS, drawn" in once.provenance["text"]
    assert each.find("perplexity").n == 8 * 63 and each.value("perplexity") != once.value("perplexity")


def test_a_question_has_bos_at_the_start_of_its_context_alone(loaded: LoadedModel) -> None:
    passages = models.windows(loaded, TEXT, 10**8, CONTEXT + CONTINUATION)
    bos = models.bos_of(loaded.tokenizer)
    assert (passages[:, 0] == bos).all() and not (passages[:, 1:] == bos).any()


def test_the_bundled_model_knows_no_bos() -> None:
    loaded = models.load(models.resolve("demo", Hub()), CPU, Hub())
    ids = loaded.tokenizer(TEXT, return_tensors="pt").input_ids[0]
    assert models.bos_of(loaded.tokenizer) is None
    for bos in ("window", "text", ""):
        assert torch.equal(models.windows(loaded, TEXT, 4096, 512, bos=bos).flatten(), ids[:4096])
    assert models.prompt(loaded, "The table").tolist() == [loaded.tokenizer("The table", add_special_tokens=False).input_ids]


def test_a_box_that_nobody_opened_is_no_text() -> None:
    """The page sends None for it."""
    experiment, _, texts = Request("demo", "rtn", text=None).prepare(Hub())
    assert experiment.evaluation.source == "bundled" and texts["evaluation"]
