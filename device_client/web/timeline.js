// The rounds of one picture over time: who worked, what was waited for, what stood.

const SVG = "http://www.w3.org/2000/svg", WIDTH = 1000, HEIGHT = 64, LANE = 12;

/** Redraw: the device's lane below, above it a bar per answer, as wide as it was waited for. */
export function timeline(svg, text, rounds, total) {
  svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
  const scale = WIDTH / Math.max(total, 0.001), tall = Math.max(1, ...rounds.map((one) => one.judged));
  const bars = working(rounds, total).map(([from, to]) => bar("device", from * scale, HEIGHT - LANE + 2, (to - from) * scale, LANE - 2));
  for (const one of rounds) bars.push(...round(one, scale, tall));
  svg.replaceChildren(...bars);
  const waits = rounds.filter((one) => one.number).map((one) => one.wait_s).sort((a, b) => a - b);
  const middle = waits.length ? `, ${(1000 * waits[waits.length >> 1]).toFixed(0)} ms each` : "";
  text.textContent = `${waits.length} rounds in ${total.toFixed(2)} s${middle}`;
  svg.setAttribute("aria-label", `Timeline: ${text.textContent}`);
}

/** When the device was at work: whenever it did not wait. */
function working(rounds, total) {
  const spans = [];
  let at = 0;
  for (const one of rounds) {
    if (one.at_s - one.wait_s > at) spans.push([at, one.at_s - one.wait_s]);
    at = Math.max(at, one.at_s);
  }
  return total > at ? [...spans, [at, total]] : spans;
}

function round(one, scale, tall) {
  const left = (one.at_s - one.wait_s) * scale, wide = Math.max(1.5, one.wait_s * scale), floor = HEIGHT - LANE;
  if (!one.judged) return [titled(bar("opening", left, 0, wide, floor), `opening: ${ms(one.wait_s)}`)];
  const height = floor * Math.max(0.15, one.judged / tall), good = (height * one.accepted) / one.judged;
  const title = `round ${one.number}: ${one.accepted} of ${one.judged} accepted, ${ms(one.wait_s)} (cloud ${ms(one.cloud_s)}), ${one.kept} kept before`;
  return [
    titled(bar("refused", left, floor - height, wide, height - good), title),
    titled(bar("accepted", left, floor - good, wide, good), title),
  ];
}

function ms(seconds) {
  return `${(1000 * seconds).toFixed(0)} ms`;
}

function bar(kind, x, y, width, height) {
  const rect = document.createElementNS(SVG, "rect");
  for (const [name, value] of Object.entries({ class: kind, x, y, width, height })) rect.setAttribute(name, value);
  return rect;
}

function titled(rect, words) {
  rect.append(document.createElementNS(SVG, "title"));
  rect.firstChild.textContent = words;
  return rect;
}
