// Thumbnails of the finished requests since the page was opened. The images stay on the server, which drops the oldest.

/** Maximum number of thumbnails. */
const MAX_THUMBNAILS = 60;
const list = document.getElementById("thumbnails");

/** Adds the thumbnail of a finished request at the start of the list. A click on it calls `show(run)`. */
export function addThumbnail(run, show) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "thumb";
  const count = run.images.length > 1 ? `, ${run.images.length} images` : "";
  button.setAttribute("aria-label", `${run.settings.prompt}, seed ${run.images[0].seed}${count}`);
  button.title = run.settings.prompt;
  const image = document.createElement("img");
  image.src = run.images[0].url;
  image.alt = "";
  image.classList.toggle("small", run.small);
  image.addEventListener("error", () => item.remove());
  button.append(image);
  if (run.images.length > 1) {
    const badge = document.createElement("span");
    badge.className = "count";
    badge.textContent = run.images.length;
    button.append(badge);
  }
  button.addEventListener("click", () => show(run));
  const item = document.createElement("li");
  item.append(button);
  run.thumbnail = button;
  list.prepend(item);
  while (list.children.length > MAX_THUMBNAILS) list.lastChild.remove();
  document.getElementById("history").hidden = false;
}

/** Marks the thumbnail of the shown request; without a request, clears the mark. */
export function markCurrent(run) {
  for (const button of list.querySelectorAll("[aria-current]")) button.removeAttribute("aria-current");
  run?.thumbnail?.setAttribute("aria-current", "true");
}
