/* Which cells the table shows: those of the filter's words and numbers, on the front if one is chosen. */
const called = (column) => column.head.replace(/^[A-Z](?=[a-z])/, (letter) => letter.toLowerCase());
const numbers = () => COLUMNS.filter((column) => !column.text);

/* A test of cells, and what no cell is or has where none passes it. */
function wordTest(word) {
  const text = (cell) => `${cell.method} ${cell.setting} ${cell.model} ${cell.task}`.toLowerCase();
  return { word, holds: (cell) => text(cell).includes(word), lacks: () => `has “${word}” in its method, setting, model or task` };
}
function numberTest(word, column, sign, bound) {
  const holds = { "<": (v) => v < bound, "<=": (v) => v <= bound, ">": (v) => v > bound, ">=": (v) => v >= bound }[sign];
  const lacks = (cells) => {
    const values = cells.map(column.of).filter(known);
    if (!values.length) return `has a number in “${column.head}”`;
    const ends = sign[0] === "<" ? ["lowest", Math.min(...values)] : ["highest", Math.max(...values)];
    return `has ${called(column)} ${sign} ${minus(String(bound))}; the ${ends[0]} is ${minus(String(ends[1]))}`;
  };
  return { word, holds: (cell) => known(column.of(cell)) && holds(column.of(cell)), lacks };
}
function testOf(word) {
  const [, key, sign, rest] = word.match(/^([a-z]+)([<>]=?)(.*)$/) ?? [];
  if (!key) return wordTest(word);
  const column = numbers().find((one) => one.key === key);
  const never = (lacks) => ({ word, holds: () => false, lacks: () => lacks });
  if (!column) return never(`has a number called “${key}”; there are ${numbers().map((one) => one.key).join(", ")}`);
  return /^-?\d*\.?\d+$/.test(rest) ? numberTest(word, column, sign, Number(rest)) : never(`is shown: write a number behind ${key}${sign}`);
}
/* The cells that no other one of their model and task beats in accuracy and in a cost. */
function frontTest(cost) {
  const accuracy = COLUMNS.find((column) => column.key === "accuracy");
  const fronts = data.panels.flatMap((_, panel) => front(data.cells.filter((cell) => cell.panel === panel), accuracy, cost));
  const members = new Set(fronts);
  return { word: "", holds: (cell) => members.has(cell), lacks: () => `is on the front of accuracy and ${called(cost)}` };
}
/* The cells to show, and a sentence that says why there are none. */
function wanted() {
  const tests = $("filter").value.toLowerCase().split(/\s+/).filter(Boolean).map(testOf);
  const cost = COLUMNS.find((column) => column.key === $("front").value);
  if (cost) tests.push(frontTest(cost));
  let rows = data.cells.map((cell, index) => ({ cell, index })).filter(({ cell }) => chosen(cell));
  if (!rows.length) return { rows, why: "No cell has all that is chosen above" };
  const passed = [];
  for (const test of tests) {
    const next = rows.filter(({ cell }) => test.holds(cell));
    if (!next.length) return { rows: next, why: `No cell ${passed.length ? `with ${passed.join(" ")} ` : ""}${test.lacks(rows.map(({ cell }) => cell))}` };
    passed.push(test.word);
    rows = next;
  }
  return { rows, why: cost ? `No other of the same model and task beats these in accuracy and ${called(cost)}${cost.timed ? ` at ${$("batch").selectedOptions[0].text}` : ""}` : "" };
}
