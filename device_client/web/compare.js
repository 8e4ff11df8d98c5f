// Two pictures of one seed: side by side, what differs, a slider between them, what each cost.

import { finished, outline } from "./paint.js";
import { COUNTERS, percent } from "./stage.js";

const byId = (id) => document.getElementById(id);

/** Show an entry beside its base, the picture of the cloud alone. */
export async function compare(entry, grid) {
  const { base } = entry;
  const places = entry.tokens.flatMap((token, t) => (token === base.tokens[t] ? [] : [t]));
  byId("comparison").hidden = false;
  byId("verdict").textContent = verdict(entry, base, places.length);
  for (const [id, one] of [["mine", entry], ["theirs", base]]) {
    await finished(byId(id), one.url);
    byId(id).setAttribute("aria-label", `${id === "mine" ? "This picture" : "The cloud's picture"}; ${places.length} tokens differ`);
    if (byId("marks").checked) outline(byId(id), grid, places);
  }
  byId("slide-under").src = base.url;
  byId("slide-over").src = entry.url;
  slide();
  const rows = COUNTERS.map(([name, text]) => row(name, text(entry.counters), text(base.counters)));
  byId("costs").tBodies[0].replaceChildren(...rows);
}

export function hide() {
  byId("comparison").hidden = true;
}

/** Left of the slider this picture, right of it the cloud's. */
export function slide() {
  const at = byId("slider").value;
  byId("slide-over").style.clipPath = `inset(0 ${100 - at}% 0 0)`;
  byId("slide-over").parentElement.style.setProperty("--at", `${at}%`);
}

function verdict(entry, base, differing) {
  const share = entry.counters.cloud_forwards / Math.max(1, base.counters.cloud_forwards);
  const cost = `It cost ${entry.counters.cloud_forwards} forwards of the cloud instead of ${base.counters.cloud_forwards} (${percent(share)}).`;
  if (!differing) return `The same picture, token for token. ${cost}`;
  return `${differing} of ${entry.tokens.length} tokens differ (${percent(differing / entry.tokens.length)}). ${cost}`;
}

function row(name, ...values) {
  const line = document.createElement("tr"), head = document.createElement("th");
  head.scope = "row";
  head.textContent = name;
  line.append(head, ...values.map((value) => Object.assign(document.createElement("td"), { textContent: value })));
  return line;
}
