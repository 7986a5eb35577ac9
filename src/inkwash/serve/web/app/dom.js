// The one place that makes elements. Texts become text nodes, so no text is ever read as HTML.

/** An element: properties that start with "on" are listeners, the others attributes; false and null are left out. */
export function h(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "value" || name === "checked") node[name] = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** An SVG element with attributes. */
export function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

/** A button with an icon, a text, or both; without a text the label is for screen readers and the tooltip. */
export function button(label, onclick, { name = null, text = !name, kind = "", ...rest } = {}) {
  return h(
    "button",
    { type: "button", class: kind, onclick, "aria-label": text ? null : label, title: text ? null : label, ...rest },
    name && icon(name),
    text && label,
  );
}

const ICONS = {
  add: "M12 5v14M5 12h14",
  brush: "M4 20c4 0 5-2 5-4l8-11 2 2-9 9c-1 3-3 4-6 4z",
  close: "M6 6l12 12M18 6L6 18",
  compare: "M12 3v18M4 6h5v12H4M15 6h5v12h-5",
  copy: "M8 8h11v12H8zM5 16V4h11",
  dice: "M4 4h16v16H4zM8.5 8.5h.01M15.5 8.5h.01M12 12h.01M8.5 15.5h.01M15.5 15.5h.01",
  down: "M12 5v14M6 13l6 6 6-6",
  download: "M12 4v11M7 11l5 5 5-5M5 20h14",
  dark: "M19 14.5A8 8 0 0 1 9.5 5a8 8 0 1 0 9.5 9.5z",
  eraser: "M4 16l9-10 7 6-8 8H8zM9 11l6 6",
  eye: "M2 12s4-7 10-7 10 7 10 7-4 7-10 7S2 12 2 12zM12 9.5a2.5 2.5 0 1 1 0 5 2.5 2.5 0 0 1 0-5z",
  invert: "M12 4a8 8 0 1 0 0 16zM12 4a8 8 0 1 1 0 16",
  next: "M9 5l7 7-7 7",
  pause: "M8 5v14M16 5v14",
  play: "M7 4l12 8-12 8z",
  previous: "M15 5l-7 7 7 7",
  read: "M4 4h10l6 6v10H4zM14 4v6h6M8 14h8M8 17h5",
  redo: "M19 9H9a5 5 0 0 0 0 10h5M15 5l4 4-4 4",
  retry: "M19 12a7 7 0 1 1-2-5M17 3v4h-4",
  reuse: "M4 7h11M4 12h16M9 17h11M17 5v4M7 15v4",
  swap: "M4 8h15M15 4l4 4-4 4M20 16H5M9 12l-4 4 4 4",
  light: "M12 8a4 4 0 1 1 0 8 4 4 0 0 1 0-8zM12 2v2M12 20v2M2 12h2M20 12h2M5 5l1.5 1.5M17.5 17.5L19 19M19 5l-1.5 1.5M6.5 17.5L5 19",
  trash: "M5 7h14M9 7V4h6v3M7 7l1 13h8l1-13",
  undo: "M5 9h10a5 5 0 0 1 0 10h-5M9 5L5 9l4 4",
  up: "M12 19V5M6 11l6-6 6 6",
};

/** A line drawing of 24 x 24; it says nothing to screen readers. */
export function icon(name) {
  return svg("svg", { viewBox: "0 0 24 24", class: "icon", "aria-hidden": "true" }, svg("path", { d: ICONS[name] }));
}

/** The address of a picture, where it is one of this server's or carries its own bytes; else nothing. */
export function pictureUrl(url) {
  return /^(\/(?!\/)|data:image\/|blob:)/.test(url ?? "") ? url : "";
}

/** Say something to screen readers. */
export function announce(text) {
  document.getElementById("status").textContent = text;
}

/** Show a message at the edge for a while; problems stay longer. */
export function toast(text, kind = "note") {
  const node = h("div", { class: `toast ${kind}` }, text, button("Close", () => node.remove(), { name: "close", kind: "quiet" }));
  document.getElementById("toasts").append(node);
  setTimeout(() => node.remove(), kind === "problem" ? 12000 : 4000);
}

/** Open a modal dialog with a heading; it is gone once it is closed. `closed` is called then. */
export function dialog(heading, content, { kind = "", closed = null } = {}) {
  const close = button("Close", () => node.close(), { name: "close", kind: "quiet" });
  const node = h(
    "dialog",
    { class: kind, "aria-label": heading, onclick: (event) => event.target === node && node.close() },
    h("div", { class: "dialog-body" }, h("header", {}, h("h2", {}, heading), close), content),
  );
  node.addEventListener("close", () => {
    node.remove();
    closed?.();
  });
  document.body.append(node);
  node.showModal();
  return node;
}

/** At most one call in `wait` milliseconds, the last one. */
export function debounce(call, wait) {
  let timer;
  return (...args) => {
    clearTimeout(timer);
    timer = setTimeout(() => call(...args), wait);
  };
}
