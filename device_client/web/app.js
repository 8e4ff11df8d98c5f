// The page: one wish at a time, drawn, shown, compared, remembered for this session.

import { compare, hide, slide } from "./compare.js";
import * as form from "./form.js";
import { loadTiles } from "./paint.js";
import * as stage from "./stage.js";
import { generate } from "./stream.js";

const AWAY = new Set(["CloudUnreachable", "SessionLost", "Overloaded", "ModelMismatch"]);
const SILENCE_MS = 2500;
const byId = (id) => document.getElementById(id);
const gallery = [];
let model, tiles, shown = null, work = null;

async function start() {
  byId("wish").addEventListener("submit", (event) => { event.preventDefault(); draw(form.read()); });
  byId("wish").addEventListener("change", form.adapt);
  byId("stop").addEventListener("click", () => work?.abort());
  byId("dice").addEventListener("click", form.dice);
  byId("again").addEventListener("click", () => draw(form.read()));
  byId("offline").addEventListener("click", () => draw({ ...plain(form.read()), mode: "device-only" }, true));
  byId("link").addEventListener("click", copyLink);
  byId("versus").addEventListener("click", () => versus(shown));
  byId("slider").addEventListener("input", slide);
  byId("marks").addEventListener("change", () => shown?.base && compare(shown, grid()));
  addEventListener("hashchange", followLink);
  form.adapt();
  [model] = (await (await fetch("models")).json()).models;
  tiles = await loadTiles(model.codebook_size);
  form.gates(model.gates);
  stage.show(stage.fresh({}), model, tiles);
  document.documentElement.dataset.ready = "yes";
  cloud();
  followLink();
}

const grid = () => Math.sqrt(model.image_tokens);
const digest = () => `${model.device_digest}.${model.cloud_digest}`;
const plain = ({ prompt, seed }) => ({ prompt, seed });

/** Draw a wish; `alone`: because the cloud is away. */
async function draw(wish, alone = false) {
  if (!byId("wish").reportValidity()) return;
  work?.abort();
  const mine = (work = new AbortController()), entry = stage.fresh(wish);
  if (alone) entry.badge = "Offline: drawn on the device alone, the cloud had no part in it";
  busy(true);
  hide();
  shown = entry;
  byId("actions").hidden = true;
  byId("notes").replaceChildren();
  stage.show(entry, model, tiles);
  try {
    await run(entry, mine.signal, (from) => shown === entry && stage.show(entry, model, tiles, from));
    await stage.finish(entry, model);
    remember(entry);
    say(`Done: ${wish.prompt}, seed ${wish.seed}, ${entry.counters.cloud_forwards} cloud calls, ${entry.counters.total_s.toFixed(2)} s.`);
    if (byId("compare").checked && !alone && wish.mode !== "cloud-only") await versus(entry, mine);
  } catch (error) {
    if (work === mine) failed(error, entry);
  } finally {
    if (work === mine) busy(false);
  }
}

/** Stream one wish into an entry, telling `changed` from which token on. */
async function run(entry, signal, changed) {
  let heard = Date.now();
  const silence = setInterval(() => Date.now() - heard > SILENCE_MS && say(waiting(entry)), 500);
  try {
    await generate(form.body(entry.wish), signal, (name, data) => {
      heard = Date.now();
      if (name === "progress") { stage.take(entry, data); changed(data.from); tally(entry); }
      if (name === "picture") keep(entry, data);
      if (name === "cancelled") throw { type: "Cancelled", message: "the picture was cancelled" };
    });
  } finally {
    clearInterval(silence);
  }
}

function keep(entry, data) {
  const bytes = Uint8Array.from(atob(data.image), (letter) => letter.charCodeAt(0));
  entry.url = URL.createObjectURL(new Blob([bytes], { type: "image/png" }));
  entry.notes = data.notes;
  entry.counters = data.counters;
  if (data.counters.resumes) entry.notes = [...entry.notes, `the cloud was lost and found again ${data.counters.resumes} times; the picture is the same`];
}

