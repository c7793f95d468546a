// Reads the files of a model, in pieces, from a server, a folder or memory. Runs in the worker.

import { HartError } from "./error.js";

/** Folders of the text model, in order of precedence. */
const TEXT_FOLDERS = ["text", "Qwen2-VL-1.5B-Instruct"];
/** Bytes that are read at a time. */
const PIECE = 16 << 20;
/** A list of the model's files next to `llm`, so that a server is not asked for others. */
const LIST = "files.json";

/**
 * Passes the files of a model to `sink`, one after the other.
 *
 * @param source what `normalizeSource` in hart.js returned
 * @param sink the engine's ModelFiles: begin(name, size), write(bytes), end()
 * @param report is called with { loaded, total, file, cached }
 */
export async function readModel(source, sink, report) {
  const store = await STORES[source.kind](source);
  const names = store.names ?? (await select(store));
  if (names.length === 0) {
    throw new HartError("checkpoint", `${store.title}: no model: expected a folder that holds llm, tokenizer and text`);
  }
  const progress = { loaded: 0, total: await store.total(names), file: null, cached: false };
  for (const name of names) {
    Object.assign(progress, { file: name, cached: false });
    report({ ...progress });
    const file = await store.open(name, (bytes) => {
      progress.loaded += bytes;
      report({ ...progress });
    });
    progress.cached = file.cached ?? false;
    if (file.size > 0x7fffffff) {
      throw new HartError("memory", `${name}: has ${Math.round(file.size / 2 ** 20)} MB, but a file can have 2047 MB here: convert the model to int8 or bf16, or split the file into shards`, name);
    }
    sink.begin(name, file.size ?? 0);
    for await (const piece of file.pieces) {
      sink.write(piece);
      if (!file.counted) {
        progress.loaded += piece.length;
        report({ ...progress });
      }
    }
    sink.end();
  }
}

/** Returns the names and sizes of a model's files in a folder. In Node. */
export async function listFiles(path) {
  const store = await openFolder({ path });
  const names = await select(store);
  return Object.fromEntries(await Promise.all(names.map(async (name) => [name, await store.total([name])])));
}

