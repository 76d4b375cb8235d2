/* A table to sort, filter and save. The script behind this one says what its COLUMNS are, which of them are SHOWN at first, which
   cells are `chosen`, and which timing of a cell it shows (`speedOf`), taken where and how (`timedOn`). */
const STEP = 200; // rows in one go; thousands would make typing slow
let sorted = { column: null, down: false };
let limit = STEP;
const shown = new Set(); // keys of columns

const panelOf = (cell) => data.panels[cell.panel];
const digitsOf = (cell) => (percent(panelOf(cell)) || cell.accuracy_value >= 10 ? 1 : 3);
const pair = (main, more, pale) => [el("span", { class: pale ? "pale" : null }, main), more ? el("small", {}, " " + more) : null];
const marked = (text, marks) => (marks ? `${text} ${marks}` : text);

const alike = (cell) => Boolean(speedOf(cell)[4]);
const disturbed = (cell) => Boolean(speedOf(cell)[5]);
const speedMarks = (cell) => [alike(cell) && "≈", disturbed(cell) && "◊"].filter(Boolean).join(" ");
const TIMED = [["batch", () => $("batch").value], ["timed_on", (c) => timedOn(c)], ["timing_marks", speedMarks]];
/* A column: header, the value it sorts by, how a cell is written, which way is better, and what a CSV file has of it. */
const COMMON = [
  { head: "Method", key: "method", text: true, of: (c) => c.method },
  { head: "Setting", key: "setting", text: true, of: (c) => c.setting, write: (c) => c.setting || "–" },
  { head: "Model", key: "model", text: true, of: (c) => c.model },
  { head: "Task", key: "task", text: true, of: (c) => c.task },
  { head: "Accuracy", key: "accuracy", better: 1, of: (c) => c.accuracy_value, write: (c) => pair(fixed(c.accuracy_value, digitsOf(c)),
    known(c.accuracy_high) && known(c.accuracy_low) ? "±" + fixed((c.accuracy_high - c.accuracy_low) / 2, digitsOf(c)) : ""),
  csv: [["metric", (c) => panelOf(c).metric], ["unit", (c) => panelOf(c).unit], ...["value", "low", "high"].map((end) => [`accuracy_${end}`, (c) => c[`accuracy_${end}`]])] },
  { head: `Δ to ${data.baseline}`, key: "delta", of: (c) => c.delta, write: (c) => pair(marked(signed(c.delta, digitsOf(c)), c.marks),
    known(c.delta_low) ? `[${signed(c.delta_low, digitsOf(c))}, ${signed(c.delta_high, digitsOf(c))}]` : "", c.marks.includes("≈")),
  csv: ["delta", "delta_low", "delta_high", "marks"].map((name) => [name, (c) => c[name]]) },
  { head: "GMACs", key: "gmacs", better: -1, of: (c) => c.gmacs, write: (c) => short(c.gmacs), csv: [["gmacs", (c) => c.gmacs], ["macs_scope", (c) => panelOf(c).scope]] },
  { head: "% left", key: "left", of: (c) => c.gmacs_pct_of_unreduced, write: (c) => fixed(c.gmacs_pct_of_unreduced, 1), csv: [["gmacs_pct_of_unreduced", (c) => c.gmacs_pct_of_unreduced]] },
  { head: "Speed-up", key: "speed", better: 1, timed: true, disturbed, of: (c) => speedOf(c)[1], write: (c) => pair(marked(fixed(speedOf(c)[1], 2) + (known(speedOf(c)[1]) ? "×" : ""), speedMarks(c)),
    known(speedOf(c)[2]) ? `[${fixed(speedOf(c)[2], 2)}, ${fixed(speedOf(c)[3], 2)}]` : "", alike(c)),
  csv: [["speedup_x", (c) => speedOf(c)[1]], ["speedup_low_x", (c) => speedOf(c)[2]], ["speedup_high_x", (c) => speedOf(c)[3]], ...TIMED] },
  { head: "p50 ms", key: "ms", better: -1, timed: true, disturbed, of: (c) => speedOf(c)[0], write: (c) => marked(short(speedOf(c)[0]), disturbed(c) ? "◊" : ""), csv: [["p50_ms", (c) => speedOf(c)[0]], ...TIMED] },
  { head: "Peak MiB", key: "memory", better: -1, of: (c) => c.peak_mib, write: (c) => fixed(c.peak_mib, 0), csv: [["peak_mib", (c) => c.peak_mib], ["peak_at", (c) => panelOf(c).memory]] },
  { head: "Tokens", key: "tokens", of: (c) => c.tokens, write: (c) => short(c.tokens), csv: [["tokens_mean_over_blocks", (c) => c.tokens]] },
];

/* Model and task need no columns where a single one is shown, unless its settings have several seeds. */
const needless = (key) => ["model", "task"].includes(key) && data.panels[$("only").value]?.apart === false;
const displayed = () => COLUMNS.filter(({ key }) => key === "method" || (shown.has(key) && !needless(key)));

