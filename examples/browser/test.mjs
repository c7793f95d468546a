// Tests of the package in Node: node --test test.mjs, after build.sh. Tests of threads are left out if the module with threads is not built.
//
// HART_GENERATE names a native program `generate`, with whose images those of the module are compared.

import assert from "node:assert/strict";
import { execFileSync, spawnSync } from "node:child_process";
import fs from "node:fs";
import http from "node:http";
import os from "node:os";
import path from "node:path";
import test from "node:test";
import { fileURLToPath, pathToFileURL } from "node:url";
import zlib from "node:zlib";

import { Hart, HartError } from "./hart.js";
import { listFiles } from "./files.js";

const HERE = path.dirname(fileURLToPath(import.meta.url));
const MODEL = path.join(HERE, "../models/hart-emoji");
const PROMPTS = ["a red heart on a yellow background", "a blue star", "a green apple", "a smiling face", "a cat"];
const hasThreads = fs.existsSync(path.join(HERE, "pkg/threads/hart_bg.wasm"));
/** Stops a test that would wait forever. */
const limited = { timeout: 120_000 };

/** Opens the shipped model for one test. */
async function open(t, options = {}, files = MODEL) {
  const hart = await Hart.open(files, { threads: 1, ...options });
  t.after(() => hart.free());
  return hart;
}

/** Asserts that a promise rejects with a HartError of a code whose message matches. */
const refused = (promise, code, message = /./) =>
  assert.rejects(promise, (error) => error instanceof HartError && error instanceof Error && error.code === code && message.test(error.message) || assert.fail(`${error.code}: ${error.stack}`));

/** Returns size, RGBA pixels and text chunks of a PNG file in 8-bit RGB. */
function decodePng(bytes) {
  const png = Buffer.from(bytes);
  assert.equal(png.toString("latin1", 1, 4), "PNG");
  const data = [];
  const texts = {};
  let [width, height] = [0, 0];
  for (let at = 8; at < png.length; ) {
    const length = png.readUInt32BE(at);
    const type = png.toString("latin1", at + 4, at + 8);
    const body = png.subarray(at + 8, at + 8 + length);
    if (type === "IHDR") {
      [width, height] = [body.readUInt32BE(0), body.readUInt32BE(4)];
      assert.deepEqual([...body.subarray(8)], [8, 2, 0, 0, 0]);
    }
    if (type === "IDAT") data.push(body);
    if (type === "tEXt" || type === "iTXt") texts[body.toString("utf8", 0, body.indexOf(0))] = body.toString("utf8", body.lastIndexOf(0) + 1);
    at += 12 + length;
  }
  const raw = zlib.inflateSync(Buffer.concat(data));
  const stride = 3 * width;
  const pixels = new Uint8ClampedArray(4 * width * height).fill(255);
  let above = new Uint8Array(stride);
  for (let y = 0; y < height; y++) {
    const filter = raw[y * (stride + 1)];
    const row = Uint8Array.from(raw.subarray(y * (stride + 1) + 1, (y + 1) * (stride + 1)));
    for (let x = 0; x < stride; x++) {
      const [a, b, c] = [x < 3 ? 0 : row[x - 3], above[x], x < 3 ? 0 : above[x - 3]];
      const [da, db, dc] = [Math.abs(b - c), Math.abs(a - c), Math.abs(a + b - 2 * c)];
      const paeth = da <= db && da <= dc ? a : db <= dc ? b : c;
      row[x] += [0, a, b, (a + b) >> 1, paeth][filter];
    }
    row.forEach((value, x) => (pixels[4 * (y * width + Math.floor(x / 3)) + (x % 3)] = value));
    above = row;
  }
  return { width, height, pixels, texts };
}

