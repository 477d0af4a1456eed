"use strict";
(() => {
  const root = document.documentElement;
  root.classList.add("js");

  // A browser may forbid storage to pages that are opened as files.
  const stored = () => { try { return localStorage.getItem("theme"); } catch { return null; } };
  const store = (theme) => { try { localStorage.setItem("theme", theme); } catch { /* forgotten, then */ } };
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const theme = () => root.dataset.theme ?? (dark.matches ? "dark" : "light");
  if (["dark", "light"].includes(stored())) root.dataset.theme = stored();

  function offerTheme(button) {
    const label = () => { button.textContent = theme() === "dark" ? "Light" : "Dark"; };
    button.addEventListener("click", () => {
      root.dataset.theme = theme() === "dark" ? "light" : "dark";
      store(root.dataset.theme);
      label();
    });
    dark.addEventListener("change", label);
    label();
  }

  const collator = new Intl.Collator("en", { numeric: true });

  function keyOf(cell) {
    if (cell.dataset.value !== undefined) return Number(cell.dataset.value);
    return cell.tagName === "TH" ? cell.textContent : null;
  }

  function compare(a, b) {
    return typeof a === "number" && typeof b === "number" ? a - b : collator.compare(a, b);
  }

  function offerSorting(table) {
    const [body] = table.tBodies;
    const rows = [...body.rows];
    const heads = [...table.querySelectorAll(".sorters [aria-sort]")];
    const following = { none: "ascending", ascending: "descending", descending: "none" };
    for (const head of heads) {
      head.querySelector("button").addEventListener("click", () => {
        const order = following[head.getAttribute("aria-sort")];
        for (const each of heads) each.setAttribute("aria-sort", each === head ? order : "none");
        const keyed = rows.map((row) => ({ row, key: keyOf(row.cells[head.cellIndex]) }));
        const known = keyed.filter(({ key }) => key !== null);
        const gaps = keyed.filter(({ key }) => key === null);
        if (order !== "none") known.sort((a, b) => compare(a.key, b.key) * (order === "ascending" ? 1 : -1));
        body.append(...(order === "none" ? rows : [...known, ...gaps].map(({ row }) => row)));
      });
    }
  }

  const plain = (text) => text.toLowerCase().replace(/[\s_-]+/g, "");
  const labelsOf = (element) => JSON.parse(element.dataset.labels);

  function offerFilters(table) {
    const find = document.getElementById("find");
    const selects = [...document.querySelectorAll("select[data-axis]")];
    const shown = document.getElementById("shown");
    const rows = [...table.tBodies[0].rows];
    const averages = [...table.tFoot.rows];
    const columns = [...table.querySelectorAll(".sorters [data-labels]")];
    const places = new Map();
    for (const cell of table.querySelectorAll("[data-col]")) {
      places.set(cell.dataset.col, [...(places.get(cell.dataset.col) ?? []), cell]);
    }

    const chosen = (element) => {
      const labels = labelsOf(element);
      return selects.every(({ value, dataset }) => !value || !(dataset.axis in labels) || labels[dataset.axis] === value);
    };
    const says = (element, word) => plain(Object.values(labelsOf(element)).join("|")).includes(word);

    function apply() {
      const words = find.value.split(/\s+/).map(plain).filter(Boolean);
      const ofColumns = words.filter((word) => !rows.some((row) => says(row, word))
        && columns.some((column) => says(column, word)));
      const ofRows = words.filter((word) => !ofColumns.includes(word));
      for (const row of rows) row.hidden = !chosen(row) || !ofRows.every((word) => says(row, word));
      for (const row of averages) row.hidden = !chosen(row);
      const open = new Set();
      for (const column of columns) {
        const { col } = column.dataset;
        if (chosen(column) && ofColumns.every((word) => says(column, word))) open.add(col);
        for (const cell of places.get(col)) cell.hidden = !open.has(col);
      }
      for (const group of table.querySelectorAll(".group")) {
        const first = Number(group.dataset.first);
        const inside = Array.from({ length: Number(group.dataset.length) }, (_, place) => String(first + place));
        const width = inside.filter((col) => open.has(col)).length * Number(group.dataset.values);
        group.hidden = width === 0;
        if (width) group.colSpan = width;
      }
      const left = rows.filter((row) => !row.hidden).length;
      shown.textContent = `${left} of ${rows.length} rows and ${open.size} of ${columns.length} columns are shown.`;
    }

    find.addEventListener("input", apply);
    for (const select of selects) select.addEventListener("change", apply);
    apply();  // a browser may have kept what was chosen before a reload
  }

  document.addEventListener("DOMContentLoaded", () => {
    offerTheme(document.getElementById("theme"));
    for (const table of document.querySelectorAll("table.grid")) {
      table.style.setProperty("--corner", `${table.querySelector(".corner").offsetWidth}px`);
      offerSorting(table);
      offerFilters(table);
    }
  });
})();
