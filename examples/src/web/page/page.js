// The page's logic: reads the form, runs requests and shows their progress.

import { cancel, duration, listen, sentence, submit } from "/api.js";
import { addThumbnail, markCurrent } from "/history.js";
import { announce, select, showDetails, showPlaceholder, showTiles } from "/view.js";

const $ = (id) => document.getElementById(id);
/** Images up to this side are scaled without interpolation. */
const SMALL_SIDE = 128;
/** Names of the stages of the pipeline in the progress line. */
const STAGES = {
  text: "encoding the prompt",
  transformer: "generating",
  sampling: "generating",
  residual: "refining",
  decode: "decoding",
};

let model;
/** The run in progress, if any, and the finished run that is shown otherwise. */
let active, shown;

async function open() {
  try {
    model = await (await fetch("/api/model")).json();
  } catch {
    return showError("The server can't be reached. Is it still running?");
  }
  $("model").textContent = `${model.name}, ${model.width} × ${model.height} pixels`;
  $("count").max = model.max_images;
  fillForm(model.defaults);
}

/** Puts settings into the form. */
function fillForm(settings) {
  for (const name of ["guidance", "top_k", "top_p", "steps", "prune"]) $(name).value = settings[name] ?? "";
  $("smoothing").value = String(settings.smoothing);
  syncSlider();
}

/** Moves the guidance slider to the value of the field. */
function syncSlider() {
  $("guidance-slider").value = $("guidance").value || (model?.defaults.guidance ?? 0);
}

/** Reads the settings from the form. Empty fields are left to the server. */
function readForm() {
  const settings = { prompt: $("prompt").value.trim(), smoothing: $("smoothing").value === "true" };
  if (!settings.prompt) throw new Error("Enter a prompt.");
  for (const name of ["count", "guidance", "top_k", "top_p"]) {
    const input = $(name);
    if (input.validity.badInput) throw new Error(`${input.labels[0].textContent}: not a number.`);
    if (input.value !== "") settings[name] = Number(input.value);
  }
  if (!Number.isInteger(settings.count ?? 1) || settings.count < 1) throw new Error("Images: at least one is needed.");
  for (const name of ["seed", "steps", "prune"]) if ($(name).value.trim()) settings[name] = $(name).value.trim();
  return settings;
}

function showError(message) {
  $("error").textContent = message;
  $("error").hidden = !message;
}

/** Submits the form's settings and follows the run. */
async function generate() {
  if (active || !model) return;
  showError("");
  let settings;
  try {
    settings = readForm();
  } catch (error) {
    showError(error.message);
    if (!$("prompt").value.trim()) $("prompt").focus();
    return;
  }
  const run = { settings, images: [], notes: [], small: model.width <= SMALL_SIDE, waiting: false };
  active = run;
  setBusy(true);
  try {
    const submitted = await submit(settings);
    run.id = submitted.id;
    run.settings = { ...settings, seed: submitted.seed, count: submitted.count };
    run.tiles = showTiles(submitted.count, run);
    showDetails(null);
    markCurrent(null);
    $("working").scrollIntoView({ block: "nearest" });
    listen(submitted.events, (name, data) => handlers[name](run, data));
    // Escape may have been pressed before the server's answer.
    if (run.cancelled) cancel(run.id);
  } catch (error) {
    endRun(run);
    showError(error.message);
  }
}

function cancelActive() {
  if (!active || active.cancelled) return;
  active.cancelled = true;
  if (active.id) cancel(active.id);
}

