// Layout: boxes on an empty picture, each with the words for what is drawn there.

import { button, h } from "./dom.js";

const EDGES = ["left", "top", "right", "bottom"];
const round = (value) => Math.round(Math.min(1, Math.max(0, value)) * 100) / 100;

/** form: the field `boxes` is a list of [x0, y0, x1, y1, what], in fractions of the picture. */
export function makeBoxes(form) {
  let boxes = (form.value("boxes") ?? []).map((box) => [...box]);
  let start = null;
  const plane = h("div", { class: "plane", onpointerdown: down, onpointermove: move, onpointerup: up, onpointercancel: up });
  const list = h("ol", { class: "boxes" });
  const add = button("Add a box", () => append([0.25, 0.25, 0.75, 0.75, ""]), { name: "add", text: true });
  const element = h("div", { class: "editor" }, h("p", { class: "note" }, "Draw a box, then say what it holds. Later boxes lie above."), plane, list, add);

  function place(event) {
    const box = plane.getBoundingClientRect();
    return [round((event.clientX - box.left) / box.width), round((event.clientY - box.top) / box.height)];
  }

  function save() {
    form.set("boxes", boxes.filter(([x0, y0, x1, y1, what]) => x1 > x0 && y1 > y0 && what.trim()));
    shapes();
  }

  function shapes() {
    plane.replaceChildren(...boxes.map(([x0, y0, x1, y1, what], i) => {
      const shape = h("div", { class: "box" }, what || String(i + 1));
      for (const [name, value] of Object.entries({ left: x0, top: y0, width: x1 - x0, height: y1 - y0 })) shape.style.setProperty(name, `${value * 100}%`);
      return shape;
    }));
  }

  function rows() {
    list.replaceChildren(...boxes.map((box, i) => h("li", {},
      h("input", { type: "text", value: box[4], "aria-label": `Box ${i + 1}: what it holds`, placeholder: "a red book", oninput: (event) => ((box[4] = event.target.value), save()) }),
      EDGES.map((edge, k) => h("input", {
        type: "number", min: 0, max: 1, step: 0.01, value: box[k], "aria-label": `Box ${i + 1}: ${edge}`, title: edge,
        oninput: (event) => ((box[k] = round(Number(event.target.value))), save()),
      })),
      button(`Remove box ${i + 1}`, () => ((boxes = boxes.filter((other) => other !== box)), rows(), save()), { name: "close", kind: "quiet" }))));
  }

  function append(box) {
    boxes.push(box);
    rows();
    save();
    list.lastChild.querySelector("input").focus();
  }

  function down(event) {
    start = place(event);
    plane.setPointerCapture(event.pointerId);
    event.preventDefault();
  }

  const between = (end) => [Math.min(start[0], end[0]), Math.min(start[1], end[1]), Math.max(start[0], end[0]), Math.max(start[1], end[1])];

  function move(event) {
    if (!start) return;
    shapes();
    const [x0, y0, x1, y1] = between(place(event));
    const shape = h("div", { class: "box" });
    for (const [name, value] of Object.entries({ left: x0, top: y0, width: x1 - x0, height: y1 - y0 })) shape.style.setProperty(name, `${value * 100}%`);
    plane.append(shape);
  }

  function up(event) {
    if (!start) return;
    const box = between(place(event));
    start = null;
    if (box[2] - box[0] > 0.02 && box[3] - box[1] > 0.02) append([...box, ""]);
    else shapes();
  }

  rows();
  shapes();
  return { element, ready: () => true, image() {} };
}
