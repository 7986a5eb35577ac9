// Calls of the server's /api. Seeds reach 2^63 - 1, more than a number holds exactly: such integers are BigInt here.

/** What the server said no to: its one line, the HTTP status, and the field that it is about, or null. */
export class ApiError extends Error {
  constructor(message, status, field = null) {
    super(message);
    Object.assign(this, { status, field });
  }
}

export function parse(text) {
  return JSON.parse(text, (key, value, context) =>
    typeof value === "number" && !Number.isSafeInteger(value) && /^-?\d+$/.test(context?.source)
      ? BigInt(context.source)
      : value,
  );
}

export function stringify(value) {
  return JSON.stringify(value, (key, item) => (typeof item === "bigint" ? JSON.rawJSON(String(item)) : item));
}

let askForToken = null;

/** Set what asks the user for the token, once the server wants one: a function that resolves when it is known. */
export function onUnauthorized(ask) {
  askForToken = ask;
}

/** Call the server. Returns its JSON, or null for an empty answer; throws ApiError. */
export async function call(method, path, body) {
  let response;
  try {
    response = await fetch(path, {
      method,
      headers: body === undefined ? {} : { "Content-Type": "application/json" },
      body: body === undefined ? undefined : stringify(body),
    });
  } catch {
    throw new ApiError("The server does not answer. Is inkwash still running?", 0);
  }
  if (response.status === 401 && askForToken && path !== "/api/login") {
    await askForToken();
    return call(method, path, body);
  }
  const text = await response.text();
  let answer = null;
  try {
    answer = text ? parse(text) : null;
  } catch {
    if (response.ok) throw new ApiError(`The server's answer to ${path} is not JSON.`, response.status);
  }
  if (response.ok) return answer;
  const { message = `The server answered ${response.status} to ${path}.`, field = null } = answer?.error ?? {};
  const wait = response.headers.get("Retry-After");
  throw new ApiError(wait ? `${message} Try again in ${wait} s.` : message, response.status, field);
}

export const get = (path) => call("GET", path);
export const post = (path, body = {}) => call("POST", path, body);
export const remove = (path) => call("DELETE", path);

/** Listen to server-sent events: handlers by the event's name, each given its data. connected: is told of each change. */
export function events(path, handlers, connected) {
  const source = new EventSource(path);
  for (const [name, handle] of Object.entries(handlers)) {
    source.addEventListener(name, (event) => handle(parse(event.data)));
  }
  source.addEventListener("open", () => connected(true));
  source.addEventListener("error", () => {
    connected(false);
    // the browser tries again by itself unless the server refused
    if (source.readyState === EventSource.CLOSED) setTimeout(() => events(path, handlers, connected), 3000);
  });
}
