// What the most used controls do: one sentence and a drawing each.

import { h, svg } from "./dom.js";

const SIDE = 44;
const GAP = 10;

/** `count` places in a square, the same at each call. */
function places(count, seed) {
  let state = seed;
  const next = () => (state = (state * 16807) % 2147483647) / 2147483647;
  return Array.from({ length: count }, () => [next() * (SIDE - 4) + 2, next() * (SIDE - 4) + 2]);
}

/** A small picture of an apple under noise of 0 to 1. */
function tile(column, { noise = 0, ink = 1, x = 22, y = 24, size = 12, edge = 0, label = "" } = {}) {
  const node = svg("g", { transform: `translate(${column * (SIDE + GAP) + 1} 1)` });
  node.append(svg("rect", { width: SIDE, height: SIDE, rx: 5, class: "paper" }));
  node.append(svg("circle", { cx: x, cy: y, r: size, class: "shape", opacity: ink, "stroke-width": edge }));
  node.append(svg("path", { d: `M${x} ${y - size}q1-5 6-6`, class: "stem", opacity: ink }));
  for (const [cx, cy] of places(Math.round(noise * 150), column + 7)) {
    node.append(svg("circle", { cx, cy, r: 1.3, class: "grain" }));
  }
  if (label) {
    const text = svg("text", { x: SIDE / 2, y: SIDE + 14 });
    text.textContent = label;
    node.append(text);
  }
  return node;
}

function line(points, className) {
  return svg("polyline", { points: points.map((point) => point.join(",")).join(" "), class: className });
}

/** Karras et al. 2022, equation 5, from 14.6 down to 0.03. */
function karras(num) {
  const [high, low] = [14.6 ** (1 / 7), 0.03 ** (1 / 7)];
  return Array.from({ length: num }, (_, i) => (high + (i / (num - 1)) * (low - high)) ** 7);
}

function curves() {
  const at = (sigma, i, num) => [8 + (i / (num - 1)) * 240, 48 - (sigma / 14.6) * 42];
  const num = 12;
  return [
    line(karras(num).map((sigma, i) => at(sigma, i, num)), "trace"),
    line(Array.from({ length: num }, (_, i) => at(14.6 * (1 - i / (num - 1)), i, num)), "trace faint"),
    ...karras(num).map((sigma, i) => {
      const [cx, cy] = at(sigma, i, num);
      return svg("circle", { cx, cy, r: 2.4, class: "grain" });
    }),
  ];
}

function paths() {
  const straight = Array.from({ length: 9 }, (_, i) => [52 + i * 19, 23 - 10 * Math.sin((i / 8) * Math.PI)]);
  const restless = straight.map(([x], i) => [x, 30 + (i % 2 ? 8 : -6) * (1 - i / 8)]);
  return [tile(0, { noise: 1, ink: 0 }), tile(4), line(straight, "trace"), line(restless, "trace faint")];
}

function latent() {
  const cells = Array.from({ length: 25 }, (_, i) =>
    svg("rect", { x: 8 + (i % 5) * 7, y: 5 + Math.floor(i / 5) * 7, width: 6, height: 6, class: "grain", opacity: 0.15 + ((i * 7) % 10) / 14 }),
  );
  return [...cells, line([[60, 23], [92, 23], [86, 18]], "trace"), tile(2)];
}

const EXPLANATIONS = {
  steps: [
    "How often a little of the noise is taken away: more steps are finer and slower, and 20 are mostly enough.",
    () => [0.9, 0.6, 0.35, 0.15, 0].map((noise, i) => tile(i, { noise, ink: 1 - noise })),
  ],
  cfg_scale: [
    "How strongly the picture follows the prompt: low is free and soft, high is literal and harsh.",
    () => [
      tile(0, { ink: 0.3, x: 27, label: "1" }),
      tile(1.5, { label: "5" }),
      tile(3, { edge: 5, size: 14, label: "20" }),
    ],
  ],
  sampler: [
    "The way from noise to picture: most go straight; the ancestral and sde ones add fresh noise on the way.",
    paths,
  ],
  schedule: [
    "How the noise falls over the steps: Karras spends more of them on the detail at the end.",
    curves,
  ],
  seed: [
    "The noise that the picture starts from: the same seed and settings draw the same picture again. Empty is a new one each time.",
    () => [
      tile(0, { x: 15, y: 28, size: 9, label: "1" }),
      tile(1.5, { x: 26, y: 22, size: 14, label: "2" }),
      tile(3, { x: 30, y: 30, size: 8, label: "3" }),
    ],
  ],
  strength: [
    "How much of the picture is turned into noise and drawn anew: 0.3 retouches, 1 replaces all of it.",
    () => [0.2, 0.5, 1].map((noise, i) => tile(i * 1.5, { noise, ink: 1 - noise * 0.8, label: String(noise) })),
  ],
  vae: ["The network that turns the small latent picture into pixels: it decides on colours and fine detail.", latent],
  batch_size: [
    "How many pictures are drawn at once, each from the next seed.",
    () => [0, 1, 2, 3].map((i) => tile(i, { x: 16 + i * 4, size: 8 + (i % 3) * 2 })),
  ],
};

function picture(nodes) {
  const height = nodes.some((node) => node.querySelector("text")) ? 62 : 46;
  return svg("svg", { viewBox: `0 0 264 ${height}`, class: "explain", "aria-hidden": "true" }, ...nodes);
}

/** What stands under a control when its question mark is pressed; null where there is nothing to say. */
export function explanation(field) {
  const [sentence, draw] = EXPLANATIONS[field.name] ?? [field.help, null];
  if (!sentence) return null;
  return h("div", { class: "help", hidden: true }, draw && picture(draw()), h("p", {}, sentence));
}
