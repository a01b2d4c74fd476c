"""Generation in step: drafts and the last answer, what is said of each token, shared noise, layers held in memory; the texts and the lab as HTML."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from explorer.decode import Decoder
from explorer.experiment import LocalRunner
from explorer.held import Held, held_bytes
from explorer.loader import Loader
from explorer.metrics import Subject
from explorer.recorded import SEEDS
from explorer.records import Answer, InputError, Progress, TextRef, report_from
from explorer.store import Store
from explorer.tasks.generate import Writer, forced
from explorer.ui.session import Shelf, keys_of
from explorer.ui.tab import Shell
from explorer.ui.tabs import failures, text
from explorer.ui.written import texts
from explorer.verdict import guard, questions
from tests.test_decode import loaded_of, model_of, prompt_of

SEED = [report_from(data) for data in json.loads(SEEDS.read_text())]
PROMPT = "The server stores each table in"
SPECS = [{"method": "rtn", "params": {"bits": 8}}, {"method": "rtn", "params": {"bits": 2, "granularity": "tensor"}, "options": {"kv_bits": 4}}]


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalRunner]:
    store = Store(tmp_path_factory.mktemp("text") / "r.db")
    yield LocalRunner(store, Loader(torch.device("cpu")))
    store.close()


@pytest.fixture(scope="module")
def events(runner: LocalRunner, tiny_folder: Path) -> list:
    return list(runner.do("generate", {"model": str(tiny_folder), "specs": SPECS, "prompt": PROMPT, "new": 40}))


def test_the_last_answer_is_whole_and_stored(runner: LocalRunner, events: list, tiny_folder: Path) -> None:
    answers = [e for e in events if isinstance(e, Answer)]
    assert [a.data["done"] for a in answers] == [False] * (len(answers) - 1) + [True] and "forced" in answers[-1].data
    again = list(runner.do("generate", {"model": str(tiny_folder), "specs": SPECS, "prompt": PROMPT, "new": 40}))
    assert len(again) == 1 and again[0].data == answers[-1].data and again[0].provenance["from_store"]


def test_the_baseline_writes_what_the_token_loop_writes(runner: LocalRunner, events: list) -> None:
    base = events[-1].data["runs"][0]
    loaded = runner._load._last
    ids = loaded.tokenizer(PROMPT, return_tensors="pt", add_special_tokens=False).input_ids
    wanted = list(Decoder(loaded, 128).generate(ids, 8))
    assert base["ids"][:8] == wanted and base["diverged"] is None
    assert base["p"] == base["own"] and set(base["kl"]) == {0.0} and set(base["rank"]) == {1}


def test_each_token_is_told_in_its_own_context(runner: LocalRunner, events: list) -> None:
    """The probabilities beside a token are those of one forward pass over all that stands before it."""
    data = events[-1].data
    loaded, run = runner._load._last, events[-1].data["runs"][2]
    prompt = loaded.tokenizer(PROMPT, return_tensors="pt", add_special_tokens=False).input_ids
    ids = torch.cat([prompt, torch.tensor([run["ids"]])], 1)
    p = loaded.model(ids).logits[0, prompt.shape[1] - 1 : -1].float().softmax(-1)
    told = torch.tensor(run["p"])
    assert torch.allclose(p.gather(-1, torch.tensor(run["ids"]).unsqueeze(-1)).squeeze(-1), told, rtol=0.05)
    assert run["diverged"] == next(i for i, (a, b) in enumerate(zip(run["ids"], data["runs"][0]["ids"], strict=True)) if a != b)
    assert all(k >= 0 for k in run["kl"]) and max(run["kl"]) > max(data["runs"][1]["kl"])
    forced = data["forced"]
    assert len(forced["text"]) == len(forced["p"]) == forced["start"] + len(data["runs"][0]["ids"])
    assert forced["p"][forced["start"] :] == pytest.approx(data["runs"][0]["p"], rel=0.05)


def test_a_prompt_is_read_exactly_by_a_low_bit_cache() -> None:
    loaded, ids = dataclasses.replace(loaded_of(model_of("llama")), tokenizer=SimpleNamespace(decode=str)), prompt_of(1, 100)
    base, low = (Writer("", Subject(loaded, {}, {}, {}, ids, 0.0, bits), ids, None) for bits in (16, 2))
    base.columns["ids"] = ids[0, 80:].tolist()
    found = forced([base, low], ids[:, :80])
    kl = found["runs"][0]["kl"]
    assert found["start"] == 79 and max(kl[:80]) < 1e-5 and min(kl[80:]) > 1e-4


def test_the_same_noise_keeps_near_copies_together(runner: LocalRunner, tiny_folder: Path) -> None:
    asked = {"model": str(tiny_folder), "specs": SPECS[:1], "prompt": PROMPT, "new": 12, "temperature": 1.0, "seed": 3}
    first, second = (list(runner.do("generate", asked | change))[-1].data["runs"] for change in ({}, {"seed": 4}))
    assert first[0]["ids"] != second[0]["ids"], "another seed draws another text"
    assert first[0]["ids"][:6] == first[1]["ids"][:6], "8 bits hardly move the distribution, so the same noise draws the same tokens"


def test_a_second_prompt_needs_no_quantizing(runner: LocalRunner, events: list, tiny_folder: Path) -> None:
    assert any(isinstance(e, Progress) and e.stage == "quantize" for e in events)
    more = list(runner.do("generate", {"model": str(tiny_folder), "specs": SPECS, "prompt": "Another", "new": 4}))
    assert not any(isinstance(e, Progress) and e.stage == "quantize" for e in more)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [({"prompt": " "}, "prompt of 1 to"), ({"new": 999}, "new tokens"), ({"temperature": 9}, "temperature"), ({"specs": SPECS * 3}, "at most 4"),
     ({"prompt": "word " * 1500}, "The prompt has"), ({"seed": -1}, "seed from 0")],
)  # fmt: skip
def test_bad_input_is_a_sentence(runner: LocalRunner, tiny_folder: Path, change: dict, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        list(runner.do("generate", {"model": str(tiny_folder), "specs": [], "prompt": "a b"} | change))


def test_held_layers_stay_below_their_bytes(runner: LocalRunner, events: list) -> None:
    subject = next(s for s in runner._load.held._kept.values() if s.layers)
    held = Held(limit=2 * held_bytes(subject))
    for name in ("a", "b", "c"):
        held.put(name, subject)
    assert held.get("a") is None and held.get("c") is subject
    held.get("b")
    held.put("d", subject)
    assert held.get("c") is None and held.get("b") is subject, "the least recently used goes first"


def test_texts_mark_shade_and_escape(events: list) -> None:
    data = events[-1].data
    html = texts(data)
    assert html.count("class='tk parted'") == sum(run["diverged"] is not None for run in data["runs"]) and "title=" in html
    assert "title=" not in texts(events[-1].data | {"done": False}).replace("title='share", "")
    evil = dataclasses.replace(events[-1], data=json.loads(json.dumps(data).replace(data["runs"][0]["text"][0].strip() or " ", "<img src=x>")))
    assert "<img" not in texts(evil.data) and "No text" in texts({})


class FakeRunner:
    """Answers a task with one recorded event, or raises."""

    def __init__(self, *answers: Answer, error: Exception | None = None) -> None:
        self.answers, self.error, self.asked = list(answers), error, []

    def do(self, task: str, arguments: dict) -> Iterator:
        self.asked.append((task, arguments))
        yield Progress("load model", 0, 1, "demo")
        if self.error:
            raise self.error
        yield from self.answers


def test_the_page_asks_for_what_is_compared_and_shows_failures_as_sentences(events: list) -> None:
    done = events[-1]
    shell = Shell(FakeRunner(done), Shelf(SEED), [], ["demo"])
    steps = list(text.wrote(shell, keys_of(SEED[:3]), PROMPT, 40, 0.0, 0))
    task, asked = shell.runner.asked[0]
    assert task == "generate" and [s["method"] for s in asked["specs"]] == ["rtn", "rtn"] and asked["specs"][0]["options"]["sequences"] == 16
    assert "40 tokens" in steps[-1][0] and "<article" in steps[-1][-1]
    shell.runner = FakeRunner(error=InputError("No <b>."))
    assert "No &lt;b&gt;." in next(reversed(list(text.wrote(shell, keys_of(SEED[:2]), PROMPT, 8, 0.0, 0))))[0]
    assert "press Run first" in next(text.wrote(shell, [], PROMPT, 8, 0.0, 0))[0]


def test_the_lab_hides_a_guess_and_reveals_it() -> None:
    from explorer.records import plain

    healthy = SEED[2]
    broken = dataclasses.replace(healthy, provenance=healthy.provenance | {"label": "RTN 4-bit g64, with a bug"})
    shell = Shell(FakeRunner(*(Answer("failure", {"report": plain(r)}) for r in (healthy,))), Shelf(SEED), [], ["demo"])
    last = list(failures.planted(shell, keys_of([healthy])[0], failures.GUESS, "layers.3.mlp.down_proj"))[-1]
    drawn = [title for title, _ in failures.CHOICES if title.lower() in last[0].lower()]
    assert "Which one?" in last[0] and not drawn and len(last) == failures.RESULTS
    assert last[2].startswith(failures.POSSIBLE.format(failures.catalogue())), "whoever guesses may look the bugs up"
    seen = next(iter(failures.BUGS.values())).seen
    assert failures.catalogue().count("<details>") == len(failures.BUGS) and f"<details><summary>What gives it away</summary><p>{seen}" in failures.catalogue()
    state = shell.sealed.open(last[-1])
    assert state["bug"] in failures.BUGS and len(last[-1]) == 32 and shell.sealed.open("no ticket") == shell.sealed.open(None) == {}
    asked = failures.arguments(healthy)["options"]
    assert "evaluation" not in asked, "what is stored of the bundled text stays found"
    own = dataclasses.replace(healthy.experiment, evaluation=TextRef("pasted", "0", 8192, 256, "My own words."))
    assert failures.arguments(dataclasses.replace(healthy, experiment=own))["options"] == asked | {
        "evaluation": "pasted", "text": "My own words.", "length": 256, "bos": "window",
    }  # fmt: skip
    html = failures.report([healthy, broken], state["bug"])
    assert f"Scored on: {healthy.provenance['text']}." in html
    assert failures.BUGS[state["bug"]].title in html and "does not name it" in html
    assert failures.BUGS[state["bug"]].title not in failures.report([healthy, broken], "")
    assert "Plant a bug first" in failures.revealed(shell, "", None, "")[0]
    assert "kept here no longer; plant it again" in failures.revealed(shell, "of an earlier start", None, "")[0]


def test_guard_and_questions_render_for_recorded_reports() -> None:
    assert guard(SEED).count("<article") == 4 and "Nothing quantized" in guard(SEED[:1])
    card = questions(SEED[3], SEED[0])
    assert card.count("<h4>") == 3 and questions(SEED[0], SEED[0]) == ""
