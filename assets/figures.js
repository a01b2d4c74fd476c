// How figures are drawn. Gradio hands each new figure to Plotly in its old element, then in a new one, then has it laid out again. Here it is drawn
// once, into an element that stays: at once where it is in sight, else when the browser has nothing to do or just before it is scrolled to.
() => {
  // With a <base> Plotly names patterns, clips and gradients by the address of the moment, and they are gone when it changes. Gradio's is the page's own folder.
  document.querySelector("base")?.remove();
  const NEAR = 300; // pixels beyond the window that count as in sight
  const homes = new Map(); // by the id of gradio's component: the element that Plotly draws into, handed from gradio's old element to its new one
  const waiting = new Map(); // by that element: what is still to be drawn there, newest wins
  const listen = (Plotly) => {
    const { react } = Plotly, { resize } = Plotly.Plots;
    const shown = (home) => home.getClientRects().length > 0;
    const away = (home) => { const box = home.getBoundingClientRect(); return Math.max(box.top - innerHeight, -box.bottom, 0); };
    const draw = (home) => {
      const [data, layout, config] = waiting.get(home);
      waiting.delete(home);
      home.ariaBusy = null;
      react.call(Plotly, home, data, layout, config);
    };
    const approaching = new IntersectionObserver(
      (entries) => entries.forEach(({ target, isIntersecting }) => { if (isIntersecting && waiting.has(target)) draw(target); }),
      { rootMargin: `${NEAR}px` },
    );
    const resized = new ResizeObserver((entries) => entries.forEach(({ target: home, contentRect }) => {
      if (contentRect.width && home._fullLayout && Math.abs(contentRect.width - home._fullLayout.width) > 1 && !waiting.has(home)) resize(home);
    }));
    let idle = 0;
    const later = () => {
      idle ||= (window.requestIdleCallback ?? setTimeout)(() => {
        idle = 0;
        const next = [...waiting.keys()].filter(shown).sort((a, b) => away(a) - away(b))[0];
        if (next) { draw(next); later(); }
      });
    };
    const homeIn = (host) => {
      const id = host.closest("[id^='plot-']")?.id ?? host;
      if (!homes.has(id)) {
        const home = Object.assign(document.createElement("div"), { className: "drawing" });
        homes.set(id, home);
        approaching.observe(home);
        resized.observe(home);
      }
      return homes.get(id);
    };
    Plotly.react = (host, data, layout, config) => {
      const home = homeIn(host);
      if (host.contains(home) || host._fullLayout) return; // gradio is about to make a new element for this very figure
      host.append(home);
      home.style.minHeight = `${layout.height}px`; // nothing jumps while it waits
      home.ariaBusy = "true"; // what stands there is of other values, or nothing
      waiting.set(home, [data, layout, { ...config, responsive: false }]);
      if (shown(home) && away(home) <= NEAR) draw(home);
      else later();
    };
    Plotly.Plots.resize = () => {};
  };
  if (window.Plotly) listen(window.Plotly);
  else {
    let loaded;
    Object.defineProperty(window, "Plotly", { configurable: true, get: () => loaded, set: (value) => { loaded = value; if (value) listen(value); } });
  }
}
