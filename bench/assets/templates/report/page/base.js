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

/* What was deflated and written in base64. */
function inflated(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate")));
}

let store = null; // records are many: unpacked when the first one is looked at
async function record(index) {
  store ??= await inflated($("records").textContent).json();
  return store[index];
}
/* Indented JSON with lists of numbers on one line, as in the record's file. */
function pretty(value, pad = "") {
  const inner = pad + "  ", lists = Array.isArray(value);
  if (value === null || typeof value !== "object" || (lists && !value.some((item) => item && typeof item === "object"))) return lists ? `[${value.map((item) => JSON.stringify(item)).join(", ")}]` : JSON.stringify(value);
  const lines = Object.entries(value).map(([key, item]) => inner + (lists ? "" : JSON.stringify(key) + ": ") + pretty(item, inner));
  const [open, close] = lists ? "[]" : "{}";
  return lines.length ? `${open}\n${lines.join(",\n")}\n${pad}${close}` : open + close;
}
async function show(index) {
  const cell = data.cells[index];
  $("record-title").replaceChildren(marker(cell.method, 14), " " + name(cell));
  $("record-note").textContent = `${cell.model} · ${cell.task}`;
  $("record-text").textContent = "";
  $("record").showModal();
  $("record-text").textContent = pretty(await record(index));
  $("record-text").scrollTop = 0;
}
$("record").addEventListener("click", (event) => {
  if (event.target === $("record")) $("record").close(); // the backdrop
});
