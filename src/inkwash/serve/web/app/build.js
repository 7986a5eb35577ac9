// The pages that make models, by training and by merging: a form from the server's description, then what goes on.

import { button, h, pictureUrl, svg, toast } from "./dom.js";
import { makeField } from "./fields.js";
import { group } from "./form.js";
import { cancel, newest, retry, submit, watch } from "./jobs.js";
import { constantsOf, fieldsOf, titleOf } from "./schema.js";
import { duration } from "./stage.js";

const WIDTH = 600;
const HEIGHT = 150;
// what stands in sight beside what has to be given, in this order
const IN_SIGHT = {
  train: ["name", "data", "model", "steps", "lr", "rank", "batch_size", "sample_every"],
  merge: ["name", "models", "method", "alpha", "beta"],
};

const EMPTY = {
  train: "Trainings appear here, with their losses, samples and logs. Each can be cancelled, and goes on later.",
  merge: "Merges appear here, with their logs. The new model is then among those to draw with.",
};

/** The configurations that POST /api/KIND takes, as {title: schema}. api: the server's OpenAPI description. */
function configurations(kind, api) {
  const $defs = api.components?.schemas ?? {};
  const found = (schema) => (schema?.$ref ? $defs[schema.$ref.split("/").pop()] : schema);
  const body = found(api.paths?.[`/api/${kind}`]?.post?.requestBody?.content["application/json"]?.schema);
  const config = found(body?.properties?.config);
  const variants = (config?.oneOf ?? config?.anyOf ?? [config]).map(found).filter((variant) => variant?.properties);
  return Object.fromEntries(variants.map((variant) => [variant.title ?? kind, { ...variant, $defs }]));
}

/** The losses of a training as a curve. losses: [step, loss] pairs. */
function curve(losses) {
  const values = losses.map(([, loss]) => loss);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const last = losses.at(-1);
  const x = (step) => ((step - losses[0][0]) / Math.max(1, last[0] - losses[0][0])) * WIDTH;
  const y = (loss) => HEIGHT - 4 - ((loss - low) / (high - low || 1)) * (HEIGHT - 8);
  const points = losses.map(([step, loss]) => `${x(step).toFixed(1)},${y(loss).toFixed(1)}`).join(" ");
  const label = `Loss ${last[1].toPrecision(3)} at step ${last[0]}, between ${low.toPrecision(3)} and ${high.toPrecision(3)} so far`;
  return h("figure", { class: "losses" },
    svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": label, preserveAspectRatio: "none" }, svg("polyline", { points })),
    h("figcaption", { class: "note" }, label));
}

function told(job) {
  const { step, num_steps: steps, seconds_left: left } = job.progress ?? {};
  if (job.state !== "running") return job.error ?? titleOf(job.state);
  return steps ? `Step ${step} of ${steps}${left == null ? "" : `, ${duration(left)} left`}` : "Starting";
}

function report(job) {
  const { losses = [], log = [], samples = [] } = job.progress ?? {};
  return h(
    "article",
    { class: "run", "data-id": job.id },
    h("div", { class: "line" }, h("h2", {}, job.request.name && `${job.request.name}: `, told(job)),
      ["queued", "running"].includes(job.state) && button("Cancel", () => cancel(job.id), { kind: "small" }),
      job.task === "train" && ["cancelled", "failed"].includes(job.state) && button("Go on", () => retry(job.id), { kind: "small" })),
    losses.length > 1 && curve(losses),
    samples.length > 0 && h("div", { class: "strip" }, samples.map((url, k) => h("img", { src: pictureUrl(url), alt: `Sample ${k + 1}` }))),
    log.length > 0 && h("pre", { tabindex: "0", "aria-label": "Log" }, log.join("\n")),
  );
}

/** A field, with what the server has to choose from. */
function fieldOf(described, server, kind) {
  const known = { model: server.models.map(({ name }) => name), models: server.models.map(({ name }) => name), data: server.extras.data ?? [] };
  const names = known[described.name] ?? [];
  if (described.name === "model" && names.length) described = { ...described, kind: "choice", choices: names };
  const field = makeField({ ...described, slider: false, kind: described.kind === "prompt" ? "text" : described.kind }, () => {}, `${kind}-`);
  if (described.kind === "list" && names.length) {
    const add = (name) => field.write([...field.read(), name]);
    field.element.append(h("div", { class: "picks" }, names.map((name) => button(name, () => add(name), { kind: "small", "aria-label": `Add ${name} to ${field.title}` }))));
  }
  return field;
}

/** The page of a kind of job, train or merge, in `root`; false where the server has no such call. */
export function makeBuild(root, kind, server) {
  const known = configurations(kind, server.api);
  const titles = Object.keys(known);
  if (!titles.length) return false;
  let fields = [];
  let constants = {};
  const body = h("div", { class: "body" });
  const choices = h("div", { class: "pills", role: "radiogroup", "aria-label": "Method", hidden: titles.length < 2 }, titles.map((title, i) => h("label", {},
    h("input", { type: "radio", name: `${kind}-method`, value: title, checked: i === 0, onchange: () => open(title) }), h("span", {}, title))));
  const form = h("form", { novalidate: true, onsubmit: start }, choices, body, h("button", { class: "primary" }, titleOf(kind)));
  const runs = h("div", { class: "runs" });
  root.replaceChildren(h("header", { class: "page" }, h("h1", {}, titleOf(kind))), h("div", { class: "build" }, form, runs));

  function open(title) {
    constants = constantsOf(known[title]);
    fields = fieldsOf(known[title]).map((field) => fieldOf(field, server, kind));
    const order = IN_SIGHT[kind];
    const place = ({ name }) => (order.includes(name) ? order.indexOf(name) : order.length);
    const [sight, rest] = [true, false].map((first) => fields.filter((field) => (field.required || order.includes(field.name)) === first));
    const groups = Map.groupBy(rest, (field) => (field.group === "Parameters" ? "More" : field.group));
    body.replaceChildren(
      h("p", { class: "summary" }, known[title].description ?? ""),
      h("div", { class: "fields" }, sight.toSorted((a, b) => place(a) - place(b)).map((field) => field.element)),
      ...[...groups].map(([name, members]) => group(name, members.map((field) => field.element))),
    );
  }

  async function start(event) {
    event.preventDefault();
    for (const field of fields) field.object(null);
    try {
      const given = fields.map((field) => [field.name, field.read()]).filter(([, value]) => value !== null);
      await submit({ config: { ...constants, ...Object.fromEntries(given) } }, kind);
    } catch (error) {
      const wrong = fields.find((field) => field.name === error.field);
      wrong?.element.closest("details")?.setAttribute("open", "");
      if (wrong) wrong.object(error.message);
      else toast(error.message, "problem");
    }
  }

  function draw() {
    const some = newest().filter((job) => job.task === kind).slice(0, 5).map(report);
    runs.replaceChildren(...some.length ? some : [h("p", { class: "note" }, EMPTY[kind])]);
  }
  watch((job, what) => {
    if (job.task !== kind) return;
    const item = runs.querySelector(`[data-id="${CSS.escape(job.id)}"]`);
    if (what === "progress" && item) item.replaceWith(report(job));
    else draw();
  });
  open(titles[0]);
  draw();
  return true;
}
