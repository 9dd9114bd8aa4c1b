// What the page asks of the service. The token, where one is wanted, lives in this tab's sessionStorage alone.

const TOKEN = "pinlake-token";

/** The service said no: `message` says why, `advice` what to do, `retryAfter` in how many seconds it may work. */
export class ApiError extends Error {
  constructor(status, message, advice = "", retryAfter = null) {
    super(message);
    Object.assign(this, { status, advice, retryAfter });
  }
}

let askForToken = null;
let asking = null;

/** `ask(wrong)` shows the question for a token and resolves to what was typed. */
export function onTokenWanted(ask) {
  askForToken = ask;
}

function headers(more = {}) {
  const token = sessionStorage.getItem(TOKEN);
  return token ? { ...more, Authorization: `Bearer ${token}` } : more;
}

async function ask(path, options = {}) {
  let response;
  for (;;) {
    const used = sessionStorage.getItem(TOKEN);
    try {
      response = await fetch(path, { ...options, headers: headers(options.headers), cache: "no-store" });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError(0, "The service cannot be reached", "Look whether it is running, and try again.");
    }
    if (response.status !== 401 || !askForToken) break;
    if (sessionStorage.getItem(TOKEN) === used) {
      // Several requests may be refused at once: one question for all of them.
      asking ??= askForToken(used !== null).finally(() => (asking = null));
      sessionStorage.setItem(TOKEN, await asking);
    }
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  const wait = Number.parseFloat(response.headers.get("Retry-After"));
  let said = {};
  try {
    said = await response.json();
  } catch {
    // not JSON: a proxy's page, say
  }
  return new ApiError(response.status, said.error || `The service answered ${response.status}`, said.what_to_do, wait || null);
}

export async function getJson(path, parameters = {}) {
  const wanted = Object.entries(parameters).filter(([, value]) => value !== null && value !== undefined && value !== "");
  const query = new URLSearchParams(wanted).toString();
  return (await ask(query ? `${path}?${query}` : path)).json();
}

/** Whether the service can be asked: its own words, also where it is not ready yet. */
export async function health() {
  const response = await fetch("/health", { cache: "no-store" });
  return response.json();
}

function body(request, picture) {
  if (!picture) return { body: JSON.stringify(request), headers: { "Content-Type": "application/json" } };
  const form = new FormData();
  form.append("request", JSON.stringify(request));
  form.append("picture", picture, "picture");
  return { body: form, headers: {} };
}

export async function searchByPicture(request, picture) {
  return (await ask("/search", { method: "POST", ...body(request, picture) })).json();
}

/** A turn: `onEvent(name, data)` for each event, as it comes. Resolves at the stream's end. */
export async function chat(request, picture, { signal, onEvent }) {
  const response = await ask("/chat", { method: "POST", signal, ...body(request, picture) });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const [name, data] = ["event: ", "data: "].map((field) => valueOf(block, field));
      if (name && data) onEvent(name, JSON.parse(data));
    }
  }
}

function valueOf(block, field) {
  return block.split("\n").find((line) => line.startsWith(field))?.slice(field.length);
}