/** Returns the names of the files that the engine needs, of those that `store` has. */
async function select(store) {
  const names = [];
  const add = async (...candidates) => {
    for (const name of candidates) {
      if (await store.has(name)) {
        names.push(name);
        return name;
      }
    }
    return null;
  };
  const weights = async (folder, ...first) => {
    const index = `${folder}/model.safetensors.index.json`;
    const found = await add(...first, `${folder}/model.safetensors`, index);
    if (found === index) {
      const shards = Object.values(JSON.parse(await text(store, index)).weight_map ?? {});
      for (const shard of new Set(shards)) await add(`${folder}/${shard}`);
    }
  };
  await add("llm/config.json");
  await add("llm/generation_config.json");
  await add("llm/system_prompt.txt");
  await weights("llm", "llm/ema_model.safetensors");
  await add("tokenizer/config.json");
  await weights("tokenizer");
  const config = await add(...TEXT_FOLDERS.map((folder) => `${folder}/config.json`));
  if (config !== null) {
    const folder = config.slice(0, -"/config.json".length);
    for (const name of ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"]) await add(`${folder}/${name}`);
    await weights(folder);
  }
  return names;
}

/** Returns the contents of a small file. */
async function text(store, name) {
  const decoder = new TextDecoder();
  let contents = "";
  for await (const piece of (await store.open(name, () => {})).pieces) contents += decoder.decode(piece, { stream: true });
  return contents + decoder.decode();
}

/**
 * Places of files. Each returns { title, has(name), total(names), open(name, count) } and, if it knows which files the engine needs,
 * `names`. `open` returns { size, pieces, cached, counted }; with `counted`, it has reported the bytes to `count` itself.
 */
const STORES = {
  url: openUrl,
  blobs: openBlobs,
  handle: openHandle,
  record: openRecord,
  folder: openFolder,
};

/** Files below a URL, kept in the browser's cache. */
async function openUrl({ base, cache: cacheName }) {
  const url = (name) => new URL(name.split("/").map(encodeURIComponent).join("/"), base).href;
  const remote = new Remote(await openCache(cacheName));
  const list = await remote.list(url(LIST));
  const has = async (name) => (await remote.head(url(name))) !== null;
  const sizes = Array.isArray(list) || list === null ? {} : list;
  const names = list === null ? undefined : Array.isArray(list) ? list : Object.keys(list);
  const total = async (all) => sum(await Promise.all(all.map(async (name) => sizes[name] ?? (await remote.head(url(name)))?.size)));
  return { title: base, names, has, total, open: (name, count) => remote.open(name, url(name), count) };
}

/** Files by name, each a URL, a Blob or bytes. */
async function openRecord({ entries, cache: cacheName }) {
  const files = new Map(entries);
  const remote = new Remote(await openCache(cacheName));
  const size = async (file) => (typeof file === "string" ? (await remote.head(file))?.size : (file.size ?? file.byteLength));
  return {
    title: "the files",
    names: [...files.keys()],
    total: async (all) => sum(await Promise.all(all.map((name) => size(files.get(name))))),
    open(name, count) {
      const file = files.get(name);
      if (typeof file === "string") return remote.open(name, file, count);
      return file instanceof Blob ? blob(name, file) : { size: file.byteLength, pieces: [new Uint8Array(file.buffer ?? file, file.byteOffset ?? 0, file.byteLength)] };
    },
  };
}

/** File objects by their paths. */
async function openBlobs({ files }) {
  const all = new Map(relocate(files.map(({ name, file }) => [name, file])));
  return {
    title: "the files",
    has: async (name) => all.has(name),
    total: async (names) => sum(names.map((name) => all.get(name).size)),
    open: (name) => blob(name, all.get(name)),
  };
}

/** The files of a FileSystemDirectoryHandle. */
async function openHandle({ handle }) {
  const files = [];
  const walk = async (folder, prefix, depth) => {
    for await (const entry of folder.values()) {
      const name = prefix + entry.name;
      if (entry.kind === "file") files.push({ name, file: await entry.getFile() });
      else if (depth > 0) await walk(entry, `${name}/`, depth - 1);
    }
  };
  await walk(handle, "", 2);
  return { ...(await openBlobs({ files })), title: handle.name };
}

/** A folder of the file system, in Node. */
async function openFolder({ path }) {
  const [fs, { join, dirname, resolve }] = await Promise.all([import("node:fs"), import("node:path")]);
  const find = (name) => {
    // The text model can also be next to the folder, as for the other programs.
    const places = [join(path, name), ...(TEXT_FOLDERS.includes(name.split("/")[0]) ? [join(dirname(resolve(path)), name)] : [])];
    return places.find((place) => fs.statSync(place, { throwIfNoEntry: false })?.isFile());
  };
  if (!fs.statSync(path, { throwIfNoEntry: false })?.isDirectory()) {
    throw new HartError("checkpoint", `${path}: no such folder: pass the checkpoint's root folder, which holds llm and tokenizer`, path);
  }
  return {
    title: path,
    has: async (name) => find(name) !== undefined,
    total: async (names) => sum(names.map((name) => fs.statSync(find(name)).size)),
    open(name) {
      const place = find(name);
      const { size } = fs.statSync(place);
      return { size, pieces: readPieces(fs, place, name) };
    },
  };
}

function* readPieces(fs, path, name) {
  try {
    const file = fs.openSync(path, "r");
    try {
      const piece = new Uint8Array(PIECE);
      for (;;) {
        const count = fs.readSync(file, piece);
        if (count === 0) return;
        yield piece.subarray(0, count);
      }
    } finally {
      fs.closeSync(file);
    }
  } catch (error) {
    throw new HartError("io", `${path}: ${error.message}`, name, { cause: error });
  }
}

function blob(name, file) {
  return { size: file.size, pieces: slices(name, file) };
}

/** Yields a Blob in pieces. `Blob.arrayBuffer` fails for large ones, and so does a file that has changed. */
async function* slices(name, file) {
  for (let start = 0; start < file.size; start += PIECE) {
    try {
      yield new Uint8Array(await file.slice(start, start + PIECE).arrayBuffer());
    } catch (error) {
      throw new HartError("io", `${name}: can't be read (${error.message}): choose the folder again`, name, { cause: error });
    }
  }
}

/**
 * Names the files relative to the checkpoint's root, the folder that holds `llm/config.json` and is nearest to the top. A text model next
 * to the root is moved into it.
 */
function relocate(files) {
  const depth = (path) => path.split("/").length;
  const configs = files.map(([name]) => name).filter((name) => name === "llm/config.json" || name.endsWith("/llm/config.json"));
  configs.sort((a, b) => depth(a) - depth(b));
  if (configs.length === 0) return files;
  const root = configs[0].slice(0, -"llm/config.json".length);
  const parent = root.slice(0, root.lastIndexOf("/", root.length - 2) + 1);
  const inside = files.filter(([name]) => name.startsWith(root)).map(([name, file]) => [name.slice(root.length), file]);
  const siblings = files.map(([name, file]) => [name.slice(parent.length), file]);
  const texts = siblings.filter(([name], i) => root !== "" && files[i][0].startsWith(parent) && TEXT_FOLDERS.includes(name.split("/")[0]));
  return [...texts, ...inside];
}

function sum(sizes) {
  return sizes.every((size) => typeof size === "number") ? sizes.reduce((a, b) => a + b, 0) : null;
}

async function openCache(name) {
  // Without a secure context, or with storage blocked, files are fetched each time.
  if (!name || typeof caches === "undefined") return null;
  return caches.open(name).catch(() => null);
}

/** Files of a server, with the browser's cache in front. */
class Remote {
  #cache;
  #heads = new Map();

  constructor(cache) {
    this.#cache = cache;
  }

  /** Returns the list of a model's files, or null if there is none. */
  async list(url) {
    const response = await this.#get(url, { cache: "no-cache" }).catch(() => null);
    if (response === null || !response.ok) {
      await response?.body?.cancel();
      return (await (await this.#cache?.match(url))?.json()) ?? null;
    }
    const copy = response.clone();
    const list = await response.json().catch(() => null);
    const names = Array.isArray(list) ? list : list && typeof list === "object" ? Object.keys(list) : [];
    if (!names.includes("llm/config.json")) return null;
    await this.#cache?.put(url, copy).catch(() => {});
    return list;
  }

  /** Returns { size, tag } of a file, or null if the server has none. */
  head(url) {
    if (!this.#heads.has(url)) this.#heads.set(url, this.#ask(url));
    return this.#heads.get(url);
  }

  async #ask(url) {
    let response;
    try {
      response = await this.#get(url, { method: "HEAD", cache: "no-cache" });
    } catch (error) {
      // Without a connection, the cached file will do.
      const cached = await this.#cache?.match(url);
      if (cached) return { size: Number(cached.headers.get("x-size")) || undefined, tag: cached.headers.get("x-tag") };
      throw error;
    }
    if (response.status === 404 || response.status === 410 || (response.ok && isPage(response))) return null;
    // Some servers answer GET only.
    if (response.status === 405 || response.status === 501) return { size: undefined, tag: null };
    if (!response.ok) throw refused(url, response);
    return { size: size(response), tag: tag(response) };
  }

  /** Opens a file. */
  async open(name, url, count) {
    const head = await this.head(url);
    const cached = await this.#cache?.match(url);
    if (cached && (head === null || head.tag === null || head.tag === cached.headers.get("x-tag"))) {
      return { size: Number(cached.headers.get("x-size")) || undefined, pieces: stream(cached.body, url), cached: true };
    }
    const response = await this.#get(url, {});
    if (!response.ok) throw refused(url, response, name);
    if (this.#cache === null) return { size: size(response), pieces: stream(response.body, url) };
    return (await this.#keep(url, response, count)) ?? new Remote(null).open(name, url, count);
  }

  /** Stores a response in the cache and returns the file from there, or null if the browser does not keep it. */
  async #keep(url, response, count) {
    let bytes = 0;
    const counter = new TransformStream({
      transform(piece, controller) {
        bytes += piece.length;
        count(piece.length);
        controller.enqueue(piece);
      },
    });
    const headers = new Headers({ "content-type": "application/octet-stream" });
    if (tag(response)) headers.set("x-tag", tag(response));
    if (size(response)) headers.set("x-size", String(size(response)));
    try {
      await this.#cache.put(url, new Response(response.body.pipeThrough(counter), { headers }));
    } catch (error) {
      await this.#cache.delete(url);
      count(-bytes);
      if (error instanceof TypeError) throw failed(url, error);
      return null;
    }
    const stored = await this.#cache.match(url);
    if (stored === undefined) {
      // WebKit, in a private window, after the worker that has made the cache has ended.
      count(-bytes);
      return null;
    }
    return { size: bytes, pieces: stream(stored.body, url), counted: true };
  }

  async #get(url, options) {
    try {
      return await fetch(url, { credentials: "same-origin", ...options });
    } catch (error) {
      throw failed(url, error);
    }
  }
}

async function* stream(body, url) {
  const reader = body.getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield value;
    }
  } catch (error) {
    throw failed(url, error);
  } finally {
    reader.cancel().catch(() => {});
  }
}

function failed(url, error) {
  return new HartError("network", `${url}: can't be fetched (${error.message}): check the connection and the address`, undefined, { cause: error });
}

function refused(url, response, name) {
  return new HartError("network", `${url}: the server answers ${response.status} ${response.statusText}`.trimEnd(), name);
}

/** Returns the number of bytes of a file. With a content encoding, content-length counts packed bytes. */
function size(response) {
  const length = response.headers.get("content-length");
  return length === null || response.headers.has("content-encoding") ? undefined : Number(length);
}

/** Returns what changes when the file changes, or null if the server names nothing. */
function tag(response) {
  const parts = ["etag", "last-modified"].map((name) => response.headers.get(name)).filter((part) => part !== null);
  return parts.length > 0 ? parts.join(" ") : (size(response)?.toString() ?? null);
}

/** Returns whether a response is a page: some servers answer so for files that do not exist. */
function isPage(response) {
  return response.headers.get("content-type")?.startsWith("text/html") ?? false;
}
