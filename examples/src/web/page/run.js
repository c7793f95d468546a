// One request to the server, and what is heard of it.

/** Sends settings; gives the server's answer, or throws its words. */
export async function begin(settings) {
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
  const message = answer.error?.message ?? `The server answered ${response.status}.`;
  throw new Error(sentence(message.replace(/^request: /, "")));
}

/** Asks the server to cancel. The event stream tells when it has. */
export function cancel(id) {
  return fetch(`/api/generate/${id}/cancel`, { method: "POST" }).catch(() => {});
}

/** Calls `hear(name, data)` for every event until the last, which is done, cancelled, error, or lost. */
export function listen(url, hear) {
  const source = new EventSource(url);
  let lost;
  const end = (name, data) => {
    clearTimeout(lost);
    source.close();
    hear(name, data);
  };
  source.onopen = () => {
    clearTimeout(lost);
    lost = undefined;
  };
  for (const name of ["queued", "progress", "preview", "image"]) {
    source.addEventListener(name, (event) => hear(name, JSON.parse(event.data)));
  }
  for (const name of ["done", "cancelled"]) {
    source.addEventListener(name, (event) => end(name, JSON.parse(event.data)));
  }
  source.addEventListener("error", (event) => {
    // The server's own error has data; the browser's has none, and it tries again by itself unless it has given up.
    if (event.data !== undefined) return end("error", JSON.parse(event.data));
    if (source.readyState === EventSource.CLOSED) return end("lost", {});
    lost ??= setTimeout(() => end("lost", {}), 10000);
  });
}

/** With a capital at the beginning and a full stop at the end. */
export function sentence(text) {
  const trimmed = text.trim();
  return trimmed.charAt(0).toUpperCase() + trimmed.slice(1) + (/[.!?"]$/.test(trimmed) ? "" : ".");
}

/** Seconds as people say them. */
export function duration(seconds) {
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 90) return `${Math.round(seconds)} s`;
  return `${Math.round(seconds / 60)} min`;
}
