const TILE = 288; // least pixels of a drawn image's side, before the screen shrinks it
const maps = new Map(); // cells unpacked so far

/* A map is int16 (layers, patches), deflated, in base64. */
const unpack = async (text) => new Int16Array(await inflated(text).arrayBuffer());
async function unpacked(cell) {
  if (!maps.has(cell)) maps.set(cell, await Promise.all(cell.maps.map(unpack)));
  return maps.get(cell);
}
/* The token of each patch after so many blocks: its own number where nothing has happened yet. */
function tokensAfter(blocks, layers, map, patches) {
  const step = layers.filter((layer) => layer < blocks).length - 1;
  return step < 0 ? Int16Array.from({ length: patches }, (_, i) => i) : map.subarray(step * patches, (step + 1) * patches);
}
function groups(tokens) {
  const size = new Map(), first = new Map();
  tokens.forEach((token, i) => {
    size.set(token, (size.get(token) ?? 0) + 1);
    if (!first.has(token)) first.set(token, i); // its first patch names a group: a colour outlives the layers
  });
  return { size, first };
}
function paint(canvas, image, tokens, [rows, columns]) {
  const pen = canvas.getContext("2d"), w = canvas.width / columns, h = canvas.height / rows;
  const { size, first } = groups(tokens), faded = "#ccc"; // white would not be seen on a white image
  const at = (row, column) => (row < rows && column < columns ? tokens[row * columns + column] : null);
  const merged = (token) => token >= 0 && size.get(token) > 1;
  pen.imageSmoothingEnabled = false;
  pen.globalAlpha = 1;
  pen.drawImage(image, 0, 0, canvas.width, canvas.height);
  for (let i = 0; i < tokens.length; i++) {
    const token = tokens[i];
    if (token >= 0 && !merged(token)) continue;
    pen.globalAlpha = token < 0 ? 0.9 : 0.5;
    pen.fillStyle = token < 0 ? faded : `hsl(${(first.get(token) * 137.508 + 210) % 360} 75% 52%)`;
    pen.fillRect((i % columns) * w, Math.floor(i / columns) * h, w, h);
  }
  pen.globalAlpha = 0.9;
  pen.fillStyle = "#fff";
  for (let row = 0; row < rows; row++) for (let column = 0; column < columns; column++) {
    const here = at(row, column), right = at(row, column + 1), below = at(row + 1, column);
    if (right !== null && right !== here && (merged(here) || merged(right))) pen.fillRect((column + 1) * w - 0.75, row * h, 1.5, h);
    if (below !== null && below !== here && (merged(here) || merged(below))) pen.fillRect(column * w, (row + 1) * h - 0.75, w, 1.5);
  }
}
function summary(tokens) {
  const { size } = groups(tokens);
  const dropped = size.get(-1) ?? 0, left = size.size - (dropped ? 1 : 0);
  const alone = [...size].filter(([token, n]) => token >= 0 && n === 1).length, made = left - alone;
  const parts = [`${alone} patch${alone === 1 ? "" : "es"} kept`];
  if (made) parts.push(`${tokens.length - dropped - alone} merged into ${made}`);
  if (dropped) parts.push(`${dropped} dropped`);
  return parts.join(", ");
}
function answerLine(label, answers, truth, score) {
  const [best, value] = answers[0], right = best === truth;
  return el("p", { class: "answer", title: answers.map(([text, number]) => `${text}: ${number}`).join("\n") },
    [el("span", {}, label), el("b", {}, `${right ? "✓" : "✗"} ${best}`), el("small", { title: score }, value.toFixed(2))]);
}

let turn = 0; // unpacking takes a moment: the last choice wins
async function view() {
  const set = data.tokens[$("tokens-set").value], cell = set.cells[$("tokens-cell").value], blocks = Number($("tokens-slide").value);
  const mine = ++turn, own = await unpacked(cell);
  if (mine !== turn) return;
  $("tokens-layer").textContent = blocks ? `${blocks} of ${set.depth}` : "0, the input";
  const plain = set.cells.find((other) => other.method === "none");
  const pictures = set.samples.map((sample) => Object.assign(new Image(), { src: `data:image/png;base64,${sample.png}`, alt: `input: ${sample.truth}` }));
  await Promise.all(pictures.map((picture) => picture.decode()));
  if (mine !== turn) return;
  $("samples").replaceChildren(...set.samples.map((sample, i) => {
    const tokens = tokensAfter(blocks, cell.layers, own[i], set.grid[0] * set.grid[1]), words = summary(tokens);
    const [height, width] = set.grid.map((n) => n * Math.ceil(TILE / n)); // whole pixels a patch
    const canvas = el("canvas", { width, height, role: "img", "aria-label": words });
    paint(canvas, pictures[i], tokens, set.grid);
    return el("figure", {}, [el("div", { class: "pair" }, [pictures[i], canvas]), el("figcaption", {}, [el("p", { class: "counts" }, words),
      el("p", { class: "answer" }, [el("span", {}, "shows"), el("b", { title: sample.truth }, sample.truth)]),
      plain && plain !== cell ? answerLine("none", plain.answers[i], sample.truth, set.score) : null,
      answerLine(cell.method, cell.answers[i], sample.truth, set.score)])]);
  }));
  const notes = ["Merged patches share a colour and lose their borders; dropped ones fade."];
  if (cell.soft) notes.push("Here every patch is mixed into several tokens: it has the colour of the one that it weighs most in.");
  if (cell.old) notes.push("Drawn with other code, weights or data than the table's numbers were measured with.");
  $("tokens-note").textContent = notes.join(" ");
}
function chooseSet() {
  const set = data.tokens[$("tokens-set").value];
  const wanted = set.cells.findIndex((cell) => cell.method === "tome"), first = wanted < 0 ? set.cells.length - 1 : wanted;
  options($("tokens-cell"), set.cells.map((cell, i) => [String(i), cell.label]), String(first));
  $("tokens-slide").max = set.depth;
  $("tokens-slide").value = set.depth;
  view();
}
if (data.tokens.length) {
  options($("tokens-set"), data.tokens.map((set, i) => [String(i), set.title]), "0");
  $("tokens-set").addEventListener("change", chooseSet);
  $("tokens-cell").addEventListener("change", view);
  $("tokens-slide").addEventListener("input", view);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", view); // canvases have no style
  chooseSet();
  keepSelect("tokens-set", (option) => option.text);
  keepSelect("tokens-cell", (option) => option.text);
  const slide = $("tokens-slide");
  keep("tokens-after", () => slide.value, (text) => {
    if (slide.value !== text) { slide.value = text; view(); }
    return slide.value === text;
  });
}