test("a prompt becomes an image", limited, async (t) => {
  const phases = [];
  const hart = await open(t, { onProgress: ({ phase, loaded, total }) => phases.push([phase, loaded, total]) });
  const size = Object.values(await listFiles(MODEL)).reduce((a, b) => a + b);
  assert.deepEqual([...new Set(phases.map(([phase]) => phase))], ["engine", "files", "load"]);
  const files = phases.filter(([phase]) => phase === "files");
  assert.deepEqual(files.at(-1), ["files", size, size]);
  assert.ok(files.every(([, loaded], i) => i === 0 || loaded >= files[i - 1][1]));
  const { info } = hart;
  assert.deepEqual([info.width, info.height, info.precision, info.threads, info.cancel], [64, 64, "f32", 1, "flag"]);
  assert.match(info.fingerprint, /^[0-9a-f]{64}$/);

  const image = await hart.generate({ prompt: PROMPTS[0], seed: 7n });
  assert.deepEqual([image.width, image.height, image.seed, image.prompt, image.truncated], [64, 64, 7n, PROMPTS[0], null]);
  assert.ok(image.pixels instanceof Uint8ClampedArray && image.pixels.length === 4 * 64 * 64);
  const stages = ["text", "transformer", "sampling", "residual", "decode"];
  assert.deepEqual(Object.keys(image.timings), [...stages, "total"]);
  assert.ok(stages.reduce((sum, stage) => sum + image.timings[stage], 0) <= image.timings.total + 1);
  const png = decodePng(image.png);
  assert.deepEqual(png.pixels, image.pixels);
  const texts = Object.values(png.texts).join("\n");
  assert.ok(texts.includes(hart.info.fingerprint));
  assert.ok(texts.includes(PROMPTS[0]) && texts.includes(image.settings) && /guidance .*smoothing/.test(image.settings), texts);
  assert.equal(image.blob().type, "image/png");
  assert.equal(image.blob().size, image.png.length);
  assert.ok(new Set(image.pixels).size > 16, "an image, not one colour");
  console.log(`# ${image.timings.total.toFixed(0)} ms on one thread`);
});

test("a seed gives the same image, as number, BigInt and text", limited, async (t) => {
  const hart = await open(t);
  const first = await hart.generate({ prompt: PROMPTS[1], seed: 3 });
  for (const seed of [3n, "3"]) assert.deepEqual((await hart.generate({ prompt: PROMPTS[1], seed })).pixels, first.pixels);
  assert.notDeepEqual((await hart.generate({ prompt: PROMPTS[1], seed: 4 })).pixels, first.pixels);
  const largest = 2n ** 64n - 1n;
  assert.equal((await hart.generate({ prompt: PROMPTS[1], seed: largest })).seed, largest);
  const [one, two] = [await hart.generate(PROMPTS[1]), await hart.generate(PROMPTS[1])];
  assert.notEqual(one.seed, two.seed, "random");
  assert.deepEqual((await hart.generate({ prompt: PROMPTS[1], seed: one.seed })).pixels, one.pixels);
});

test("images do not depend on the number of threads", { ...limited, skip: !hasThreads }, async (t) => {
  const one = await open(t);
  const three = await open(t, { threads: 3 });
  assert.equal(three.info.threads, 3);
  for (const prompt of PROMPTS.slice(0, 3)) {
    const [a, b] = await Promise.all([one, three].map((hart) => hart.generate({ prompt, seed: 5 })));
    assert.deepEqual(a.pixels, b.pixels);
  }
});

test("images are those of the native library", { ...limited, skip: !process.env.HART_GENERATE }, async (t) => {
  const hart = await open(t);
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), "hart-"));
  t.after(() => fs.rmSync(folder, { recursive: true }));
  for (const [seed, prompt] of PROMPTS.entries()) {
    const file = path.join(folder, `${seed}.png`);
    execFileSync(process.env.HART_GENERATE, [prompt, "--seed", String(seed), "--model", MODEL, "--device", "cpu", "--out", file, "--quiet"]);
    const native = decodePng(fs.readFileSync(file));
    const { pixels } = await hart.generate({ prompt, seed });
    const different = pixels.reduce((count, value, i) => count + (value !== native.pixels[i]), 0);
    const largest = pixels.reduce((largest, value, i) => Math.max(largest, Math.abs(value - native.pixels[i])), 0);
    console.log(`# ${prompt}: ${different} of ${3 * 64 * 64} values differ, by at most ${largest}`);
    // Sums are rounded in another order.
    assert.ok(different < 64 && largest <= 2);
  }
});

