// Token grids as pictures on canvases: a mosaic, who decided, how unsure, what differs. Keeps no state but the tiles.

export const SOURCES = {
  prefix: "cloud, before the first draft",
  kept: "kept on the device",
  verified: "drafted, the cloud agreed",
  corrected: "corrected by the cloud",
  bonus: "the cloud's next token",
  offline: "decided alone, the cloud was away",
};
const HEAT = [[13, 8, 135], [126, 3, 168], [204, 71, 120], [248, 149, 64], [240, 249, 33]];
const CELL = 12; // canvas pixels per token and side, for grids

/** The tiles of all tokens, in one picture as many tiles wide as they need to form a square. */
export async function loadTiles(codes) {
  const atlas = new Image();
  atlas.src = "tiles.png";
  await atlas.decode();
  const columns = Math.ceil(Math.sqrt(codes));
  return { atlas, columns, side: atlas.width / columns };
}

export function clear(canvas, side) {
  canvas.width = canvas.height = side;
}

/** Tokens `from` on, each as its tile. */
export function mosaic(canvas, tiles, grid, tokens, from) {
  const pen = canvas.getContext("2d"), { atlas, columns, side } = tiles;
  for (let t = from; t < tokens.length; t++) {
    const code = tokens[t], column = code % columns, row = (code - column) / columns;
    pen.drawImage(atlas, column * side, row * side, side, side, (t % grid) * side, Math.floor(t / grid) * side, side, side);
  }
}

/** Draw a finished picture over the mosaic. */
export async function finished(canvas, url) {
  const image = new Image();
  image.src = url;
  await image.decode();
  clear(canvas, image.width);
  canvas.getContext("2d").drawImage(image, 0, 0);
}

export function who(canvas, grid, sources, from) {
  const style = getComputedStyle(document.documentElement);
  cells(canvas, grid, sources.length, from, (t) => style.getPropertyValue(`--${sources[t] in SOURCES ? sources[t] : "other"}`));
}

/** Ranks, because gates differ in scale; tokens nobody scored stay empty. */
export function unsure(canvas, grid, scores) {
  const sorted = scores.filter((score) => score !== null).sort((a, b) => a - b);
  cells(canvas, grid, scores.length, 0, (t) => (scores[t] === null ? null : heat(rank(sorted, scores[t]))));
}

/** Outlines of the cells in which two pictures differ, over whatever is on the canvas. */
export function outline(canvas, grid, places) {
  const pen = canvas.getContext("2d"), side = canvas.width / grid, width = Math.max(1, side / 8);
  pen.lineWidth = width;
  for (const t of places) {
    const x = (t % grid) * side, y = Math.floor(t / grid) * side;
    pen.strokeStyle = "#fff";
    pen.strokeRect(x + width / 2, y + width / 2, side - width, side - width);
    pen.strokeStyle = "#d55e00";
    pen.setLineDash([side / 4, side / 4]);
    pen.strokeRect(x + width / 2, y + width / 2, side - width, side - width);
    pen.setLineDash([]);
  }
}

function cells(canvas, grid, end, from, colour) {
  if (canvas.width !== grid * CELL) clear(canvas, grid * CELL);
  const pen = canvas.getContext("2d");
  for (let t = from; t < end; t++) {
    const x = (t % grid) * CELL, y = Math.floor(t / grid) * CELL, paint = colour(t);
    pen.clearRect(x, y, CELL, CELL);
    if (!paint) continue;
    pen.fillStyle = paint;
    pen.fillRect(x, y, CELL - 1, CELL - 1);
  }
}

function rank(sorted, score) {
  let low = 0, high = sorted.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] <= score) low = middle + 1; else high = middle;
  }
  return low / sorted.length;
}

function heat(share) {
  const at = share * (HEAT.length - 1), low = Math.min(Math.floor(at), HEAT.length - 2), part = at - low;
  return `rgb(${HEAT[low].map((from, i) => Math.round(from + (HEAT[low + 1][i] - from) * part)).join(" ")})`;
}
