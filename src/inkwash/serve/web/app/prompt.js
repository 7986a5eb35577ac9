// Prompts: weights by the keyboard, the number of tokens, and what can be added to them.

import { post } from "./api.js";
import { button, debounce, h } from "./dom.js";
import { markProblem } from "./fields.js";
import { openPicker } from "./picker.js";

const STEP = 0.1;
const WEIGHTED = /^\((.*):(-?\d*\.?\d+)\)$/s;

/** Widen a selection to the bracket with a weight around it, else to the word under it. */
function widened(text, start, end) {
  for (const match of text.matchAll(/\(([^()]*):-?\d*\.?\d+\)/g)) {
    if (match.index <= start && end <= match.index + match[0].length) return [match.index, match.index + match[0].length];
  }
  if (start !== end) return [start, end];
  while (start > 0 && /[^\s,()]/.test(text[start - 1])) start--;
  while (end < text.length && /[^\s,()]/.test(text[end])) end++;
  return [start, end];
}

/** Change the weight of what is selected, or of the word at the cursor, by a tenth: `red` is (red:1.1). */
export function weigh(text, start, end, direction) {
  [start, end] = widened(text, start, end);
  const part = text.slice(start, end);
  if (!part.trim()) return { text, start, end };
  const [, words = part, weight = "1"] = part.match(WEIGHTED) ?? [];
  const changed = Math.round((Number(weight) + direction * STEP) * 10) / 10;
  const written = changed === 1 ? words : `(${words}:${changed})`;
  return { text: text.slice(0, start) + written + text.slice(end), start, end: start + written.length };
}

/** A text area for a prompt, as `makeField` gives a control. context: the server's extras and the model in use. */
export function makePrompt(field, changed, context) {
  const id = `field-${field.name}`;
  const main = field.name === "prompt";
  const area = h("textarea", {
    id, rows: main ? 4 : 2, spellcheck: "false", "aria-describedby": `${id}-tokens`,
    placeholder: main ? "What do you want to see?" : "What to keep away from",
    onkeydown: onKey, oninput: () => (count(), changed()),
  });
  const tokens = h("span", { class: "tokens", id: `${id}-tokens` });
  const problem = h("p", { class: "problem", id: `${id}-problem`, hidden: true });

  function onKey(event) {
    if (!(event.ctrlKey || event.metaKey) || !["ArrowUp", "ArrowDown"].includes(event.key)) return;
    event.preventDefault();
    const direction = event.key === "ArrowUp" ? 1 : -1;
    const { text, start, end } = weigh(area.value, area.selectionStart, area.selectionEnd, direction);
    replace(text, start, end);
  }

  function replace(text, start, end) {
    area.value = text;
    area.setSelectionRange(start, end);
    count();
    changed();
  }

  const count = debounce(async () => {
    if (!area.value.trim()) return (tokens.textContent = "");
    const { count: num, chunks, limit = 75 } = await post("/api/tokens", { text: area.value, model: context.model() });
    tokens.textContent = `${num}/${limit * Math.max(1, chunks)} tokens`;
  }, 250);

  function insert(text) {
    const at = area.selectionEnd;
    const space = at && !/\s$/.test(area.value.slice(0, at)) ? " " : "";
    replace(area.value.slice(0, at) + space + text + area.value.slice(at), at, at + space.length + text.length);
    area.focus();
  }

  const picker = main && button("Add LoRA, style …", () => openPicker(context, insert), { name: "add", text: true, kind: "small" });
  const element = h(
    "div",
    { class: "field prompt-field", "data-name": field.name },
    h("div", { class: "field-head" }, h("label", { for: id }, field.title), tokens),
    area, problem,
    main && h("div", { class: "under" }, picker, h("span", { class: "keys" }, h("kbd", {}, "Ctrl"), " ", h("kbd", {}, "↑ ↓"), " weight")),
  );
  return {
    ...field, element,
    read: () => area.value,
    kept: () => area.value,
    write(value) {
      area.value = Array.isArray(value) ? (value[0] ?? "") : (value ?? "");
      count();
    },
    object: (message) => markProblem(area, problem, message),
  };
}
