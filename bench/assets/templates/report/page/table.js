/* A table to sort and filter. The script behind this one says what its COLUMNS are, which cells are `chosen`, and
   which timing of a cell it shows (`speedOf`). */
const STEP = 200; // rows in one go; thousands would make typing slow
let sorted = { column: null, down: false };
let limit = STEP;

const panelOf = (cell) => data.panels[cell.panel];
const digitsOf = (cell) => (percent(panelOf(cell)) || cell.accuracy_value >= 10 ? 1 : 3);
const pair = (main, more, pale) => [el("span", { class: pale ? "pale" : null }, main), more ? el("small", {}, " " + more) : null];
const marked = (text, marks) => (marks ? `${text} ${marks}` : text);

const alike = (cell) => Boolean(speedOf(cell)[4]);
const speedMarks = (cell) => [alike(cell) && "≈", speedOf(cell)[5] && "◊"].filter(Boolean).join(" ");
/* A column: header, the value it sorts by, and how a cell is written. */
const COMMON = [
  { head: "Method", key: "method", text: true, of: (c) => c.method },
  { head: "Setting", key: "setting", text: true, of: (c) => c.setting, write: (c) => c.setting || "–" },
  { head: "Model", key: "model", text: true, of: (c) => c.model },
  { head: "Task", key: "task", text: true, of: (c) => c.task },
  { head: "Accuracy", key: "accuracy", of: (c) => c.accuracy_value, write: (c) => pair(fixed(c.accuracy_value, digitsOf(c)),
    known(c.accuracy_high) && known(c.accuracy_low) ? "±" + fixed((c.accuracy_high - c.accuracy_low) / 2, digitsOf(c)) : "") },
  { head: `Δ to ${data.baseline}`, key: "delta", of: (c) => c.delta, write: (c) => pair(marked(signed(c.delta, digitsOf(c)), c.marks),
    known(c.delta_low) ? `[${signed(c.delta_low, digitsOf(c))}, ${signed(c.delta_high, digitsOf(c))}]` : "", c.marks.includes("≈")) },
  { head: "GMACs", key: "gmacs", of: (c) => c.gmacs, write: (c) => short(c.gmacs) },
  { head: "% left", key: "left", of: (c) => c.gmacs_pct_of_unreduced, write: (c) => fixed(c.gmacs_pct_of_unreduced, 1) },
  { head: "Speed-up", key: "speed", of: (c) => speedOf(c)[1], write: (c) => pair(marked(fixed(speedOf(c)[1], 2) + (known(speedOf(c)[1]) ? "×" : ""), speedMarks(c)),
    known(speedOf(c)[2]) ? `[${fixed(speedOf(c)[2], 2)}, ${fixed(speedOf(c)[3], 2)}]` : "", alike(c)) },
  { head: "p50 ms", key: "ms", of: (c) => speedOf(c)[0], write: (c) => marked(short(speedOf(c)[0]), speedOf(c)[5] ? "◊" : "") },
  { head: "Peak MiB", key: "memory", of: (c) => c.peak_mib, write: (c) => fixed(c.peak_mib, 0) },
  { head: "Tokens", key: "tokens", of: (c) => c.tokens, write: (c) => short(c.tokens) },
];

/* "tome gmacs<0.3": every word occurs in the row, every comparison holds. */
function wanted() {
  const tests = $("filter").value.trim().toLowerCase().split(/\s+/).filter(Boolean).map((word) => {
    const [, key, sign, bound] = word.match(/^([a-z]+)([<>])(-?[\d.]+)$/) ?? [];
    const column = COLUMNS.find((c) => c.key === key && !c.text);
    if (!column) return (cell) => `${cell.method} ${cell.setting} ${cell.model} ${cell.task}`.toLowerCase().includes(word);
    return (cell) => { const v = column.of(cell); return known(v) && (sign === "<" ? v < Number(bound) : v > Number(bound)); };
  });
  return data.cells.map((cell, index) => ({ cell, index }))
    .filter(({ cell }) => chosen(cell) && tests.every((test) => test(cell)));
}
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
function fill() {
  const rows = arranged(wanted());
  $("rows").replaceChildren(...rows.slice(0, limit).map(({ cell, index }) => el("tr", { class: cell.base ? "baseline" : null }, COLUMNS.map((column) => column.key === "method"
    ? el("th", { scope: "row" }, el("button", { type: "button", class: "open", title: "Show the record", click: () => show(index) }, [marker(cell.method), " " + cell.method]))
    : el("td", { class: column.text ? "text " + column.key : null }, column.write ? column.write(cell) : column.of(cell))))));
  $("count").textContent = `${rows.length.toLocaleString("en")} of ${data.cells.length.toLocaleString("en")} cells` + (rows.length > limit ? `, the first ${limit} shown` : "")
    + [data.panels[$("only").value]?.mixed].filter(Boolean).map((mixed) => `. ${mixed}`).join("");
  $("more").hidden = rows.length <= limit;
  $("more").textContent = `Show ${Math.min(STEP, rows.length - limit)} more`;
  $("scroll").classList.toggle("single", data.panels[$("only").value]?.apart === false);
}
function heads() {
  $("heads").replaceChildren(...COLUMNS.map((column) => {
    const mine = sorted.column === column.key;
    const state = mine ? (sorted.down ? "descending" : "ascending") : "none";
    return el("th", { scope: "col", "aria-sort": state, class: column.text ? "text " + column.key : null },
      el("button", { type: "button", "data-key": column.key, click: () => sort(column) }, [column.head, el("i", { "aria-hidden": "true" }, mine ? (sorted.down ? "↓" : "↑") : "")]));
  }));
}
/* Numbers begin with the most, words with A; a second click turns them round, a third one stops. */
function sort(column) {
  const first = !column.text;
  if (sorted.column !== column.key) sorted = { column: column.key, down: first };
  else sorted = sorted.down === first ? { column: column.key, down: !first } : { column: null, down: false };
  heads();
  fill();
  $("heads").querySelector(`[data-key="${column.key}"]`).focus();
}
const again = () => { limit = STEP; fill(); };
function begin(selects) {
  $("filter").addEventListener("input", again);
  for (const name of selects) $(name).addEventListener("change", again);
  $("more").addEventListener("click", () => { limit += STEP; fill(); });
  heads();
  fill();
}
