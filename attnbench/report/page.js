"use strict";
const held = JSON.parse(document.getElementById("data").textContent);
const all = held.rows.map((values) => Object.fromEntries(held.columns.map((name, at) => [name, values[at]])));
const text = (value) => (value === null || value === undefined ? "" : String(value));

/** An element; what a run holds only ever becomes text. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "checked") element.checked = value;
    else if (value !== null) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

function glyph(name) {
  const [color, shape] = held.series[name];
  const element = make("span", { class: "glyph", "aria-hidden": "true" }, shape);
  element.style.color = `var(--s${color})`;
  return element;
}

// ---------------------------------------------------------------- filters

const chosen = new Map(Object.entries(held.filters).map(([axis, values]) => [axis, new Set(values)]));

function filters() {
  for (const [axis, values] of Object.entries(held.filters)) {
    const boxes = values.map((value) =>
      make("input", {
        type: "checkbox", checked: true, "data-axis": axis, "data-value": value,
        onchange: (event) => { chosen.get(axis)[event.target.checked ? "add" : "delete"](value); update(); },
      }));
    const every = make("button", {
      type: "button", "aria-label": `all or none of ${axis}`,
      onclick: () => {
        const wanted = boxes.some((box) => !box.checked);
        boxes.forEach((box) => { box.checked = wanted; });
        chosen.set(axis, new Set(wanted ? values : []));
        update();
      },
    }, "all / none");
    const labels = values.map((value, at) =>
      make("label", {}, boxes[at], ...(axis === "implementation" ? [glyph(value)] : []), value || "–"));
    document.getElementById("filters").append(
      make("fieldset", {}, make("legend", {}, axis.replaceAll("_", " "), every), make("div", { class: "values" }, ...labels)));
  }
  if (matchMedia("(max-width:900px)").matches) document.querySelector("aside details").open = false;
}

const kept = () => all.filter((row) => [...chosen].every(([axis, values]) => values.has(text(row[axis]))));

// ---------------------------------------------------------------- figures

const views = new Map();
const whole = new Set(); // figures of which every panel is wanted
let turn = 0;

/** The figure for the space that it has; `less` is what it was found to be too wide by. */
function fitted(name, figure, rows, less = 0) {
  const element = document.querySelector(`#figure-${name} .drawing`);
  const note = document.querySelector(`#figure-${name} .panels`);
  note.replaceChildren();
  let shown = rows.filter((row) => figure.needs.every((need) => typeof row[need] === "number"));
  const spec = structuredClone(figure.spec);
  if (figure.by) {
    const panels = [...new Set(shown.map((row) => row[figure.by]))];
    if (panels.length > held.most && !whole.has(name)) {
      const few = new Set(panels.slice(0, held.most));
      shown = shown.filter((row) => few.has(row[figure.by]));
      note.append(`${held.most} of ${panels.length} panels: filter, or `, make("button", {
        type: "button", onclick: () => { whole.add(name); update(); },
      }, "show all"));
    }
    const space = Math.max(element.clientWidth - 12 - figure.room - less, 150);
    const count = Math.min(Math.max(Math.floor(space / 250), 1), 4, Math.max(panels.length, 1));
    spec.columns = count;
    const width = Math.min(Math.floor((space - 26 * (count - 1)) / count) - 4, 460);
    (spec.spec.layer ?? []).concat(spec.spec).forEach((part) => { if (part.width) part.width = width; });
    if (count === 1) spec.resolve = { ...spec.resolve, axis: { x: "independent" } };
  }
  const roofs = new Set(shown.map((row) => row.roof));
  spec.datasets = { rows: shown.concat(held.roofs.filter((row) => roofs.has(row.roof))) };
  return [element, spec, shown.length];
}

/** What is known about a mark; `escaped` makes text of HTML. */
function tip(fields, escaped) {
  const told = Object.entries(fields).filter(([, value]) => !["", "null", "undefined"].includes(text(value)));
  return `<table>${told.map(([name, value]) => `<tr><td class="key">${escaped(name)}</td><td>${escaped(text(value))}</td></tr>`).join("")}</table>`;
}

