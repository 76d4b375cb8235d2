const HEIGHT = 440;
const EDGE = { top: 14, right: 18, bottom: 46, left: 58 };
const REACH = 40; // pixels
const hidden = new Set();
let focused = 0; // which point the keyboard is on

/* What an axis may show: its value of a cell, its interval, and which way is better. */
const AXES = {
  accuracy: { of: (c) => c.accuracy_value, ends: (c) => [c.accuracy_low, c.accuracy_high], better: 1,
    title: (p) => `${p.metric}${p.unit ? ` (${p.unit})` : ""}` },
  gmacs: { of: (c) => c.gmacs, better: -1, title: (p) => `GMACs (${p.scope})`, label: "GMACs" },
  left: { of: (c) => c.gmacs_pct_of_unreduced, better: -1, title: () => "GMACs, % of unreduced" },
  ...Object.fromEntries(batches.map((b) => [`speed${b}`, {
    of: (c) => c.speeds[b]?.[1], ends: (c) => c.speeds[b]?.slice(2, 4) ?? [null, null], better: 1, disturbed: (c) => c.speeds[b]?.[5],
    title: () => `measured speed-up (×), batch ${b}` }])),
  ...Object.fromEntries(batches.map((b) => [`ms${b}`, {
    of: (c) => c.speeds[b]?.[0], better: -1, disturbed: (c) => c.speeds[b]?.[5], title: () => `median latency (ms), batch ${b}` }])),
  memory: { of: (c) => c.peak_mib, better: -1, title: (p) => `peak memory (MiB), ${p.memory}`, label: "peak memory (MiB)" },
  tokens: { of: (c) => c.tokens, better: -1, title: () => "tokens in a block, mean over blocks" },
};

const plotted = () => data.cells.map((cell, index) => ({ cell, index }))
  .filter(({ cell }) => cell.panel === Number($("panel").value));

function chooseAxes() {
  const panel = data.panels[$("panel").value];
  const own = plotted();
  const there = Object.keys(AXES).filter((key) => own.some(({ cell }) => known(AXES[key].of(cell))));
  const entries = there.map((key) => [key, AXES[key].label ?? AXES[key].title(panel)]);
  const keep = (select, wanted) => [$(select).value, ...wanted].find((key) => there.includes(key));
  const x = keep("x", ["gmacs", "tokens"]), y = keep("y", ["accuracy", `speed${batches.at(-1)}`]);
  options($("x"), entries, x);
  options($("y"), entries, y);
}

function chooseMethods() {
  const methods = [...new Set(plotted().map(({ cell }) => cell.method))].sort();
  const button = (text, pressed, act, more = {}) => el("button", { type: "button", "aria-pressed": pressed, click: act, ...more }, text);
  const flip = (method) => { hidden.has(method) ? hidden.delete(method) : hidden.add(method); };
  const legend = $("legend");
  legend.replaceChildren(...methods.map((method) => button([marker(method), " " + method], String(!hidden.has(method)), (event) => {
    flip(method);
    event.currentTarget.setAttribute("aria-pressed", String(!hidden.has(method)));
    draw();
    remember();
  }, { mouseenter: () => emphasise(method), mouseleave: () => emphasise(null), "data-method": method })));
  for (const [text, all] of [["all", true], ["none", false]]) {
    legend.append(el("button", { type: "button", class: "plain", "aria-label": `Show ${text} methods`, click: () => {
      methods.forEach((method) => (all ? hidden.delete(method) : hidden.add(method)));
      legend.querySelectorAll("[data-method]").forEach((node) => node.setAttribute("aria-pressed", String(all)));
      draw();
      remember();
    } }, text));
  }
}
function emphasise(method) {
  for (const node of $("figure").querySelectorAll("[data-method]")) node.classList.toggle("faint", method !== null && node.dataset.method !== method);
}

