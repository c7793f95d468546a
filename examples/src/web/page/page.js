// The page: settings in, pictures out. run.js speaks with the server, history.js keeps the thumbnails.

import { begin, cancel, duration, listen, sentence } from "/run.js";
import { mark, remember } from "/history.js";
import { about, empty, pictures, say, select } from "/stage.js";

const $ = (id) => document.getElementById(id);
/** Pictures of at most this side are drawn as crisp squares. */
const SMALL = 128;
const STAGES = {
  text: "reading the prompt",
  transformer: "drawing",
  sampling: "drawing",
  residual: "refining",
  decode: "decoding",
};

let model;
/** The run that is under way, and the one that is shown when none is. */
let active, shown;

async function open() {
  try {
    model = await (await fetch("/api/model")).json();
  } catch {
    return fail("The server can't be reached. Is it still running?");
  }
  $("model").textContent = `${model.name}, ${model.width} × ${model.height} pixels`;
  $("count").max = model.max_images;
  fill(model.defaults);
}

/** Puts settings into the form. */
function fill(settings) {
  for (const name of ["guidance", "top_k", "top_p", "steps"]) $(name).value = settings[name] ?? "";
  $("soft").value = String(settings.soft);
  slide();
}

function slide() {
  $("guidance-slider").value = $("guidance").value || (model?.defaults.guidance ?? 0);
}

/** The form's settings; what is empty is left to the server. */
function read() {
  const settings = { prompt: $("prompt").value.trim(), soft: $("soft").value === "true" };
  if (!settings.prompt) throw new Error("Say what to draw.");
  for (const name of ["count", "guidance", "top_k", "top_p"]) {
    const input = $(name);
    if (input.validity.badInput) throw new Error(`${input.labels[0].textContent}: that is no number.`);
    if (input.value !== "") settings[name] = Number(input.value);
  }
  if (!Number.isInteger(settings.count ?? 1) || settings.count < 1) throw new Error("Ask for at least one picture.");
  for (const name of ["seed", "steps"]) if ($(name).value.trim()) settings[name] = $(name).value.trim();
  return settings;
}

function fail(message) {
  $("error").textContent = message;
  $("error").hidden = !message;
}

async function draw() {
  if (active || !model) return;
  fail("");
  let settings;
  try {
    settings = read();
  } catch (error) {
    fail(error.message);
    if (!$("prompt").value.trim()) $("prompt").focus();
    return;
  }
  const run = { settings, images: [], notes: [], small: model.width <= SMALL, waiting: false };
  active = run;
  busy(true);
  try {
    const begun = await begin(settings);
    run.id = begun.id;
    run.settings = { ...settings, seed: begun.seed, count: begun.count };
    run.tiles = pictures(begun.count, run);
    about(null);
    mark(null);
    $("working").scrollIntoView({ block: "nearest" });
    listen(begun.events, (name, data) => hear[name](run, data));
    // Escape may have come before the answer.
    if (run.unwanted) cancel(run.id);
  } catch (error) {
    finish(run);
    fail(error.message);
  }
}

function stop() {
  if (!active || active.unwanted) return;
  active.unwanted = true;
  if (active.id) cancel(active.id);
}

const hear = {
  queued(run, { position }) {
    run.waiting = position > 0;
    const before = position === 1 ? "one request is before yours" : `${position} requests are before yours`;
    progress(0, run.waiting ? sentence(`waiting: ${before}`) : "Starting", "");
    if (run.waiting) say(before);
  },
  progress(run, { stage, image, scale, scales, fraction, seconds }) {
    const of = run.settings.count > 1 ? `Picture ${Math.min(image + 1, run.settings.count)} of ${run.settings.count}, ` : "";
    const at = scale > 0 ? `scale ${scale}/${scales}, ` : "";
    const rest = (seconds * (1 - fraction)) / fraction;
    // Early on an estimate would be a guess.
    const left = seconds > 3 && fraction > 0.15 && rest >= 1 ? `, about ${duration(rest)} left` : "";
    run.waiting = false;
    progress(fraction, sentence(of + at + STAGES[stage]).slice(0, -1), seconds >= 1 ? duration(seconds) + left : "");
  },
  preview(run, { image, scale, scales, png }) {
    run.tiles[image]?.show(`data:image/png;base64,${png}`, `Scale ${scale} of ${scales}`);
  },
  image(run, picture) {
    run.images.push(picture);
    run.tiles[picture.index]?.finish(picture);
    if (run.settings.count > 1) say(`Picture ${picture.index + 1} of ${run.settings.count} is finished.`);
  },
  done(run, { milliseconds, notes }) {
    run.notes = notes;
    run.seconds = milliseconds.total / 1000;
    finish(run);
    say(`Finished. Seed ${run.images[0].seed}.`);
  },
  cancelled(run) {
    finish(run, "Cancelled.");
    say("Cancelled.");
  },
  error(run, { message }) {
    finish(run);
    fail(sentence(message));
  },
  lost(run) {
    finish(run);
    fail("The connection to the server was lost. The picture was not finished.");
  },
};

/** After the last event: what is finished is shown and remembered; else what was shown before comes back. */
function finish(run, words) {
  active = undefined;
  busy(false);
  if (run.images.length > 0) {
    run.settings.count = run.images.length;
    remember(run, restore);
    show(run);
  } else if (shown) {
    show(shown);
  } else {
    empty(words);
  }
  if (words && run.images.length === 0) fail("");
}

function show(run) {
  shown = run;
  run.tiles = pictures(run.images.length, run);
  run.images.forEach((picture, index) => run.tiles[index].finish(picture));
  about(run);
  select(run, 0);
  mark(run);
}

/** A thumbnail was clicked: its pictures, and its settings for another try. */
function restore(run) {
  if (active) return say("A picture is being drawn; cancel it first.");
  fail("");
  const { prompt, seed, count } = run.settings;
  fill({ ...model.defaults, ...run.settings });
  $("prompt").value = prompt;
  $("seed").value = seed;
  $("count").value = count;
  show(run);
}

function busy(is) {
  $("go").disabled = is;
  $("go").textContent = is ? "Drawing…" : "Draw";
  // The keyboard's place must not be lost with the button.
  if (!is && document.activeElement === $("cancel")) $("go").focus();
  $("working").hidden = !is;
  $("stage").setAttribute("aria-busy", is);
  if (is) {
    progress(0, "Starting", "");
    // On a phone the keyboard would hide what happens.
    if (matchMedia("(pointer: coarse)").matches) document.activeElement?.blur();
  }
  if (!is) document.title = "hart";
}

function progress(fraction, step, time) {
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
  draw();
});
$("form").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.isComposing) return;
  const inPrompt = event.target === $("prompt") && !event.shiftKey;
  if (inPrompt || event.ctrlKey || event.metaKey) {
    event.preventDefault();
    draw();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !event.isComposing) stop();
});
$("cancel").addEventListener("click", stop);
$("dice").addEventListener("click", () => {
  $("seed").value = crypto.getRandomValues(new Uint32Array(1))[0];
});
$("defaults").addEventListener("click", () => model && fill(model.defaults));
$("guidance").addEventListener("input", slide);
$("guidance-slider").addEventListener("input", () => ($("guidance").value = $("guidance-slider").value));

open();
