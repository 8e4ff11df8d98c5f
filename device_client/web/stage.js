// One picture on the stage: what is known of it so far, shown as it grows. Knows nothing of the network.

import * as paint from "./paint.js";
import { timeline } from "./timeline.js";

const byId = (id) => document.getElementById(id);
export const COUNTERS = [
  ["cloud calls", (c) => `${c.cloud_forwards} (${percent(c.call_rate)})`],
  ["bytes up", (c) => c.bytes_up.toLocaleString("en")],
  ["bytes down", (c) => c.bytes_down.toLocaleString("en")],
  ["seconds", (c) => c.total_s.toFixed(2)],
  ["accepted", (c) => (c.judged ? percent(c.acceptance_rate) : "none judged")],
  ["rounds", (c) => String(c.rounds)],
];

export function percent(share) {
  return `${(100 * share).toFixed(1)} %`;
}

/** A picture in the making. */
export function fresh(wish) {
  return { wish, tokens: [], sources: [], scores: [], rounds: [], counters: null, url: null, settings: null, notes: [], base: null };
}

/** Take in a progress event: its tokens stand from `from` on. */
export function take(entry, data) {
  for (const name of ["tokens", "sources", "scores"]) entry[name].splice(data.from, Infinity, ...data[name]);
  entry.rounds.push(...data.rounds);
  entry.counters = data.counters;
}

/** Show an entry, from token `from` on. */
export function show(entry, model, tiles, from = 0) {
  const grid = Math.sqrt(model.image_tokens), picture = byId("picture");
  if (!from) {
    for (const id of ["picture", "who", "unsure"]) paint.clear(byId(id), id === "picture" ? grid * tiles.side : 1);
    for (const id of ["badge", "unscored"]) byId(id).hidden = true;
    byId("story").textContent = "";
  }
  if (!entry.url) paint.mosaic(picture, tiles, grid, entry.tokens, from);
  paint.who(byId("who"), grid, entry.sources, from);
  paint.unsure(byId("unsure"), grid, entry.scores);
  numbers(entry, model);
}

/** The finished picture in place of the mosaic, with everything one can do with it. */
export async function finish(entry, model) {
  await paint.finished(byId("picture"), entry.url);
  const { prompt, seed, mode } = entry.wish, counts = tally(entry.sources);
  byId("picture").setAttribute("aria-label", `The picture: ${prompt}, seed ${seed}, ${mode}`);
  const words = Object.entries(counts).map(([name, count]) => `${count} ${name}`).join(", ");
  byId("who").setAttribute("aria-label", `Who decided the ${model.image_tokens} tokens: ${words}`);
  const scored = entry.scores.filter((score) => score !== null).length;
  byId("unsure").setAttribute("aria-label", `How unsure the device was, at the ${scored} tokens it scored`);
  byId("unscored").hidden = scored > 0;
  byId("story").textContent = story(counts, model.image_tokens);
  const download = byId("download");
  download.href = entry.url;
  download.download = `${prompt.replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 40)}-${seed}-${mode}.png`;
  byId("notes").replaceChildren(...entry.notes.map((note) => item(note)));
  byId("badge").hidden = !entry.badge;
  byId("badge").textContent = entry.badge ?? "";
  byId("versus").hidden = mode === "cloud-only" || Boolean(entry.base);
  byId("actions").hidden = false;
}

function numbers(entry, model) {
  byId("bar").value = entry.tokens.length / model.image_tokens;
  const counts = tally(entry.sources);
  const names = [...Object.keys(paint.SOURCES), ...Object.keys(counts).filter((name) => !(name in paint.SOURCES))];
  byId("legend").replaceChildren(...names.map((name) => legend(name, counts[name] ?? 0)));
  if (!entry.counters) return;
  byId("counters").replaceChildren(...COUNTERS.map(([name, text]) => pair(name, text(entry.counters))));
  timeline(byId("timeline"), byId("timeline-text"), entry.rounds, entry.counters.total_s);
}

/** Who decided what, in a sentence. */
function story({ prefix = 0, kept = 0, verified = 0, corrected = 0, bonus = 0, offline = 0 }, size) {
  const parts = [`Of ${size} tokens the device decided ${kept} by itself`];
  if (verified + corrected) parts.push(`the cloud agreed with ${verified} of its drafts and corrected ${corrected}`);
  if (prefix + bonus) parts.push(`and drew ${prefix + bonus} more`);
  if (offline) parts.push(`and the last ${offline} were drawn without the cloud, which was away`);
  return `${parts.join(", ")}.`;
}

function tally(sources) {
  const counts = {};
  for (const source of sources) counts[source] = (counts[source] ?? 0) + 1;
  return counts;
}

function legend(name, count) {
  const line = item(""), colour = document.createElement("i"), words = document.createElement("span"), number = document.createElement("b");
  colour.className = name in paint.SOURCES ? name : "other";
  words.textContent = paint.SOURCES[name] ?? name;
  number.textContent = count;
  line.append(colour, words, number);
  return line;
}

function pair(name, value) {
  const box = document.createElement("div"), term = document.createElement("dt"), text = document.createElement("dd");
  term.textContent = name;
  text.textContent = value;
  box.append(term, text);
  return box;
}

function item(text) {
  const line = document.createElement("li");
  line.textContent = text;
  return line;
}
