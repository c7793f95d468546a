// Generates images from prompts in Node, like the program `generate`: node generate.mjs "a red heart" --seed 7 --out out.png

import { writeFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

import { Hart, HartError } from "./hart.js";

const USAGE = `usage: node generate.mjs PROMPT... [options]

  --model FOLDER       checkpoint's root folder, or its URL (default: the shipped model)
  --out FILE           PNG file; {n} stands for the index of the image, from 0 (default: out.png)
  --seed N             seed of each prompt's image (default: 0)
  --guidance X         strength of classifier-free guidance
  --steps N            steps of the residual diffusion
  --precision P        f32, bf16 or int8
  --threads N          number of threads; 1 takes the module without threads
  --quiet              print nothing`;

const options = {
  model: { type: "string", default: fileURLToPath(new URL("../models/hart-emoji", import.meta.url)) },
  out: { type: "string", default: "out.png" },
  seed: { type: "string", default: "0" },
  guidance: { type: "string" },
  steps: { type: "string" },
  precision: { type: "string" },
  threads: { type: "string" },
  quiet: { type: "boolean", default: false },
  help: { type: "boolean", default: false },
};

function parse() {
  try {
    const { values, positionals } = parseArgs({ options, allowPositionals: true });
    if (values.help || positionals.length > 0) return { values, prompts: positionals };
    console.error(USAGE);
  } catch (error) {
    console.error(error.message);
  }
  process.exit(2);
}

const number = (text) => (text === undefined ? undefined : Number(text));

const { values, prompts } = parse();
if (values.help) {
  console.log(USAGE);
  process.exit(0);
}
try {
  const hart = await Hart.open(values.model, { precision: values.precision, threads: number(values.threads) });
  for (const [index, prompt] of prompts.entries()) {
    const { seed, guidance, steps } = values;
    const image = await hart.generate({ prompt, seed, guidance: number(guidance), steps: number(steps) });
    let file = values.out.replace("{n}", index);
    if (file === values.out && index > 0) file = file.replace(/(\.png)?$/, `-${index}$1`);
    await writeFile(file, image.png);
    if (!values.quiet) console.log(`${file}: ${image.timings.total.toFixed(0)} ms`);
  }
  hart.free();
} catch (error) {
  if (!(error instanceof HartError) && error.code === undefined) throw error;
  console.error(`error: ${error.message}`);
  process.exit(1);
}
