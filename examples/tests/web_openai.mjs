// Tests the web server with OpenAI's client for Node: node web_openai.mjs URL, in a folder where `npm install openai` has run.

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const require = createRequire(join(process.cwd(), "index.js"));
const { default: OpenAI, toFile } = await import(pathToFileURL(require.resolve("openai")).href.replace(/\.js$/, ".mjs"));

const client = new OpenAI({ baseURL: new URL("v1", process.argv[2]).href, apiKey: "none", maxRetries: 0 });

/** Returns the width and height of a PNG file. */
const size = (base64) => [16, 20].map((at) => Buffer.from(base64, "base64").readUInt32BE(at));

const result = await client.images.generate({ prompt: "a parrot", n: 2, size: "128x96" });
assert.deepEqual(result.data.map((image) => size(image.b64_json)), [[128, 96], [128, 96]]);
const file = await toFile(Buffer.from(result.data[0].b64_json, "base64"), "a.png", { type: "image/png" });

for (const count of [0, 1, 3]) {
  const stream = await client.images.generate({ prompt: "a parrot", stream: true, partial_images: count });
  const types = [];
  for await (const event of stream) {
    types.push(event.type);
    assert.deepEqual(size(event.b64_json), [64, 64]);
  }
  assert.deepEqual(types, [...Array(count).fill("image_generation.partial_image"), "image_generation.completed"]);
}

const edited = await client.images.edit({ image: file, prompt: "a crown" });
assert.deepEqual(size(edited.data[0].b64_json), [128, 96]);
const events = [];
for await (const event of await client.images.edit({ image: [file, file], prompt: "a crown", stream: true, partial_images: 2 })) {
  events.push(event.type);
}
assert.deepEqual(events, ["image_edit.partial_image", "image_edit.partial_image", "image_edit.completed"]);

// The answer to a path that does not exist arrives, although the body is sent at the same time.
const large = await toFile(Buffer.alloc(3_000_000), "a.png", { type: "image/png" });
for (let attempt = 0; attempt < 20; attempt += 1) {
  for (const [call, status] of [
    [() => client.images.edit({ image: large, prompt: "x" }), 400],
    [() => client.post("/nowhere", { body: { text: "x".repeat(300_000) } }), 404],
    [() => client.put("/images/generations", { body: { text: "x".repeat(300_000) } }), 405],
  ]) {
    await assert.rejects(call, (error) => error.status === status);
  }
}
console.log("web_openai.mjs: ok");
