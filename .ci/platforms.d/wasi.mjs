#!/usr/bin/env -S node --no-warnings
// Runs a WASI program in Node with access to all files, by absolute paths: wasi.mjs PROGRAM.wasm [ARGUMENT...]
// With a second folder, such as ".", wasi-libc would look absolute paths up there.
import { readFile } from "node:fs/promises";
import { WASI } from "node:wasi";

const [program, ...args] = process.argv.slice(2);
const wasi = new WASI({ version: "preview1", args: [program, ...args], env: process.env, preopens: { "/": "/" } });
const { instance } = await WebAssembly.instantiate(await readFile(program), wasi.getImportObject());
process.exit(wasi.start(instance));
