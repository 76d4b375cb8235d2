const data = JSON.parse(document.getElementById("data").textContent);
const NS = "http://www.w3.org/2000/svg"; // a name, not an address
const $ = (id) => document.getElementById(id);

/* Make an element. Strings become text, never markup: names come from records. */
function make(space, tag, attributes = {}, children = []) {
  const node = space ? document.createElementNS(space, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value !== false && value != null) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...[children].flat().filter((child) => child != null));
  return node;
}
const el = (tag, attributes, children) => make("", tag, attributes, children);
const svg = (tag, attributes, children) => make(NS, tag, attributes, children);

const known = (value) => value !== null && value !== undefined;
const minus = (text) => text.replace("-", "−");
const fixed = (value, digits) => (known(value) ? minus(value.toFixed(digits)) : "–");
const signed = (value, digits) => {
  const text = fixed(value, digits);
  return !known(value) || !Number(value.toFixed(digits)) ? text.replace("−", "") : value > 0 ? "+" + text : text;
};
/* Three significant digits, without an exponent. */
const short = (value) => {
  if (!known(value)) return "–";
  const size = value ? Math.floor(Math.log10(Math.abs(value))) : 0;
  return fixed(value, Math.min(6, Math.max(0, 2 - size)));
};
const percent = (panel) => panel.unit === "%";
const accuracy = (panel, value) => fixed(value, percent(panel) ? 1 : 3) + (percent(panel) ? " %" : "");

function options(select, entries, chosen) {
  select.replaceChildren(...entries.map(([value, text]) => el("option", { value, selected: value === chosen }, text)));
}

/* Ink serves for black, which no dark page could show. */
function look(method) {
  const { color, path } = data.looks[method];
  return { path, style: `--c:${color === "#000000" ? "var(--ink)" : color}` };
}
function marker(method, size = 11) {
  const { path, style } = look(method);
  return svg("svg", { viewBox: "-.6 -.6 1.2 1.2", width: size, height: size, class: "marker", style, "aria-hidden": "true" },
    svg("path", { d: path }));
}
const name = (cell) => [cell.method, cell.setting].filter(Boolean).join(" ");
const batches = [...new Set(data.cells.flatMap((cell) => Object.keys(cell.speeds)))].sort((a, b) => a - b);

/* The models and tasks by name: their numbers change with the records. */
const titled = (option) => data.panels[option.value]?.title ?? "all";

/* The cells that no other one beats on two axes; what other load disturbed neither beats nor is unbeaten. An axis has `of`,
   the way that is `better` (1 or -1), and may tell what is `disturbed`. */
function front(cells, x, y) {
  const better = (axis, a, b) => axis.better * (axis.of(a) - axis.of(b));
  const able = cells.filter((cell) => [x, y].every((axis) => known(axis.of(cell)) && !axis.disturbed?.(cell)));
  able.sort((a, b) => better(x, b, a) || better(y, b, a)); // the best across first: what follows must be better up
  let last = null;
  return able.filter((cell) => {
    const beaten = last && better(y, cell, last) <= 0 && (better(x, cell, last) < 0 || better(y, cell, last) < 0);
    if (!beaten) last = cell;
    return !beaten;
  });
}

/* What was deflated and written in base64. */
function inflated(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate")));
}
