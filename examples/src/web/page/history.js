// What was drawn on this page since it was opened. The pictures themselves stay on the server, which forgets the oldest.

const LONGEST = 60;
const list = document.getElementById("thumbnails");

/** Puts a finished request first; `show` is called with it when its thumbnail is clicked. */
export function remember(run, show) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "thumb";
  const many = run.images.length > 1 ? `, ${run.images.length} pictures` : "";
  button.setAttribute("aria-label", `${run.settings.prompt}, seed ${run.images[0].seed}${many}`);
  button.title = run.settings.prompt;
  const image = document.createElement("img");
  image.src = run.images[0].url;
  image.alt = "";
  image.classList.toggle("small", run.small);
  image.addEventListener("error", () => item.remove());
  button.append(image);
  if (run.images.length > 1) {
    const badge = document.createElement("span");
    badge.className = "many";
    badge.textContent = run.images.length;
    button.append(badge);
  }
  button.addEventListener("click", () => show(run));
  const item = document.createElement("li");
  item.append(button);
  run.thumbnail = button;
  list.prepend(item);
  while (list.children.length > LONGEST) list.lastChild.remove();
  document.getElementById("history").hidden = false;
}

/** Marks the thumbnail of what is shown; none without a request. */
export function mark(run) {
  for (const button of list.querySelectorAll("[aria-current]")) button.removeAttribute("aria-current");
  run?.thumbnail?.setAttribute("aria-current", "true");
}
