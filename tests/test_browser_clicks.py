"""Clicks in a real Chromium: a point opens its report, a cell or dot chooses its layer everywhere, a speed starts its batch sweep, a chip tells."""

from __future__ import annotations

import json
from pathlib import Path
from zipfile import ZipFile

from explorer.recorded import SEEDS
from explorer.records import report_from
from tests.driving import browser_test, open_tab

pytestmark = browser_test


def click_mark(page, mark) -> None:
    """Clicks the middle of a mark in a figure; the pointer comes from outside, as a person's does."""
    mark.scroll_into_view_if_needed()
    box = mark.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x - 3, y - 3)
    page.mouse.move(x, y)
    page.wait_for_timeout(150)
    page.mouse.click(x, y)


def test_a_chip_tells_by_keyboard_and_columns_are_walked_with_arrows(desk: tuple) -> None:
    page, wrong = desk
    first = page.locator("#comparison td:nth-child(3) .pv").first  # the baseline beside it may have been measured here by a test before
    first.focus()
    assert page.inner_text("#pv-tip").startswith("recorded: ") and first.get_attribute("aria-describedby") == "pv-tip"
    for key in ("ArrowDown", "ArrowLeft", "ArrowRight"):
        page.keyboard.press(key)
    at = page.evaluate("[document.activeElement.closest('td').cellIndex, document.activeElement.closest('tr').cells[0].innerText]")
    assert at[0] == 2 and at[1].startswith("KL divergence, mean")
    low = report_from(json.loads(SEEDS.read_text())[1]).find("kld_mean").low
    assert f"95% interval {low:.3g} to" in page.inner_text("#pv-tip") and "int8_matmul" in page.inner_text("#pv-tip")
    page.keyboard.press("Escape")
    assert page.locator("#pv-tip").is_hidden() and not wrong


def test_lists_close_and_choices_are_one_stop_by_keyboard(desk: tuple) -> None:
    page, wrong = desk
    page.focus("#model input")
    stops: list[str] = []
    while len(stops) < 3:
        page.keyboard.press("Tab")
        page.wait_for_timeout(100)  # as a person does: a list takes a moment to open
        stops += page.evaluate("document.activeElement.type === 'radio' ? [document.activeElement.closest('label').innerText] : []")
        assert not page.evaluate("document.activeElement === document.body"), "a list that closes does not take the focus with it"
    assert page.locator("[role=combobox][aria-expanded=true]").count() == 0
    assert stops == ["4", "group", "64"], "bits, granularity and group size are one stop each, on what is chosen"
    page.focus("#layer input")
    page.keyboard.press("Tab")
    page.wait_for_function("document.activeElement.id === 'reset'")
    page.locator("#controls .method fieldset", has_text="Group size").locator("input:checked").focus()
    for key, chosen in (("ArrowRight", "128"), ("ArrowLeft", "64")):
        page.keyboard.press(key)
        page.wait_for_function("chosen => document.activeElement.closest('label.selected')?.innerText === chosen", arg=chosen)
    assert not wrong


def test_a_checkpoint_is_downloaded(desk: tuple, tmp_path: Path) -> None:
    page, wrong = desk
    page.click("#show-commands")
    buttons = page.locator("#commands .act[data-pick]")
    buttons.first.wait_for()
    assert buttons.count() == 8 and page.locator("#commands section").count() == 5  # the baseline has nothing to save
    with page.expect_download() as coming:
        page.locator("#commands section").nth(2).get_by_role("button", name="download it").click()
    coming.value.save_as(tmp_path / "checkpoint.zip")
    page.locator("#status", has_text="RTN 4-bit g64 as compressed-tensors").wait_for()
    with ZipFile(tmp_path / "checkpoint.zip") as archive:
        assert archive.testzip() is None
        config = json.loads(archive.read("config.json"))["quantization_config"]
        assert config["format"] == "pack-quantized" and config["config_groups"]["group_0"]["weights"]["num_bits"] == 4
        assert {"model.safetensors", "tokenizer.json", "README.md", "quantization_explorer.json"} <= set(archive.namelist())
    page.click("#show-commands")
    page.wait_for_function("!document.querySelector('#commands section')")
    assert not wrong


def test_a_mark_chooses_its_layer_everywhere(desk: tuple) -> None:
    page, wrong = desk
    open_tab(page, "layers")
    page.locator("#plot-layers .main-svg").first.wait_for()
    click_mark(page, page.locator("#plot-sensitivity_ranking .point").first)
    page.wait_for_function("document.querySelector('#layer input').value !== '3 q_proj'")
    picked = page.input_value("#layer input")
    box = page.locator("#plot-sensitivity .nsewdrag").bounding_box()
    page.mouse.move(box["x"] + 10, box["y"] + 8)
    page.mouse.click(box["x"] + 12, box["y"] + 10)
    page.wait_for_function("before => document.querySelector('#layer input').value !== before", arg=picked)
    assert page.input_value("#layer input") == "0 q_proj"
    open_tab(page, "weights")
    page.get_by_text("Weights of layers.0.self_attn.q_proj").wait_for()
    assert not wrong


def test_a_point_opens_its_report_and_its_speed_a_batch_sweep(desk: tuple) -> None:
    page, wrong = desk
    open_tab(page, "tradeoffs")
    page.wait_for_selector("#plot-tradeoffs .main-svg")
    for redrawn in (False, True):
        if redrawn:  # it must still be heard
            page.get_by_label("Memory", exact=False).first.check(force=True)
            page.locator("#plot-tradeoffs .xtitle", has_text="MB").wait_for()
        before = page.locator("#point-report .see").all_inner_texts()
        click_mark(page, page.locator("#plot-tradeoffs .point").nth(-1 if redrawn else 0))
        name = "document.querySelector('#point-report .see')?.innerText"
        page.wait_for_function(f"before => {name} && {name} !== before[0]", arg=before)
        card = page.inner_text("#point-report")
        assert "16-bit baseline" in card and "Why is it not faster or smaller?" in card
    page.get_by_role("button", name="SmoothQuant per-channel", exact=True).click()
    page.locator("#point-report .see", has_text="SmoothQuant per-channel").wait_for()
    assert page.locator("#point-report .three .act", has_text="batch sweep").is_visible()
    page.locator("#points-table tr", has_text="LLM.int8()").get_by_role("button", name="batch sweep").click()
    page.locator("#speed-status progress").wait_for()
    assert page.locator("#tab-speed").is_visible() and page.input_value("#speed-which input") == "LLM.int8()"
    page.click("#speed-cancel")
    page.locator("#speed-status progress").wait_for(state="detached")  # cancelled, or ended before a loaded page heard the click
    assert page.inner_text("#speed-status").strip() and not page.locator("#speed-status .error").count()
    assert "LLM.int8()" in " ".join(page.inner_text("#compared").split()) and not wrong