/* Ticks at 1, 2 or 5 times a power of ten. */
function ticks(low, high, count) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  const places = [];
  for (let i = Math.ceil(low / step); i * step <= high; i++) places.push([i * step, fixed(i * step, digits)]);
  return places;
}
function scale(axis, points, from, to) {
  const ends = points.flatMap(({ cell }) => [axis.of(cell), ...(axis.ends?.(cell) ?? [])]).filter(known);
  let low = Math.min(...ends), high = Math.max(...ends);
  const pad = 0.06 * (high - low) || Math.abs(high) * 0.06 || 1;
  [low, high] = [low - pad, high + pad];
  return { low, high, at: (value) => from + ((value - low) / (high - low)) * (to - from) };
}
/* Whether other load disturbed what a point stands for. */
const shaky = (cell, ...axes) => axes.some((axis) => axis.disturbed?.(cell));
function draw() {
  const panel = data.panels[$("panel").value];
  const x = AXES[$("x").value], y = AXES[$("y").value];
  const box = $("figure"), width = Math.max(280, box.clientWidth), height = Math.min(HEIGHT, Math.max(300, width * 0.85));
  const all = x && y ? plotted().filter(({ cell }) => known(x.of(cell)) && known(y.of(cell))) : [];
  const points = all.filter(({ cell }) => !hidden.has(cell.method));
  $("plot-note").textContent = note(panel, points.length, points.some(({ cell }) => shaky(cell, x, y)));
  if (!points.length) return box.replaceChildren(el("p", { class: "empty" }, all.length ? "No method is switched on." : "No cell has both of these."));
  const h = scale(x, points, EDGE.left, width - EDGE.right), v = scale(y, points, height - EDGE.bottom, EDGE.top);
  const place = ({ cell }) => [h.at(x.of(cell)), v.at(y.of(cell))];
  const line = (some, attributes) => svg("polyline", { points: some.map((p) => place(p).map((n) => n.toFixed(1)).join(",")).join(" "), fill: "none", ...attributes });
  const picture = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "group",
    "aria-label": `${y.title(panel)} against ${x.title(panel)}; ${points.length} cells, arrow keys move between them, Enter opens one` });
  picture.append(...frame(h, v, x, y, panel, width, height));
  for (const { cell } of points.filter((p) => p.cell.base)) {
    const at = v.at(y.of(cell));
    picture.append(svg("line", { class: "base", x1: EDGE.left, x2: width - EDGE.right, y1: at, y2: at }));
  }
  picture.append(line(front(points.map(({ cell }) => cell), x, y).map((cell) => ({ cell })), { class: "front" }));
  const order = [...points].sort((a, b) => x.of(a.cell) - x.of(b.cell));
  for (const method of panel.apart ? [] : new Set(order.map((p) => p.cell.method))) { // seeds of one setting make no line
    picture.append(line(order.filter((p) => p.cell.method === method), { class: "series", "data-method": method, style: look(method).style }));
  }
  focused = Math.min(focused, order.length - 1);
  const spots = order.map((point, i) => ({ ...point, i, at: place(point), node: dot(point, i, place(point), h, v, x, y, panel) }));
  picture.append(...spots.map((spot) => spot.node));
  picture.addEventListener("keydown", (event) => walk(event, spots));
  picture.addEventListener("focusin", (event) => aim(spots.find((spot) => spot.node === event.target), spots, panel));
  picture.addEventListener("focusout", () => aim(null, spots, panel));
  point(picture, spots, panel);
  box.replaceChildren(picture, el("div", { class: "tip", hidden: true }));
}
function note(panel, count, hollow) {
  const parts = [`${count} cells. Arrows point to better; the pale band joins the cells that no other beats on both axes; dashed: ${data.baseline}.`];
  if (panel.condition) parts.push(`Timings: ${panel.condition}.`);
  if (hollow) parts.push("Hollow: disturbed by other load.");
  if (panel.mixed) parts.push(panel.mixed);
  return parts.concat("Bars: 95 % intervals. Click a point for its record.").join(" ");
}
function frame(h, v, x, y, panel, width, height) {
  const bottom = height - EDGE.bottom, nodes = [];
  for (const [value, text] of ticks(h.low, h.high, width < 500 ? 4 : 8)) {
    nodes.push(svg("line", { class: "grid", x1: h.at(value), x2: h.at(value), y1: EDGE.top, y2: bottom }),
      svg("text", { x: h.at(value), y: bottom + 18, "text-anchor": "middle" }, text));
  }
  for (const [value, text] of ticks(v.low, v.high, 6)) {
    nodes.push(svg("line", { class: "grid", x1: EDGE.left, x2: width - EDGE.right, y1: v.at(value), y2: v.at(value) }),
      svg("text", { x: EDGE.left - 8, y: v.at(value) + 4, "text-anchor": "end" }, text));
  }
  const label = (axis) => (axis.label && width < 700 ? axis.label : axis.title(panel));
  const across = (x.better < 0 ? "← " : "") + label(x) + (x.better > 0 ? " →" : "");
  const up = (y.better < 0 ? "← " : "") + label(y) + (y.better > 0 ? " →" : "");
  nodes.push(svg("text", { class: "axis", x: (EDGE.left + width - EDGE.right) / 2, y: height - 6, "text-anchor": "middle" }, across),
    svg("text", { class: "axis", transform: `translate(13 ${(EDGE.top + bottom) / 2}) rotate(-90)`, "text-anchor": "middle" }, up));
  return nodes;
}
function dot({ cell, index }, i, [px, py], h, v, x, y, panel) {
  const { path, style } = look(cell.method);
  const bars = [[x, h, true], [y, v, false]].flatMap(([axis, s, flat]) => {
    const ends = axis.ends?.(cell) ?? [];
    if (ends.length < 2 || !ends.every(known)) return [];
    const [a, b] = ends.map(s.at);
    return [svg("line", flat ? { class: "bar95", x1: a, x2: b, y1: py, y2: py } : { class: "bar95", x1: px, x2: px, y1: a, y2: b })];
  });
  const size = cell.base ? 17 : 12;
  return svg("g", { class: shaky(cell, x, y) ? "point hollow" : "point", role: "button", tabindex: i === focused ? 0 : -1, style, "data-method": cell.method, "data-index": index,
    "aria-label": facts(cell, panel).map((fact) => fact.join(" ")).join(", ") },
  [...bars, svg("circle", { class: "target", cx: px, cy: py, r: 11 }),
    svg("path", { class: "shape", d: path, transform: `translate(${px.toFixed(1)} ${py.toFixed(1)}) scale(${size})` })]);
}
/* Everything about a cell in words: the tooltip's lines, and what a screen reader says. */
function facts(cell, panel) {
  const list = [[cell.method, cell.setting || "–"]];
  const half = known(cell.accuracy_high) && known(cell.accuracy_low) ? ` ± ${fixed((cell.accuracy_high - cell.accuracy_low) / 2, percent(panel) ? 1 : 3)}` : "";
  if (known(cell.accuracy_value)) list.push([panel.metric, accuracy(panel, cell.accuracy_value) + half]);
  if (known(cell.delta)) list.push([`Δ to ${data.baseline}`, signed(cell.delta, percent(panel) ? 1 : 3)]);
  if (known(cell.gmacs)) list.push(["GMACs", `${short(cell.gmacs)} (${fixed(cell.gmacs_pct_of_unreduced, 0)} %)`]);
  for (const [batch, [ms, speed, , , , disturbed]] of Object.entries(cell.speeds)) {
    list.push([`batch ${batch}`, `${fixed(speed, 2)}×, ${short(ms)} ms${disturbed ? " ◊" : ""}`]);
  }
  if (known(cell.peak_mib)) list.push(["peak memory", `${fixed(cell.peak_mib, 0)} MiB`]);
  if (known(cell.tokens)) list.push(["tokens in a block", short(cell.tokens)]);
  return list.concat([["model", cell.model]]);
}
function tip(cell, panel, px, py) {
  const box = $("figure"), node = box.querySelector(".tip");
  const [head, ...rest] = facts(cell, panel);
  node.replaceChildren(el("b", {}, [marker(cell.method), ` ${head[0]} `, el("span", {}, head[1])]),
    el("dl", {}, rest.flatMap(([key, value]) => [el("dt", {}, key), el("dd", {}, value)])));
  node.hidden = false;
  const left = Math.max(0, Math.min(px + 16, box.clientWidth - node.offsetWidth));
  const over = px + 16 > box.clientWidth - node.offsetWidth; // no room beside: above or below
  node.style.left = `${left}px`;
  node.style.top = `${over && py > node.offsetHeight + 16 ? py - node.offsetHeight - 16 : over ? py + 16 : Math.max(0, Math.min(py - 20, box.clientHeight - node.offsetHeight))}px`;
}
/* Show one point's facts, or nobody's. */
function aim(spot, spots, panel) {
  for (const { node } of spots) node.classList.toggle("aimed", node === spot?.node);
  if (spot) tip(spot.cell, panel, ...spot.at);
  else $("figure").querySelector(".tip").hidden = true;
}
/* Points overlap: the pointer means the nearest one. A finger looks first and opens then. */
function point(picture, spots, panel) {
  const nearest = (event) => {
    const box = picture.getBoundingClientRect();
    const far = (spot) => Math.hypot(spot.at[0] - event.clientX + box.left, spot.at[1] - event.clientY + box.top);
    const best = spots.reduce((a, b) => (far(b) < far(a) ? b : a));
    return far(best) < REACH ? best : null;
  };
  picture.addEventListener("mousedown", (event) => event.preventDefault()); // or the focus would aim
  picture.addEventListener("pointermove", (event) => aim(nearest(event), spots, panel));
  picture.addEventListener("pointerleave", (event) => event.pointerType === "touch" || aim(null, spots, panel));
  picture.addEventListener("click", (event) => {
    const spot = nearest(event);
    const look = event.pointerType === "touch" && !spot?.node.classList.contains("aimed");
    if (look || !spot) aim(spot, spots, panel);
    else show(spot.index);
  });
}
function walk(event, spots) {
  const here = spots.findIndex((spot) => spot.node === event.target);
  const last = spots.length - 1;
  const to = { ArrowRight: here + 1, ArrowUp: here + 1, ArrowLeft: here - 1, ArrowDown: here - 1, Home: 0, End: last }[event.key];
  if (here < 0) return;
  if (event.key === "Enter" || event.key === " ") show(spots[here].index);
  else if (event.key === "Escape") $("figure").querySelector(".tip").hidden = true;
  else if (to === undefined) return;
  else {
    focused = (to + spots.length) % spots.length;
    spots.forEach(({ node, i }) => node.setAttribute("tabindex", i === focused ? 0 : -1));
    spots[focused].node.focus();
  }
  event.preventDefault();
}

const named = data.panels.map((panel, i) => [String(i), panel.title]);
options($("panel"), named, "0");
const refresh = () => { focused = 0; chooseAxes(); chooseMethods(); draw(); };
$("panel").addEventListener("change", refresh);
$("x").addEventListener("change", draw);
$("y").addEventListener("change", draw);
if (data.panels.length) {
  refresh();
  keepSelect("panel", titled);
  keepSelect("x");
  keepSelect("y");
  keepList("hidden", () => Object.keys(data.looks), (method) => hidden.has(method), (methods) => {
    hidden.clear();
    methods.forEach((method) => hidden.add(method));
    refresh();
  });
  let width = 0; // the observer calls once by itself
  new ResizeObserver(([entry]) => { if (Math.round(entry.contentRect.width) !== width) { width = Math.round(entry.contentRect.width); draw(); } }).observe($("figure"));
} else $("plot").hidden = true;