test("events follow the run", limited, async (t) => {
  const hart = await open(t);
  const events = [];
  let settled = false;
  const image = await hart.generate({ prompt: PROMPTS[2], seed: 1, preview: 32 }, (event) => {
    assert.ok(!settled);
    events.push(event);
  });
  settled = true;
  const { scales } = hart.info;
  const numbers = Array.from({ length: scales }, (_, i) => i + 1);
  const of = (type) => events.filter((event) => event.type === type);
  assert.deepEqual(of("scale").map(({ scale }) => scale), numbers);
  assert.deepEqual(of("preview").map(({ scale }) => scale), numbers);
  assert.ok(of("preview").every((e) => e.scales === scales && e.image.width <= 32 && e.image.pixels.length === 4 * e.image.width * e.image.height));
  assert.deepEqual([...new Set(events.map(({ stage }) => stage))].sort(), ["decode", "residual", "sampling", "text", "transformer"]);
  assert.ok(events.every((e, i) => i === 0 || (e.fraction >= events[i - 1].fraction && e.elapsed >= events[i - 1].elapsed)));
  assert.ok(events.at(-1).fraction > 0.9 && events.at(-1).fraction <= 1);
  const silent = [];
  const same = await hart.generate({ prompt: PROMPTS[2], seed: 1, preview: 0 }, (event) => silent.push(event.type));
  assert.ok(silent.length > 0 && !silent.includes("preview"));
  assert.deepEqual(same.pixels, image.pixels, "previews change nothing");
  assert.deepEqual((await hart.generate({ prompt: PROMPTS[2], seed: 1 })).pixels, image.pixels, "nor do listeners");
});

test("settings reach the model", limited, async (t) => {
  const hart = await open(t);
  const base = { prompt: PROMPTS[3], seed: 2 };
  const plain = await hart.generate(base);
  const { guidance, smoothing, topP, steps } = hart.info.defaults;
  assert.deepEqual((await hart.generate({ ...base, guidance, smoothing, topP, steps })).pixels, plain.pixels);
  for (const change of [{ guidance: 0 }, { smoothing: !smoothing }, { topK: 1 }, { topP: 0.5 }, { steps: 3 }, { systemPrompt: "a drawing of" }]) {
    assert.notDeepEqual((await hart.generate({ ...base, ...change })).pixels, plain.pixels, JSON.stringify(change));
  }
  assert.match((await hart.generate({ ...base, guidance: 2.5, topK: 9 })).settings, /guidance 2.5.*top-k 9/);
  const long = await hart.generate({ ...base, prompt: "a cat ".repeat(300) });
  assert.match(long.truncated, /a cat$/);
});

test("invalid requests are errors", limited, async (t) => {
  const hart = await open(t);
  for (const [request, message] of [
    [undefined, /prompt/],
    ["", /prompt/],
    [{ prompt: 3 }, /prompt/],
    ["x".repeat(hart.info.maxPromptBytes + 1), /prompt.*bytes/],
    [{ prompt: "a", seed: -1 }, /seed/],
    [{ prompt: "a", seed: 2n ** 64n }, /seed/],
    [{ prompt: "a", seed: 2 ** 60 }, /seed/],
    [{ prompt: "a", seed: "7.5" }, /seed/],
    [{ prompt: "a", guidance: 1000 }, /guidance/],
    [{ prompt: "a", guidance: NaN }, /guidance/],
    [{ prompt: "a", guidance: "4" }, /guidance/],
    [{ prompt: "a", topK: 0 }, /topK/],
    [{ prompt: "a", topK: 1.5 }, /topK/],
    [{ prompt: "a", topP: 2 }, /top-p/],
    [{ prompt: "a", steps: 100_000 }, /steps|respac/i],
    [{ prompt: "a", preview: -1 }, /preview/],
    [{ prompt: "a", smoothing: "yes" }, /smoothing|boolean/],
    [{ prompt: "a", systemPrompt: 7 }, /system|string/i],
  ]) {
    await refused(hart.generate(request), "request", message);
  }
  // A surrogate without its other half cannot be encoded; it becomes a replacement character, as everywhere on the web.
  await hart.generate({ prompt: "\ud800 a heart", seed: 1 });
});

