"""How tests drive the app in a real Chromium: open a page, choose, wait. The fixtures `address` and `browser` are in conftest.py."""

from __future__ import annotations

import shutil

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
PATIENCE = 90_000  # milliseconds: a loaded machine takes its time, and only a test of haste may hold that against it
browser_test = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium on the path (Debian: the package chromium)")]


def own_end(text: str) -> bool:
    """Whether gradio's client complains of a stream that it has just closed itself, as on a reload or a cancel."""
    return any(words in text for words in ("signal is aborted", "BodyStreamBuffer was aborted", "Connection errored out"))


def visit(browser, address: str, width: int, height: int, theme: str = "light", query: str = ""):
    """An open page of a size, and the list that collects its console errors and its requests to other hosts."""
    page = browser.new_page(viewport={"width": width, "height": height})
    page.set_default_timeout(PATIENCE)
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" and not own_end(message.text) else None)
    page.on("pageerror", lambda error: wrong.append(str(error)) if not own_end(str(error)) else None)
    page.on("request", lambda request: wrong.append(request.url) if not request.url.startswith((address, "data:", "blob:")) else None)
    page.add_init_script(ASKING)
    page.goto(f"{address}?__theme={theme}{query}")
    ready, state = ("#run:not([disabled])", "attached") if "tab=" in query else ("#plot-quality .main-svg", "visible")
    page.wait_for_selector(ready, state=state)  # in a class, a phone has no Run
    page.wait_for_load_state("load")
    return page, wrong


def choose(page, label: str) -> None:
    """Clicks a choice among the controls of the shown method."""
    page.locator("#controls .method fieldset label:visible").get_by_text(label, exact=True).first.click()


def wait_for_status(page, words: str, seconds: float = 240) -> None:
    page.locator("#status .status", has_text=words).wait_for(timeout=1000 * seconds)


def settle(page) -> None:
    """Waits until nothing that was asked of the server is still to come, every figure is drawn, the page is as it was a moment ago, and what fades has faded.

    A job that tells its progress may take two minutes: the worker runs below whatever else a small machine does. A page that waits in silence has 20 seconds.
    """
    page.evaluate(SETTLED)


def open_tab(page, name: str) -> None:
    """Opens a tab by its name; on a narrow page the bar scrolls to it."""
    page.locator(f"#tab-{name}-button").click()
    page.locator(f"#tab-{name}").wait_for(state="visible")


# What a page waits for: answers to requests, and the ends of events that it has put into the queue. A stream alone may stay open when all it was opened for
# came by the one before.
ASKING = """(() => {
  const plain = window.fetch, over = new Set(); window.asking = new Map(); window.heard = 0;
  const frame = window.requestAnimationFrame.bind(window); window.frames_asked = 0;
  window.requestAnimationFrame = draw => { window.frames_asked++; return frame(draw) };
  let count = 0;
  const told = text => { const id = /"event_id": ?"(\\w+)"/.exec(text.slice(0, 300))?.[1];
    if (id && /"msg": ?"process_completed"/.test(text.slice(0, 300))) { over.add(id); window.asking.delete(id) } };
  const listen = (reader, decoder = new TextDecoder(), rest = '') => reader.read().then(part => { window.heard = performance.now();
    const texts = (rest + decoder.decode(part.value, {stream: true})).split('\\n\\n');
    rest = texts.pop(); texts.forEach(told);
    return part.done || listen(reader, decoder, rest) });
  window.fetch = async (...given) => {
    const url = String(given[0]?.url ?? given[0]), own = ++count, what = `${url} ${given[1]?.body ?? ''}`.slice(0, 300);
    if (!url.includes('/queue/')) return plain(...given);
    window.asking.set(own, what);
    try { const answer = await plain(...given);
      if (url.includes('/queue/data')) listen(answer.clone().body.getReader()).catch(() => 0);
      else { const id = (await answer.clone().json().catch(() => ({}))).event_id; if (id && !over.has(id)) window.asking.set(id, what) }
      return answer }
    finally { window.asking.delete(own) } };
})()"""

