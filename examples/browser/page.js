// The page's logic: opens models, reads the form, runs requests and shows their progress.

import { Hart } from "./hart.js";
import { filesOfDrop, filesOfHandle, findModel } from "./folder.js";
import { addThumbnail, announce, duration, sentence, showError, showPlaceholder, showProgress, showRun, showTiles } from "./view.js";

const $ = (id) => document.getElementById(id);
/** Largest seed, 2^64 - 1. */
const MAX_SEED = 18446744073709551615n;
const PLACEHOLDER = "Your image appears here, from coarse to fine.";
/** Names of the stages of the pipeline in the progress line. */
const STAGES = {
  text: "encoding the prompt",
  transformer: "generating",
  sampling: "generating",
  residual: "refining",
  decode: "decoding",
};

/** The model that is loaded first, from the folder that the page names. */
const folder = document.body.dataset.model;
const first = { name: folder.split("/").filter(Boolean).pop(), files: folder };

/** The open model with its name and files, if any. */
let model;
/** The `AbortController` of the work in progress, if any. */
let active;
/** Settings of a request that waits until a model is loaded. */
let waiting;
/** The finished run that is shown, if any. */
let shown;

/** Begins work that Cancel and Escape can abort. Returns its signal. */
function begin(step) {
  active = new AbortController();
  showError("");
  showProgress(null, step);
  $("working").hidden = false;
  $("result").setAttribute("aria-busy", true);
  return active.signal;
}

/** Ends the work in progress. An error other than a cancellation is shown. */
function end(error) {
  active = undefined;
  waiting = undefined;
  setButton("Generate", true);
  // Move the keyboard focus before its button is hidden.
  if (document.activeElement === $("cancel")) $("go").focus();
  $("working").hidden = true;
  $("result").setAttribute("aria-busy", false);
  document.title = "hart";
  if (error?.code === "cancelled") announce("Cancelled.");
  else if (error) showError(sentence(error.message));
}

/** Sets the main button's text. The button stays focusable when it is disabled, so that the keyboard focus is not lost. */
function setButton(text, enabled) {
  $("go").textContent = text;
  $("go").setAttribute("aria-disabled", !enabled);
}

/** Returns whether no work is in progress. Otherwise shows an error. */
function isIdle() {
  if (active) showError("First cancel the work in progress, or wait until it is finished.");
  return !active;
}

/** Opens a model. The one before stays if that fails. A request that waits for it is run. */
async function open({ name, files }) {
  const signal = begin(`Loading ${name}`);
  if (waiting) setButton("Loading…", false);
  if (!shown) showPlaceholder(PLACEHOLDER);
  let failure;
  try {
    const hart = await Hart.open(files, { signal, onProgress: (progress) => showLoading(name, progress) });
    model?.hart.free();
    model = { name, files, hart };
    showModel();
    announce(`${name} is loaded.`);
  } catch (error) {
    failure = error;
  }
  const next = failure ? undefined : waiting;
  end(failure);
  $("first").hidden = model?.files === first.files;
  if (next) run(next);
}

function showLoading(name, { phase, loaded, total, cached }) {
  const megabytes = (bytes) => (bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0);
  const of = total ? `${megabytes(loaded)} of ${megabytes(total)} MB` : loaded ? `${megabytes(loaded)} MB` : "";
  if (phase === "files") showProgress(total ? loaded / total : null, `Loading ${name}`, cached ? `${of} from this browser's cache` : of);
  else showProgress(null, phase === "engine" ? "Loading the program" : `Preparing ${name}`);
}

function showModel() {
  const { width, height, scales, precision, threads, defaults } = model.hart.info;
  $("model").textContent = `${model.name}, ${width} × ${height} pixels`;
  $("guidance").placeholder = defaults.guidance;
  const isolated = self.crossOriginIsolated;
  $("threads").textContent = threads > 1 ? `${threads} threads` : `1 thread${isolated ? "" : ", without isolation"}`;
  const about = `${model.name} has ${scales} scales and computes in ${precision}.`;
  $("about").textContent = isolated
    ? about
    : `${about} It runs on one thread, because the server does not send the headers that isolate the page. Threads need them.`;
}

/** Opens the model among files, or the promise of files. */
async function openFiles(list) {
  let files, name;
  try {
    files = await list;
    name = findModel(files);
  } catch (error) {
    return showError(sentence(error.message));
  }
  if (isIdle()) await open({ name, files });
}

/** Lets the user choose a folder. */
async function chooseFolder() {
  // The picker reads only the files that are needed. Browsers without it have the input element, which lists all files first.
  if (!window.showDirectoryPicker) return $("folder").click();
  let handle;
  try {
    handle = await showDirectoryPicker({ id: "hart", mode: "read" });
  } catch (error) {
    if (error.name !== "AbortError") $("folder").click();
    return;
  }
  await openFiles(filesOfHandle(handle));
}

