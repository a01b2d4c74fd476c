"""The address bar: what it carries of a page and what never, and in a browser that a reload, Back and Forward open the same page again."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from urllib.parse import parse_qsl

import gradio as gr
import pytest

from explorer import link
from explorer.docs import CATALOGUE
from explorer.link import parse
from explorer.recorded import SEEDS
from explorer.records import ModelRef, report_from
from explorer.ui.address import address_of
from explorer.ui.page import Page
from explorer.ui.panel import RUN_OPTIONS, Panel
from explorer.ui.session import Shelf, keys_of
from explorer.ui.tab import Shell, tabs
from tests.driving import browser_test, choose, open_tab, settle, visit, wait_for_status

METHODS = json.loads(CATALOGUE.read_text())["methods"]
USUAL = {"model": "demo", "method": "rtn", "text": ""} | link.OPTIONS
ALL = [report_from(data) for data in json.loads(SEEDS.read_text())]


@pytest.fixture(scope="module")
def page() -> Page:
    """The handlers of a page with the shell's controls, a method without parameters, and two tabs."""
    shell = Shell(None, Shelf(ALL), METHODS, ["demo"], panel=Panel(method=gr.Textbox(USUAL["method"])))
    shell.linked["text"] = {"prompt": gr.Textbox("Once"), "new": gr.Number(60)}
    shell.layer = gr.Dropdown(["layers.3.mlp.down_proj"], value="layers.3.mlp.down_proj")
    return Page(shell)


def told(page: Page, keys: list[str], tab: str = "compare", own: dict | None = None, **changes: object) -> str:
    """The address of a page that starts as usual, with `changes` to its controls and `own` to those of the tab Text."""
    values = [(USUAL | changes)[name] for name in ("model", "method", *RUN_OPTIONS)]
    values += [(own or {}).get(name, part.value) for name, part in page.shell.linked["text"].items()]
    return address_of(page, keys, page.shell.layer.value, tab, *values)


def test_a_page_as_it_starts_has_a_bare_address(page: Page) -> None:
    assert told(page, keys_of(page.shell.shelf.first())) == ""


def test_the_address_opens_what_is_shown_and_measures_nothing(page: Page) -> None:
    """What waits for Run, another model or text, is not asked for: opening it would measure what nobody ran."""
    first = page.shell.shelf.first()
    keys = keys_of(first[:2])
    for changes in ({}, {"model": "org/other"}, {"evaluation": "c4"}, {"seed": 3}):
        found = parse(parse_qsl(told(page, keys, **changes)[1:]), METHODS, [tab.name for tab in tabs()])
        assert found.compared == (first[1].experiment.spec,) and not found.wrong
        assert not found.model and not set(found.options) & {"evaluation", "seed"}, "those of the reports, which are the defaults"
    assert told(page, keys_of(first[:1])).endswith("with=none"), "the baseline alone is not the page as it starts"


def test_the_address_names_a_model_of_the_hub_and_what_was_measured_of_it(page: Page) -> None:
    """A reload asks the runner, which has it stored as long as the name means the same commit."""
    first = page.shell.shelf.first()[1]
    experiment = dataclasses.replace(first.experiment, model=ModelRef("org/model", "c0ffee"))
    key = page.shell.shelf.add(dataclasses.replace(first, experiment=experiment, provenance=first.provenance | {"recorded": False}))
    for model in ("org/model", "demo"):
        found = parse(parse_qsl(told(page, [key], model=model)[1:]), METHODS, [])
        assert found.model == "org/model" and found.compared == (first.experiment.spec,)


def test_a_text_of_the_visitors_own_stays_out_of_the_address(page: Page) -> None:
    first = page.shell.shelf.first()
    own = {"prompt": "a secret", "new": 99}
    assert told(page, keys_of(first), "text", own=own) == "?tab=text&method=rtn&text.new=99"
    pasted = dataclasses.replace(first[2].experiment.evaluation, source="pasted")
    mine = dataclasses.replace(first[2], experiment=dataclasses.replace(first[2].experiment, evaluation=pasted))
    address = told(page, [page.shell.shelf.add(mine)], evaluation="pasted", text="a secret")
    assert address == "?method=rtn&evaluation=pasted", "with no configuration that would be measured on another text"
    [wrong] = parse(parse_qsl(address[1:]), METHODS, []).wrong
    assert "never part of a link" in wrong


def test_every_part_of_a_link_that_is_ignored_is_named() -> None:
    query = "tab=nonsense&method=bogus&bits=17&with=foo:bar=1&with=rtn&seed=x&foo=1&__theme=dark&story=basics&step=1&room=ABCDE"
    assert [part.split(" ")[0] for part in parse(parse_qsl(query), METHODS, ["compare"]).wrong] == ["method", "seed", "tab", "with", "bits", "foo"]
    found = parse([("with", f"rtn:bits={bits}") for bits in (2, 3, 4, 5, 6)], METHODS, [])
    assert len(found.compared) == 4 and found.wrong == ("with 'rtn:bits=6'",), "a fifth has no place"


