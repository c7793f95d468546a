// The page's elements: tiles with previews and finished images, the details below them, progress, and earlier images.

const $ = (id) => document.getElementById(id);
/** Maximum number of tiles side by side. */
const COLUMNS = 4;
/** Maximum number of earlier requests whose images are kept. */
const MAX_THUMBNAILS = 60;

/** Shows `count` empty tiles for a run. Each has the methods `preview` and `finish`. */
export function showTiles(run, count) {
  const area = $("images");
  area.className = count === 1 ? "images one" : "images";
  area.style.setProperty("--columns", Math.min(Math.ceil(Math.sqrt(count)), COLUMNS));
  run.tiles = Array.from({ length: count }, (_, index) => tile(run, index, count > 1));
  area.replaceChildren(...run.tiles.map(({ element }) => element));
}

/** Creates the tile of a run's image. With several images, a tile is a button that selects its image. */
function tile(run, index, several) {
  const element = document.createElement(several ? "button" : "div");
  element.className = "tile";
  const describe = (text) => element.setAttribute("aria-label", several ? `Image ${index + 1}, ${text}` : text);
  if (several) {
    element.type = "button";
    element.disabled = true;
    element.addEventListener("click", () => select(run, index));
  } else {
    element.role = "img";
  }
  describe("not started");

  return {
    element,
    /** Shows the image after a scale. */
    preview({ width, height, pixels }, text) {
      let canvas = element.querySelector("canvas");
      if (!canvas) element.replaceChildren((canvas = document.createElement("canvas")));
      if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
      canvas.getContext("2d").putImageData(new ImageData(pixels, width, height), 0, 0);
      describe(text);
    },
    /** Shows the finished image. The last preview stays until it is decoded. */
    async finish({ url, seed }) {
      const image = document.createElement("img");
      image.alt = "";
      image.src = url;
      describe(`${run.settings.prompt}, seed ${seed}`);
      element.disabled = false;
      await image.decode().catch(() => {});
      element.classList.add("finished");
      element.replaceChildren(image);
    },
  };
}

/** Shows a text instead of images. */
export function showPlaceholder(text) {
  const paragraph = document.createElement("p");
  paragraph.textContent = text;
  $("images").className = "images empty";
  $("images").style.setProperty("--columns", 1);
  $("images").replaceChildren(paragraph);
  $("details").hidden = true;
}

/** Shows the images and details of a finished run. */
export function showRun(run) {
  // The tiles of a run that has just ended are shown already. Those of images that were never finished disappear.
  const { images } = run;
  if (run.tiles?.length !== images.length || run.tiles[0].element.parentElement !== $("images")) {
    showTiles(run, images.length);
    images.forEach((image, index) => run.tiles[index].finish(image));
  }
  $("details").hidden = false;
  $("caption").textContent = run.settings.prompt;
  $("took").textContent = duration(run.seconds);
  $("notes").textContent = run.note;
  $("notes").hidden = !run.note;
  select(run, 0);
  for (const button of document.querySelectorAll("#thumbnails [aria-current]")) button.removeAttribute("aria-current");
  run.thumbnail?.setAttribute("aria-current", "true");
}

/** Selects one of a run's images for the seed and the download. */
function select(run, index) {
  const image = run.images[index];
  if (!image) return;
  $("seed-shown").textContent = image.seed;
  $("download").href = image.url;
  $("download").download = fileName(run.settings.prompt, image.seed);
  if (run.tiles.length > 1) run.tiles.forEach(({ element }, i) => element.setAttribute("aria-pressed", i === index));
}

/** Returns a file name made of prompt and seed that is valid on every system. */
function fileName(prompt, seed) {
  const words = prompt.toLowerCase().match(/[a-z0-9]+/g) ?? ["hart"];
  return `${words.join("-").slice(0, 60)}-${seed}.png`;
}

/** Runs of the thumbnails, the newest first. */
const runs = [];

/** Adds the thumbnail of a finished run. A click on it calls `restore(run)`. */
export function addThumbnail(run, restore) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "thumb";
  const { images } = run;
  const several = images.length > 1 ? `, ${images.length} images` : "";
  button.setAttribute("aria-label", `${run.settings.prompt}, seed ${images[0].seed}${several}`);
  button.title = run.settings.prompt;
  const image = document.createElement("img");
  image.src = images[0].url;
  image.alt = "";
  button.append(image);
  if (several) {
    const badge = document.createElement("span");
    badge.className = "count";
    badge.textContent = images.length;
    button.append(badge);
  }
  button.addEventListener("click", () => restore(run));
  run.thumbnail = button;
  const item = document.createElement("li");
  item.append(button);
  $("thumbnails").prepend(item);
  $("history").hidden = false;
  runs.unshift(run);
  for (const old of runs.splice(MAX_THUMBNAILS)) {
    old.thumbnail.parentElement.remove();
    for (const { url } of old.images) URL.revokeObjectURL(url);
  }
}

/** Shows progress. The fraction is 0 to 1, or null if it is unknown. */
export function showProgress(fraction, step, time = "") {
  const unknown = fraction === null;
  const percent = unknown ? null : Math.round(100 * fraction);
  $("bar").classList.toggle("waiting", unknown);
  if (unknown) $("bar").removeAttribute("aria-valuenow");
  else $("bar").setAttribute("aria-valuenow", percent);
  $("bar").setAttribute("aria-valuetext", step);
  $("fill").style.width = unknown ? "" : `${percent}%`;
  $("step").textContent = step;
  $("time").textContent = time;
  document.title = unknown ? `${step} – hart` : `${percent} % – hart`;
}

/** Shows an error below the form; an empty text hides it. */
export function showError(text) {
  $("error").textContent = text;
  $("error").hidden = !text;
}

/** Announces a text to screen readers. */
export function announce(text) {
  $("live").textContent = text;
}

/** Returns a message as a sentence: with a full stop, and with a capital unless it begins with the path of a file. */
export function sentence(message) {
  const text = message.trim().replace(/^request: (.)/, (_, letter) => letter.toUpperCase());
  const begin = /^[a-z]+ /.test(text) ? text.charAt(0).toUpperCase() : text.charAt(0);
  return begin + text.slice(1) + (/[.!?"]$/.test(text) ? "" : ".");
}

/** Formats seconds for display. */
export function duration(seconds) {
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  return seconds < 90 ? `${Math.round(seconds)} s` : `${Math.round(seconds / 60)} min`;
}

$("copy").addEventListener("click", async () => {
  const seed = $("seed-shown").textContent;
  try {
    await navigator.clipboard.writeText(seed);
    announce(`Seed ${seed} is copied.`);
    $("copy").classList.add("copied");
    setTimeout(() => $("copy").classList.remove("copied"), 1200);
  } catch {
    // The clipboard is available only on encrypted and local pages. Elsewhere, select the seed for copying by hand.
    getSelection().selectAllChildren($("seed-shown"));
  }
});
