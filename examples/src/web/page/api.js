// Access to the server's API.

/** Submits settings. Returns the server's answer, or throws an error with its message. */
export async function submit(settings) {
  let response;
  try {
    response = await fetch("/api/generate", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(settings),
    });
  } catch {
    throw new Error("The server can't be reached. Is it still running?");
  }
  const answer = await response.json().catch(() => ({}));
  if (response.ok) return answer;
  const message = answer.error?.message ?? `The server returned status ${response.status}.`;
  throw new Error(sentence(message.replace(/^request: /, "")));
}

/** Asks the server to cancel a request. The event stream ends with `cancelled`. */
export function cancel(id) {
  return fetch(`/api/generate/${id}/cancel`, { method: "POST" }).catch(() => {});
}

/** Calls `handle(name, data)` for every event. The last one is `done`, `cancelled`, `error` or `lost`. */
export function listen(url, handle) {
  const source = new EventSource(url);
  let lost;
  const end = (name, data) => {
    clearTimeout(lost);
    source.close();
    handle(name, data);
  };
  source.onopen = () => {
    clearTimeout(lost);
    lost = undefined;
  };
  for (const name of ["queued", "progress", "preview", "image"]) {
    source.addEventListener(name, (event) => handle(name, JSON.parse(event.data)));
  }
  for (const name of ["done", "cancelled"]) {
    source.addEventListener(name, (event) => end(name, JSON.parse(event.data)));
  }
  source.addEventListener("error", (event) => {
    // The server's `error` event has data. The browser's has none; the browser reconnects unless the stream is closed.
    if (event.data !== undefined) return end("error", JSON.parse(event.data));
    if (source.readyState === EventSource.CLOSED) return end("lost", {});
    lost ??= setTimeout(() => end("lost", {}), 10000);
  });
}

/** Returns a text with a capital at the beginning and a full stop at the end. */
export function sentence(text) {
  const trimmed = text.trim();
  return trimmed.charAt(0).toUpperCase() + trimmed.slice(1) + (/[.!?"]$/.test(trimmed) ? "" : ".");
}

/** Formats seconds for display. */
export function duration(seconds) {
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 90) return `${Math.round(seconds)} s`;
  return `${Math.round(seconds / 60)} min`;
}
