// What can be done with a drawn picture, and what it says of itself.

import { post } from "./api.js";
import { openCompare } from "./compare.js";
import { announce, button, dialog, h, icon, pictureUrl, toast } from "./dom.js";
import { fetchPicture } from "./images.js";
import { same, titleOf } from "./schema.js";

const LONG = ["prompt", "negative_prompt"];
// what a list of settings has even where it is as by default
const ALWAYS = ["steps", "cfg_scale", "sampler", "schedule", "seed", "strength"];

function told(value) {
  if (Array.isArray(value)) return value.map(told).join(", ");
  if (typeof value === "object") return Object.entries(value).filter(([, part]) => part !== null).map(([name, part]) => `${name} ${told(part)}`).join(", ");
  return value === true ? "on" : value === false ? "off" : String(value);
}

/** The settings of a request as a list of terms, prompts first; those that are unset, or as by default, are left out. */
export function settingsList(request, task) {
  const known = task?.schema.properties ?? {};
  const usual = (name, value) => !ALWAYS.includes(name) && name in known && same(value, known[name].default);
  const empty = (value) => value === null || value === "" || (Array.isArray(value) && !value.length);
  const entries = Object.entries(request).filter(([name, value]) => !empty(value) && !usual(name, value));
  const [first, rest] = [true, false].map((long) => entries.filter(([name]) => LONG.includes(name) === long));
  return h("dl", { class: "settings" }, [...first, ...rest].map(([name, value]) =>
    h("div", { class: LONG.includes(name) ? "long" : "" }, h("dt", {}, titleOf(name)), h("dd", {}, told(value)))));
}

/** The request that draws this picture alone. */
export function requestOf(job, picture) {
  return { ...(picture.recipe?.request ?? job.request), seed: picture.seed, batch_size: 1 };
}

/** A menu of the tasks that take a picture. */
export function sendTo(tasks, send) {
  const takers = tasks.filter((task) => "image" in (task.images ?? {}));
  const menu = h(
    "select",
    { "aria-label": "Send to", onchange: () => (send(menu.value), (menu.value = "")) },
    h("option", { value: "" }, "Send to …"),
    takers.map((task) => h("option", { value: task.name }, task.title)),
  );
  return takers.length > 0 && menu;
}

function upscaleMenu(url, upscalers) {
  const menu = h(
    "select",
    { "aria-label": "Enlarge", onchange: () => (enlarge(menu.value), (menu.value = "")) },
    h("option", { value: "" }, "Enlarge …"),
    upscalers.flatMap((upscaler) => [2, 4].map((scale) => h("option", { value: `${scale} ${upscaler}` }, `${scale}× ${titleOf(upscaler)}`))),
  );

  async function enlarge(chosen) {
    const [scale, ...upscaler] = chosen.split(" ");
    announce("Enlarging");
    try {
      const image = await fetchPicture(url);
      const made = (await post("/api/upscale", { image, upscaler: upscaler.join(" "), scale: Number(scale) })).image;
      const save = h("a", { class: "button", href: pictureUrl(made), download: `enlarged-${scale}x.png` }, "Download");
      dialog(`Enlarged ${scale}×`, [h("img", { class: "large", src: pictureUrl(made), alt: `The picture, ${scale} times as large` }), save]);
    } catch (error) {
      toast(error.message, "problem");
    }
  }
  return upscalers.length > 0 && menu;
}

/** The actions of picture k of a job. app: {tasks, extras, use, send, remove}. */
export function pictureActions(job, k, app, close = () => {}) {
  const picture = job.pictures[k];
  const recipe = h("div", { class: "recipe", hidden: true });
  const show = button("Recipe", () => {
    recipe.hidden = !recipe.hidden;
    show.setAttribute("aria-expanded", String(!recipe.hidden));
    if (recipe.hidden) return;
    recipe.replaceChildren(...recipeOf(job, picture, app.tasks.find((task) => task.name === job.task)));
    recipe.scrollIntoView({ block: "nearest" });
  }, { name: "read", text: true, "aria-expanded": "false" });
  const upscalers = (app.extras.upscalers ?? []).map((upscaler) => upscaler.name ?? upscaler);
  const bar = h(
    "div",
    { class: "actions", role: "toolbar", "aria-label": "Picture" },
    button("Use settings", () => (close(), app.use(job.task, requestOf(job, picture))), { name: "reuse", text: true }),
    sendTo(app.tasks, (task) => (close(), app.send(task, picture.url))),
    upscaleMenu(picture.url, upscalers),
    button("Compare", () => openCompare(picture.url, app.source(job)), { name: "compare", text: true }),
    show,
    h("span", { class: "end" },
      h("a", { class: "button quiet", href: pictureUrl(picture.url), download: `${job.id}-${k}.png`, "aria-label": "Download", title: "Download" }, icon("download")),
      button("Delete", () => remove(), { name: "trash", kind: "quiet" })),
  );

  async function remove() {
    const many = job.pictures.length > 1 ? ` with its ${job.pictures.length} pictures` : "";
    const sure = dialog("Delete?", [
      h("p", {}, `This job${many} is removed from the disk.`),
      button("Delete", async () => {
        sure.close();
        close();
        await app.remove(job.id);
      }, { kind: "primary", text: true }),
    ], { kind: "narrow" });
  }
  return h("div", {}, bar, recipe);
}

function recipeOf(job, picture, task) {
  const text = picture.parameters ?? "";
  const copy = button("Copy", async () => {
    await navigator.clipboard.writeText(text);
    announce("Copied");
  }, { name: "copy", text: true, kind: "small" });
  return [
    settingsList({ model: job.model, ...job.request, seed: picture.seed, size: `${picture.width}×${picture.height}` }, task),
    text && h("details", {}, h("summary", {}, "As text"), h("pre", {}, text), copy),
  ].filter(Boolean);
}
