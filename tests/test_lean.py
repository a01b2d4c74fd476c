"""A cheap click is the same click: what the page is sent does not depend on who prepared it, and what is made once is handed to everyone."""

from __future__ import annotations

import asyncio
import dataclasses
import gzip
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace
from typing import Any

import brotli
import gradio as gr
import httpx
import pytest
from gradio.components.plot import PlotData

from explorer.server.pages import Pages, coding_of
from explorer.ui.blocks import LeanBlocks
from explorer.ui.session import Shelf
from explorer.ui.tab import View
from explorer.ui.visitor import Sessions
from tests.test_page import SEED

VALUES: list[Any] = [
    "<p>a</p>", "  some **words**\n", "text", PlotData(type="plotly", plot='{"data": []}'), gr.skip(), gr.skip(), {"visible": False, "__type__": "update"},
    gr.skip(), 3,
]  # fmt: skip


async def build(kind: type[gr.Blocks]) -> Any:
    """Blocks with an output of each kind that the page has, and a generator that fills them."""
    with kind(analytics_enabled=False) as blocks:
        with gr.Column() as column:
            several = [gr.HTML(), gr.Markdown(), gr.Textbox(), gr.Plot(), gr.Plot(), column, gr.Dropdown(["a", "b"], value="a"), gr.Markdown(), gr.Number(1)]
        inputs = [gr.Dropdown(["a", "b"]), gr.Number(precision=0), gr.Radio([1, 2]), gr.Textbox()]
        gr.Button().click(lambda *given: given, inputs, several, api_visibility="private")
    return blocks


class Apart:
    """An event loop in a thread of its own: gradio opens loops where none runs, and a browser of other tests may have one running here."""

    def __init__(self) -> None:
        self.thread, self.loop = ThreadPoolExecutor(1), asyncio.new_event_loop()

    def run(self, work: Coroutine) -> Any:
        return self.thread.submit(self.loop.run_until_complete, work).result()

    def close(self) -> None:
        self.thread.submit(self.loop.close).result()
        self.thread.shutdown()


@pytest.fixture(scope="module")
def apart() -> Iterator[Apart]:
    made = Apart()
    yield made
    made.close()


@pytest.fixture(scope="module")
def both(apart: Apart) -> tuple[Any, Any]:
    """Gradio's blocks and ours; `handled` calls a method of one as gradio does for a session."""
    made = apart.run(build(gr.Blocks)), apart.run(build(LeanBlocks))
    for blocks in made:
        blocks.handled = partial(handled, apart, blocks)
    return made


def handled(apart: Apart, blocks: Any, name: str, *args: Any) -> Any:
    return apart.run(getattr(blocks, name)(next(iter(blocks.fns.values())), *args, Sessions(blocks)["abcdef"]))


@pytest.mark.parametrize("change", [gr.skip(), gr.Column(visible=False)], ids=["left as it is", "hidden"])
def test_outputs_are_what_gradio_sends(both: tuple[Any, Any], change: Any) -> None:
    values = [*VALUES[:5], change, *VALUES[6:]]
    theirs, ours = (blocks.handled("postprocess_data", list(values)) for blocks in both)
    assert [v.model_dump() if isinstance(v, PlotData) else v for v in theirs] == ours


def test_inputs_are_what_gradio_reads_and_bad_ones_are_refused_by_it(both: tuple[Any, Any]) -> None:
    given = ["b", 2.4, 1, "x"]
    assert [blocks.handled("preprocess_data", given) for blocks in both] == [["b", 2, 1, "x"]] * 2
    for blocks in both:
        with pytest.raises(gr.Error, match="not in the list of choices"):
            blocks.handled("preprocess_data", ["c", 1, 1, "x"])


