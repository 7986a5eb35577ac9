// Two pictures, one over the other, with a slider between them.

import { dialog, h, pictureUrl } from "./dom.js";
import { newest } from "./jobs.js";

/** Compare a picture with the one that it was made of, or with a recent one. before: a data URL or null. */
export function openCompare(url, before) {
  const recent = newest().flatMap((job) => job.pictures ?? []).filter((picture) => picture.url !== url).slice(0, 12);
  const others = [...(before ? [{ url: before, thumbnail: before, label: "What it was made of" }] : []), ...recent];
  if (!others.length) return dialog("Compare", h("p", { class: "note" }, "Draw a second picture to compare this one with."), { kind: "narrow" });
  const under = h("img", { alt: "The other picture" });
  const over = h("img", { src: pictureUrl(url), alt: "This picture", class: "over" });
  const frame = h("div", { class: "compare" }, under, over);
  const slider = h("input", { type: "range", min: 0, max: 100, value: 50, "aria-label": "Where the two pictures meet", oninput: move });
  const left = h("span", {}, "");
  frame.append(slider, h("p", { class: "line" }, left, h("span", {}, "This picture")));

  function move() {
    frame.style.setProperty("--cut", `${slider.value}%`);
  }

  function choose(index) {
    under.src = pictureUrl(others[index].url);
    left.textContent = label(others[index]);
    strip.querySelectorAll("button").forEach((thumb, i) => thumb.setAttribute("aria-pressed", String(i === index)));
  }
  const label = (other) => other.label ?? `Seed ${other.seed}`;
  const strip = h("div", { class: "strip", role: "group", "aria-label": "Compare with" }, others.map((other, i) =>
    h("button", { type: "button", onclick: () => choose(i), "aria-label": label(other), title: label(other) },
      h("img", { src: pictureUrl(other.thumbnail ?? other.url), alt: "" }))));
  move();
  choose(0);
  return dialog("Compare", [frame, strip]);
}
