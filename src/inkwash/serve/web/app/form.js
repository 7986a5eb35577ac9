// The form of a task: its pictures, prompts and options, made from the task's schema.

import { ApiError, get } from "./api.js";
import { button, h, toast } from "./dom.js";
import { makeControls } from "./controls.js";
import { makeField } from "./fields.js";
import { makeGrid } from "./grid.js";
import { makeSlot } from "./images.js";
import { makePrompt } from "./prompt.js";
import { common, fieldsOf, plain, same } from "./schema.js";

// what stands in sight, in this order; everything else is in the groups that the schema names
const IN_SIGHT = ["prompt", "negative_prompt", "width", "height", "steps", "cfg_scale", "sampler", "schedule", "seed", "batch_size"];
const KEPT = "inkwash.form";

function kept() {
  try {
    return JSON.parse(localStorage.getItem(KEPT)) ?? {};
  } catch {
    return {};
  }
}

/** The form in `root`. on: {submit(body), image(role, url), task(task), changed()}; server: {tasks, models, extras}. */
export function makeForm(root, server, on) {
  let task = null;
  let fields = [];
  let slots = {};
  let grid = null;
  let controls = null;
  let values = kept().values ?? {}; // what was written, by field: it stays when the task changes
  const shared = common(server.tasks);
  const pills = h("div", { class: "pills", role: "radiogroup", "aria-label": "Task" });
  const body = h("div", { class: "body" });
  const go = h("button", { type: "submit", class: "primary" }, "Draw", h("kbd", {}, "Ctrl ⏎"));
  const stop = button("Reset", reset, { kind: "quiet", text: true, title: "All settings as they were at first" });
  root.replaceChildren(pills, body, h("div", { class: "go" }, go, stop));

  const context = {
    model: () => server.model()?.name,
    extras: () => server.extras,
    styles: () => field("styles")?.read() ?? [],
    toggleStyle(name) {
      const chosen = context.styles();
      field("styles")?.write(chosen.includes(name) ? chosen.filter((other) => other !== name) : [...chosen, name]);
      changed();
    },
  };
  const field = (name) => fields.find((other) => other.name === name);

  function changed() {
    for (const { name, kept: read } of fields) {
      try {
        values[name] = read();
      } catch {
        // JSON that is not finished yet
      }
    }
    localStorage.setItem(KEPT, JSON.stringify({ task: task.name, values }, plain));
    on.changed?.();
  }

  function possible(other) {
    return server.models.some((model) => model.tasks.includes(other.name));
  }

  /** Ask which controls fit the model in use; until that is known, all are listed alike. */
  async function showFits() {
    const model = server.current;
    if (!controls) return;
    try {
      const answer = await get(`/api/controls?model=${encodeURIComponent(model)}`);
      if (model === server.current) controls?.fit(model, Object.fromEntries(answer.controls.map(({ name, misfit }) => [name, misfit])));
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
    }
  }

  function showTasks() {
    const shown = server.tasks.filter((other) => possible(other) || other === task);
    pills.replaceChildren(...shown.map((other) => h(
      "label", { title: other.summary },
      h("input", { type: "radio", name: "task", value: other.name, checked: other === task, onchange: () => open(other.name) }),
      h("span", {}, other.title),
    )));
  }

  function make(described) {
    if (described.kind === "prompt") return makePrompt(described, changed, context);
    if (described.kind === "boxes") return hiddenField(described);
    return makeField(described, changed);
  }

  /** Show a task's form; what two tasks share keeps its value. */
  function open(name) {
    task = server.tasks.find((other) => other.name === name) ?? server.tasks[0];
    const pictures = Object.fromEntries(Object.entries(slots).map(([role, slot]) => [role, slot.url()]));
    fields = fieldsOf(task.schema).map(make);
    slots = {};
    const drawn = Object.entries(task.images ?? {}).filter(([role, { mode }]) => !isMask(role, mode));
    for (const [role, about] of drawn) {
      const annotators = role === "image" ? [] : (server.extras.annotators ?? []);
      slots[role] = makeSlot(role, about, (...args) => on.image(...args), { annotators, source: () => slots.image?.url() ?? null });
    }
    grid = makeGrid(fields);
    const described = server.extras.controlnets?.length ? task.schema.properties.controls : null;
    controls = described?.items ? makeControls(described.items, server.extras, () => slots.image?.url() ?? null, () => {}) : null;
    layOut();
    showTasks();
    for (const other of fields) if (other.name in values) write(other, values[other.name]);
    on.task(task);
    showFits();
    for (const [role, slot] of Object.entries(slots)) if (pictures[role]) slot.write(pictures[role]);
    changed();
  }

  function layOut() {
    const visible = fields.filter((other) => other.element);
    const first = IN_SIGHT.map((name) => visible.find((other) => other.name === name)).filter(Boolean);
    const own = visible.filter((other) => !first.includes(other) && other.group === "Parameters" && (!shared.has(other.name) || other.required));
    const groups = Map.groupBy(visible.filter((other) => !first.includes(other) && !own.includes(other)), (other) => other.group);
    const prompts = first.filter((other) => other.kind === "prompt");
    const sight = first.filter((other) => other.kind !== "prompt");
    body.replaceChildren(
      h("p", { class: "summary" }, task.summary),
      ...Object.keys(slots).length ? [h("div", { class: "slots" }, Object.values(slots).map((slot) => slot.element))] : [],
      ...prompts.map((other) => other.element),
      h("div", { class: "fields" }, sight.map((other) => other.element)),
      ...own.length ? [h("fieldset", { class: "fields own" }, h("legend", {}, task.title), own.map((other) => other.element))] : [],
      ...[...groups].map(([title, members]) => group(title === "Parameters" ? "More" : title, members.map((other) => other.element))),
      ...controls ? [group("Control", [controls.element])] : [],
      group("Grid of settings (X/Y)", [grid.element]),
    );
  }

  function write(other, value) {
    try {
      other.write(value ?? null);
    } catch {
      other.write(other.initial);
    }
  }

  /** The fields that differ from their defaults. Throws ApiError for invalid JSON. */
  function request() {
    const asked = {};
    for (const other of fields) {
      const value = readJson(other);
      if (other.required || other.name === "seed" || (value !== null && !same(value, other.initial))) asked[other.name] = value;
    }
    const units = controls?.read() ?? [];
    if (units.length) asked.controls = units;
    return asked;
  }

  async function submit(event) {
    event?.preventDefault();
    for (const other of fields) other.object(null);
    const missing = Object.entries(slots).find(([role, slot]) => task.images[role].required !== false && !slot.url());
    if (missing) return toast(`${task.title} needs the ${missing[0]}: choose, drop or paste one.`, "problem");
    go.setAttribute("aria-busy", "true");
    try {
      const images = Object.fromEntries(Object.entries(slots).filter(([, slot]) => slot.url()).map(([role, slot]) => [role, slot.url()]));
      await on.submit({ task: task.name, request: request(), images, ...grid.read() });
    } catch (error) {
      show(error);
    } finally {
      go.removeAttribute("aria-busy");
    }
  }

  /** Put the server's objection where it belongs. */
  function show(error) {
    const wrong = error.field && field(error.field);
    if (!wrong?.element) return toast(error.message, "problem");
    wrong.element.closest("details")?.setAttribute("open", "");
    wrong.object(error.message);
    wrong.element.querySelector("input, select, textarea").focus();
  }

  function reset() {
    for (const other of fields) other.write(other.name === "seed" ? null : other.initial);
    controls?.clear();
    changed();
  }

  root.addEventListener("submit", submit);
  const chosen = kept().task;
  return {
    start: () => open(chosen ?? server.tasks.find(possible)?.name),
    open,
    submit,
    showTasks,
    showFits,
    task: () => task,
    value: (name) => field(name)?.read(),
    set(name, value) {
      if (field(name)) write(field(name), value);
      changed();
    },
    image: (role) => slots[role]?.url() ?? null,
    setImage: (role, url) => slots[role]?.write(url),
    /** All settings of a recipe; what it does not name is as at first. The names of those that have no field here. */
    use(name, given) {
      open(name);
      for (const other of fields) write(other, other.name in given ? given[other.name] : other.initial);
      changed();
      return Object.keys(given).filter((key) => !field(key) && given[key]?.length);
    },
  };
}

function readJson(field) {
  try {
    return field.read();
  } catch {
    throw new ApiError("This is not JSON.", 0, field.name);
  }
}

/** A mask is painted over the picture, not chosen. */
export const isMask = (role, mode) => role === "mask" && mode === "L";

/** Fields that are shown on demand. */
export function group(title, elements) {
  return h("details", {}, h("summary", {}, title), h("div", { class: "fields" }, elements));
}

/** A field that is edited on the canvas. */
function hiddenField(described) {
  let value = described.initial ?? [];
  const read = () => value;
  return { ...described, element: null, read, kept: read, write: (next) => (value = next ?? []), object() {} };
}
