// The queue: what is drawn and what waits, in order; move, pause, cancel.

import { get, post } from "./api.js";
import { announce, button, h, pictureUrl, toast } from "./dom.js";
import { cancel, change, find, newest, preview, refresh, retry, unfinished, watch } from "./jobs.js";
import { duration } from "./stage.js";

export function makeQueue(root, badge, titles) {
  let paused = false;
  const list = h("ol", { class: "queue" });
  const failed = h("ol", { class: "queue" });
  const none = h("p", { class: "note" }, "Nothing waits. Press Draw as often as you like; the requests line up here.");
  const pause = h("button", { type: "button", onclick: togglePause });
  root.replaceChildren(h("header", { class: "page" }, h("h1", {}, "Queue"), pause), none, list, h("h2", {}, "Failed"), failed);

  async function attempt(action) {
    try {
      return await action();
    } catch (error) {
      toast(error.message, "problem");
    }
  }

  async function togglePause() {
    const answer = await attempt(() => post("/api/queue", { paused: !paused }));
    if (answer) paused = answer.paused;
    draw();
  }

  /** Put a job at another place, counted from 0, and ask for the places of the others. */
  async function move(job, position) {
    await attempt(async () => {
      await change(job.id, { position });
      await refresh();
      announce(`Now at place ${position + 1}`);
    });
  }

  function state(job) {
    if (job.state === "running") {
      const { step = 0, num_steps: steps = 0, seconds_left: left } = job.progress ?? {};
      return steps ? `Step ${step} of ${steps}${left == null ? "" : `, ${duration(left)} left`}` : "Starting";
    }
    return job.state === "paused" ? "Paused" : `Place ${(job.position ?? 0) + 1}`;
  }

  function row(job, waiting) {
    const place = waiting.indexOf(job);
    const item = h(
      "li",
      { "data-id": job.id, class: job.state, draggable: place >= 0 ? "true" : null },
      h("div", { class: "mini" }, h("img", { alt: "", src: pictureUrl(preview(job.id)), hidden: !preview(job.id) })),
      h("div", { class: "what" }, h("strong", {}, String(job.request.prompt ?? "") || titles(job.task)),
        h("span", {}, titles(job.task), " · ", h("span", { class: "state" }, state(job)))),
      h("div", { class: "moves" }, place >= 0 && button("Move up", () => move(job, place - 1), { name: "up", kind: "quiet", disabled: place === 0 }),
      place >= 0 && button("Move down", () => move(job, place + 1), { name: "down", kind: "quiet", disabled: place === waiting.length - 1 }),
      place >= 0 && button(job.state === "paused" ? "Resume" : "Pause", () => attempt(() =>
        change(job.id, { state: job.state === "paused" ? "queued" : "paused" })), { name: job.state === "paused" ? "play" : "pause", kind: "quiet" }),
      button("Cancel", () => attempt(() => cancel(job.id)), { name: "close", kind: "quiet" })),
    );
    item.addEventListener("dragstart", (event) => {
      dragged = job.id;
      event.dataTransfer.setData("text/plain", job.id); // without data Firefox drags nothing
    });
    item.addEventListener("dragend", () => ((dragged = null), draw()));
    item.addEventListener("dragover", (event) => event.preventDefault());
    item.addEventListener("drop", (event) => {
      event.preventDefault();
      const moved = find(dragged);
      dragged = null;
      if (moved && place >= 0 && moved.id !== job.id) move(moved, place);
    });
    return item;
  }

  let dragged = null;
  let rows = new Map(); // what is shown: id -> [what it shows, its row]

  /** Rows of before where nothing changed, so that the focus and a drag outlast other jobs' changes. */
  function rowsOf(jobs, waiting) {
    const kept = new Map(jobs.map((job) => {
      const shows = JSON.stringify([job.state, waiting.indexOf(job), waiting.length]);
      const [before, item] = rows.get(job.id) ?? [];
      return [job.id, [shows, before === shows ? item : row(job, waiting)]];
    }));
    rows = kept;
    return [...kept.values()].map(([, item]) => item);
  }

  function draw() {
    const focus = document.activeElement;
    const focused = [focus?.closest("li")?.dataset.id, focus?.getAttribute("aria-label")];
    const jobs = unfinished();
    const waiting = jobs.filter((job) => job.state !== "running");
    badge.hidden = !jobs.length;
    badge.textContent = String(jobs.length);
    badge.setAttribute("aria-label", `${jobs.length} unfinished`);
    if (root.hidden || dragged) return;
    pause.textContent = paused ? "Resume the queue" : "Pause the queue";
    none.hidden = jobs.length > 0;
    const items = rowsOf(jobs, waiting);
    if (items.length !== list.children.length || items.some((item, i) => item !== list.children[i])) list.replaceChildren(...items);
    const broken = newest().filter((job) => job.state === "failed");
    const again = [...list.querySelectorAll("button")].find(
      (other) => other.closest("li").dataset.id === focused[0] && other.getAttribute("aria-label") === focused[1],
    );
    if (again !== document.activeElement) again?.focus(); // a moved row's button keeps the focus
    failed.previousElementSibling.hidden = !broken.length;
    failed.replaceChildren(...broken.map((job) => h("li", { class: "failed" },
      h("div", { class: "what" }, h("strong", {}, String(job.request.prompt ?? "") || titles(job.task)), h("span", {}, job.error)),
      button("Try again", () => attempt(() => retry(job.id)), { name: "retry", kind: "quiet" }))));
  }

  let due = false;
  watch((job, what) => {
    if (what === "progress" || what === "preview") {
      if (root.hidden) return;
      const item = list.querySelector(`[data-id="${CSS.escape(job.id)}"]`);
      if (!item) return;
      item.querySelector(".state").textContent = state(job);
      const image = item.querySelector("img");
      image.src = pictureUrl(preview(job.id));
      image.hidden = !preview(job.id);
      return;
    }
    if (due) return;
    due = true;
    requestAnimationFrame(() => ((due = false), draw()));
  });

  return {
    async show() {
      ({ paused } = (await attempt(() => get("/api/queue"))) ?? { paused });
      draw();
    },
  };
}