def test_what_stays_as_it_is_makes_no_component(both: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    for kind in (gr.HTML, gr.Plot, gr.Dropdown, gr.Number):
        monkeypatch.setattr(kind, "get_config", lambda self, *rest: made.append(type(self).__name__) or {})
    assert both[1].handled("postprocess_data", [gr.skip()] * 9) == [gr.skip()] * 9 and not made
    both[0].handled("postprocess_data", [gr.skip()] * 9)
    assert len(made) > 9  # what this saves


def test_the_end_of_a_stream_sends_nothing_again(both: tuple[Any, Any]) -> None:
    sent = []
    for blocks in both:
        handler, told = next(iter(blocks.fns.values())), {"session_hash": "abcdef", "run": "1"}
        first = blocks.handle_streaming_diffs(handler, list(range(9)), final=False, **told)
        sent.append((first, blocks.handle_streaming_diffs(handler, [None] * 9, final=True, **told)))
    assert sent[0] == (list(range(9)), list(range(9))) and sent[1] == (list(range(9)), [gr.skip()] * 9)


def test_equal_reports_share_what_was_drawn() -> None:
    drawn = []
    view = View([object()], lambda reports, layer, own: drawn.append(layer) or [len(drawn)], [object()], pure=True)
    shelf = Shelf([])
    key = shelf.add(SEED[1])
    shelf.add(dataclasses.replace(SEED[1], provenance=dict(SEED[1].provenance)))
    assert shelf.pick([key])[0] is SEED[1]
    assert [view.drawn(shelf.pick([key]), layer, "x") for layer in ("a", "a", "b")] == [[1], [1], [2]]
    shelf.add(dataclasses.replace(SEED[1], provenance=SEED[1].provenance | {"device": "another"}))
    assert view.drawn(shelf.pick([key]), "a", "x") == [3] and view.drawn(shelf.pick([key]), "a", "y") == [4]


async def asked(pages: Pages, path: str, host: str = "here", method: str = "GET", **headers: str) -> SimpleNamespace:
    http = httpx.AsyncClient(transport=httpx.ASGITransport(pages), base_url=f"http://{host}")
    async with http, http.stream(method, path, headers=headers) as answer:
        body = b"".join([part async for part in answer.aiter_raw()])
        return SimpleNamespace(status=answer.status_code, headers=answer.headers, body=body)


def test_a_page_is_made_once_for_each_address_and_coding(apart: Apart) -> None:
    def ask(*args: Any, **headers: str) -> SimpleNamespace:
        return apart.run(asked(*args, **headers))

    made: list[tuple] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = dict(scope["headers"])
        made.append((scope["path"], headers.get(b"host"), b"cookie" in headers, scope["query_string"]))
        status = 200 if scope["path"] != "/assets/none.js" else 404
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/html")]})
        await send({"type": "http.response.body", "body": b"<head>" + b"<p>page</p>" * 1000, "more_body": False})

    pages, page = Pages(app, "first()"), b"<head><script>\nfirst()</script>" + b"<p>page</p>" * 1000
    first = ask(pages, "/?method=awq", **{"accept-encoding": "gzip, br;q=0.9", "cookie": "a=b"})
    assert brotli.decompress(first.body) == page and first.headers["content-encoding"] == "br" and len(first.body) < 500
    assert made == [("/", b"here", False, b"")]  # nothing of the visitor is in it
    head = ask(pages, "/", method="HEAD", **{"accept-encoding": "br"})
    assert not head.body and head.headers == first.headers and len(made) == 1
    assert ask(pages, "/", **{"accept-encoding": "br", "if-none-match": first.headers["etag"]}).status == 304
    assert gzip.decompress(ask(pages, "/", **{"accept-encoding": "gzip, br;q=0"}).body) == page and len(made) == 2
    assert ask(pages, "/", **{"accept-encoding": "identity"}).body == page
    assert ask(pages, "/", host="elsewhere", **{"accept-encoding": "br"}).status == 200 and len(made) == 4
    assert [ask(pages, "/assets/none.js").status for _ in range(2)] == [404, 404] and len(made) == 6
    assert [ask(pages, "/assets/index-Ab12Cd34.js").headers["cache-control"] for _ in range(2)] == ["public, max-age=31536000, immutable"] * 2
    ask(pages, "/gradio_api/queue/data")
    ask(pages, "/gradio_api/queue/data")
    assert len(made) == 9


def test_the_best_accepted_coding_is_taken() -> None:
    assert [coding_of(text) for text in (b"", b"gzip, deflate, br, zstd", b"GZIP", b"br;q=0, gzip;q=0.5", b"identity")] == [b"", b"br", b"gzip", b"gzip", b""]