SETTLED = """() => new Promise((done, fail) => {
  const start = performance.now(); let last = start, looked = start;
  const watch = new MutationObserver(() => { last = performance.now() });
  watch.observe(document.body, {subtree: true, childList: true, attributes: true, characterData: true});
  const fading = () => document.getAnimations().some(a => a.playState === 'running' && a.effect.getComputedTiming().endTime < 5000);
  const undrawn = () => [...document.querySelectorAll('.drawing[aria-busy]')].some(figure => figure.getClientRects().length);
  const look = () => { const now = performance.now();
    if (now - looked > 100) last = now; // the page had no time for what it was told
    looked = now;
    if (now - Math.max(last, window.heard) > 20000 || now - start > 120000) { watch.disconnect();
      const what = [...window.asking.values()].join(' | ') || 'nothing';
      fail(new Error(`the page does not come to rest in ${Math.round(now - start)} ms; to come: ${what}`)) }
    else if (window.asking.size || now - last < 150 || fading() || undrawn()) setTimeout(look, 25);
    else { watch.disconnect(); done() } };
  setTimeout(look, 50);
})"""

# Numbers in visible tables, and figures, that no provenance chip speaks for: in the cell, its row, the column's heading, a caption; under a figure.
BARE = """() => {
  const seen = e => e.getBoundingClientRect().width > 0, has = e => e && e.querySelector('.pv');
  const cells = [...document.querySelectorAll('#tabs td')].filter(td => seen(td) && /^[▲▼≈ ]*[+−-]?\\d/.test(td.textContent.trim()));
  const bare = cells.filter(td => { const table = td.closest('table');
    const over = [td.parentElement, table.rows[0].cells[td.cellIndex], table.caption, table.closest('figure')?.querySelector('figcaption')];
    return !over.some(has) });
  const plots = [...document.querySelectorAll('#tabs .js-plotly-plot')].filter(plot => seen(plot) && plot.data?.length);
  const mute = plots.filter(plot => { let e = plot; while (e && !e.id.startsWith('plot-')) e = e.parentElement;
    let next = e.nextElementSibling; while (next && !next.matches('.summary') && !next.querySelector('.summary')) next = next.nextElementSibling;
    return !has(next) });
  return [...bare.map(td => td.closest('table').className + ': ' + td.textContent.trim()), ...mute.map(plot => plot.parentElement.closest('[id^=plot-]').id)];
}"""

LOW_CONTRAST = """() => {
  const parse = c => { const m = c.match(/[\\d.]+/g).map(Number); return c.startsWith('color(srgb') ? m.map((v, i) => i < 3 ? 255 * v : v) : m };
  const over = (top, below) => { const a = top.length > 3 ? top[3] : 1; return [0, 1, 2].map(i => a * top[i] + (1 - a) * below[i]) };
  const light = c => { const f = c.slice(0, 3).map(v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * f[0] + 0.7152 * f[1] + 0.0722 * f[2] };
  const grounds = new Map([[null, [255, 255, 255]]]); // of each element, because neighbours share all that is behind them
  const ground = e => { if (!grounds.has(e)) grounds.set(e, over(parse(getComputedStyle(e).backgroundColor), ground(e.parentElement)));
    return grounds.get(e) };
  const low = [];
  const look = (e, text) => {
    const style = getComputedStyle(e);
    if (!text || !e.getBoundingClientRect().width || style.visibility === 'hidden' || style.opacity === '0') return;
    if (e.closest('script,style,[aria-hidden=true],.hidden') || (e.closest('svg') && !e.closest('.main-svg'))) return;
    const back = ground(e), paint = over(parse(e.closest('svg') ? style.fill : style.color), back);
    const [a, b] = [light(paint), light(back)].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) low.push(ratio.toFixed(2) + ' ' + text.slice(0, 40));
  };
  const page = document.querySelector('.gradio-container'), walk = document.createTreeWalker(page, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) look(walk.currentNode.parentElement, walk.currentNode.textContent.trim());
  for (const e of page.querySelectorAll('textarea, input:not([type=range], [type=checkbox], [type=radio], [type=hidden])')) if (!e.disabled) look(e, e.value);
  return [...new Set(low)];
}"""
