/* The rows that the table shows, in its order and with its columns, as a file for a spreadsheet. */

/* Text that a spreadsheet would take for a formula gets a quote ahead; numbers stay numbers. The report's tables do the same. */
function harmless(value) {
  if (typeof value !== "string") return known(value) ? String(value) : "";
  const line = value.trim().split(/\s+/).join(" ");
  return /^[=+@-]/.test(line) && !/^[+-]?\d+(\.\d+)?(e[+-]?\d+)?$/i.test(line) ? `'${line}` : line;
}
const field = (value) => { const text = harmless(value); return /[",]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text; };
/* A column brings its interval and its convention along, and each row says what it is of. */
function csv(rows, columns) {
  const named = COMMON.slice(0, 4), fields = new Map();
  for (const column of [...named, ...columns.filter((one) => !named.includes(one))]) {
    for (const [name, of] of column.csv ?? [[column.key, column.of]]) fields.set(name, of);
  }
  const lines = [[...fields.keys()], ...rows.map(({ cell }) => [...fields.values()].map((of) => of(cell)))];
  return lines.map((line) => line.map(field).join(",") + "\n").join("");
}
function download(text) {
  const href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  el("a", { href, download: "cells.csv" }).click();
  setTimeout(() => URL.revokeObjectURL(href), 10_000); // milliseconds: by then it is saved
}
