/* The leaderboard: contests of settings, and the records that each setting has. */
const fits = (record) => ["hardware", "engine"].every((name) => ["", record[name]].includes($(name).value));
const pick = (cell) => cell.records.find(fits); // the newest that the filters leave
const speedOf = (cell) => pick(cell)?.speeds[$("batch").value] ?? [];
const place = (cell) => (!cell.best ? "" : cell.tied > 1 ? `★ with ${cell.tied - 1}` : "★");

const budget = { head: "MACs left", key: "band", text: true, of: (c) => (c.base ? "all" : c.band) };
const best = { head: "Best", key: "best", text: true, of: place };
const where = { head: "Timed on", key: "hardware", text: true, of: (c) => pick(c).hardware,
  write: (c) => pair(pick(c).hardware, [pick(c).engine !== "eager" && pick(c).engine, speedOf(c)[6] && "the fastest of the best"].filter(Boolean).join(", ")) };
const count = { head: "Records", key: "records", of: (c) => c.records.length, write: (c) => [
  el("a", { href: pick(c).file, title: "The record's file" }, "file"), c.records.length > 1 ? el("small", {}, ` of ${c.records.length}`) : null] };
const unlike = ["memory", "tokens"];
const COLUMNS = [...COMMON.slice(0, 4), budget, best, ...COMMON.slice(4).filter((c) => !unlike.includes(c.key)), where, count];

const SHOWN = ["setting", "model", "task", "band", "accuracy", "speed", "hardware"];
const timedOn = (cell) => `${pick(cell).hardware} · ${pick(cell).engine}`;

const chosen = (cell) => Boolean(pick(cell)) && (!$("leaders").checked || Boolean(cell.best) || cell.base)
  && [["only", String(cell.panel)], ["band", cell.base ? "" : cell.band], ["dtype", cell.dtype]].every(([name, value]) => value === "" || ["", value].includes($(name).value));

/* All records of a setting, the newest first: its history, with what remakes it. */
function show(index) {
  const cell = data.cells[index], panel = panelOf(cell);
  $("record-title").replaceChildren(marker(cell.method, 14), " " + name(cell));
  $("record-note").textContent = panel.title;
  const head = ["Taken", "Hardware", "Engine", "Versions", panel.metric, "GMACs", "Speed-up", "File"];
  const line = (record) => {
    const [, speed, low, high, noise, disturbed] = record.speeds[$("batch").value] ?? [];
    return [record.created, record.hardware, record.engine, record.versions, accuracy(panel, record.value), short(record.gmacs),
      known(speed) ? marked(`${fixed(speed, 2)}× [${fixed(low, 2)}, ${fixed(high, 2)}]`, [noise && "≈", disturbed && "◊"].filter(Boolean).join(" ")) : "–",
      el("a", { href: record.file }, "record")];
  };
  $("history").replaceChildren(
    el("thead", {}, el("tr", {}, head.map((text) => el("th", { scope: "col" }, text)))),
    el("tbody", {}, cell.records.map((record) => el("tr", {}, line(record).map((text) => el("td", {}, text))))));
  $("remake").textContent = cell.records.map((record) =>
    `# ${record.machine}, ${record.created}: ${record.command}\nrun_bench.py recheck ${record.file}`
    + (record.unchecked.length ? `    # alone tells whether these are right: ${record.unchecked.join("; ")}` : "")).join("\n\n");
  $("record").showModal();
}
$("record").addEventListener("click", (event) => { if (event.target === $("record")) $("record").close(); });

const order = new Intl.Collator("en", { numeric: true });
const every = (values) => [...new Set(values)].sort(order.compare).map((value) => [value, value]);
const records = data.cells.flatMap((cell) => cell.records);
const sizes = [...new Set(records.flatMap((record) => Object.keys(record.speeds)))].sort((a, b) => a - b);
options($("only"), [["", "all"], ...data.panels.map((panel, i) => [String(i), panel.title]).filter(([i]) => data.cells.some((c) => c.panel === Number(i)))], "");
options($("band"), [["", "all"], ...every(data.cells.filter((c) => !c.base).map((c) => c.band))], "");
options($("hardware"), [["", "any"], ...every(records.map((record) => record.hardware))], "");
options($("engine"), [["", "any"], ...every(records.map((record) => record.engine))], "");
options($("dtype"), [["", "any"], ...every(data.cells.map((cell) => cell.dtype))], "");
options($("batch"), sizes.map((b) => [b, `batch ${b}`]), sizes[0]);
begin(["only", "band", "leaders", "hardware", "dtype", "engine", "batch"], ["gmacs"]); // timings are of several machines
