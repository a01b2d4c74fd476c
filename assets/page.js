// The page's own script, run once when it has loaded: order columns of the comparison by a row, and save and copy what handlers prepare.
() => {
  const order = (head) => {
    const table = head.closest("table"), row = head.parentElement, now = head.getAttribute("aria-sort");
    const sign = now === "ascending" ? -1 : 1;
    const value = (cell) => { const v = parseFloat(cell.dataset.value); return Number.isNaN(v) ? Infinity : v; };
    const cells = [...row.children].slice(2);
    const places = cells.map((_, i) => i).sort((a, b) => sign * (value(cells[a]) - value(cells[b])));
    for (const line of table.rows) {
      if (line.children.length !== row.children.length) continue;
      const all = [...line.children].slice(2);
      places.forEach((i) => line.appendChild(all[i]));
    }
    table.querySelectorAll("th[aria-sort]").forEach((th) => th.setAttribute("aria-sort", "none"));
    head.setAttribute("aria-sort", sign === 1 ? "ascending" : "descending");
  };
  const sortable = "table.compare th[aria-sort]";
  document.addEventListener("click", (event) => { const head = event.target.closest(sortable); if (head) order(head); });
  document.addEventListener("keydown", (event) => {
    if ((event.key === "Enter" || event.key === " ") && event.target.matches?.(sortable)) { event.preventDefault(); order(event.target); }
  });
}
