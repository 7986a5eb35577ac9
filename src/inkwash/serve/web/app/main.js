// The start: what the server has, the pages, and what one part of the page asks of another.

import { get, onUnauthorized, post, remove } from "./api.js";
import { makeBuild } from "./build.js";
import { makeCanvas } from "./canvas.js";
import { button, dialog, h, icon, toast } from "./dom.js";
import { makeForm } from "./form.js";
import { makeGallery } from "./gallery.js";
import { decode, fetchPicture } from "./images.js";
import { forget, listen, refresh, submit } from "./jobs.js";
import { makeQueue } from "./queue.js";
import { readRecipes } from "./recipe.js";
import { titleOf } from "./schema.js";
import { makeStage } from "./stage.js";

const SOURCES = 20; // that are kept for comparing
const byId = (id) => document.getElementById(id);
const server = { tasks: [], models: [], extras: {}, current: null, model: () => server.models.find((model) => model.name === server.current) };
const sources = new Map(); // job -> the picture that it was made of, for comparing

async function load() {
  const paths = ["/api/tasks", "/api/models", "/api/extras", "/openapi.json"];
  const [tasks, models, extras, api] = await Promise.all(paths.map(get));
  if (!("/api/annotate" in api.paths)) extras.annotators = [];
  if (!("/api/upscale" in api.paths)) extras.upscalers = [];
  Object.assign(server, { tasks: tasks.tasks, models: models.models, current: models.current, extras, api });
}

/** Ask for the token until the server takes it. */
function login() {
  return new Promise((resolve) => {
    const token = h("input", { type: "password", id: "token", autocomplete: "current-password", required: true });
    const problem = h("p", { class: "problem", role: "alert" });
    const form = h("form", { onsubmit: enter }, h("label", { for: "token" }, "Token"), token, problem, h("button", { class: "primary" }, "Enter"));
    const opened = dialog("This server asks for its token", form, { kind: "narrow" });
    opened.addEventListener("cancel", (event) => event.preventDefault());

    async function enter(event) {
      event.preventDefault();
      try {
        await post("/api/login", { token: token.value });
        opened.close();
        resolve();
      } catch (error) {
        problem.textContent = error.message;
      }
    }
  });
}

let asking = null;
onUnauthorized(() => (asking ??= login().finally(() => (asking = null))));

function makeThemeButton(node) {
  const dark = () => (document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const show = () => {
    node.setAttribute("aria-pressed", String(dark()));
    node.replaceChildren(icon(dark() ? "light" : "dark"));
  };
  node.addEventListener("click", () => {
    localStorage.setItem("inkwash.theme", (document.documentElement.dataset.theme = dark() ? "light" : "dark"));
    show();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
  show();
}

function makeModelMenu(menu, form) {
  const fill = () => {
    const options = server.models.map((model) => h("option", { value: model.name }, model.title ?? model.name));
    menu.replaceChildren(...options, h("option", { value: "\n" }, "Look for new ones"));
    menu.value = server.current;
    menu.disabled = false;
    form.showTasks();
    form.showFits();
  };
  menu.addEventListener("change", async () => {
    try {
      if (menu.value === "\n") Object.assign(server, await post("/api/models/refresh"));
      else await choose(menu.value);
    } catch (error) {
      toast(error.message, "problem");
    }
    fill();
  });

  async function choose(name) {
    menu.disabled = true;
    await post("/api/models/load", { name });
    server.current = name;
  }

  fill();
  /** Choose a model that can do the task, where the one in use cannot. */
  return async (task) => {
    if (server.model()?.tasks.includes(task.name)) return;
    const able = server.models.find((model) => model.tasks.includes(task.name));
    if (!able) return;
    server.current = menu.value = able.name;
    form.showFits();
  };
}

async function start() {
  makeThemeButton(byId("theme"));
  byId("read").before(icon("read"));
  await load();

  let canvas = null;
  let useModelFor = async () => {};
  const app = {
    get tasks() {
      return server.tasks;
    },
    get extras() {
      return server.extras;
    },
    use(task, request) {
      location.hash = "#draw";
      const left = form.use(task, request).map(titleOf);
      toast(`The settings are in the form${left.length ? `, except ${left.join(", ")}` : ""}.`);
    },
    async send(task, url) {
      location.hash = "#draw";
      form.open(task);
      await form.setImage("image", await fetchPicture(url));
    },
    async remove(id) {
      await remove(`/api/jobs/${id}`);
      forget(id);
    },
    drawn: (job) => server.tasks.some((task) => task.name === job.task), // and not trained or merged
    title: (name) => server.tasks.find((task) => task.name === name)?.title ?? titleOf(name),
    source: (job) => sources.get(job.id) ?? null,
    examples: () => server.tasks[0]?.schema.properties.prompt?.examples ?? [],
    tryExample(prompt) {
      form.set("prompt", prompt);
      form.submit();
    },
  };
  const stage = makeStage(byId("stage"), app);
  const form = makeForm(byId("form"), server, {
    async submit(body) {
      const mask = canvas?.mask?.();
      if (canvas?.mask && !mask) throw new Error("Paint over the picture first: what is painted is drawn anew.");
      if (mask) body.images.mask = mask;
      const job = await submit({ ...body, model: server.current });
      if (body.images.image) sources.set(job.id, body.images.image);
      if (sources.size > SOURCES) sources.delete(sources.keys().next().value);
      stage.select(job.id);
    },
    async image(role, url) {
      if (role !== "image" || !canvas) return;
      canvas.image(url ? await decode(url) : null);
      stage.showCanvas(true);
    },
    task(task) {
      canvas = makeCanvas(task, form);
      stage.setCanvas(canvas);
      useModelFor(task);
    },
    changed: () => canvas?.changed?.(),
  });
  form.start();
  useModelFor = makeModelMenu(byId("model"), form);
  useModelFor(form.task());

  const pages = {
    gallery: makeGallery(byId("gallery"), app),
    queue: makeQueue(byId("queue"), byId("waiting"), app.title),
  };
  readRecipes(byId("read"), app);
  document.addEventListener("keydown", (event) => {
    const drawing = (event.ctrlKey || event.metaKey) && event.key === "Enter" && !byId("draw").hidden && !document.querySelector("dialog[open]");
    if (drawing) form.submit(event);
  });

  for (const kind of ["train", "merge"]) {
    document.querySelector(`.tabs [href="#${kind}"]`).hidden = !makeBuild(byId(kind), kind, server);
  }
  const route = () => {
    const links = [...document.querySelectorAll(".tabs a:not([hidden])")];
    const name = links.some((link) => link.hash === location.hash) ? location.hash.slice(1) : "draw";
    for (const section of byId("view").children) section.hidden = section.id !== name;
    for (const link of links) {
      if (link.hash === `#${name}`) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    pages[name]?.show?.();
  };
  window.addEventListener("hashchange", route);
  route();
  await refresh();
  listen((connected) => (byId("lost").hidden = connected));
}

start().catch((error) => {
  const again = button("Try again", () => location.reload(), { kind: "primary" });
  byId("stage").replaceChildren(h("div", { class: "failed" }, h("h1", {}, "The page could not start"), h("p", {}, error.message), again));
});
