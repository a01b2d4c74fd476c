// The page's own script, run once when it has loaded: provenance chips, tables that can be ordered, and marks and buttons that choose something.
() => {
  // Chips, and names of rows: a letter says the rest when it is pointed at, focused or tapped. Of a table one chip is reached with Tab, the others with the arrow keys.
  const tip = Object.assign(document.createElement("div"), { id: "pv-tip", role: "tooltip", hidden: true });
  document.body.append(tip);
  let told = null;
  const hide = () => { told?.removeAttribute("aria-describedby"); told = null; tip.hidden = true; };
  const tell = (chip) => {
    if (told === chip) return;
    hide();
    told = chip;
    tip.textContent = `${chip.ariaLabel ?? chip.firstChild.textContent.trim()}: ${chip.dataset.how}`;
    tip.hidden = false;
    chip.setAttribute("aria-describedby", "pv-tip");
    const box = chip.getBoundingClientRect(), own = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(8, Math.min(box.left, innerWidth - own.width - 8))}px`;
    tip.style.top = `${box.bottom + own.height + 12 > innerHeight ? box.top - own.height - 6 : box.bottom + 6}px`;
  };
  const chipOf = (target) => target.closest?.(".pv, th[data-how]") ?? target.closest?.("td:has(> .pv)")?.querySelector(":scope > .pv");
  document.addEventListener("mouseover", (event) => { const chip = chipOf(event.target); if (chip) tell(chip); else if (told !== document.activeElement) hide(); });
  document.addEventListener("focusin", (event) => { if (event.target.matches?.(".pv, th[data-how]")) tell(event.target); else hide(); });
  document.addEventListener("scroll", hide, true);
  const neighbour = (chip, key) => {
    const all = [...chip.closest("table").querySelectorAll(".pv")], at = all.indexOf(chip);
    if (key === "ArrowRight" || key === "ArrowLeft") return all[at + (key === "ArrowRight" ? 1 : -1)];
    const column = chip.closest("td, th").cellIndex, rest = key === "ArrowDown" ? all.slice(at + 1) : all.slice(0, at).reverse();
    return rest.find((other) => other.closest("td, th").cellIndex === column);
  };

  // Tables: a row's name orders the columns of the comparison, a column's name the rows of the points.
  const value = (cell) => { const v = parseFloat(cell.dataset.value); return Number.isNaN(v) ? Infinity : v; };
  const order = (head) => {
    const table = head.closest("table"), sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1, at = head.cellIndex;
    if (table.matches(".points")) {
      const rows = [...table.tBodies[0].rows].sort((a, b) => { const [x, y] = [value(a.cells[at]), value(b.cells[at])]; return x === y ? 0 : sign * (x - y); });
      table.tBodies[0].append(...rows);
    } else {
      const row = head.parentElement, cells = [...row.children].slice(2);
      const places = cells.map((_, i) => i).sort((a, b) => sign * (value(cells[a]) - value(cells[b])));
      for (const line of table.rows) {
        if (line.children.length !== row.children.length) continue;
        const all = [...line.children].slice(2);
        places.forEach((i) => line.appendChild(all[i]));
      }
    }
    table.querySelectorAll("th[aria-sort]").forEach((th) => th.setAttribute("aria-sort", "none"));
    head.setAttribute("aria-sort", sign === 1 ? "ascending" : "descending");
  };
  const sortable = "table.compare th[aria-sort]";

  // Choices "kind:key": a button's data-pick, or the id of a mark in a figure (of a heat map's cell: in the trace's meta.picks). The hidden box
  // #pick-KIND takes the key; the server checks it. A figure is listened to when the pointer first meets it.
  const pick = (choice) => {
    const cut = choice.indexOf(":"), box = document.querySelector(`#pick-${choice.slice(0, cut)} :is(textarea, input)`);
    if (!box) return;
    box.value = `${choice.slice(cut + 1)} ${Date.now()}`; // the time makes a second click on the same a change as well
    box.dispatchEvent(new Event("input", { bubbles: true }));
  };
  const chosen = (point) => point.id ?? (Array.isArray(point.pointNumber) ? point.data.meta?.picks?.[point.pointNumber[0]]?.[point.pointNumber[1]] : undefined);
  document.addEventListener("pointerover", (event) => {
    const plot = event.target.closest?.(".js-plotly-plot");
    if (!plot?.on) return;
    plot.classList.toggle("pickable", plot.data.some((trace) => trace.ids || trace.meta?.picks));
    if (plot.dataset.heard) return;
    plot.dataset.heard = "yes";
    plot.on("plotly_click", ({ points }) => { const choice = points.map(chosen).find(Boolean); if (choice) pick(choice); });
  });

  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-pick]"), head = event.target.closest(sortable), chip = event.target.closest(".pv, th[data-how]");
    const fold = event.target.closest(".fold");
    const copy = event.target.closest("[data-copy]"); // a command: the one below the button
    if (copy) {
      const line = copy.parentElement.nextElementSibling;
      const select = () => getSelection().selectAllChildren(line); // there is no clipboard on a page that came by plain HTTP
      if (navigator.clipboard) navigator.clipboard.writeText(line.textContent).then(() => { copy.textContent = "Copied"; }, select); else select();
    } else if (fold) fold.ariaExpanded = fold.ariaExpanded !== "true";
    else if (button) pick(button.dataset.pick);
    else if (head || chip) { if (head) order(head); if (chip) tell(chip); }
  });

  // What status lines say is read aloud from one place: a new line at once, of work that goes on each new stage and a line every ten seconds, as the lines
  // themselves change several times a second. What a line says when it is first seen is no news.
  const SOON = 2500, LONG = 10_000; // milliseconds from one line that is read to the next: of a new stage, of the same
  const voice = Object.assign(document.createElement("div"), { id: "spoken" }), heard = new WeakMap();
  voice.setAttribute("role", "status");
  document.body.append(voice);
  const speak = (line) => {
    const before = heard.get(line.parentElement), text = line.textContent.trim(), stage = line.matches(".busy") ? line.dataset.stage : null, now = performance.now();
    const due = before && (stage ? now - before.at > (stage === before.stage ? LONG : SOON) : text !== before.text);
    if (due && line.getBoundingClientRect().width) voice.textContent = text;
    if (due || !before) heard.set(line.parentElement, { text, stage, at: now });
  };
  const said = new MutationObserver((changes) => {
    const lines = new Set(); // gradio changes texts and classes of a line, or puts in a new one
    for (const { target, addedNodes } of changes) {
      lines.add((target.nodeType === 1 ? target : target.parentElement)?.closest(".status"));
      for (const node of addedNodes) if (node.nodeType === 1) for (const line of [node, ...node.querySelectorAll(".status")]) if (line.matches(".status")) lines.add(line);
    }
    lines.delete(null);
    lines.delete(undefined);
    lines.forEach(speak);
  });
  const page = document.querySelector("#page"); // none in a report
  if (page) said.observe(page, { subtree: true, childList: true, characterData: true });
  document.querySelectorAll("#page .status").forEach(speak);

  // By keyboard: a list that is left closes, and the choices of a question are one stop, walked with the arrow keys. Gradio names each radio by itself,
  // and again after every choice; of the question it names none.
  const named = (fieldset) => { fieldset.ariaLabel = fieldset.querySelector("[data-testid=block-info]")?.textContent.trim() || null; };
  const grouped = (radio) => {
    const fieldset = radio.closest("fieldset"), all = [...(fieldset?.querySelectorAll("input[type=radio]") ?? [])];
    all.forEach((other) => { other.name = all[0].name; });
    if (fieldset) named(fieldset);
    return all;
  };
  document.querySelectorAll("fieldset").forEach(named);
  document.addEventListener("keydown", (event) => {
    const on = event.target;
    if (event.key === "Tab" && on.matches?.("[role=combobox]")) {
      document.getElementById(on.getAttribute("aria-controls"))?.setAttribute("tabindex", "-1"); // what scrolls is a stop, and this one is gone in a moment
      on.dispatchEvent(new KeyboardEvent("keydown", { key: "Escape", bubbles: true }));
    }
    if (on.type === "radio") grouped(on);
  });
  document.addEventListener("focusin", (event) => {
    const on = event.target;
    if (on.type !== "radio") return;
    const all = grouped(on);
    if (on.matches(":focus-visible") && !all.includes(event.relatedTarget)) all.find((radio) => radio.checked)?.focus();
  });
  // What is compared: each name has the colour of its figures, by its place, which its key says ("key.place"). The crosses that take a configuration off the
  // page are named after it; gradio numbers them, and again when the list changes.
  const compared = document.querySelector("#compared");
  let places = [];
  window.seated = (keys) => { places = keys.map((key) => key.split(".")[1]); nameCrosses(); setTimeout(nameCrosses); };
  const nameCrosses = () => {
    compared.querySelectorAll(".token").forEach((token, i) => {
      called(token.querySelector(".token-remove"), `Remove ${token.innerText.trim()}`);
      token.style.setProperty("--own", `var(--c${places[i] ?? i})`);
    });
    called(compared.querySelector(".remove-all"), "Take all but the baseline off the page");
  };
  const called = (cross, name) => { if (cross && cross.title !== name) cross.title = cross.ariaLabel = name; };
  if (compared) {
    new MutationObserver(nameCrosses).observe(compared, { subtree: true, childList: true, characterData: true, attributeFilter: ["title"] });
    nameCrosses();
  }
  // On a narrow page the bar of tabs scrolls: the open one is brought into it. By keyboard it is one stop, walked with the arrow keys.
  const bar = document.querySelector("#tabs > .tab-wrapper > [role=tablist]");
  const bringOpen = () => {
    const open = bar.querySelector("[aria-selected=true]");
    if (open) for (const tab of bar.querySelectorAll("[role=tab]")) tab.tabIndex = tab === open ? 0 : -1;
    if (open) bar.scrollLeft = open.offsetLeft - bar.offsetLeft - (bar.clientWidth - open.offsetWidth) / 2;
  };
  if (bar) {
    new MutationObserver(bringOpen).observe(bar, { subtree: true, childList: true, attributeFilter: ["aria-selected"] });
    new ResizeObserver(bringOpen).observe(bar); // tells at once, too: a link may have opened its tab before this script ran
  }
  // Whoever came to a class by its link on a phone sees the question first.
  document.body.classList.toggle("joined", new URLSearchParams(location.search).has("room") && matchMedia("(max-width: 700px)").matches);
  document.addEventListener("keydown", (event) => {
    const on = event.target;
    if (event.key === "Escape") hide();
    if ((event.key === "Enter" || event.key === " ") && on.matches?.(sortable)) { event.preventDefault(); order(on); }
    if (on.matches?.("[role=tab]") && on.parentElement === bar) {
      const all = [...bar.querySelectorAll("[role=tab]")], by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      const next = event.key === "Home" ? all[0] : event.key === "End" ? all.at(-1) : by && all[(all.indexOf(on) + by + all.length) % all.length];
      if (next) { event.preventDefault(); next.focus(); }
    }
    if (event.key.startsWith("Arrow") && on.matches?.("table .pv")) {
      const next = neighbour(on, event.key);
      if (next) { event.preventDefault(); on.tabIndex = -1; next.tabIndex = 0; next.focus(); }
    }
  });
}
