"use strict";
// Menu, sorting, filters, CSV and zoom of the report. Nothing is loaded and nothing is stored.
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
// the number a cell is about: the value at the end where it is "start → end (peak)"
const number = (text) => {
  const found = text.slice(text.indexOf("\u2192") + 1).replaceAll(",", "").replaceAll("\u2212", "-").match(/^[^\d+-]*?([+-]?\d+(\.\d+)?([eE][+-]?\d+)?)/);
  return found ? Number(found[1]) : NaN;
};
const compare = (a, b, numeric) => {
  if (a === "" || b === "") return (a === "") - (b === "");
  if (numeric) return number(a) - number(b);
  return a.localeCompare(b, undefined, { numeric: true });
};
for (const button of all("th button")) {
  button.addEventListener("click", () => {
    const head = button.parentElement, table = head.closest("table"), body = table.tBodies[0];
    const down = head.getAttribute("aria-sort") === "ascending";
    all("th", table).forEach((th) => th.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const cell = (row) => row.cells[head.cellIndex].textContent.trim();
    const filled = [...body.rows].map(cell).filter((text) => text !== "");
    const numeric = !head.classList.contains("left") && filled.filter((t) => !isNaN(number(t))).length * 2 > filled.length;
    const rows = [...body.rows].sort((a, b) => {
      const [x, y] = [cell(a), cell(b)];
      const unknown = (t) => t === "" || (numeric && isNaN(number(t)));
      if (unknown(x) || unknown(y)) return unknown(x) - unknown(y);
      return (down ? -1 : 1) * compare(x, y, numeric);
    });
    body.append(...rows);
  });
}
const search = document.getElementById("search");
const choices = all("select[data-column]");
const filter = () => {
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const table of all("table[id]")) {
    const heads = all("th", table).map((th) => th.textContent.trim());
    const wanted = choices.filter((c) => c.value !== "" && heads.includes(c.dataset.column));
    let shown = 0;
    for (const row of table.tBodies[0].rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !(
        words.every((word) => text.includes(word)) &&
        wanted.every((c) => row.cells[heads.indexOf(c.dataset.column)].textContent.trim() === c.value)
      );
      shown += !row.hidden;
    }
    const count = document.querySelector(`[data-count="${table.id}"]`);
    count.textContent = `${shown} of ${table.tBodies[0].rows.length} rows`;
  }
};
search.addEventListener("input", filter);
choices.forEach((choice) => choice.addEventListener("change", filter));
document.getElementById("clear").addEventListener("click", () => {
  search.value = "";
  choices.forEach((choice) => (choice.value = ""));
  filter();
});
filter();
const quoted = (text) => (/[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
// a cell that begins like a formula is shown as text by spreadsheets, unless it is a number
const safe = (text) => (/^[=+@\t\u2212-]/.test(text) && isNaN(Number(text.replace("\u2212", "-"))) ? `'${text}` : text);
for (const button of all("[data-csv]")) {
  button.addEventListener("click", () => {
    const table = document.getElementById(button.dataset.csv);
    const rows = [table.tHead.rows[0], ...[...table.tBodies[0].rows].filter((row) => !row.hidden)];
    const text = rows.map((row) => [...row.cells].map((cell) => quoted(safe(cell.textContent.trim()))).join(",")).join("\n");
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob(["\ufeff", text, "\n"], { type: "text/csv" }));
    link.download = `${button.dataset.name}_shown.csv`;
    link.click();
    URL.revokeObjectURL(link.href);
  });
}
const menu = document.getElementById("menu"), wide = matchMedia("(min-width: 70rem)");
menu.open = wide.matches;
wide.addEventListener("change", () => (menu.open = wide.matches));
const links = all("nav a", menu);
links.forEach((link) => link.addEventListener("click", () => (menu.open = wide.matches)));
const here = new IntersectionObserver((entries) => {
  for (const entry of entries.filter((e) => e.isIntersecting)) {
    links.forEach((link) => link.toggleAttribute("aria-current", link.hash === `#${entry.target.id}`));
  }
}, { rootMargin: "-10% 0px -80% 0px" });
all("main > section").forEach((section) => here.observe(section));
addEventListener("beforeprint", () => all("details.notes, .verdict details").forEach((part) => (part.open = true)));
for (const figure of all("figure:not(.chart)")) {
  const view = figure.querySelector(".view"), image = view.querySelector("img");
  let zoom = 1;
  const set = (value) => {
    const middle = [(view.scrollLeft + view.clientWidth / 2) / zoom, (view.scrollTop + view.clientHeight / 2) / zoom];
    zoom = Math.min(12, Math.max(1, value));
    const whole = Math.min(view.clientWidth, image.naturalWidth || view.clientWidth);
    image.style.maxWidth = zoom === 1 ? "" : "none";
    image.style.width = zoom === 1 ? "" : `${whole * zoom}px`;
    view.scrollLeft = middle[0] * zoom - view.clientWidth / 2;
    view.scrollTop = middle[1] * zoom - view.clientHeight / 2;
  };
  figure.querySelector("[data-zoom=in]").addEventListener("click", () => set(zoom * 1.5));
  figure.querySelector("[data-zoom=out]").addEventListener("click", () => set(zoom / 1.5));
  figure.querySelector("[data-zoom=reset]").addEventListener("click", () => set(1));
  view.addEventListener("wheel", (event) => {
    if (!event.ctrlKey) return;
    event.preventDefault();
    set(zoom * (event.deltaY < 0 ? 1.2 : 1 / 1.2));
  }, { passive: false });
  let drag = null;
  view.addEventListener("pointerdown", (event) => {
    drag = [event.clientX + view.scrollLeft, event.clientY + view.scrollTop];
    view.setPointerCapture(event.pointerId);
    event.preventDefault();
  });
  view.addEventListener("pointermove", (event) => {
    if (drag) [view.scrollLeft, view.scrollTop] = [drag[0] - event.clientX, drag[1] - event.clientY];
  });
  view.addEventListener("pointerup", () => (drag = null));
}
