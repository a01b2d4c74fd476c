"""Learning as a person meets it, in a real Chromium: one whole walkthrough, one set of questions, one class with thirty votes over raw HTTP."""

from __future__ import annotations

import json
import re
import urllib.request

from explorer.learn.stories import stories
from tests.driving import browser_test, open_tab, settle, visit

pytestmark = browser_test
STORY = "gptq"


def test_a_whole_walkthrough_from_its_link_and_a_step_measured_here(browser, address: str) -> None:
    page, wrong = visit(browser, address, 1440, 900, query=f"&tab=learn&story={STORY}&step=1")
    page.locator("#tab-learn").wait_for(state="visible")
    for step in stories()[STORY].steps:
        page.locator("#learn-text h2", has_text=step.title).wait_for()
        assert not page.locator("#learn-conclusion .conclusion").count(), "nothing is revealed before the prediction"
        page.click("#learn-reveal")
        page.locator("#learn-conclusion .said", has_text="You made no prediction").wait_for()
        if step.predict.options:
            page.locator("#learn-predict label").first.click()
        else:
            page.locator("#learn-number input[type=number]").fill(str(step.predict.high))
        page.click("#learn-reveal")
        page.locator("#learn-conclusion .said", has_text=re.compile("Right|Close|Not so")).wait_for()
        page.wait_for_selector("#plot-learn .main-svg")
        assert "Keep in mind" in page.inner_text("#learn-conclusion") and "Recorded" in page.inner_text("#learn-conclusion")
        page.click("#learn-next")
    page.locator("#learn-text h2", has_text=f"You predicted nothing here; {len(stories()[STORY].steps)} steps revealed without").wait_for()
    assert page.locator("#learn-text li").count() == len(stories()[STORY].steps) and "What to try next" in page.inner_text("#learn-text")
    assert not page.locator("#learn-reveal").is_visible() and page.locator("#learn-step input:checked").count() == 1
    page.click("#learn-back")
    page.locator("#learn-reveal").wait_for()
    settle(page)  # the address names the step by then
    page.reload()
    page.locator("#learn-story input").wait_for()
    page.wait_for_function("document.querySelector('#learn-story input').value.includes('✓')")
    page.click("#learn-compare")
    page.locator("#tab-compare").wait_for(state="visible")
    page.wait_for_function("document.querySelector('#method input').value === 'GPTQ'")
    open_tab(page, "learn")
    page.locator("#learn-story input").click()
    page.get_by_role("option").first.click()
    page.locator("#learn-text h2", has_text=stories()["basics"].steps[0].title).wait_for()
    page.locator("#learn-predict label", has_text="16").click()
    page.click("#learn-measure")
    page.click("#learn-next")  # what is measured for a step is not shown below the next one
    page.locator("#learn-text h2", has_text=stories()["basics"].steps[1].title).wait_for()
    settle(page)
    assert not page.locator("#learn-status").is_visible() and not page.locator("#learn-conclusion .conclusion").count()
    page.click("#learn-back")
    page.locator("#learn-text h2", has_text=stories()["basics"].steps[0].title).wait_for()
    page.locator("#learn-predict label", has_text="16").click()
    page.click("#learn-measure")
    page.locator("#learn-status", has_text="measured here").wait_for()
    assert "Right." in page.inner_text("#learn-conclusion") and not wrong
    page.close()


def test_the_answer_comes_into_sight_on_a_phone(browser, address: str) -> None:
    page, wrong = visit(browser, address, 390, 844, query=f"&tab=learn&story={STORY}&step=1")
    page.locator("#learn-reveal").click()
    page.wait_for_function("(box => box && box.top >= -1 && box.top < 200)(document.querySelector('#learn-conclusion .conclusion')?.getBoundingClientRect())")
    assert not wrong
    page.close()


def answer(page) -> None:
    """Gives some answer to the question that is open: the daily challenge has choices and numbers."""
    if page.locator("#answer-choice").is_visible():
        page.locator("#answer-choice label").first.click()
    else:
        page.locator("#answer-number input").fill("4.25")
        page.locator("#answer-number input").press("Tab")


def test_an_answer_in_own_words_is_sent_to_nobody(address: str) -> None:
    with urllib.request.urlopen(f"{address}config", timeout=10) as response:
        config = json.load(response)
    own = next(c["id"] for c in config["components"] if c["props"].get("elem_id") == "answer-text")
    assert any(own in d["outputs"] for d in config["dependencies"]) and not any(own in d["inputs"] for d in config["dependencies"])