@pytest.mark.parametrize("width", [1440, 1000])
@browser_test[0]
@browser_test[1]
def test_reload_back_and_forward_open_the_page_again(browser, address: str, width: int) -> None:
    page, wrong = visit(browser, address, width, 900)
    choose(page, "3")
    page.wait_for_url("**bits=3**")
    for title, name in (("Weights", "weights"), ("Learn", "learn")):  # on the narrower page Learn is in the menu of tabs that do not fit
        if page.locator(f"#tab-{name}-button").count():
            open_tab(page, name)
        else:
            page.locator("#tabs .overflow-menu > button").click()
            page.locator("#tabs .overflow-dropdown button", has_text=title).click()
        page.wait_for_url(f"**tab={name}**")
        settle(page)
    page.locator("#learn-next").click()
    page.wait_for_url("**story=basics&step=2**")
    back, forth = page.go_back, page.go_forward
    for step, tab in ((back, "Learn"), (back, "Weights"), (back, "Compare"), (forth, "Weights"), (forth, "Learn"), (forth, "Learn")):
        step()
        page.locator("#tabs [role=tab][aria-selected=true]", has_text=tab).wait_for()
        settle(page)
    page.reload()
    page.locator("#learn-text", has_text="step 2 of").wait_for()
    assert page.locator("#tabs [role=tab][aria-selected=true]").inner_text() == "Learn"
    assert page.locator("#controls .method label:visible:has(input:checked)").first.inner_text() == "3" and "__theme=light" in page.url
    assert not wrong
    page.close()


@browser_test[0]
@browser_test[1]
def test_a_reload_goes_on_with_a_run_but_not_with_a_cancelled_one(browser, address: str) -> None:
    page, _ = visit(browser, address, 1440, 900)
    page.locator("#method input").click()
    page.get_by_role("option", name="GPTQ", exact=True).click()
    choose(page, "2")
    page.click("#run")
    page.locator("#status .busy").wait_for()
    page.reload()
    wait_for_status(page, "going on after a reload")
    assert page.locator("#method input").input_value() == "GPTQ"
    assert page.locator("#controls .method label:visible:has(input:checked)").first.inner_text() == "2"
    page.click("#cancel")
    wait_for_status(page, "Cancelled")
    page.reload()
    page.wait_for_selector("#run:not([disabled])")
    settle(page)
    assert not page.locator("#status .busy").count() and "reload" not in page.inner_text("#status")
    page.close()


@browser_test[0]
@browser_test[1]
def test_the_page_keeps_still_between_tabs(browser, address: str) -> None:
    """On a phone the bar of tabs keeps its place; a figure's buttons cover nothing; commands go with the tab they were opened in; Kernel names its layer."""
    page, wrong = visit(browser, address, 390, 844)
    assert page.evaluate("getComputedStyle(document.querySelector('#plot-quality .modebar')).opacity") == "0"
    page.click("#fold-shared")
    page.click("#show-commands")
    page.locator("#commands pre").first.wait_for()
    places = set()
    for name in ("planner", "stepper", "learn", "compare"):
        open_tab(page, name)
        places.add(page.evaluate("document.querySelector('#tabs > .tab-wrapper').getBoundingClientRect().y + scrollY"))
        if name == "planner":
            page.locator("#commands pre").first.wait_for(state="detached")
        if name == "stepper":
            page.locator("#stepper-head h2", has_text="on layer 3 q_proj").wait_for()
    assert len(places) == 1 and not wrong
    page.close()


@browser_test[0]
@browser_test[1]
def test_a_planner_link_is_answered_once(browser, address: str) -> None:
    page = browser.new_page()
    page.add_init_script(SEEN)
    page.goto(f"{address}?tab=planner&planner.model=llama-3.1-405b&planner.users=1&planner.context=131072&planner.bits=3&planner.cards=4")
    page.locator("#plan-status", has_text="67.6 GB for 1").wait_for()
    assert "4 × A100 80 GB hold llama-3.1-405b" in page.inner_text("#plan-status")
    assert page.evaluate("window.seen.filter((text) => text.includes('405b')).length") == 1
    page.close()


@browser_test[0]
@browser_test[1]
def test_a_written_link_needs_neither_price_nor_format(browser, address: str) -> None:
    """The price is the device's, and a model that is published quantized is planned so; the choice of another format is in the link."""
    page, wrong = visit(browser, address, 390, 844, query="&tab=planner&planner.model=gpt-oss-120b&planner.device=H100&planner.cards=2")
    page.locator("#plan-status", has_text="In the format set above (as published)").wait_for()
    assert page.input_value("#plan-price input") == "3.99" and page.input_value("#plan-format input") == "as published"
    bar = "document.querySelector('#tabs > .tab-wrapper > [role=tablist]')"
    inside = f"(() => {{ const o = {bar}.querySelector('[aria-selected=true]').getBoundingClientRect(); return o.left >= 0 && o.right <= innerWidth; }})()"
    page.wait_for_function("scrollY > 0")
    assert page.evaluate(inside) and page.evaluate(f"{bar}.getBoundingClientRect().y") >= 0, "the page moves to the bar, not below it"
    page.evaluate(f"{bar}.scrollLeft = 0")
    assert not page.evaluate(inside)
    page.evaluate(f"({PAGE.read_text().split(chr(10), 1)[1].rstrip()})()")  # as if the tab had been opened before the page's script ran
    page.wait_for_function(inside)
    page.set_viewport_size({"width": 1440, "height": 900})
    page.locator("#plan-format input").click()
    page.get_by_role("option", name="integers: bits, group").click()
    page.wait_for_url("**planner.format=&**")
    assert "price" not in page.url
    page.reload()
    page.locator("#plan-status", has_text="In the format set above (4-bit, groups of 128)").wait_for()
    page.locator("#plan-model input").click()
    page.get_by_role("option", name="deepseek-v3").click()
    page.locator("#plan-status", has_text="In the format set above (as published): deepseek-v3").wait_for()
    assert not wrong
    page.close()


PAGE = Path(__file__).parent.parent / "assets" / "page.js"
SEEN = """window.seen = []; document.addEventListener('DOMContentLoaded', () => new MutationObserver(() => {
  const text = document.querySelector('#plan-status')?.innerText;
  if (text && text !== window.seen.at(-1)) window.seen.push(text);
}).observe(document.body, {subtree: true, childList: true, characterData: true}))"""
