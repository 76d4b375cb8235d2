/* The table of a report. */
const COLUMNS = COMMON;
const SHOWN = ["setting", "model", "task", "accuracy", "delta", "left", "speed"];
const speedOf = (cell) => cell.speeds[$("batch").value] ?? [];
const timedOn = (cell) => panelOf(cell).condition;
const chosen = (cell) => $("only").value === "" || cell.panel === Number($("only").value);

options($("only"), [...named, ["", "all: unlike numbers in one column"]], "0");
$("panel").addEventListener("change", () => { if ($("only").value !== "") { $("only").value = $("panel").value; again(); } });
options($("batch"), batches.map((b) => [b, `batch ${b}`]), batches.at(-1));
begin(["only", "batch"], ["gmacs", "speed", "ms", "memory"]);