def test_an_interview_set_and_its_sheet(browser, address: str) -> None:
    page, wrong = visit(browser, address, 1440, 900)
    open_tab(page, "trainer")
    page.click("#set-daily")
    for number in range(1, 6):
        page.locator("#question .where", has_text=f"{number} of 5").wait_for()
        answer(page)
        page.click("#answer")
        page.locator("#feedback .feedback", has_text="Source").wait_for()
        assert page.locator("#feedback a").count() == 1
        page.click("#next-question")
    page.locator("#question h2", has_text="of 5").wait_for()
    kept = page.evaluate("JSON.stringify(localStorage)")
    assert "trainer" in kept, "progress is in the browser"
    page.reload()
    page.locator("#tab-trainer-button").wait_for()
    open_tab(page, "trainer")
    page.get_by_text("Result sheet").click()
    page.locator("#sheet", has_text="5 answers").wait_for()
    shown = "['#controls', '#sheet td'].map(part => getComputedStyle(document.querySelector(part)).visibility).join()"
    page.evaluate(f"window.print = () => {{ window.printed = {shown} }}")
    page.emulate_media(media="print")
    page.click("#print-sheet")
    page.wait_for_function("window.printed === 'hidden,visible'")
    page.emulate_media(media="screen")
    assert not wrong
    page.close()


def test_an_interview_with_its_evidence(browser, address: str) -> None:
    page, wrong = visit(browser, address, 1440, 900)
    open_tab(page, "trainer")
    page.click("#set-daily")
    page.locator("#question .where", has_text="1 of 5").wait_for()
    page.click("#skip-question")
    page.locator("#question .where", has_text="2 of 5").wait_for()
    page.get_by_text("Interviewer mode").click()
    page.fill("#card-answer textarea", "Four bits and an 8-bit cache.")
    page.locator("#card-evidence input").click()
    page.get_by_role("option", name="RTN 4-bit g64").click()
    page.keyboard.press("Escape")
    page.click("#record-answer")
    page.locator("#card-status", has_text="nothing attached bears on this card").wait_for()
    page.locator("#card-plan input").check()
    page.click("#record-answer")
    page.locator("#card-status", has_text="with 1 run and the Planner's answer").wait_for()
    assert "1 on record" in page.inner_text("#transcript") and "the Planner, estimated: llama-3.1-70b" in page.inner_text("#transcript pre")
    page.locator("#transcript pre", has_text="evidence: run").wait_for()
    assert re.search(r"run `[0-9a-f]{32}`", page.inner_text("#transcript pre"))
    page.locator("#card input").click()
    page.get_by_role("option", name="A broken model").click()
    page.locator("#draw-broken").wait_for()
    assert not page.locator("#tab-trainer").get_by_text("Textbox", exact=True).is_visible(), "the ticket stays out of sight"
    page.click("#record-answer")
    page.locator("#card-status", has_text="Draw a broken model first").wait_for()
    assert not wrong
    page.close()


def voting(address: str) -> int:
    """The number of the voting handler."""
    with urllib.request.urlopen(f"{address}config", timeout=10) as response:
        return next(d["id"] for d in json.load(response)["dependencies"] if d["api_name"] == "vote")