/** Draw the same seed with the cloud alone, and compare. */
async function versus(entry, controller = null) {
  const mine = controller ?? (work = new AbortController());
  busy(true);
  try {
    const base = stage.fresh({ ...plain(entry.wish), mode: "cloud-only" });
    await run(base, mine.signal, () => {});
    entry.base = base;
    byId("versus").hidden = true;
    if (shown === entry) await compare(entry, grid());
    say("Compared with the cloud alone.");
  } catch (error) {
    if (work === mine) failed(error, entry);
  } finally {
    if (work === mine) busy(false);
  }
}

function busy(yes) {
  byId("stop").hidden = !yes;
  byId("versus").disabled = yes;
  if (yes) byId("alert").hidden = true;
  document.body.ariaBusy = String(yes);
  if (yes) byId("stop").focus(); // and into view, where the page is longer than the screen
  byId("draw").disabled = yes;
  if (yes) say("Drawing.");
  else if (document.activeElement === document.body && byId("alert").hidden) byId("draw").focus({ preventScroll: true });
}

function failed(error, entry) {
  if (error.name === "AbortError" || error.type === "Cancelled") return say(`Stopped after ${entry.tokens.length} tokens.`);
  const away = AWAY.has(error.type);
  byId("alert-what").textContent = sentence(error.message ?? String(error));
  byId("alert-next").textContent = error.next_step ? sentence(error.next_step) : "";
  byId("offline").hidden = !away;
  byId("alert").hidden = false;
  byId("again").focus();
  say("There is no picture.");
  if (away) cloud();
}

const sentence = (words) => `${words[0].toUpperCase()}${words.slice(1)}.`.replace(/\.\.$/, ".");

function say(words) {
  if (byId("status").textContent !== words) byId("status").textContent = words;
}

/** In quarters: a screen reader should not hear every token. */
function tally(entry) {
  const quarter = Math.floor((4 * entry.tokens.length) / model.image_tokens);
  if (!entry.url && quarter < 4) say(quarter ? `Drawing: ${25 * quarter} % there.` : "Drawing.");
}

function waiting(entry) {
  return entry.wish.mode === "cloud-only" ? "The cloud draws the whole picture before it answers." : "Waiting for the cloud. Every token drawn so far is safe.";
}

function remember(entry) {
  gallery.unshift(entry);
  byId("gallery-card").hidden = false;
  byId("gallery").replaceChildren(...gallery.map(thumbnail));
}

function thumbnail(entry) {
  const item = document.createElement("li"), button = document.createElement("button"), image = document.createElement("img");
  image.src = entry.url;
  image.alt = "";
  button.type = "button";
  button.append(image, `${entry.wish.prompt}, seed ${entry.wish.seed}, ${entry.badge ? "offline" : entry.wish.mode}`);
  if (entry === shown) button.setAttribute("aria-current", "true");
  button.addEventListener("click", () => reopen(entry));
  item.append(button);
  return item;
}

async function reopen(entry) {
  if (!byId("stop").hidden) return say("Stop the drawing first.");
  shown = entry;
  form.show(entry.wish);
  stage.show(entry, model, tiles);
  await stage.finish(entry, model);
  if (entry.base) await compare(entry, grid()); else hide();
  for (const [place, item] of [...byId("gallery").children].entries()) item.firstChild.toggleAttribute("aria-current", gallery[place] === entry);
  say(`Showing ${entry.wish.prompt}, seed ${entry.wish.seed}.`);
}

async function copyLink() {
  const address = form.link(shown.wish, digest());
  history.replaceState(null, "", address);
  try {
    await navigator.clipboard.writeText(address);
    say("The link is copied, and in the address bar.");
  } catch {
    say("The link is in the address bar.");
  }
}

function followLink() {
  const found = form.fromLink(location.hash);
  if (!found) return;
  form.show(found.wish);
  draw(found.wish).then(() => {
    if (found.model && found.model !== digest()) byId("notes").append(Object.assign(document.createElement("li"), { textContent: "The link was made with other weights: the picture may differ from the one it was made of." }));
  });
}

/** Ask whether the cloud is there. */
async function cloud() {
  const answer = await fetch("readyz").catch(() => null), about = answer && (await answer.json());
  byId("cloud").className = `cloud ${answer?.ok ? "up" : "away"}`;
  byId("cloud-text").textContent = answer?.ok ? `the cloud answers: ${about.cloud}` : `the cloud is away: ${about?.error.message ?? "the device does not answer"}`;
}

start();
