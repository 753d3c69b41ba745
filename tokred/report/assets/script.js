"use strict";
// The page works without this: it makes headers of tables sort them, and opens folded parts on paper.
(() => {
  const number = (cell) => (cell.dataset.v === "" ? NaN : Number(cell.dataset.v));

  function compare(a, b, numeric) {
    const [x, y] = numeric ? [number(a), number(b)] : [a.textContent.trim(), b.textContent.trim()];
    return numeric ? x - y : x.localeCompare(y, "en", { numeric: true });
  }

  const empty = (cell, numeric) => (numeric ? Number.isNaN(number(cell)) : cell.textContent.trim() === "");

  function sort(table, column, up) {
    const body = table.tBodies[0];
    const numeric = table.tHead.rows[0].cells[column].classList.contains("n");
    const rows = [...body.rows].sort((first, second) => {
      const [a, b] = [first.cells[column], second.cells[column]];
      const [noA, noB] = [empty(a, numeric), empty(b, numeric)];
      return noA || noB ? noA - noB : (up ? 1 : -1) * compare(a, b, numeric); // what is empty stays last
    });
    body.append(...rows);
  }

  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      head.setAttribute("aria-sort", "none");
      button.addEventListener("click", () => {
        const up = head.getAttribute("aria-sort") !== "ascending";
        heads.forEach((other) => other.setAttribute("aria-sort", "none"));
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        sort(table, column, up);
      });
    });
  }
  document.documentElement.classList.add("scripted");

  const folded = () => document.querySelectorAll("#classes details:not([open])");
  let opened = [];
  window.addEventListener("beforeprint", () => {
    opened = [...folded()];
    opened.forEach((part) => (part.open = true));
  });
  window.addEventListener("afterprint", () => opened.forEach((part) => (part.open = false)));
})();