function arranged(rows) {
  const column = COLUMNS.find((c) => c.key === sorted.column);
  if (!column) return rows; // as they come: by model, the baseline first, bands of MACs
  const sign = sorted.down ? -1 : 1;
  return [...rows].sort((a, b) => {
    const [u, v] = [column.of(a.cell), column.of(b.cell)];
    if (!known(u) || !known(v)) return Number(known(v)) - Number(known(u)); // what is missing comes last
    return sign * (column.text ? u.localeCompare(v, "en", { numeric: true }) : u - v);
  });
}
function line({ cell, index }, columns) {
  return el("tr", { class: cell.base ? "baseline" : null }, columns.map((column) => column.key === "method"
    ? el("th", { scope: "row" }, el("button", { type: "button", class: "open", title: "Show the record", click: () => show(index) }, [marker(cell.method), "\u00a0" + cell.method]))
    : el("td", { class: column.text ? "text " + column.key : null }, column.write ? column.write(cell) : column.of(cell))));
}
function fill() {
  const { rows, why } = wanted(), columns = displayed();
  heads(columns);
  $("rows").replaceChildren(...arranged(rows).slice(0, limit).map((row) => line(row, columns)));
  const count = `${rows.length.toLocaleString("en")} of ${data.cells.length.toLocaleString("en")} cells` + (rows.length > limit ? `, the first ${limit} shown` : "");
  $("count").textContent = [count, why, data.panels[$("only").value]?.mixed].filter(Boolean).join(". ");
  $("more").hidden = rows.length <= limit;
  $("more").textContent = `Show ${Math.min(STEP, rows.length - limit)} more`;
  $("csv").disabled = !rows.length;
  for (const box of $("columns").querySelectorAll("input")) box.disabled = needless(box.value);
}
function heads(columns) {
  const focus = document.activeElement.dataset.key;
  $("heads").replaceChildren(...columns.map((column) => {
    const mine = sorted.column === column.key;
    const state = mine ? (sorted.down ? "descending" : "ascending") : "none";
    return el("th", { scope: "col", "aria-sort": state, class: column.text ? "text " + column.key : null },
      el("button", { type: "button", "data-key": column.key, click: () => sort(column) }, [column.head, el("i", { "aria-hidden": "true" }, mine ? (sorted.down ? "↓" : "↑") : "")]));
  }));
  if (focus) $("heads").querySelector(`[data-key="${focus}"]`)?.focus();
}
/* Numbers begin with the most, words with A; a second click turns them round, a third one stops. */
function sort(column) {
  const first = !column.text;
  if (sorted.column !== column.key) sorted = { column: column.key, down: first };
  else sorted = sorted.down === first ? { column: column.key, down: !first } : { column: null, down: false };
  fill();
  remember();
}
const again = () => { limit = STEP; fill(); };
const optional = () => COLUMNS.map(({ key }) => key).filter((key) => key !== "method"); // that one names the row
function choose(keys) {
  shown.clear();
  keys.forEach((key) => shown.add(key));
  for (const box of $("columns").querySelectorAll("input")) box.checked = shown.has(box.value);
  if (!shown.has(sorted.column) && sorted.column !== "method") sorted = { column: null, down: false };
  again();
}
function keepTable() {
  keepList("columns", optional, (key) => shown.has(key), choose);
  keep("sort", () => (sorted.column ? (sorted.down ? "-" : "") + sorted.column : ""), (text) => {
    const column = text.replace(/^-/, "") || null;
    if (column && !COLUMNS.some(({ key }) => key === column)) return false;
    sorted = { column, down: text.startsWith("-") };
    fill();
    return true;
  });
  keep("filter", () => $("filter").value, (text) => { if ($("filter").value !== text) { $("filter").value = text; again(); } return true; });
}
/* Fill the table; controls that choose among cells have these names, and `fronts` are the costs that it offers a front of. */
function begin(controls, fronts) {
  const costs = COLUMNS.filter(({ key, of }) => fronts.includes(key) && data.cells.some((cell) => known(of(cell))));
  options($("front"), [["", "off"], ...costs.map((column) => [column.key, `accuracy and ${called(column)}`])], "");
  $("columns").append(...COLUMNS.filter(({ key }) => key !== "method").map(({ head, key }) => el("label", {}, [el("input", { type: "checkbox", value: key,
    change: ({ target }) => choose(optional().filter((one) => (one === key ? target.checked : shown.has(one)))) }), " " + head])));
  $("filter").addEventListener("input", again);
  for (const name of [...controls, "front"]) $(name).addEventListener("change", again);
  $("more").addEventListener("click", () => { limit += STEP; fill(); });
  $("csv").addEventListener("click", () => download(csv(arranged(wanted().rows), displayed())));
  choose(SHOWN);
  for (const name of [...controls, "front"]) $(name).type === "checkbox" ? keepBox(name) : keepSelect(name, name === "only" ? titled : undefined);
  keepTable();
  follow();
}