/** Reads the settings from the form. Throws an error with the `field` that is wrong. */
function readForm() {
  const wrong = (field, message) => Object.assign(new Error(message), { field });
  const prompt = $("prompt").value.trim();
  if (!prompt) throw wrong("prompt", "Enter a prompt.");
  const max = Number($("count").max);
  const count = $("count").value === "" ? 1 : Number($("count").value);
  if ($("count").validity.badInput || !Number.isInteger(count) || count < 1 || count > max) throw wrong("count", `Images: a number from 1 to ${max} is needed.`);
  if ($("guidance").validity.badInput) throw wrong("guidance", "Guidance: not a number.");
  const guidance = $("guidance").value === "" ? undefined : Number($("guidance").value);
  const text = $("seed").value.trim();
  if (text && (!/^\d{1,20}$/.test(text) || BigInt(text) > MAX_SEED)) throw wrong("seed", `Seed: a whole number from 0 to ${MAX_SEED} is needed.`);
  return { prompt, count, guidance, seed: text || String(randomSeed()) };
}

function randomSeed() {
  return crypto.getRandomValues(new Uint32Array(1))[0];
}

/** Runs the form's request, or lets it wait until the model is loaded. */
function generate() {
  let settings;
  try {
    settings = readForm();
  } catch (error) {
    showError(error.message);
    return $(error.field).focus();
  }
  if (active?.generating || waiting) return;
  if (!active && model) return run(settings);
  waiting = settings;
  if (!active) return open(first);
  setButton("Loading…", false);
  announce("The image is generated when the model is loaded.");
}

/** Runs a request, image by image. */
async function run(settings) {
  const signal = begin("Starting");
  active.generating = true;
  setButton("Generating…", false);
  const run = { settings, images: [], seconds: 0, note: "" };
  showTiles(run, settings.count);
  $("details").hidden = true;
  // On a phone, hide the on-screen keyboard, which would cover the progress.
  if (matchMedia("(pointer: coarse)").matches) document.activeElement?.blur();
  $("working").scrollIntoView({ block: "nearest" });
  let failure;
  try {
    for (let index = 0; index < settings.count; index++) await generateImage(run, index, signal);
  } catch (error) {
    failure = error;
  }
  end(failure);
  if (run.images.length > 0) {
    run.settings.count = run.images.length;
    addThumbnail(run, restore);
    shown = run;
  }
  if (shown) showRun(shown);
  else showPlaceholder(failure.code === "cancelled" ? "Cancelled." : PLACEHOLDER);
  if (!failure) announce(`Finished. Seed ${run.images[0].seed}.`);
}

async function generateImage(run, index, signal) {
  const { prompt, count, guidance } = run.settings;
  const seed = BigInt.asUintN(64, BigInt(run.settings.seed) + BigInt(index));
  const start = performance.now();
  let scale = "";
  const image = await model.hart.generate({ prompt, seed, guidance, signal }, (event) => {
    if (event.type === "scale") scale = `scale ${event.scale}/${event.scales}, `;
    if (event.type === "preview") run.tiles[index].preview(event.image, `scale ${event.scale} of ${event.scales}`);
    const of = count > 1 ? `Image ${index + 1} of ${count}, ` : "";
    const seconds = run.seconds + (performance.now() - start) / 1000;
    showProgress((index + event.fraction) / count, sentence(of + scale + STAGES[event.stage]).slice(0, -1), seconds >= 1 ? duration(seconds) : "");
  });
  run.seconds += (performance.now() - start) / 1000;
  run.images.push({ url: URL.createObjectURL(image.blob()), seed: String(image.seed) });
  if (image.truncated) run.note = `The prompt is too long. This part was cut off: “${image.truncated}”.`;
  if (count > 1) announce(`Image ${index + 1} of ${count} is finished.`);
  await run.tiles[index].finish(run.images[index]);
}

/** Shows an earlier run and its settings. */
function restore(run) {
  if (active) return;
  const { prompt, seed, count, guidance } = run.settings;
  for (const [name, value] of Object.entries({ prompt, seed, count, guidance: guidance ?? "" })) $(name).value = value;
  shown = run;
  showRun(run);
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  generate();
});
$("form").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.isComposing) return;
  const inPrompt = event.target === $("prompt") && !event.shiftKey;
  if (inPrompt || event.ctrlKey || event.metaKey) {
    event.preventDefault();
    generate();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !event.isComposing) active?.abort();
});
$("cancel").addEventListener("click", () => active?.abort());
$("dice").addEventListener("click", () => ($("seed").value = randomSeed()));

$("open").addEventListener("click", chooseFolder);
$("folder").addEventListener("change", () => {
  openFiles([...$("folder").files]);
  // The same folder can be chosen again.
  $("folder").value = "";
});
$("first").textContent = `Load ${first.name}`;
$("first").addEventListener("click", () => isIdle() && open(first));

const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
document.addEventListener("dragover", (event) => {
  if (!hasFiles(event)) return;
  event.preventDefault();
  event.dataTransfer.dropEffect = "copy";
  $("drop").hidden = false;
});
document.addEventListener("dragleave", (event) => {
  // Leaving an element for another one of the page is not the end.
  if (!event.relatedTarget) $("drop").hidden = true;
});
document.addEventListener("drop", (event) => {
  if (!hasFiles(event)) return;
  event.preventDefault();
  $("drop").hidden = true;
  openFiles(filesOfDrop(event.dataTransfer));
});

open(first);
