/* The state of the page in its address: a link shows what its sender saw, and Back undoes the last choice.
   Behind the # stands what differs from the beginning, as name=text. */
const state = new Map(); // name → { read, write, initial }; `write` returns whether the page has what a text names

const keep = (name, read, write) => state.set(name, { read, write, initial: read() });
const change = (control) => control.dispatchEvent(new Event("change")); // does not bubble: no choice of the reader's
/* Keep the choice of a <select>; a link has its value, or what of an option lasts longer than that. */
function keepSelect(id, named = (option) => option.value) {
  const select = $(id);
  if (select.options.length) keep(id, () => named(select.selectedOptions[0]), (text) => {
    const option = [...select.options].find((one) => named(one) === text);
    if (option && !option.selected) { option.selected = true; change(select); }
    return Boolean(option);
  });
}
function keepBox(id) {
  const words = ["no", "yes"], box = $(id);
  keep(id, () => words[Number(box.checked)], (text) => {
    if (words.includes(text) && words[Number(box.checked)] !== text) { box.checked = !box.checked; change(box); }
    return words.includes(text);
  });
}
/* Keep which of some names are in a set. Commas divide them; one within a name is percent-encoded. */
function keepList(id, names, has, assign) {
  const chosen = () => names().filter(has).map(encodeURIComponent);
  keep(id, () => chosen().join(), (text) => {
    const wanted = new Set(text.split(",").filter(Boolean));
    if (chosen().join() !== text) assign(names().filter((name) => wanted.has(encodeURIComponent(name))));
    return chosen().length === wanted.size;
  });
}

function remember(how = "pushState") {
  const changed = [...state].map(([name, part]) => [name, part.read(), part.initial]).filter(([, text, initial]) => text !== initial);
  const text = String(new URLSearchParams(changed.map(([name, value]) => [name, value])));
  if (text === location.hash.slice(1) || (!text && !location.hash.includes("="))) return;
  history[how](null, "", location.href.split("#")[0] + (text && `#${text}`));
}
function restore() {
  if (location.hash && !location.hash.includes("=")) return; // a place on the page, no state of it
  const link = new URLSearchParams(location.hash.slice(1));
  const kept = [...state].filter(([name, part]) => part.write(link.get(name) ?? part.initial)).map(([name]) => name);
  const unknown = [...link].filter(([name]) => !kept.includes(name)).map((entry) => entry.join("="));
  $("unknown").textContent = unknown.length ? `The link asks for what this page does not have: ${unknown.join(", ")}.` : "";
  remember("replaceState");
}
/* To be called once all parts are kept: from here on the reader's choices go into the address. */
function follow() {
  const folds = [...document.querySelectorAll("details.fold")];
  keepList("open", () => folds.map((fold) => fold.id), (id) => $(id).open, (ids) => folds.forEach((fold) => { fold.open = ids.includes(fold.id); }));
  restore();
  let typing = false; // the letters of a filter are one step for Back
  document.addEventListener("change", () => { typing = false; remember(); });
  document.addEventListener("input", ({ target }) => {
    if (target.type !== "search") return;
    remember(typing ? "replaceState" : "pushState");
    typing = true;
  });
  document.addEventListener("toggle", ({ target }) => { if (folds.includes(target)) remember(); }, true);
  window.addEventListener("popstate", () => { typing = false; restore(); });
}
