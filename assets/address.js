// The address bar: another tab is an entry of the history, and what changes the page is written into it once the page has been left alone for a moment.
// The link itself is the server's to make (explorer/ui/address.py); `carry` gets it.
() => {
  const QUIET = 1000; // milliseconds without a change before the link is asked for
  const AT_ONCE = 50; // the same where something was taken off, or the page says what it shows now: a reload must not bring the old page back
  const APART = ["learn", "trainer", "classroom"]; // tabs in which nothing of the rest changes: the server is not asked
  const bar = document.querySelector("#tabs > .tab-wrapper"), first = document.querySelector("#tabs [role=tab]").id;
  const nameOf = (button) => button?.id.slice("tab-".length, -"-button".length);
  const shown = () => nameOf(bar.querySelector("[role=tab][aria-selected=true]"));
  const arrived = new URLSearchParams(location.search);
  const placeIn = (search) => search.get("story") && [search.get("story"), search.get("step") ?? "1"];
  let room = arrived.get("room"), place = placeIn(arrived); // the class that was joined; [story, step from 1] of the walkthrough, null for the first
  const write = (how, search) => {
    if (leaving) return;
    const named = search.get("tab") ?? nameOf({ id: first });
    for (const [name, value] of new URLSearchParams(location.search)) if (name.startsWith("__")) search.set(name, value); // gradio's own, such as the theme
    if (named === "classroom") { if (room) search.set("room", room); else search.delete("room"); }
    if (named === "learn" && place) { search.set("story", place[0]); search.set("step", place[1]); }
    const text = search.toString();
    history[how](null, "", location.pathname + (text && `?${text}`) + location.hash);
  };
  // A server that was restarted knows nothing of what is on the page, so the page is opened again by its address; where gradio finds no server, it does so
  // itself. Every answer names the process that gave it (explorer/server/guard.py), as gradio's configuration does.
  const process = window.gradio_config?.app_id, last = sessionStorage.getItem("process"), [{ type }] = performance.getEntriesByType("navigation");
  const restarted = type === "reload" && last !== null && last !== String(process);
  if (process) sessionStorage.setItem("process", process);
  const plain = window.fetch;
  let leaving = false;
  window.fetch = async (...asked) => {
    const answer = await plain(...asked), told = answer.headers.get("x-process");
    if (told && process && Number(told) !== process && sessionStorage.getItem("left") !== told) {
      sessionStorage.setItem("left", told); // once, whatever stands between the two
      leaving = true;
      location.reload();
    }
    return leaving ? new Promise(() => {}) : answer;
  };
  const inAddress = () => new URLSearchParams(location.search).get("tab") ?? nameOf({ id: first });

  let wait = 0, tries = 0;
  const written = () => {
    if (APART.includes(shown())) write("replaceState", new URLSearchParams(location.search));
    else ask("#address-asked", Date.now());
  };
  const soon = () => { clearTimeout(wait); wait = setTimeout(written, QUIET); };
  const atOnce = () => setTimeout(written, AT_ONCE);
  const ask = (box, text) => {
    const input = document.querySelector(`${box} :is(textarea, input)`);
    input.value = text;
    input.dispatchEvent(new Event("input", { bubbles: true }));
  };
  // A step of a walkthrough is an entry of the history, too: `at` counts from 0.
  window.stepped = (story, at) => {
    const before = String(place);
    place = [story, String(at + 1)];
    if (inAddress() === "learn" && String(place) !== before) write("pushState", new URLSearchParams(location.search));
  };
  window.inRoom = (code) => { if ((room ?? "") !== code) { room = code || null; soon(); } };
  window.carry = (query) => {
    const search = new URLSearchParams(query);
    if ((search.get("tab") ?? nameOf({ id: first })) === shown()) { tries = 0; write("replaceState", search); }
    else if (tries++ < 3) soon(); // the server has yet to hear of the tab
  };
  for (const kind of ["input", "change", "click"]) document.addEventListener(kind, (event) => { if (event.isTrusted) soon(); });
  document.querySelector("#compared").addEventListener("click", (event) => { if (event.target.closest(".token-remove, .remove-all")) atOnce(); }, true);

  // Whoever came by a link, or has run something, is no newcomer.
  const settled = () => document.body.classList.add("known");
  if ([...arrived.keys()].some((name) => !name.startsWith("__"))) settled();
  const line = document.querySelector("#status");
  new MutationObserver(() => {
    if (line.querySelector(".status:not(.busy)")) { atOnce(); soon(); }
    if (line.querySelector(".status.done")) settled();
  }).observe(line, { subtree: true, childList: true });

  new MutationObserver(() => {
    const now = shown();
    if (now !== "classroom") document.body.classList.remove("presenting"); // the way out of the presenter's view is in its tab
    if (!now || now === inAddress()) return;
    const search = new URLSearchParams(location.search);
    for (const name of [...search.keys()]) if (name.includes(".") || ["story", "step", "room"].includes(name)) search.delete(name); // the other tab's own
    if (now === nameOf({ id: first })) search.delete("tab"); else search.set("tab", now);
    write("pushState", search);
    if (document.querySelector("#commands pre")) document.querySelector("#show-commands").click(); // they belong to the tab they were opened in
    soon();
  }).observe(bar, { subtree: true, childList: true, attributeFilter: ["aria-selected"] });
  const open = (name) => {
    const at = document.querySelector("header").dataset.tabs.split(" ").indexOf(name);
    const title = bar.querySelector("[aria-hidden=true]").children[at]?.textContent; // gradio's list of all titles; those that do not fit are in its menu
    (document.getElementById(`tab-${name}-button`) ?? [...bar.querySelectorAll(".overflow-dropdown button")].find((item) => item.textContent === title))?.click();
  };
  addEventListener("popstate", () => {
    if (inAddress() !== shown()) open(inAddress());
    const asked = placeIn(new URLSearchParams(location.search));
    if (inAddress() === "learn" && String(asked) !== String(place)) {
      place = asked;
      ask("#pick-step", `${asked?.join(":") ?? ":1"} ${Date.now()}`);
    }
    soon();
  });
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[data-tab]");
    if (link && !event.ctrlKey && !event.metaKey) { event.preventDefault(); open(link.dataset.tab); }
  });

  // A run ends with its page: this tab keeps what was asked for (explorer/ui/again.py), and the page that takes its place goes on with it, once. Two runs
  // are asked for one after the other, as they were. A word of a cancelled run may still be on its way, so what counts is the button that was pressed last.
  let pressed = "";
  document.addEventListener("click", (event) => { pressed = event.target.closest("#run, #cancel")?.id ?? pressed; });
  addEventListener("pagehide", () => { if (window.going && pressed !== "cancel") sessionStorage.setItem("going", window.going); });
  // Sweeps (explorer/ui/swept.py): this tab keeps how far one came, and whether Cancel stopped it, until another page is opened here.
  window.keep = (name, text) => { if (text) sessionStorage.setItem(`kept-${name}`, text); else sessionStorage.removeItem(`kept-${name}`); };
  document.addEventListener("click", (event) => {
    const id = event.target.closest("#sweep-run, #sweep-cancel, #speed-cancel")?.id;
    if (id === "speed-cancel") window.keep("batch", "");
    else if (id) window.keep("stopped", id === "sweep-cancel" ? "yes" : "");
  });
  const sweptBefore = () => {
    const kept = (name) => sessionStorage.getItem(`kept-${name}`), how = restarted ? "restart" : type;
    if (type !== "reload") for (const name of ["sweep", "batch", "stopped"]) window.keep(name, "");
    // Once the tab that the page opens on has been drawn, whose answer would take the place of points that come from the store at once.
    if (kept("sweep")) setTimeout(() => ask("#go-on-sweep", `${kept("stopped") ? "stopped" : how} ${kept("sweep")}`), 2 * QUIET);
    if (kept("batch")) ask("#go-on-batch", `${how} ${Date.now()}`);
    window.keep("batch", "");
  };
  window.goOn = (line, said) => { // gives the status line of the page: said, where the server was restarted and nothing goes on
    const links = JSON.parse(sessionStorage.getItem("going") ?? "[]");
    sweptBefore();
    sessionStorage.removeItem("going");
    links.forEach((link, i) => setTimeout(() => ask("#go-on", `${restarted ? "restart" : type} ${link}`), i * QUIET));
    return restarted && !links.length && !line.includes("status error") ? said : line;
  };
}
