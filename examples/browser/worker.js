// The worker that runs the engine, in browsers and in Node. hart.js starts it and is its only correspondent.
//
// Messages to it:   { type: "open", ... } once, then { type: "generate", ... }; { type: "thread", ... } for a thread of the pool.
// Messages from it: "progress", "opened", "event", "image", "failed", "crashed"; "ready" from a thread.

import { HartError } from "./error.js";
import { readModel } from "./files.js";

const isNode = typeof process === "object" && typeof process.versions?.node === "string";
const node = isNode ? await import("node:worker_threads") : null;
const port = isNode ? node.parentPort : self;

/** The engine's module and model, and the flag that cancels a run. */
let engine = null;
/** Message of a panic. The instance must not be used after it. */
let panic = null;
globalThis.hartPanicked = (message) => (panic = message);

const post = (message, transfer = []) => port.postMessage(message, transfer);

async function receive(message) {
  try {
    await HANDLERS[message.type](message);
  } catch (error) {
    const failure = parse(error);
    // A trap leaves locks held and memory in any state.
    if (failure === null) post({ type: "crashed", message: panic ?? `${error.name}: ${error.message}` });
    else post({ type: "failed", error: failure });
  }
}

/** Returns code, message and file of an error, or null if it is a trap or a defect. */
function parse(error) {
  // Errors of the engine are JSON.
  if (typeof error === "string") return JSON.parse(error);
  if (error instanceof HartError) return { code: error.code, message: error.message, file: error.file };
  return null;
}

const HANDLERS = {
  async open({ source, options, threads, mayBeOne, module, flag }) {
    post({ type: "progress", progress: { phase: "engine", loaded: 0, total: null, file: null, cached: module !== undefined } });
    let loaded;
    if (threads > 1) {
      try {
        loaded = await load("./pkg/threads/", module);
      } catch (error) {
        if (!mayBeOne) throw error;
        threads = 1;
      }
    }
    const [api, compiled] = loaded ?? (await load("./pkg/", module));
    const { memory } = api.initSync({ module: compiled });
    if (threads > 1) {
      await startThreads(threads, compiled, memory);
      api.buildPool(threads);
    }
    const files = new api.ModelFiles();
    await readModel(source, files, (progress) => post({ type: "progress", progress: { phase: "files", ...progress } }));
    post({ type: "progress", progress: { phase: "load", loaded: 0, total: null, file: null, cached: false } });
    const model = api.Model.open(files, JSON.stringify(options));
    engine = { model, flag: flag === undefined ? null : new Int32Array(flag) };
    post({ type: "opened", info: JSON.parse(model.info()), module: compiled });
  },

  async generate({ settings }) {
    const { model, flag } = engine;
    const listener = {
      event(json, pixels) {
        const event = JSON.parse(json);
        if (pixels === undefined) {
          post({ type: "event", event });
        } else {
          event.image.pixels = new Uint8ClampedArray(pixels.buffer, pixels.byteOffset, pixels.length);
          post({ type: "event", event }, [pixels.buffer]);
        }
        return flag === null || Atomics.load(flag, 0) === 0;
      },
    };
    const generated = model.generate(JSON.stringify(settings), listener);
    const [image, pixels, png] = [JSON.parse(generated.json()), generated.pixels(), generated.png()];
    generated.free();
    image.pixels = new Uint8ClampedArray(pixels.buffer, pixels.byteOffset, pixels.length);
    image.png = png;
    post({ type: "image", image }, [pixels.buffer, png.buffer]);
  },

  async thread({ module, memory }) {
    const { initSync, runThread } = await import(new URL("./pkg/threads/hart.js", import.meta.url));
    initSync({ module, memory });
    post({ type: "ready" });
    runThread();
  },
};

/** Loads the engine from a folder. Returns its JavaScript and its module, which is compiled unless it is given. */
function load(folder, module) {
  const url = new URL(folder, import.meta.url);
  const api = import(new URL("hart.js", url)).catch((error) => {
    throw new HartError("network", `${url}hart.js: can't be loaded (${error.message}): has build.sh been run?`);
  });
  return Promise.all([api, module ?? compile(new URL("hart_bg.wasm", url))]);
}

async function compile(url) {
  if (isNode) {
    const { readFile } = await import("node:fs/promises");
    return WebAssembly.compile(await readFile(url));
  }
  let response;
  try {
    response = await fetch(url);
  } catch (error) {
    throw new HartError("network", `${url}: can't be fetched (${error.message}): check the connection`);
  }
  if (!response.ok) throw new HartError("network", `${url}: the server answers ${response.status}: has build.sh been run?`);
  // Servers that do not know .wasm send another type, with which nothing can be compiled while it arrives.
  const isWasm = response.headers.get("content-type")?.startsWith("application/wasm");
  return isWasm ? WebAssembly.compileStreaming(response) : WebAssembly.compile(await response.arrayBuffer());
}

/** Starts the workers of the pool and waits until all of them have instantiated the module: none can while this worker computes. */
function startThreads(count, module, memory) {
  const start = () =>
    new Promise((resolve, reject) => {
      const failed = (event) => reject(new HartError("unsupported", `no worker for a thread: ${event.message ?? "it does not start"}`));
      let worker;
      if (isNode) {
        worker = new node.Worker(new URL(import.meta.url), { execArgv: [] });
        worker.on("message", resolve).on("error", failed);
      } else {
        worker = new Worker(new URL(import.meta.url), { type: "module" });
        worker.onmessage = resolve;
        worker.onerror = failed;
      }
      worker.postMessage({ type: "thread", module, memory });
    });
  return Promise.all(Array.from({ length: count }, start));
}

if (isNode) port.on("message", receive);
else port.onmessage = ({ data }) => receive(data);
