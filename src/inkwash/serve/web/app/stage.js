// What is being drawn or was drawn last, large; the canvas of tasks that have one; and the newest pictures below.

import { announce, button, h, pictureUrl } from "./dom.js";
import { gridTable } from "./grid.js";
import { cancel, find, newest, preview, retry, unfinished, watch } from "./jobs.js";
import { pictureActions } from "./picture.js";

/** 75 is "1 min 15 s". */
export function duration(seconds) {
  const whole = Math.max(1, Math.round(seconds));
  return whole < 60 ? `${whole} s` : `${Math.floor(whole / 60)} min ${whole % 60} s`;
}

/** Fraction of a job that is done, 0 to 1. */
function fraction({ step, num_steps: steps, picture = 0, num_pictures: pictures = 1 }) {
  return steps ? Math.min(1, (picture + step / steps) / Math.max(1, pictures)) : 0;
}

function told(progress) {
  if (!progress?.num_steps) return "Starting";
  const of = progress.num_pictures > 1 ? `Picture ${progress.picture + 1} of ${progress.num_pictures}, step` : "Step";
  const left = progress.seconds_left == null ? "" : `, ${duration(progress.seconds_left)} left`;
  return `${of} ${progress.step} of ${progress.num_steps}${left}`;
}

/** app: see `pictureActions`, and examples(): prompts to begin with, tryExample(prompt). */
export function makeStage(root, app) {
  let shown = { job: null, k: 0 };
  let canvas = null; // the editor of the task, or null
  let number = 0; // of editors so far
  let onCanvas = false;
  const view = h("div", { class: "view" });
  const strip = h("div", { class: "strip", role: "group", "aria-label": "Newest pictures" });
  const toggle = h("div", { class: "pills toggle", role: "radiogroup", "aria-label": "Canvas or picture", hidden: true });
  root.replaceChildren(toggle, view, strip);

  const parts = {}; // of a running job: what progress and previews change

  function start() {
    const examples = app.examples();
    return h(
      "div",
      { class: "start" },
      h("img", { src: "icon.svg", alt: "", width: 96, height: 96 }),
      h("h1", {}, "Write what you want to see."),
      h("p", {}, "Then press Draw. Everything runs on this machine; no picture leaves it."),
      examples.length > 0 && h("div", { class: "examples" }, examples.map((text) => button(text, () => app.tryExample(text), { kind: "example" }))),
    );
  }

  function running(job) {
    parts.image = h("img", { class: "large", alt: "The picture so far", src: pictureUrl(preview(job.id)), hidden: !preview(job.id) });
    parts.wash = h("div", { class: "wash", hidden: Boolean(preview(job.id)) });
    parts.bar = h("progress", { max: 1, "aria-label": "Progress" });
    parts.text = h("span", {}, "");
    queueMicrotask(progressed);
    return h("figure", {}, h("div", { class: "frame" }, parts.wash, parts.image), h("figcaption", {}, parts.bar,
      h("div", { class: "line" }, parts.text, button("Cancel", () => cancel(job.id), { kind: "small" }))));
  }

  function progressed() {
    const job = find(shown.job);
    if (!job || !parts.bar) return;
    if (job.state === "queued" || job.state === "paused") {
      const before = unfinished().findIndex((other) => other.id === job.id);
      parts.text.textContent = job.state === "paused" ? "Paused" : before > 0 ? `Waiting, ${before} before it` : "Waiting";
      parts.bar.removeAttribute("value");
      return;
    }
    parts.text.textContent = told(job.progress);
    parts.bar.value = fraction(job.progress ?? {});
  }

  function failed(job) {
    const text = job.state === "cancelled" ? "Cancelled." : job.error;
    return h("div", { class: "failed" }, h("h2", {}, job.state === "cancelled" ? "Cancelled" : "It was not drawn"),
      job.state !== "cancelled" && h("p", {}, text), button("Try again", async () => select((await retry(job.id)).id), { name: "retry", text: true }));
  }

  function finished(job) {
    const picture = job.pictures[shown.k] ?? job.pictures[0];
    if (!picture) return failed({ ...job, error: "The job ended without a picture." });
    const k = job.pictures.indexOf(picture);
    const inGrid = Object.keys(job.grid ?? {}).length > 0;
    const grid = inGrid && !shown.single;
    const image = h("img", { class: "large", src: pictureUrl(picture.url), alt: picture.recipe?.request?.prompt || job.request.prompt || "The picture" });
    return h(
      "figure",
      {},
      grid ? gridTable(job, (chosen) => select(job.id, chosen, true)) : h("div", { class: "frame" }, image),
      h("figcaption", {},
        h("p", { class: "caption" }, `${picture.width} × ${picture.height} · seed ${picture.seed}`,
          inGrid && shown.single && button("All of the grid", () => select(job.id, 0), { kind: "small" })),
        pictureActions(job, k, app)),
    );
  }

  let drawn = null; // what `draw` has shown last: other jobs' changes leave it, its focus and its open recipe alone

  function draw() {
    const job = find(shown.job);
    const now = JSON.stringify([shown, onCanvas, canvas && canvas.id, job?.state, job?.pictures.length, job?.error]);
    if (now === drawn) return job && progressed();
    drawn = now;
    view.dataset.job = shown.job ?? "";
    for (const name of Object.keys(parts)) delete parts[name];
    toggle.hidden = !canvas;
    toggle.replaceChildren(...(canvas ? ["Canvas", "Picture"] : []).map((label) => h("label", {},
      h("input", { type: "radio", name: "stage", checked: onCanvas === (label === "Canvas"), onchange: () => showCanvas(label === "Canvas") }),
      h("span", {}, label))));
    if (canvas && onCanvas) return view.replaceChildren(canvas.element);
    if (!job) view.replaceChildren(start());
    else if (["queued", "running", "paused"].includes(job.state)) view.replaceChildren(running(job));
    else view.replaceChildren(job.state === "done" ? finished(job) : failed(job));
  }

  function showCanvas(wanted) {
    onCanvas = wanted;
    draw();
  }

  /** One tile for each picture, and one for each job that is not done. */
  function tiles() {
    const all = newest().flatMap((job) => {
      if (job.state === "done") return job.pictures.map((picture, k) => tile(job, k, picture));
      return job.state === "cancelled" || !app.drawn(job) ? [] : [tile(job, 0, null)];
    });
    strip.replaceChildren(...all.slice(0, 60));
  }

  function tile(job, k, picture) {
    const current = shown.job === job.id && (shown.k === k || !picture);
    const label = picture ? `Picture, seed ${picture.seed}` : `${job.state === "failed" ? "Failed" : "Unfinished"}: ${job.request.prompt ?? job.task}`;
    return h("button", { type: "button", class: `thumb ${job.state}`, "aria-current": String(current), "aria-label": label, onclick: () => select(job.id, k, true) },
      picture && h("img", { src: pictureUrl(picture.thumbnail), alt: "", loading: "lazy" }));
  }

  function select(id, k = 0, single = false) {
    shown = { job: id, k, single };
    onCanvas = false;
    draw();
    tiles();
  }

  let waiting = false;
  watch((job, what) => {
    if (what === "progress" && job.id === shown.job) return progressed();
    if (what === "preview" && job.id === shown.job && parts.image) {
      parts.image.src = pictureUrl(preview(job.id));
      parts.image.hidden = false;
      parts.wash.hidden = true;
    }
    if (what === "preview" || what === "progress") return;
    if (what === "gone" && job.id === shown.job) shown = { job: null, k: 0 };
    if (job.id === shown.job && what === "job") {
      if (job.state === "done") announce("The picture is done");
      if (job.state === "failed") announce(`It failed: ${job.error}`);
    }
    if (waiting) return;
    waiting = true; // many jobs may change at once
    requestAnimationFrame(() => {
      waiting = false;
      if (!shown.job) follow();
      if (!onCanvas) draw();
      tiles();
    });
  });

  /** Show the newest job where none was chosen yet. */
  function follow() {
    const job = unfinished().find(app.drawn) ?? newest().find((other) => other.pictures.length);
    if (job) shown = { job: job.id, k: 0 };
  }

  draw();
  return {
    select,
    showCanvas,
    setCanvas(editor) {
      canvas = editor && Object.assign(editor, { id: ++number });
      onCanvas = Boolean(editor?.ready?.());
      draw();
    },
    redraw: draw,
  };
}
