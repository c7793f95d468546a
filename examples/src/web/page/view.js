// The image area: tiles with previews and finished images, and the details below them.

import { duration } from "/api.js";

const $ = (id) => document.getElementById(id);
/** Maximum number of tiles side by side. */
const COLUMNS = 4;

/** Shows `count` empty tiles. Each has the methods `show` for a preview and `finish` for the finished image. */
export function showTiles(count, run) {
  const area = $("images");
  area.replaceChildren();
  area.className = count === 1 ? "images one" : "images";
  area.style.setProperty("--columns", Math.min(Math.ceil(Math.sqrt(count)), COLUMNS));
  return Array.from({ length: count }, (_, index) => {
    const tile = document.createElement("button");
    tile.type = "button";
    tile.className = "tile";
    tile.disabled = true;
    tile.setAttribute("aria-label", `Image ${index + 1}, not started`);
    tile.addEventListener("click", () => run === $("details").run && select(run, index));
    area.append(tile);
    const show = (url, description) => {
      const image = tile.querySelector("img") ?? tile.appendChild(document.createElement("img"));
      image.className = run.small ? "small" : "";
      image.alt = "";
      image.src = url;
      tile.setAttribute("aria-label", `Image ${index + 1}, ${description}`);
    };
    const finish = ({ url, seed }) => {
      show(url, `${run.settings.prompt}, seed ${seed}`);
      tile.classList.add("finished");
      tile.disabled = count === 1;
    };
    return { tile, show, finish };
  });
}

/** Shows a text instead of images. */
export function showPlaceholder(text) {
  const paragraph = document.createElement("p");
  paragraph.textContent = text ?? "Your image appears here, from coarse to fine.";
  $("images").className = "images empty";
  $("images").style.setProperty("--columns", 1);
  $("images").replaceChildren(paragraph);
  showDetails(null);
}

/** Shows the details of a finished request; null hides them. */
export function showDetails(run) {
  $("details").hidden = !run;
  $("details").run = run;
  if (!run) return;
  $("caption").textContent = run.settings.prompt;
  $("took").textContent = run.seconds ? duration(run.seconds) : "";
  $("notes").textContent = run.notes.join(" ");
  $("notes").hidden = run.notes.length === 0;
}

/** Selects one of a request's images for the seed display and the download link. */
export function select(run, index) {
  const image = run.images[index];
  $("seed-shown").textContent = image.seed;
  $("download").href = `${image.url}?download`;
  run.tiles.forEach(({ tile }, i) => run.images.length > 1 && tile.setAttribute("aria-pressed", i === index));
}

/** Announces a text to screen readers. */
export function announce(text) {
  $("live").textContent = text;
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