test("invalid options and folders are errors", limited, async () => {
  const open = (files, options) => Hart.open(files, { threads: 1, ...options });
  await refused(open(MODEL, { precision: "f99" }), "request", /precision/);
  await refused(open(MODEL, { precision: "f16" }), "request", /f16/);
  await refused(open(MODEL, { threads: 0 }), "request", /threads/);
  await refused(open(MODEL, { threads: 1.5 }), "request", /threads/);
  await refused(open(MODEL, { maxMemory: 1e6 }), "memory", /MB/);
  await refused(open(path.join(HERE, "no-such-folder")), "checkpoint", /no such folder/);
  await refused(open(HERE), "checkpoint", /llm/);
  await refused(open(undefined), "request", /files/);
  await refused(open(7), "request", /files/);
  await refused(open({ "llm/config.json": 3 }), "request", /files/);
  await refused(open({}), "checkpoint", /no model/);
  await refused(open({ "../x": new Uint8Array(1) }), "request", /below/);
});

test("damaged files are errors that name the file", limited, async () => {
  const names = Object.keys(await listFiles(MODEL));
  const whole = Object.fromEntries(names.map((name) => [name, new Uint8Array(fs.readFileSync(path.join(MODEL, name)))]));
  const json = (name, change) => {
    const value = JSON.parse(Buffer.from(whole[name]).toString());
    change(value);
    return Buffer.from(JSON.stringify(value));
  };
  const cut = (name, size) => whole[name].slice(0, size);
  const nan = whole["llm/model.safetensors"].slice();
  nan.set([0, 0, 0xc0, 0x7f], nan.length - 4096);
  const blank = { id: 0, content: "  ", single_word: false, lstrip: true, rstrip: false, normalized: false, special: true };
  for (const [name, contents, code, message] of [
    ["llm/model.safetensors", cut("llm/model.safetensors", 1000), "checkpoint", /llm.model/],
    ["llm/model.safetensors", cut("llm/model.safetensors", 9_000_000), "checkpoint", /llm.model/],
    ["llm/model.safetensors", new Uint8Array(0), "checkpoint", /empty/],
    ["llm/model.safetensors", nan, "not-finite", /holds/],
    ["llm/model.safetensors", Buffer.from("<!doctype html>"), "checkpoint", /web page/],
    ["text/model.safetensors", whole["tokenizer/model.safetensors"], "weights", /./],
    ["llm/config.json", json("llm/config.json", (c) => (c.depth = 99)), "weights", /./],
    ["llm/config.json", json("llm/config.json", (c) => (c.num_heads = 0)), "config", /num_heads/],
    ["llm/config.json", Buffer.from("{"), "config", /./],
    ["text/tokenizer.json", json("text/tokenizer.json", (c) => (c.model.merges[0] = "q q")), "checkpoint", /merge/],
    ["text/tokenizer.json", json("text/tokenizer.json", (c) => (c.normalizer = { type: "Precompiled" })), "checkpoint", /normalizer/],
    ["text/tokenizer.json", json("text/tokenizer.json", (c) => c.added_tokens.push(blank)), "checkpoint", /added_tokens/],
    ["text/tokenizer.json", Buffer.from("[".repeat(100_000)), "checkpoint", /JSON/],
    ["text/tokenizer_config.json", Buffer.from("7"), "config", /./],
  ]) {
    await assert.rejects(Hart.open({ ...whole, [name]: contents }, { threads: 1 }), (error) => {
      const isConfig = code === "config" && error.code === "checkpoint";
      assert.ok((error.code === code || isConfig) && message.test(error.message), `${name}: ${error.code}: ${error.message}`);
      return true;
    });
  }
  const { ["text/tokenizer.json"]: _, ...without } = whole;
  await refused(Hart.open(without, { threads: 1 }), "checkpoint", /tokenizer.json/);
});

