// A picture that is dropped or pasted anywhere on the page: what it was drawn by, from any program's metadata.

import { post } from "./api.js";
import { button, dialog, h, toast } from "./dom.js";
import { dataUrl, decode, pictureOf } from "./images.js";
import { sendTo, settingsList } from "./picture.js";

/** Listen to drops and pastes, and to the file chooser `input`. app: {tasks, use(task, request), send(task, url)}. */
export function readRecipes(input, app) {
  const shade = h("div", { class: "shade", "aria-hidden": "true" }, h("p", {}, "Drop a picture to read its recipe"));
  document.body.append(shade);
  const over = (is) => document.body.classList.toggle("dropping", is);
  window.addEventListener("dragover", (event) => {
    if (!event.dataTransfer.types.includes("Files")) return;
    event.preventDefault();
    over(true);
  });
  window.addEventListener("dragleave", (event) => event.relatedTarget === null && over(false));
  window.addEventListener("drop", (event) => {
    over(false);
    if (event.defaultPrevented) return;
    event.preventDefault();
    take(pictureOf(event.dataTransfer));
  });
  window.addEventListener("paste", (event) => {
    const file = pictureOf(event.clipboardData);
    if (file) take(file);
  });
  input.addEventListener("change", () => {
    take(input.files[0]);
    input.value = "";
  });

  async function take(file) {
    if (!file) return toast("That is not a picture.", "problem");
    const url = await dataUrl(file);
    try {
      await decode(url);
    } catch {
      return toast("This file is not a picture that can be read.", "problem");
    }
    let recipe = null;
    let missing = "";
    try {
      recipe = await post("/api/recipe", { image: url });
    } catch (error) {
      missing = error.message;
    }
    show(file.name, url, recipe, missing);
  }

  function show(name, url, recipe, missing) {
    const request = recipe?.request;
    const opened = dialog(name || "Picture", h(
      "div",
      { class: "read" },
      h("img", { class: "large", src: url, alt: "" }),
      h("div", {},
        request ? settingsList({ task: app.title(recipe.task), ...request }, app.tasks.find((task) => task.name === recipe.task)) : h("p", { class: "note" }, missing),
        (recipe?.notes ?? []).map((note) => h("p", { class: "note" }, note)),
        h("div", { class: "actions" },
          request && button("Use settings", () => (opened.close(), app.use(recipe.task, request)), { kind: "primary", text: true }),
          sendTo(app.tasks, (task) => (opened.close(), app.send(task, url))))),
    ), { kind: "wide" });
  }
}
