// Text-to-image generation in browsers and in Node. The types are in hart.d.ts.

import { HartError } from "./error.js";

export { HartError };

const isNode = typeof process === "object" && typeof process.versions?.node === "string";
/** Name of the cache that keeps files of models. */
const CACHE = "hart-models";
/** Largest side of a preview in pixels. */
const PREVIEW_SIDE = 256;
/** Stages of a run, in order. */
const STAGES = ["text", "transformer", "sampling", "residual", "decode"];
/** A module with one SIMD instruction. */
const SIMD = [0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11];

/** Whether memory can be shared with workers. Without cross-origin isolation it can be made, but not posted to them. */
const canShare = () => typeof SharedArrayBuffer === "function" && (isNode || globalThis.crossOriginIsolated === true);

export class Hart {
  #setup;
  #engine;
  #info;
  #jobs = [];
  #running = null;
  #freed = false;

  static async open(files, options = {}) {
    const { onProgress, signal } = options;
    const setup = await prepare(files, options);
    const engine = Engine.start(setup, onProgress, signal);
    const info = await engine.opened;
    return new Hart(setup, engine, info);
  }

  /** Private: use Hart.open. */
  constructor(setup, engine, info) {
    this.#setup = setup;
    this.#engine = engine;
    this.#info = Object.freeze({ ...info, cancel: setup.flag === undefined ? "restart" : "flag" });
  }

  get info() {
    return this.#info;
  }

