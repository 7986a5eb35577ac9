// The controls of a form, one kind a function. Each gives {element, read(), write(value)}.

import { button, h } from "./dom.js";
import { explanation } from "./explain.js";

// where sliders are most useful: [from, to, step]; the box beside one takes all that the schema allows
const USUAL = {
  steps: [1, 60, 1],
  cfg_scale: [1, 15, 0.5],
  image_cfg_scale: [1, 5, 0.1],
  batch_size: [1, 8, 1],
  hires: [1, 4, 0.25],
  hires_steps: [1, 60, 1],
  width: [64, 1536, 8],
  height: [64, 1536, 8],
  padding: [0, 256, 8],
};
const RANDOM_BELOW = 2 ** 32;

/** An integer that may be more than a number holds. */
function integer(text) {
  const value = Number(text);
  return Number.isSafeInteger(value) || !/^-?\d+$/.test(text) ? value : BigInt(text);
}

function sliderRange({ name, min, max, whole, slider = true }) {
  if (!slider) return null;
  if (USUAL[name]) return USUAL[name];
  if (min === null || max === null || max - min > 100) return null;
  return [min, max, whole ? 1 : max - min <= 1 ? 0.01 : max - min <= 10 ? 0.05 : 0.5];
}

function numberControl(field, id, changed) {
  const range = sliderRange(field);
  const step = field.whole ? (range?.[2] === 8 ? 8 : 1) : "any";
  const box = h("input", {
    id, type: "number", class: "number", step: field.whole ? 1 : "any", min: field.min, max: field.max,
    inputmode: field.whole ? "numeric" : "decimal", placeholder: field.nullable ? field.unset : null,
    oninput: () => (fill(), changed()),
  });
  const slider = range && h("input", {
    type: "range", min: range[0], max: range[1], step: range[2], "aria-label": `${field.title}, slider`,
    oninput: () => ((box.value = slider.value), fill(), changed()),
  });
  /** The slider follows the box; its filled part is drawn by the style sheet. */
  function fill() {
    if (!slider) return;
    slider.value = box.value === "" ? range[0] : box.value;
    const part = (slider.value - range[0]) / (range[1] - range[0]);
    slider.style.setProperty("--part", `${part * 100}%`);
    slider.classList.toggle("unset", box.value === "");
  }
  if (step === 8) box.step = 8;
  return {
    aside: box,
    control: slider,
    read: () => (box.value === "" ? null : field.whole ? integer(box.value) : Number(box.value)),
    write(value) {
      box.value = value === null ? "" : String(value);
      fill();
    },
  };
}

function seedControl(field, id, changed) {
  const box = h("input", {
    id, type: "text", inputmode: "numeric", pattern: "\\d*", placeholder: "random", autocomplete: "off", oninput: changed,
  });
  const write = (value) => ((box.value = value === null ? "" : String(value)), changed());
  return {
    control: h(
      "div",
      { class: "joined" },
      box,
      button("Random again", () => write(null), { name: "close" }),
      button("New seed", () => write(Math.floor(Math.random() * RANDOM_BELOW)), { name: "dice" }),
    ),
    // without a seed each request gets its own, so that it can be drawn again
    read: () => (/^\d+$/.test(box.value.trim()) ? integer(box.value.trim()) : Math.floor(Math.random() * RANDOM_BELOW)),
    write,
    kept: () => (box.value.trim() ? integer(box.value.trim()) : null),
  };
}

function choiceControl(field, id, changed) {
  const empty = field.nullable ? [h("option", { value: "" }, field.unset)] : [];
  const options = field.choices.map((choice) => h("option", { value: String(choice) }, field.titles[choice] ?? String(choice)));
  const control = h("select", { id, onchange: changed }, empty, options);
  return {
    control,
    read: () => field.choices.find((choice) => String(choice) === control.value) ?? null,
    write: (value) => (control.value = value === null ? "" : String(value)),
  };
}

function switchControl(field, id, changed) {
  const aside = h("input", { id, type: "checkbox", class: "switch", onchange: changed });
  return { aside, read: () => aside.checked, write: (value) => (aside.checked = Boolean(value)) };
}

function textControl(field, id, changed, read, write) {
  const control = h("input", { id, type: "text", autocomplete: "off", oninput: changed, placeholder: field.nullable ? field.unset : null });
  return { control, read: () => read(control.value.trim()), write: (value) => (control.value = write(value)) };
}

const TEXTS = {
  text: [(text) => text || null, (value) => value ?? ""],
  // a size such as 512x512
  pair: [
    (text) => (text ? text.split(/[x,]/).map(Number) : null),
    (value) => (Array.isArray(value) ? value.join(value.some((side) => side > 0) ? "x" : ",") : (value ?? "")),
  ],
  list: [
    (text) => text.split(",").map((item) => item.trim()).filter(Boolean),
    (value) => (value ?? []).join(", "),
  ],
  numbers: [
    (text) => (text ? text.split(",").map(Number) : null),
    (value) => (value ?? []).join(", "),
  ],
  // such as 0,0,0.5,1=a cat; 0.5,0,1,1=a dog
  regions: [
    (text) => text || [],
    (value) => (typeof value === "string" ? value : (value ?? []).map((box) => (Array.isArray(box) ? `${box.slice(0, 4).join(",")}=${box[4]}` : box)).join("; ")),
  ],
  json: [
    (text) => (text ? JSON.parse(text) : null),
    (value) => (value === null ? "" : JSON.stringify(value)),
  ],
};

function controlOf(field, id, changed) {
  if (field.name === "seed") return seedControl(field, id, changed);
  if (field.kind === "number") return /seed$/.test(field.name) ? textControl(field, id, changed, integer, String) : numberControl(field, id, changed);
  if (field.kind === "choice") return choiceControl(field, id, changed);
  if (field.kind === "switch") return switchControl(field, id, changed);
  return textControl(field, id, changed, ...TEXTS[field.kind]);
}

/** A labelled control with its explanation and the place for the server's objection. scope: tells forms apart. */
export function makeField(field, changed, scope = "") {
  const id = `field-${scope}${field.name}`;
  const { aside = null, control = null, read, write, kept = read } = controlOf(field, id, changed);
  const problem = h("p", { class: "problem", id: `${id}-problem`, hidden: true });
  const help = explanation(field);
  if (help) help.id = `${id}-help`;
  const ask = help && h("button", {
    type: "button", class: "ask", "aria-label": `About ${field.title}`, "aria-expanded": "false", "aria-controls": help.id,
    onclick() {
      help.hidden = !help.hidden;
      ask.setAttribute("aria-expanded", String(!help.hidden));
    },
  }, "?");
  const element = h(
    "div",
    { class: `field ${field.kind}-field`, "data-name": field.name },
    h("div", { class: "field-head" }, h("label", { for: id }, field.title), ask, aside),
    control, problem, help,
  );
  write(field.name === "seed" ? null : field.initial);
  return {
    ...field, element, read, write, kept,
    object(message) {
      markProblem(element.querySelector("[id^=field-]"), problem, message);
    },
  };
}

/** Show what is wrong with an input, or nothing. */
export function markProblem(input, problem, message) {
  problem.textContent = message ?? "";
  problem.hidden = !message;
  if (message) {
    input.setAttribute("aria-invalid", "true");
    input.setAttribute("aria-describedby", problem.id);
  } else {
    input.removeAttribute("aria-invalid");
    input.removeAttribute("aria-describedby");
  }
}