def post(address: str, handler: int, code: str, ticket: str, choice: str) -> str:
    """A vote as a script sends it."""
    body = json.dumps({"data": [code, ticket, choice], "fn_index": handler, "session_hash": ticket}).encode()
    request = urllib.request.Request(f"{address}gradio_api/run/vote", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as response:
        return json.load(response)["data"][0]


def test_a_class_votes_and_the_run_answers(browser, address: str) -> None:
    page, wrong = visit(browser, address, 1440, 900)
    open_tab(page, "classroom")
    page.click("#teacher > button")
    page.click("#open-room")
    page.locator("#invitation .code").wait_for()
    code = page.inner_text("#invitation .code").strip()
    assert page.locator("#invitation svg.qr path").count() and f"room={code}" in page.inner_text("#invitation")
    handler = voting(address)
    said = [post(address, handler, code, f"{i:016x}", f"basics:0:{i % 4}") for i in range(30)]
    assert all(text.startswith("Voted") for text in said)
    assert "no valid ticket" in post(address, handler, code, "nobody", "basics:0:0") and "not one of the choices" in post(
        address, handler, code, f"{1:016x}", "basics:0:9"
    )
    assert post(address, handler, code, f"{0:016x}", "basics:0:1").startswith("Voted"), "a vote can be changed"
    counted = "[...document.querySelectorAll('#votes td:last-child')].map(cell => cell.innerText).join()"
    page.locator("#votes .hint", has_text="30 votes").wait_for()
    assert page.locator("#votes th").count() == 4 and not page.locator("#votes td").count(), "no vote is swayed by what others chose"
    student, also_wrong = visit(browser, address, 390, 844, query=f"&tab=classroom&room={code}")
    student.locator("#class-choice label").first.wait_for()
    assert student.locator("#tabs").bounding_box()["y"] < 150 and not student.locator("#compared-row").is_visible(), "the question comes first on a phone"
    student.locator("#class-choice label", has_text="16").click()
    student.locator("#class-line", has_text="Voted").wait_for()
    page.locator("#votes .hint", has_text="31 votes, 1 phone in the room").wait_for()
    page.click("#class-reveal")
    page.wait_for_function(f"{counted} === '7,9,8,7'")
    page.locator("#votes tr.right", has_text="16").wait_for()
    page.wait_for_selector("#plot-class .main-svg")
    student.locator("#class-line .said", has_text="You chose 16: right. The answer: ✓ 16").wait_for()
    assert student.locator("#class-choice input").first.is_disabled() and "closed" in post(address, handler, code, f"{0:016x}", "basics:0:2")
    page.click("#present")
    assert not page.locator("#controls").is_visible()
    shown = [page.locator(part).bounding_box() for part in ("#class-question h2", "#invitation .code", "#plot-class", "#class-conclusion .conclusion")]
    assert all(box["y"] >= 0 and box["y"] + box["height"] <= 900 for box in shown), "a projector shows the answer and the code without scrolling"
    assert shown[0]["y"] < 100 and shown[1]["x"] > 1000 and page.locator("#class-reveal").bounding_box()["height"] < 30
    page.set_viewport_size({"width": 1024, "height": 640})
    ends = "Math.max(...['#plot-class', '#class-conclusion .conclusion'].map(part => document.querySelector(part).getBoundingClientRect().bottom))"
    page.wait_for_function(f"{ends} <= innerHeight")
    page.set_viewport_size({"width": 1440, "height": 900})
    page.keyboard.press("ArrowRight")
    page.locator("#class-question h2", has_text=stories()["basics"].steps[1].title).wait_for()
    page.keyboard.press("Escape")
    page.locator("#controls").wait_for(state="visible")
    assert "moved on" in post(address, handler, code, f"{0:016x}", "basics:0:2")
    student.locator("#class-asked h2", has_text=stories()["basics"].steps[1].title).wait_for()
    assert student.locator("#class-choice input").first.is_enabled() and not student.locator("#class-choice input:checked").count()
    back_and_again(page, student)
    assert not wrong and not also_wrong
    page.close()
    student.close()


def test_a_tall_chart_fits_a_small_projector(browser, address: str) -> None:
    page, wrong = visit(browser, address, 1024, 640, query="&tab=classroom")
    page.click("#teacher > button")
    page.click("#open-room")
    page.locator("#invitation .code").wait_for()
    page.locator("#class-story input").click()
    page.get_by_role("option", name=stories()["granularity"].title, exact=True).click()
    page.locator("#class-question h2", has_text=stories()["granularity"].steps[0].title).wait_for()
    page.click("#present")
    for at in range(3):  # the first and the last have a chart of 16 rows
        page.locator("#class-question h2", has_text=stories()["granularity"].steps[at].title).wait_for()
        page.click("#class-reveal")
        page.wait_for_selector("#plot-class .main-svg")
        parts = "['#class-question', '#plot-class', '#class-conclusion .conclusion']"
        ends = f"Math.max(...{parts}.map(part => document.querySelector(part).getBoundingClientRect().bottom))"
        page.wait_for_function(f"document.documentElement.scrollHeight <= innerHeight && {ends} <= innerHeight")
        assert page.evaluate("document.querySelector('#plot-class').classList.contains('tall')") == (at != 1)
        page.click("#class-next")
    assert not wrong
    page.close()


def back_and_again(page, student) -> None:
    """The question that was left has its votes and its answer; asked again it has none; another one comes from the trainer's bank."""
    page.click("#class-back")
    page.locator("#votes", has_text="31 votes").wait_for()
    student.locator("#class-choice label", has_text="16").locator("input:checked").wait_for()
    assert student.locator("#class-choice input").first.is_disabled() and "You chose 16" in student.inner_text("#class-line")
    page.click("#class-again")
    page.locator("#votes .hint", has_text="0 votes").wait_for()
    page.wait_for_function("!document.querySelector('#class-conclusion').innerText")
    page.click("#class-own button")
    page.locator("#bank-question input").click()
    page.get_by_role("option").nth(3).click()
    page.click("#bank-ask")
    student.locator("#class-asked", has_text="A question of the trainer's").wait_for()
    page.locator("#own-line", has_text="The class is asked.").wait_for()
    page.click("#class-next")
    page.wait_for_function("!document.querySelector('#own-line').innerText.trim()")