test("files come from memory, File objects and servers", limited, async (t) => {
  const names = Object.keys(await listFiles(MODEL));
  const read = (name) => fs.readFileSync(path.join(MODEL, name));
  const want = await (await open(t)).generate({ prompt: PROMPTS[4], seed: 9 });
  const same = async (files) => {
    const hart = await open(t, {}, files);
    assert.deepEqual((await hart.generate({ prompt: PROMPTS[4], seed: 9 })).pixels, want.pixels);
    hart.free();
  };
  await same(pathToFileURL(MODEL));
  await same(Object.fromEntries(names.map((name) => [name, read(name)])));
  await same(Object.fromEntries(names.map((name) => [name, new Blob([read(name)])])));
  // As a browser lists a chosen folder, and one that holds the text model next to it.
  const file = (name, place) => new File([read(name)], `${place}/${name}`);
  await same([...names.map((name) => file(name, "hart-emoji")), new File(["x"], "hart-emoji/README.md")]);
  await same(names.map((name) => file(name, name.startsWith("text/") ? "models" : "models/hart-emoji")));

  const requests = [];
  let list = null;
  const server = http.createServer((request, response) => {
    requests.push(`${request.method} ${request.url}`);
    const name = request.url.slice("/model/".length);
    if (name === "files.json" && list !== null) return response.end(list);
    if (!names.includes(name)) return response.writeHead(404).end("no");
    const body = read(name);
    response.writeHead(200, { "content-length": body.length });
    response.end(request.method === "HEAD" ? undefined : body);
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  t.after(() => server.close());
  const base = `http://127.0.0.1:${server.address().port}/model`;
  await same(base);
  const got = requests.filter((request) => request.startsWith("GET")).map((request) => request.slice("GET /model/".length));
  assert.deepEqual(got.sort(), ["files.json", ...names].sort(), "each file once");
  list = JSON.stringify(await listFiles(MODEL));
  requests.length = 0;
  await same(`${base}/`);
  assert.equal(requests.filter((request) => !names.some((name) => request.endsWith(`/model/${name}`))).length, 1, "asks only for the list besides");
  list = null;
  await refused(Hart.open(`${base}/elsewhere`, { threads: 1 }), "checkpoint", /no model/);
  await refused(Hart.open("http://127.0.0.1:1/model", { threads: 1 }), "network", /127.0.0.1/);
});

test("a signal cancels at once", limited, async (t) => {
  const hart = await open(t);
  const controller = new AbortController();
  let events = 0;
  const run = hart.generate({ prompt: PROMPTS[0], seed: 1, signal: controller.signal }, ({ type }) => {
    events += 1;
    if (type === "scale") controller.abort("enough");
  });
  await assert.rejects(run, (error) => error.name === "AbortError" && error.code === "cancelled" && error.cause === "enough");
  const before = events;
  const waiting = new AbortController();
  const [first, second] = [hart.generate({ prompt: PROMPTS[0], seed: 1 }), hart.generate({ prompt: PROMPTS[1], signal: waiting.signal })];
  waiting.abort();
  await refused(second, "cancelled");
  await refused(hart.generate({ prompt: PROMPTS[1], signal: AbortSignal.abort() }), "cancelled");
  assert.equal((await first).width, 64);
  assert.equal(events, before, "no event after the end");
  await refused(Hart.open(MODEL, { threads: 1, signal: AbortSignal.abort() }), "cancelled");
  const late = new AbortController();
  const opening = Hart.open(MODEL, { threads: 1, signal: late.signal, onProgress: () => late.abort() });
  await refused(opening, "cancelled");
});

test("without shared memory a cancelled run restarts the engine", limited, async (t) => {
  const shared = globalThis.SharedArrayBuffer;
  globalThis.SharedArrayBuffer = undefined;
  t.after(() => (globalThis.SharedArrayBuffer = shared));
  await refused(Hart.open(MODEL, { threads: 2 }), "unsupported", /isolated/);
  const hart = await open(t, { threads: undefined });
  assert.deepEqual([hart.info.cancel, hart.info.threads], ["restart", 1]);
  const want = await hart.generate({ prompt: PROMPTS[0], seed: 1 });
  for (let round = 0; round < 3; round++) {
    const controller = new AbortController();
    const run = hart.generate({ prompt: PROMPTS[0], signal: controller.signal }, ({ type }) => type === "scale" && controller.abort());
    const next = hart.generate({ prompt: PROMPTS[0], seed: 1 });
    await refused(run, "cancelled");
    assert.deepEqual((await next).pixels, want.pixels);
  }
});

test("a freed model refuses calls", limited, async (t) => {
  const hart = await open(t);
  const runs = [hart.generate(PROMPTS[0]), hart.generate(PROMPTS[1])].map((run) => refused(run, "freed"));
  hart.free();
  hart.free();
  await Promise.all([...runs, refused(hart.generate(PROMPTS[0]), "freed")]);
});

test("a listener that throws does not end the run", limited, async (t) => {
  const hart = await open(t);
  const warnings = [];
  const warn = (warning) => warnings.push(warning.message);
  process.on("warning", warn);
  t.after(() => process.off("warning", warn));
  await hart.generate({ prompt: PROMPTS[0] }, ({ type, scale }) => {
    if (type === "scale" && scale === 1) throw new Error("from the listener");
  });
  await new Promise(setImmediate);
  assert.deepEqual(warnings, ["from the listener"]);
});

/** Copies the package with an engine of which JavaScript can make anything. */
function fakeEngine(t, source) {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), "hart-"));
  t.after(() => fs.rmSync(folder, { recursive: true }));
  for (const name of ["package.json", "hart.js", "worker.js", "files.js", "error.js"]) fs.copyFileSync(path.join(HERE, name), path.join(folder, name));
  fs.mkdirSync(path.join(folder, "pkg"));
  fs.writeFileSync(path.join(folder, "pkg/hart_bg.wasm"), new Uint8Array([0, 97, 115, 109, 1, 0, 0, 0]));
  fs.writeFileSync(path.join(folder, "pkg/hart.js"), source);
  return import(pathToFileURL(path.join(folder, "hart.js")));
}

