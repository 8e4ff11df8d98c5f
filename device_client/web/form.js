// The form as a wish, as a link, and back. Seeds stay text: they have more digits than a number keeps.

const USES = { ciar: ["gate", "by", "policy", "span", "in_flight"], exact: ["span", "in_flight"], "cloud-only": [], "device-only": [] };
const PLAIN = ["gate", "policy", "span", "in_flight"];
const NUMBERS = ["seed", "cloud_budget", "threshold", "in_flight", "partial_images"];
const FIELDS = ["prompt", "seed", "mode", "cloud_budget", "threshold", ...PLAIN];
const byId = (id) => document.getElementById(id);

/** What the form says, as text by name; what is left to the model is missing. */
export function read() {
  const mode = document.querySelector("input[name=mode]:checked").value;
  const wish = { prompt: byId("prompt").value.trim(), seed: byId("seed").value.trim() || "0", mode };
  const uses = USES[mode] ?? [];
  for (const name of PLAIN) if (uses.includes(name) && byId(name).value.trim()) wish[name] = byId(name).value.trim();
  if (uses.includes("by") && byId("by").value && byId("amount").value) wish[byId("by").value] = byId("amount").value;
  return wish;
}

/** The JSON of a wish. */
export function body(wish) {
  const parts = Object.entries({ ...wish, partial_images: "0" }).map(([name, value]) => {
    const number = NUMBERS.includes(name) || (name === "span" && value !== "adaptive");
    return `${JSON.stringify(name)}:${number ? value.replace(/^0+(?=\d)/, "") : JSON.stringify(value)}`;
  });
  return `{${parts.join(",")}}`;
}

/** A link to this page that draws the wish again; `model` says with which weights. */
export function link(wish, model) {
  const words = new URLSearchParams({ ...wish, model });
  return `${location.origin}${location.pathname}#${words}`;
}

/** The wish of a link, or null. */
export function fromLink(hash) {
  const words = new URLSearchParams(hash.slice(1));
  if (!words.get("prompt")) return null;
  const wish = Object.fromEntries(FIELDS.filter((name) => words.get(name)).map((name) => [name, words.get(name)]));
  return { wish: { seed: "0", mode: "ciar", ...wish }, model: words.get("model") };
}

/** Fill the form in. */
export function show(wish) {
  byId("prompt").value = wish.prompt;
  byId("seed").value = wish.seed;
  const mode = [...document.querySelectorAll("input[name=mode]")].find((radio) => radio.value === wish.mode);
  if (mode) mode.checked = true;
  for (const name of PLAIN) byId(name).value = wish[name] ?? "";
  const by = ["cloud_budget", "threshold"].find((name) => wish[name]);
  byId("by").value = by ?? "";
  byId("amount").value = by ? wish[by] : "";
  byId("more").open = Boolean(by || PLAIN.some((name) => wish[name]));
  adapt();
}

/** Close the fields that mean nothing in the chosen mode. */
export function adapt() {
  const mode = document.querySelector("input[name=mode]:checked").value, uses = USES[mode] ?? [];
  for (const id of ["by", ...PLAIN]) byId(id).disabled = !uses.includes(id);
  const by = uses.includes("by") ? byId("by").value : "";
  byId("amount-field").hidden = !by;
  byId("amount-label").textContent = by === "threshold" ? "Threshold: asks above this score" : "Cloud forwards per token, 0 to 1";
  if (by && !byId("amount").value) byId("amount").value = by === "threshold" ? "1" : "0.3";
  byId("compare").disabled = mode === "cloud-only";
}

export function dice() {
  byId("seed").value = String(crypto.getRandomValues(new Uint32Array(1))[0]);
}

/** Offer the gates the model was calibrated for. */
export function gates(names) {
  for (const name of [...names, "always", "never"]) byId("gate").append(new Option(name, name));
}