/** Handlers of the server's events. */
const handlers = {
  queued(run, { position }) {
    run.waiting = position > 0;
    const ahead = position === 1 ? "one request is ahead of yours" : `${position} requests are ahead of yours`;
    showProgress(0, run.waiting ? sentence(`waiting: ${ahead}`) : "Starting", "");
    if (run.waiting) announce(ahead);
  },
  progress(run, { stage, image, scale, scales, fraction, seconds }) {
    const of = run.settings.count > 1 ? `Image ${Math.min(image + 1, run.settings.count)} of ${run.settings.count}, ` : "";
    const at = scale > 0 ? `scale ${scale}/${scales}, ` : "";
    const rest = (seconds * (1 - fraction)) / fraction;
    // Early estimates are too inexact to show.
    const left = seconds > 3 && fraction > 0.15 && rest >= 1 ? `, about ${duration(rest)} left` : "";
    run.waiting = false;
    showProgress(fraction, sentence(of + at + STAGES[stage]).slice(0, -1), seconds >= 1 ? duration(seconds) + left : "");
  },
  preview(run, { image, scale, scales, png }) {
    run.tiles[image]?.show(`data:image/png;base64,${png}`, `Scale ${scale} of ${scales}`);
  },
  image(run, image) {
    run.images.push(image);
    run.tiles[image.index]?.finish(image);
    if (run.settings.count > 1) announce(`Image ${image.index + 1} of ${run.settings.count} is finished.`);
  },
  done(run, { milliseconds, notes }) {
    run.notes = notes;
    run.seconds = milliseconds.total / 1000;
    endRun(run);
    announce(`Finished. Seed ${run.images[0].seed}.`);
  },
  cancelled(run) {
    endRun(run, "Cancelled.");
    announce("Cancelled.");
  },
  error(run, { message }) {
    endRun(run);
    showError(sentence(message));
  },
  lost(run) {
    endRun(run);
    showError("The connection to the server was lost before the image was finished.");
  },
};

/**
 * Ends a run after its last event. Finished images are shown and get a thumbnail. Without any, the run shown before
 * comes back, or the text `placeholder`.
 */
function endRun(run, placeholder) {
  active = undefined;
  setBusy(false);
  if (run.images.length > 0) {
    run.settings.count = run.images.length;
    addThumbnail(run, restore);
    showRun(run);
  } else if (shown) {
    showRun(shown);
  } else {
    showPlaceholder(placeholder);
  }
  if (placeholder && run.images.length === 0) showError("");
}

function showRun(run) {
  shown = run;
  run.tiles = showTiles(run.images.length, run);
  run.images.forEach((image, index) => run.tiles[index].finish(image));
  showDetails(run);
  select(run, 0);
  markCurrent(run);
}

/** Restores the images and the settings of a finished run. */
function restore(run) {
  if (active) return announce("A request is running; cancel it first.");
  showError("");
  const { prompt, seed, count } = run.settings;
  fillForm({ ...model.defaults, ...run.settings });
  $("prompt").value = prompt;
  $("seed").value = seed;
  $("count").value = count;
  showRun(run);
}

/** Switches the page between a run in progress and none. */
function setBusy(busy) {
  $("go").disabled = busy;
  $("go").textContent = busy ? "Generating…" : "Generate";
  // Move the keyboard focus before its button is hidden.
  if (!busy && document.activeElement === $("cancel")) $("go").focus();
  $("working").hidden = !busy;
  $("result").setAttribute("aria-busy", busy);
  if (busy) {
    showProgress(0, "Starting", "");
    // On a phone, hide the on-screen keyboard, which would cover the progress.
    if (matchMedia("(pointer: coarse)").matches) document.activeElement?.blur();
  }
  if (!busy) document.title = "hart";
}

function showProgress(fraction, step, time) {
  const percent = Math.round(100 * fraction);
  $("bar").classList.toggle("waiting", active?.waiting ?? false);
  $("bar").setAttribute("aria-valuenow", percent);
  $("bar").setAttribute("aria-valuetext", step);
  $("fill").style.width = active?.waiting ? "" : `${percent}%`;
  $("step").textContent = step;
  $("time").textContent = time;
  document.title = active?.waiting ? "waiting – hart" : `${percent} % – hart`;
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
  if (event.key === "Escape" && !event.isComposing) cancelActive();
});
$("cancel").addEventListener("click", cancelActive);
$("dice").addEventListener("click", () => {
  $("seed").value = crypto.getRandomValues(new Uint32Array(1))[0];
});
$("defaults").addEventListener("click", () => model && fillForm(model.defaults));
$("guidance").addEventListener("input", syncSlider);
$("guidance-slider").addEventListener("input", () => ($("guidance").value = $("guidance-slider").value));

open();