  generate(request, onEvent) {
    return new Promise((resolve, reject) => {
      const { signal, ...options } = typeof request === "string" ? { prompt: request } : (request ?? {});
      const job = { settings: settings(options, onEvent), onEvent, signal, resolve, reject, settled: false };
      if (this.#freed) throw new HartError("freed", "the model is freed");
      if (signal?.aborted) throw cancelled(signal);
      job.onAbort = () => this.#cancel(job);
      signal?.addEventListener("abort", job.onAbort, { once: true });
      this.#jobs.push(job);
      this.#next();
    });
  }

  free() {
    if (this.#freed) return;
    this.#freed = true;
    this.#engine?.stop();
    const jobs = [...(this.#running === null ? [] : [this.#running]), ...this.#jobs];
    this.#jobs = [];
    this.#running = null;
    for (const job of jobs) settle(job, "reject", new HartError("freed", "the model is freed"));
  }

  static async clearCache(base, name = CACHE) {
    if (typeof caches === "undefined") return;
    if (base === undefined) {
      await caches.delete(name);
      return;
    }
    const prefix = folderUrl(base);
    const cache = await caches.open(name);
    for (const request of await cache.keys()) {
      if (request.url.startsWith(prefix)) await cache.delete(request);
    }
  }

  /** Runs the next job, unless one is running. */
  async #next() {
    if (this.#running !== null || this.#jobs.length === 0) return;
    const job = this.#jobs.shift();
    this.#running = job;
    try {
      // After a crash or a cancelled run the engine is opened again.
      this.#engine ??= Engine.start(this.#setup);
      const engine = this.#engine;
      await engine.opened;
      if (!job.settled) {
        const image = await engine.generate(job.settings, (event) => job.settled || job.onEvent?.(event));
        settle(job, "resolve", image);
      }
    } catch (error) {
      if (this.#engine?.isStopped) this.#engine = null;
      settle(job, "reject", error);
    }
    // A cancelled run has been replaced by then.
    if (this.#running === job) {
      this.#running = null;
      this.#next();
    }
  }

  #cancel(job) {
    if (job.settled) return;
    settle(job, "reject", cancelled(job.signal));
    if (this.#running !== job) {
      this.#jobs = this.#jobs.filter((other) => other !== job);
    } else if (this.#setup.flag !== undefined) {
      this.#engine?.cancel();
    } else if (this.#engine?.isGenerating) {
      this.#engine.stop();
      this.#running = null;
      this.#engine = Engine.start(this.#setup);
      this.#engine.opened.catch(() => {});
      this.#next();
    }
  }
}

/** Settles a job once. */
function settle(job, how, value) {
  if (job.settled) return;
  job.settled = true;
  job.signal?.removeEventListener("abort", job.onAbort);
  job[how](value);
}

function cancelled(signal) {
  return new HartError("cancelled", "cancelled", undefined, { cause: signal.reason });
}

/** A worker with an open model. */
class Engine {
  #worker;
  #setup;
  #waiting = null;
  #onProgress;
  isStopped = false;
  isGenerating = false;

  static start(setup, onProgress, signal) {
    return new Engine(setup, onProgress, signal);
  }

  constructor(setup, onProgress, signal) {
    this.#setup = setup;
    this.#onProgress = onProgress;
    this.opened = this.#open(signal);
    // A failure is that of the call that waits for it.
    this.opened.catch(() => {});
  }

  async #open(signal) {
    if (signal?.aborted) throw cancelled(signal);
    const abort = () => this.#fail(cancelled(signal));
    signal?.addEventListener("abort", abort, { once: true });
    const { source, options, threads, mayBeOne, flag, module } = this.#setup;
    try {
      const opened = this.#wait();
      this.#worker = await startWorker(
        (message) => this.#receive(message),
        (text) => this.#fail(new HartError("crashed", `the engine's worker ended: ${text}`)),
      );
      if (this.isStopped) this.#worker.stop();
      this.#worker.ref();
      this.#worker.post({ type: "open", source, options, threads, mayBeOne, flag, module });
      const { info, module: compiled } = await opened;
      // The next worker need not compile it again.
      this.#setup.module = compiled;
      this.#setup.threads = info.threads;
      return info;
    } catch (error) {
      this.stop();
      throw error;
    } finally {
      this.#onProgress = undefined;
      signal?.removeEventListener("abort", abort);
    }
  }

  async generate(settings, onEvent) {
    const { flag } = this.#setup;
    if (flag !== undefined) Atomics.store(new Int32Array(flag), 0, 0);
    this.#worker.ref();
    this.#worker.post({ type: "generate", settings });
    this.isGenerating = true;
    try {
      const { image } = await this.#wait(onEvent);
      return new HartImage(image);
    } finally {
      this.isGenerating = false;
    }
  }

  /** Asks the engine to stop its run at the next step. */
  cancel() {
    Atomics.store(new Int32Array(this.#setup.flag), 0, 1);
  }

  /** Ends the worker. */
  stop() {
    this.isStopped = true;
    this.#worker?.stop();
    this.#waiting?.reject(new HartError("cancelled", "cancelled"));
    this.#waiting = null;
  }

  /** Waits for the answer to a message. */
  #wait(onEvent) {
    return new Promise((resolve, reject) => (this.#waiting = { resolve, reject, onEvent }));
  }

  #fail(error) {
    const waiting = this.#waiting;
    this.#waiting = null;
    this.stop();
    waiting?.reject(error);
  }

  #receive(message) {
    if (this.isStopped) return;
    const waiting = this.#waiting;
    switch (message.type) {
      case "progress":
        call(this.#onProgress, message.progress);
        break;
      case "event":
        call(waiting?.onEvent, message.event);
        break;
      case "crashed": {
        const advice = "hart has a defect or ran out of memory; the next call starts a fresh engine";
        this.#fail(new HartError("crashed", `the engine crashed: ${message.message} (${advice})`));
        break;
      }
      case "failed": {
        const { code, message: text, file } = message.error;
        this.#answer().reject(new HartError(code, text, file));
        break;
      }
      default:
        this.#answer().resolve(message);
    }
  }

  #answer() {
    const waiting = this.#waiting;
    this.#waiting = null;
    // An idle worker does not keep a program in Node alive.
    this.#worker.unref();
    return waiting;
  }
}

/** Calls a listener. Its errors are reported like those of any event listener. */
function call(listener, value) {
  try {
    listener?.(value);
  } catch (error) {
    if (isNode) process.emitWarning(error);
    else reportError(error);
  }
}

/** Starts the worker. `receive` is called with its messages, `ended` if it ends by itself. */
async function startWorker(receive, ended) {
  const url = new URL("./worker.js", import.meta.url);
  if (isNode) {
    const { Worker } = await import("node:worker_threads");
    // Options of the program, such as --input-type, are not for the worker.
    const worker = new Worker(url, { execArgv: [] });
    worker.on("message", receive).on("error", (error) => ended(error.message)).on("exit", () => ended("it exited"));
    return {
      post: (message) => worker.postMessage(message),
      stop: () => void worker.terminate(),
      ref: () => worker.ref(),
      unref: () => worker.unref(),
    };
  }
  const worker = new Worker(url, { type: "module" });
  worker.onmessage = ({ data }) => receive(data);
  worker.onmessageerror = () => ended("a message can't be read");
  worker.onerror = (event) => ended(event.message ?? `${url} can't be loaded as a module worker`);
  return { post: (message) => worker.postMessage(message), stop: () => worker.terminate(), ref() {}, unref() {} };
}

/** An image, as a canvas and as a file. */
export class HartImage {
  constructor({ width, height, pixels, png, seed, prompt, settings, truncated, timings }) {
    const inOrder = Object.fromEntries([...STAGES, "total"].map((stage) => [stage, timings?.[stage]]));
    Object.assign(this, { width, height, pixels, png, seed: BigInt(seed), prompt, settings, truncated, timings: Object.freeze(inOrder) });
    Object.freeze(this);
  }

  blob() {
    return new Blob([this.png], { type: "image/png" });
  }

  imageData() {
    return new ImageData(this.pixels, this.width, this.height);
  }
}

/** Returns what a worker needs to open the model, now and after a crash. */
async function prepare(files, { precision = "auto", threads, maxMemory, cache = true }) {
  if (!WebAssembly.validate(new Uint8Array(SIMD))) {
    throw new HartError("unsupported", "this browser has no WebAssembly SIMD: update it");
  }
  const setup = {
    source: await normalizeSource(files, cache === true ? CACHE : cache),
    options: { precision, maxMemory },
    threads: await threadCount(threads),
    // Without a wish, one thread is better than an error if the module with threads has not been built.
    mayBeOne: threads === undefined || threads === null,
  };
  if (canShare()) setup.flag = new SharedArrayBuffer(4);
  return setup;
}

async function threadCount(threads) {
  if (threads !== undefined && threads !== null && !(Number.isInteger(threads) && threads >= 1 && threads <= 256)) {
    throw new HartError("request", `request: threads: ${threads}, expected 1 to 256; leave it out for all cores`);
  }
  if (!canShare()) {
    if (threads > 1) throw new HartError("unsupported", `${threads} threads need a page that is cross-origin isolated: send it with the headers Cross-Origin-Opener-Policy: same-origin and Cross-Origin-Embedder-Policy: credentialless`);
    return 1;
  }
  return threads ?? (isNode ? (await import("node:os")).availableParallelism() : (navigator.hardwareConcurrency ?? 1));
}

/** Returns the files in a form that can be posted to a worker. */
async function normalizeSource(files, cache) {
  if (isNode && (typeof files === "string" || files instanceof URL)) {
    const text = String(files);
    if (!/^https?:/.test(text)) {
      const { fileURLToPath } = await import("node:url");
      return { kind: "folder", path: text.startsWith("file:") ? fileURLToPath(text) : text };
    }
  }
  if (typeof files === "string" || files instanceof URL) return { kind: "url", base: folderUrl(files), cache };
  if (files?.kind === "directory") return { kind: "handle", handle: files };
  if (typeof files?.[Symbol.iterator] === "function") {
    const list = [...files];
    if (list.every((file) => file instanceof Blob)) {
      return { kind: "blobs", files: list.map((file) => ({ name: file.webkitRelativePath || file.name, file })) };
    }
  } else if (files !== null && typeof files === "object") {
    const isBytes = (file) => file instanceof Blob || file instanceof ArrayBuffer || ArrayBuffer.isView(file);
    const entries = Object.entries(files);
    if (entries.every(([, file]) => typeof file === "string" || file instanceof URL || isBytes(file))) {
      return { kind: "record", entries: entries.map(([name, file]) => [name, isBytes(file) ? file : absolute(file).href]), cache };
    }
  }
  throw new HartError("request", "request: files: expected the URL of a folder, a list of File objects, a FileSystemDirectoryHandle, or an object of names and contents");
}

function absolute(url) {
  return new URL(url, globalThis.document?.baseURI ?? globalThis.location?.href);
}

/** Returns the URL of a folder, with a slash at its end. */
function folderUrl(url) {
  const { href } = absolute(url);
  return href.endsWith("/") ? href : `${href}/`;
}

/** Checks the settings of a run and fills in the seed. */
function settings({ prompt, seed, guidance, smoothing, topK, topP, steps, systemPrompt, marks, preview }, onEvent) {
  if (typeof prompt !== "string") throw new HartError("request", `request: prompt: ${prompt}, expected a text`);
  const numbers = { guidance, topP };
  for (const [name, value] of Object.entries(numbers)) {
    if (value !== undefined && value !== null && !Number.isFinite(value)) {
      throw new HartError("request", `request: ${name}: ${value}, expected a number`);
    }
  }
  const counts = { topK, steps, preview };
  for (const [name, value] of Object.entries(counts)) {
    if (value !== undefined && value !== null && !(Number.isInteger(value) && value >= (name === "preview" ? 0 : 1) && value < 2 ** 31)) {
      throw new HartError("request", `request: ${name}: ${value}, expected a whole number`);
    }
  }
  if (typeof seed === "number" && !Number.isSafeInteger(seed)) {
    throw new HartError("request", `request: seed: ${seed}, expected a whole number up to 2^53 - 1: larger ones as BigInt or text`);
  }
  return {
    prompt: wellFormed(prompt),
    seed: String(seed ?? crypto.getRandomValues(new BigUint64Array(1))[0]),
    guidance,
    smoothing,
    topK,
    topP,
    steps,
    // The engine's empty text is none.
    systemPrompt: systemPrompt === null ? "" : wellFormed(systemPrompt),
    marks: marks ?? undefined,
    preview: onEvent === undefined || onEvent === null ? 0 : (preview ?? PREVIEW_SIDE),
  };
}

/** Replaces halves of surrogate pairs, which UTF-8 does not have. */
function wellFormed(text) {
  return typeof text === "string" ? new TextDecoder().decode(new TextEncoder().encode(text)) : text;
}