test("after a trap the next call works on a fresh instance", limited, async (t) => {
  // The first prompt of each instance's life decides: a trap, a panic, or the end of the worker.
  const { Hart } = await fakeEngine(
    t,
    `
    export const initSync = () => ({});
    export class ModelFiles { begin() {} write() {} end() {} }
    const unreachable = [0, 97, 115, 109, 1, 0, 0, 0, 1, 4, 1, 96, 0, 0, 3, 2, 1, 0, 7, 5, 1, 1, 116, 0, 0, 10, 5, 1, 3, 0, 0, 11];
    const trap = new WebAssembly.Instance(new WebAssembly.Module(new Uint8Array(unreachable))).exports.t;
    let calls = 0;
    export class Model {
      static open() { return new Model(); }
      info() { return "{}"; }
      generate(settings) {
        const { prompt } = JSON.parse(settings);
        calls += 1;
        if (prompt === "trap") trap();
        if (prompt === "panic") { hartPanicked("index out of bounds"); trap(); }
        if (prompt === "exit") process.exit(3);
        return {
          json: () => JSON.stringify({ width: 1, height: 1, seed: "1", prompt, settings: "call " + calls }),
          pixels: () => new Uint8Array(4), png: () => new Uint8Array(1), free() {},
        };
      }
    }`,
  );
  const hart = await Hart.open(MODEL, { threads: 1 });
  t.after(() => hart.free());
  assert.equal((await hart.generate("a")).settings, "call 1");
  assert.equal((await hart.generate("a")).settings, "call 2");
  for (const [prompt, message] of [["trap", /unreachable/], ["panic", /index out of bounds/], ["exit", /worker ended/]]) {
    const [crash, next] = [hart.generate(prompt), hart.generate("a")];
    await assert.rejects(crash, (error) => error.code === "crashed" && message.test(error.message) || assert.fail(error.stack));
    assert.equal((await next).settings, "call 1", "a fresh instance");
  }
});

test("a program ends without freeing the model", limited, () => {
  const program = `
    import { Hart } from ${JSON.stringify(pathToFileURL(path.join(HERE, "hart.js")).href)};
    const hart = await Hart.open(${JSON.stringify(MODEL)}, { threads: ${hasThreads ? 2 : 1} });
    const image = await hart.generate({ prompt: "a cat", seed: 1 });
    console.log(image.width);`;
  const { status, stdout, stderr } = spawnSync(process.execPath, ["--input-type=module", "--eval", program], { timeout: 60_000 });
  assert.equal(status, 0, String(stderr));
  assert.equal(String(stdout).trim(), "64");
});