const OPTIONS = {
  mode: "vega-lite", renderer: "svg", actions: false, ast: true, defaultStyle: false,
  tooltip: { disableDefaultStyle: true, formatTooltip: tip },
  logLevel: 1, // errors only: a layer without rows, such as intervals that nobody has, would warn of its scale
};

async function draw(rows) {
  const mine = ++turn;
  for (const [name, figure] of Object.entries(held.figures)) {
    const [element, spec, count] = fitted(name, figure, rows);
    views.get(name)?.finalize();
    views.delete(name);
    if (!count) {
      element.replaceChildren("Nothing that is chosen has what this figure shows.");
      continue;
    }
    let made = await vegaEmbed(element, spec, OPTIONS);
    const over = element.scrollWidth - element.clientWidth;
    if (figure.by && over > 0 && mine === turn) { // names at an axis are as long as they are
      made.finalize();
      made = await vegaEmbed(element, fitted(name, figure, rows, over + 4)[1], OPTIONS);
    }
    if (mine !== turn) { made.finalize(); return; }
    views.set(name, made);
  }
  document.documentElement.dataset.drawn = String(mine);
}

// ---------------------------------------------------------------- tables

const FIRST = 200;

/** A table that sorts, filters and saves; returns what gives it new rows. */
function table(id, columns, save) {
  const root = document.querySelector(`#${id} .table`);
  let rows = [], by = null, down = false, most = FIRST;
  const search = make("input", { type: "search", placeholder: "filter this table", "aria-label": `filter the table ${id}`, oninput: () => { most = FIRST; render(); } });
  const count = make("span", { role: "status" });
  const body = make("tbody");
  const more = make("button", { type: "button", class: "more", hidden: "", onclick: () => { most = Infinity; render(); } });
  const heads = columns.map((column) => make("th", { scope: "col", class: column.number ? "number" : null },
    make("button", { type: "button", onclick: () => {
      [by, down] = by === column ? [column, !down] : [column, false];
      heads.forEach((head, at) => { columns[at] === by ? head.setAttribute("aria-sort", down ? "descending" : "ascending") : head.removeAttribute("aria-sort"); });
      render();
    } }, column.title)));
  root.append(
    make("div", { class: "tools" }, search,
      make("button", { type: "button", onclick: () => saved(`attnbench-${id}.csv`, save ?? columns.map((c) => [c.title, c.text]), listed()) }, "save as CSV"), count),
    make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `table ${id}` }, make("table", {}, make("thead", {}, make("tr", {}, ...heads)), body)), more);

  function listed() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const found = rows.filter((row) => {
      const told = columns.map((column) => text(column.text(row))).join(" ").toLowerCase();
      return words.every((word) => told.includes(word));
    });
    if (!by) return found;
    const value = by.value ?? by.text;
    const empty = (x) => x === null || x === undefined || x === "";
    return found.sort((one, other) => { // what is empty stays last
      const [a, b] = [value(one), value(other)];
      if (empty(a) || empty(b)) return empty(a) - empty(b);
      const order = typeof a === "number" && typeof b === "number" ? a - b : text(a).localeCompare(text(b), "en", { numeric: true });
      return down ? -order : order;
    });
  }

  function render() {
    const found = listed();
    body.replaceChildren(...found.slice(0, most).map((row) => make("tr", {}, ...columns.map((column, at) =>
      make(at ? "td" : "th", { scope: at ? null : "row", class: column.number ? "number" : column.words ? "words" : null },
        ...(column.glyph ? [glyph(column.text(row)), " "] : []), text(column.text(row)))))));
    count.textContent = `${found.length} of ${rows.length} rows`;
    more.hidden = found.length <= most;
    more.textContent = `show all ${found.length} rows`;
  }
  return (given) => { rows = given; render(); };
}

