// All pictures, newest first, with search; one opens large with its recipe.

import { get } from "./api.js";
import { button, debounce, dialog, h, pictureUrl } from "./dom.js";
import { watch } from "./jobs.js";
import { pictureActions } from "./picture.js";

const PAGE = 40; // jobs

export function makeGallery(root, app) {
  let shown = []; // [job, k]
  let next = null;
  let stale = true;
  const search = h("input", { type: "search", placeholder: "Search prompts", "aria-label": "Search prompts", oninput: debounce(() => load(), 250) });
  const grid = h("ul", { class: "gallery" });
  const more = button("More", () => load(true), { hidden: true });
  const none = h("p", { class: "note", hidden: true });
  root.replaceChildren(h("header", { class: "page" }, h("h1", {}, "Gallery"), search), grid, none, more);

  async function load(append = false) {
    const query = new URLSearchParams({ state: "done", limit: PAGE, search: search.value, ...(append && next ? { before: next } : {}) });
    const asked = search.value;
    const page = await get(`/api/jobs?${query}`);
    if (asked !== search.value) return; // a later search is under way
    const found = page.jobs.flatMap((job) => job.pictures.map((_, k) => [job, k]));
    shown = append ? [...shown, ...found] : found;
    next = page.next;
    stale = false;
    if (append) grid.append(...found.map(item));
    else grid.replaceChildren(...found.map(item));
    more.hidden = !next;
    none.hidden = shown.length > 0;
    none.textContent = asked ? `No prompt contains “${asked}”.` : "Pictures appear here once they are drawn.";
  }

  function item([job, k]) {
    const picture = job.pictures[k];
    const prompt = promptOf(job, picture);
    return h("li", {}, h("button", { type: "button", onclick: () => open(job, k), "aria-label": prompt || `Seed ${picture.seed}` },
      h("img", { src: pictureUrl(picture.thumbnail), alt: "", loading: "lazy" }), h("span", { class: "over" }, prompt)));
  }

  function open(job, k) {
    let at = shown.findIndex(([other, i]) => other.id === job.id && i === k);
    const content = h("div", { class: "lightbox" });
    const opened = dialog("Picture", content, { kind: "wide" });
    opened.addEventListener("keydown", (event) => {
      if (event.target.matches("input, select, textarea")) return;
      if (event.key === "ArrowRight") go(1);
      if (event.key === "ArrowLeft") go(-1);
    });

    function go(by) {
      at = Math.min(shown.length - 1, Math.max(0, at + by));
      const [now, i] = shown[at];
      const picture = now.pictures[i];
      content.replaceChildren(
        h("div", { class: "frame" },
          button("Previous picture", () => go(-1), { name: "previous", kind: "quiet", disabled: at === 0 }),
          h("img", { class: "large", src: pictureUrl(picture.url), alt: promptOf(now, picture) || "The picture" }),
          button("Next picture", () => go(1), { name: "next", kind: "quiet", disabled: at === shown.length - 1 })),
        h("p", { class: "prompt-text" }, promptOf(now, picture)),
        pictureActions(now, i, app, () => opened.close()),
      );
    }
    go(0);
  }

  watch((job, what) => {
    if (what !== "gone" && !(what === "job" && job.state === "done")) return;
    stale = true;
    if (!root.hidden) refresh();
  });
  const refresh = debounce(() => load(), 200);

  return { show: () => stale && load() };
}

function promptOf(job, picture) {
  const prompt = picture.recipe?.request?.prompt ?? job.request.prompt ?? "";
  return Array.isArray(prompt) ? prompt.join(" / ") : prompt;
}
