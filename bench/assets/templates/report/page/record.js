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
