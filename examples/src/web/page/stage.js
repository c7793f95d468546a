// The picture area: tiles that fill with previews and finished pictures, and what is said about them.

import { duration } from "/run.js";

const $ = (id) => document.getElementById(id);
/** Most tiles side by side. */
const COLUMNS = 4;

/** Tiles for so many pictures. Each has `show` for a preview and `finish` for the picture itself. */
export function pictures(count, run) {
  const area = $("pictures");
  area.replaceChildren();
  area.className = count === 1 ? "pictures one" : "pictures";
  area.style.setProperty("--columns", Math.min(Math.ceil(Math.sqrt(count)), COLUMNS));
  return Array.from({ length: count }, (_, index) => {
    const tile = document.createElement("button");
    tile.type = "button";
    tile.className = "tile";
    tile.disabled = true;
    tile.setAttribute("aria-label", `Picture ${index + 1}, not begun`);
    tile.addEventListener("click", () => run === $("about").run && select(run, index));
    area.append(tile);
    const show = (url, words) => {
      const image = tile.querySelector("img") ?? tile.appendChild(document.createElement("img"));
      image.className = run.small ? "small" : "";
      image.alt = "";
      image.src = url;
      tile.setAttribute("aria-label", `Picture ${index + 1}, ${words}`);
    };
    const finish = ({ url, seed }) => {
      show(url, `${run.settings.prompt}, seed ${seed}`);
      tile.classList.add("finished");
      tile.disabled = count === 1;
    };
    return { tile, show, finish };
  });
}

/** No picture. */
export function empty(words) {
  const text = document.createElement("p");
  text.textContent = words ?? "Your picture appears here, coarse first, then finer and finer.";
  $("pictures").className = "pictures empty";
  $("pictures").style.setProperty("--columns", 1);
  $("pictures").replaceChildren(text);
  about(null);
}

/** What a finished request was; null hides it. */
export function about(run) {
  $("about").hidden = !run;
  $("about").run = run;
  if (!run) return;
  $("caption").textContent = run.settings.prompt;
  $("took").textContent = run.seconds ? duration(run.seconds) : "";
  $("notes").textContent = run.notes.join(" ");
  $("notes").hidden = run.notes.length === 0;
}

/** Picks one of a request's pictures: its seed is shown, and it is the one to download. */
export function select(run, index) {
  const picture = run.images[index];
  $("seed-shown").textContent = picture.seed;
  $("download").href = `${picture.url}?download`;
  run.tiles.forEach(({ tile }, i) => run.images.length > 1 && tile.setAttribute("aria-pressed", i === index));
}

/** For those who listen to the page instead of looking at it. */
export function say(words) {
  $("live").textContent = words;
}

$("copy").addEventListener("click", async () => {
  const seed = $("seed-shown").textContent;
  try {
    await navigator.clipboard.writeText(seed);
    say(`Seed ${seed} is copied.`);
    $("copy").classList.add("copied");
    setTimeout(() => $("copy").classList.remove("copied"), 1200);
  } catch {
    // Browsers give the clipboard to encrypted and local pages only: select it, to be copied by hand.
    getSelection().selectAllChildren($("seed-shown"));
  }
});
