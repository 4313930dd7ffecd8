// Asks the server, and turns what goes wrong into a Refusal. Knows nothing about the page.

const KEY = "tellapart-key";
const MOST_WAITS = 60;

/** What the server would not do: kind is one of offline, key, large, unreadable, gone, slow, busy, refused, failed. */
export class Refusal extends Error {
  constructor(kind, answer = null) {
    const wrong = answer?.predictions?.[0]?.error;
    super(answer?.error?.message ?? (wrong ? `The file ${wrong}.` : ""));
    this.kind = kind;
    this.requestId = answer?.error?.request_id ?? answer?.request_id ?? null;
  }
}

const KINDS = { 404: "gone", 408: "slow", 413: "large", 422: "unreadable", 429: "busy", 503: "busy", 504: "slow" };

let askForKey = async () => null, asking = null, key = null;
try {
  key = sessionStorage.getItem(KEY);
} catch {
  // Storage is switched off: the key holds until the page is left.
}

/** Take a key that came with the page's address. */
export function useKey(value) {
  key = value;
  try {
    sessionStorage.setItem(KEY, key);
  } catch {
    // as above
  }
}

/** Whether the server wants a key: links that a browser follows bring none. */
export const hasKey = () => key !== null;

/** Give the function that asks a person for the key: (refused: boolean) → the key, or null. */
export function onKeyNeeded(askPerson) {
  askForKey = askPerson;
}

/** Ask once, however many requests need the key; used: the one that was refused. Return whether there is another now. */
async function newKey(used) {
  if (key !== used) return true;
  asking ??= askForKey(used !== null).finally(() => (asking = null));
  const given = await asking;
  if (!given) return false;
  useKey(given);
  return true;
}

const pause = (seconds, signal) => new Promise((resolve, reject) => {
  const timer = setTimeout(resolve, 1000 * seconds);
  signal?.addEventListener("abort", () => {
    clearTimeout(timer);
    reject(signal.reason);
  }, { once: true });
});

/**
 * Return the JSON answer; null for an empty one.
 *
 * body: a File (sent as it is) or a value (sent as JSON). onWait(seconds): the server is busy, and is asked again then.
 * quiet: neither ask for a key nor wait. Throws Refusal.
 */
export async function ask(path, { body, onWait = () => {}, signal, quiet = false, asPhoto = false } = {}) {
  for (let waits = 0; ; waits++) {
    const used = key, headers = used === null ? {} : { Authorization: `Bearer ${used}` }, isFile = body instanceof Blob;
    if (body !== undefined) headers["Content-Type"] = !isFile ? "application/json" : body.type.startsWith("image/") ? body.type : "application/octet-stream";
    const response = await send(path, { method: body === undefined ? "GET" : "POST", headers, signal, cache: "no-store", body: isFile || body === undefined ? body : JSON.stringify(body) });
    if (response.ok) return response.status === 204 ? null : asPhoto ? response.blob() : response.json();
    const answer = await response.json().catch(() => null);
    if (response.status === 401) {
      if (quiet || !(await newKey(used))) throw new Refusal("key", answer);
      continue;
    }
    const kind = KINDS[response.status] ?? (response.status >= 500 ? "failed" : "refused");
    if (kind !== "busy" || quiet || waits >= MOST_WAITS) throw new Refusal(kind, answer);
    const seconds = Math.min(Math.max(Number(response.headers.get("Retry-After")) || 1, 0.2), 60);
    onWait(seconds);
    await pause(seconds, signal);
  }
}

/** Return a photo of the server as a Blob: an <img> could not send the key. */
export const askPhoto = (path) => ask(path, { asPhoto: true });

async function send(path, options) {
  try {
    return await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal("offline");
  }
}

/** What went wrong, for a person: [title, sentence]. */
export function explained(error) {
  const id = error.requestId ? ` Its log has it under ${error.requestId}.` : "";
  return {
    offline: ["The server cannot be reached", "Retrying automatically."],
    broken: ["The connection broke", "The server closed it while the picture was sent. The file may be too large."],
    key: ["A key is needed", "This server answers only with its key."],
    large: ["This file is too large", `Make the picture smaller and try again. ${error.message}`],
    unreadable: ["This is no picture that can be read", error.message],
    gone: ["The server does not have that", error.message],
    slow: ["That took too long", "The server had too much to do. Try again."],
    busy: ["The server is still busy", error.message || "Try again in a while."],
    refused: ["The server did not accept that", error.message],
    failed: ["The server failed", `That is not your picture's fault.${id}`],
  }[error.kind] ?? ["Something went wrong", error.message];
}
