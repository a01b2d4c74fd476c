"""What Back, Forward, a reload and a new address do to a page, in a real Chromium: figures stay whole, and nobody is lost."""

from __future__ import annotations

import re

from tests.driving import browser_test, open_tab, visit

pytestmark = browser_test
# What a figure refers to (pattern, clip path, gradient) and how: names of its own document alone, each with an element.
LOST = """() => [...document.querySelectorAll('.js-plotly-plot .main-svg *')].flatMap((e) => ['clip-path', 'style', 'fill'].map((name) => e.getAttribute(name)))
  .flatMap((text) => [...(text ?? '').matchAll(/url\\(["']?([^"')]*)["']?\\)/g)].map((found) => found[1]))
  .filter((name) => !name.startsWith('#') || !document.getElementById(name.slice(1)))"""


def test_a_figure_keeps_its_patterns_when_the_address_changes(browser, address: str) -> None:
    page, wrong = visit(browser, address, 1440, 900)
    open_tab(page, "planner")
    page.locator("#plot-plan .main-svg").first.wait_for()
    page.wait_for_url("**tab=planner**")
    assert page.locator("#plot-plan path[style*='url(']").count() >= 5, "the bars have patterns"
    assert page.evaluate(LOST) == [] and not wrong
    page.close()


def test_back_leaves_the_presenters_view(browser, address: str) -> None:
    page, wrong = visit(browser, address, 1440, 900)
    open_tab(page, "classroom")
    page.click("#teacher > button")
    page.click("#present")
    page.locator("header").wait_for(state="hidden")
    page.go_back()
    page.locator("#tab-compare").wait_for(state="visible")
    assert page.locator("header h1").is_visible() and page.locator("#tab-weights-button").is_visible() and page.locator("#run").is_visible()
    assert not wrong
    page.close()


def test_a_page_of_a_server_that_was_restarted_is_opened_again_by_its_address(browser, address: str) -> None:
    page, wrong = visit(browser, address, 1440, 900, query="&method=gptq&bits=3&with=rtn&with=gptq")
    page.locator("#status", has_text="Opened from a link").wait_for()
    page.wait_for_function("sessionStorage.getItem('process')")
    page.evaluate("sessionStorage.setItem('process', '1')")  # what is on the page is of another start
    page.route("**/gradio_api/**", lambda route: answered(route, {"x-process": "2"}), times=1)
    open_tab(page, "weights")
    page.locator("#status", has_text="The server was restarted, and this page opened again").wait_for()
    assert page.locator("#tab-weights").is_visible() and page.locator("#method input").input_value() == "GPTQ" and "bits=3" in page.url
    assert page.locator("#compared .token").count() == 3 and not wrong
    page.locator("#compared .token-remove").nth(1).click()
    page.locator("#compared .token").nth(2).wait_for(state="detached")
    own = "[...document.querySelectorAll('#compared .token')].map((token) => token.style.getPropertyValue('--own'))"
    page.wait_for_function(f"String({own}) === 'var(--c0),var(--c2)'")  # who stays keeps the colour of its figures
    page.reload()
    page.locator("#status", has_text="Opened from a link").wait_for()
    assert not page.locator("#status", has_text="restarted").count(), "it is said once"
    page.close()


def answered(route, headers: dict[str, str]) -> None:
    """Lets a request through and changes headers of its answer."""
    answer = route.fetch()
    route.fulfill(response=answer, headers=answer.headers | headers)


def test_a_typed_room_is_joined_again_after_a_reload(browser, address: str) -> None:
    teacher, wrong = visit(browser, address, 1440, 900, query="&tab=classroom")
    assert not teacher.locator("#open-room").is_visible(), "the teacher's side is folded for a student"
    teacher.click("#teacher > button")
    teacher.click("#open-room")
    code = teacher.locator("#invitation .code").inner_text().strip()
    student, also_wrong = visit(browser, address, 390, 844, query="&tab=classroom")
    student.locator("#room-code :is(input, textarea)").fill(code.lower())
    student.click("#join")
    student.locator("#class-choice label").first.wait_for()
    student.wait_for_url(f"**room={code}**")
    student.reload()
    student.locator("#class-choice label").first.wait_for()
    teacher.reload()
    teacher.locator("#invitation .code", has_text=code).wait_for(state="visible")
    assert not wrong and not also_wrong
    teacher.close()
    student.close()


def test_back_goes_a_step_back_and_a_reload_keeps_the_answer(browser, address: str) -> None:
    page, wrong = visit(browser, address, 1440, 900, query="&tab=learn&story=gptq&step=1")
    where = page.locator("#learn-text .where")
    for step in (2, 3):
        page.click("#learn-next")
        page.wait_for_url(f"**step={step}")
    page.go_back()
    where.filter(has_text="step 2 of").wait_for()
    page.locator("#learn-predict label").nth(1).click()
    page.click("#learn-reveal")
    said = page.locator("#learn-conclusion .said")
    said.filter(has_text=re.compile("^(Right|Not so)")).wait_for()
    answer = said.inner_text()
    page.wait_for_function("sessionStorage.getItem('revealed')")
    page.reload()
    said.filter(has_text=answer.split("\n")[0]).wait_for()
    assert page.locator("#learn-predict label").nth(1).locator("input").is_checked() and "revealed" not in page.url
    page.go_back()
    where.filter(has_text="step 1 of").wait_for()
    assert not said.count(), "another step keeps its answer to itself"
    page.go_forward()
    where.filter(has_text="step 2 of").wait_for()
    assert not wrong
    page.close()


def test_a_screen_reader_is_told_stages_and_ends_not_every_line(browser, address: str) -> None:
    page, wrong = visit(browser, address, 1440, 900)
    say = """([kind, stage, text]) => { const line = document.querySelector('#status .status');
      line.className = `status ${kind}`; line.dataset.stage = stage; line.textContent = text; return new Promise((done) => setTimeout(() => done(
      document.querySelector('#spoken').textContent), 50)); }"""
    page.wait_for_timeout(2600)
    assert page.evaluate(say, ["busy", "load model", "load model (0 s)"]) == "load model (0 s)"
    assert page.evaluate(say, ["busy", "load model", "load model (1 s)"]) == "load model (0 s)", "the same stage again"
    page.wait_for_timeout(2600)
    assert page.evaluate(say, ["busy", "perplexity", "perplexity 1 of 8"]) == "perplexity 1 of 8"
    assert page.evaluate(say, ["done", "", "It is done."]) == "It is done."
    assert page.locator("#spoken[role=status]").count() == 1 and not page.locator(".status[role]").count() and not wrong
    page.close()