function saved(name, columns, rows) {
  const cell = (value) => {
    let told = text(value);
    if (typeof value === "string" && /^[=+\-@\t\r]/.test(told) && Number.isNaN(Number(told))) told = `'${told}`; // no formula for a spreadsheet
    return /[",\r\n]/.test(told) ? `"${told.replaceAll('"', '""')}"` : told;
  };
  const lines = [columns.map(([title]) => cell(title)), ...rows.map((row) => columns.map(([, value]) => cell(value(row))))];
  const url = URL.createObjectURL(new Blob([lines.map((line) => line.join(",")).join("\n"), "\n"], { type: "text/csv" }));
  make("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

const field = (name, title = name.replaceAll("_", " "), more = {}) => ({ title, text: (row) => row[name], ...more });
const percent = (value) => (typeof value === "number" ? `${(100 * value).toPrecision(2).replace(/\.0$/, "")} %` : "");

const axes = Object.keys(held.filters).filter((axis) => !["implementation", "seqlen"].includes(axis));
const tables = {
  implementations: table("implementations", [
    field("name", "implementation", { glyph: true }),
    ...["right", "fastest", "tied", "wrong or failed", "unsupported", "other"].map((name) => field(name, name, { number: true })),
  ]),
  reasons: table("reasons", [
    field("status"), field("reason", "reason", { words: true }), field("cells", "cells", { number: true }),
    field("who", "implementations", { words: true }), field("first", "first problem", { words: true }),
  ]),
  cells: table("cells", [
    field("implementation", "implementation", { glyph: true }),
    field("seqlen", "length", { number: true, value: (row) => row.length }),
    ...axes.map((axis) => field(axis)),
    field("status"),
    field("time", "time", { number: true, value: (row) => row.median_s }),
    field("rate", "throughput", { number: true, value: (row) => row.flops_per_s }),
    field("workspace", "workspace", { number: true, value: (row) => row.workspace_bytes }),
    { title: "of error budget", number: true, text: (row) => percent(row.share), value: (row) => row.share },
    field("grade"),
    ...(all.some((row) => typeof row.ratio === "number") ? [{ title: "ratio", number: true, text: (row) => row.ratio === null ? "" : row.ratio.toPrecision(3), value: (row) => row.ratio }] : []),
    { title: "reason", words: true, text: (row) => (row.note === null ? "" : held.reasons[row.note][1]) },
  ], held.csv.map((name) => [name, (row) => row[name]])),
};
const BAD = ["wrong", "impossible", "crashed", "failed", "out of memory", "timed out"];

function byImplementation(rows) {
  const found = new Map();
  for (const row of rows) {
    const name = row.implementation;
    if (!found.has(name)) found.set(name, { name, right: 0, fastest: 0, tied: 0, "wrong or failed": 0, unsupported: 0, other: 0 });
    const line = found.get(name);
    line[row.status === "ok" ? "right" : BAD.includes(row.status) ? "wrong or failed" : row.status === "unsupported" ? "unsupported" : "other"] += 1;
    line.fastest += row.mark === "*";
    line.tied += row.mark === "≈";
  }
  return [...found.values()];
}

function byReason(rows) {
  return held.reasons.map(([status, reason], note) => {
    const cells = rows.filter((row) => row.note === note);
    return { status, reason, cells: cells.length, who: [...new Set(cells.map((row) => row.implementation))].join(", "), first: cells[0]?.problem };
  }).filter((line) => line.cells);
}

// ---------------------------------------------------------------- all together

function update() {
  const rows = kept();
  document.getElementById("count").textContent = `${rows.length} of ${all.length} cells are shown`;
  const names = new Set(rows.filter((row) => row.status === "ok").map((row) => row.implementation));
  document.getElementById("legend").replaceChildren(
    ...Object.keys(held.series).filter((name) => names.has(name)).map((name) => make("li", {}, glyph(name), " ", name)));
  tables.implementations(byImplementation(rows));
  tables.reasons(byReason(rows));
  tables.cells(rows);
  return draw(rows);
}

const THEMES = ["as the system", "light", "dark"];
document.getElementById("theme").addEventListener("click", (event) => {
  const root = document.documentElement;
  const next = THEMES[(THEMES.indexOf(root.dataset.theme ?? THEMES[0]) + 1) % THEMES.length];
  if (next === THEMES[0]) delete root.dataset.theme; else root.dataset.theme = next;
  event.target.textContent = `theme: ${next}`;
});

let width = innerWidth, waiting;
addEventListener("resize", () => {
  if (innerWidth === width) return;
  width = innerWidth;
  clearTimeout(waiting);
  waiting = setTimeout(update, 200);
});
filters();
update();
