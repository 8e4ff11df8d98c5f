// POST /generate as a stream of events. Knows nothing of what they mean.

/** Calls `tell(name, data)` for every event of the stream; throws {what, next, gone} where there is none. */
export async function generate(body, signal, tell) {
  let answer;
  try {
    answer = await fetch("generate", {
      method: "POST", body, signal,
      headers: { "content-type": "application/json", accept: "text/event-stream" },
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw { type: "DeviceGone", message: "the device does not answer", next_step: "is device-client serve still running?" };
  }
  if (!answer.ok) throw (await answer.json()).error;
  await events(answer.body.pipeThrough(new TextDecoderStream()).getReader(), tell);
}

async function events(reader, tell) {
  let rest = "", ended = false;
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) ended = dispatch(block, tell) || ended;
  }
  if (!ended) throw { type: "DeviceGone", message: "the device stopped in the middle of the picture", next_step: "is device-client serve still running?" };
}

/** True for the event that ends a stream. */
function dispatch(block, tell) {
  const name = /^event: (.*)$/m.exec(block)?.[1];
  if (!name) return false;
  const data = JSON.parse(/^data: (.*)$/m.exec(block)[1]);
  if (name === "error") throw data.error;
  tell(name, data);
  return name === "done" || name === "cancelled";
}
