// Outpainting: a picture in a frame whose sides are dragged outward.

import { h } from "./dom.js";

const SIDES = ["left", "top", "right", "bottom"];
const MOST = 4096;
const STEP = 8; // new sides are multiples of it, as latents are

/** form: {value(name), set(name, value)}. */
export function makeExtend(form) {
  let picture = null;
  let drag = null;
  const canvas = h("canvas", {
    class: "extend", role: "img", "aria-label": "The picture and its new sides; the fields Left, Top, Right and Bottom set them by the keyboard.",
    onpointerdown: down, onpointermove: move, onpointerup: up, onpointercancel: up,
  });
  const hint = h("p", { class: "note" }, "Choose the picture, then drag its sides outward.");
  const element = h("div", { class: "editor" }, h("div", { class: "frame", hidden: true }, canvas), hint);
  const sides = () => Object.fromEntries(SIDES.map((side) => [side, Number(form.value(side) ?? 0)]));

  /** Where the picture lies on the canvas: a margin on each side leaves room to drag. */
  function geometry() {
    const { naturalWidth: width, naturalHeight: height } = picture;
    const margin = Math.max(width, height) / 2;
    const { left, top, right, bottom } = sides();
    const room = { left: Math.max(margin, left + 32), top: Math.max(margin, top + 32) };
    return { width, height, room, full: [width + room.left + Math.max(margin, right + 32), height + room.top + Math.max(margin, bottom + 32)] };
  }

  function paint() {
    if (!picture) return;
    const { width, height, room, full } = drag?.geometry ?? geometry();
    [canvas.width, canvas.height] = full.map(Math.round);
    canvas.style.setProperty("--ratio", full[0] / full[1]);
    const { left, top, right, bottom } = sides();
    const context = canvas.getContext("2d");
    const line = Math.max(1, full[0] / 400);
    const frame = [room.left - left, room.top - top, width + left + right, height + top + bottom];
    context.fillStyle = "rgb(214 58 32 / .14)";
    context.fillRect(...frame);
    context.drawImage(picture, room.left, room.top);
    context.lineWidth = line * 1.5;
    context.strokeStyle = "rgb(214 58 32)";
    context.setLineDash([line * 5, line * 4]);
    context.strokeRect(...frame);
    context.setLineDash([]);
    context.fillStyle = "rgb(214 58 32)";
    const [x, y, w, h2] = frame;
    for (const [cx, cy] of [[x, y + h2 / 2], [x + w / 2, y], [x + w, y + h2 / 2], [x + w / 2, y + h2]]) {
      context.beginPath();
      context.arc(cx, cy, line * 6, 0, 2 * Math.PI);
      context.fill();
    }
  }

  function place(event) {
    const box = canvas.getBoundingClientRect();
    return [((event.clientX - box.left) / box.width) * canvas.width, ((event.clientY - box.top) / box.height) * canvas.height];
  }

  function down(event) {
    const found = geometry();
    const [x, y] = place(event);
    const { left, top, right, bottom } = sides();
    const far = {
      left: Math.abs(x - (found.room.left - left)),
      right: Math.abs(x - (found.room.left + found.width + right)),
      top: Math.abs(y - (found.room.top - top)),
      bottom: Math.abs(y - (found.room.top + found.height + bottom)),
    };
    drag = { side: SIDES.toSorted((a, b) => far[a] - far[b])[0], geometry: found };
    canvas.setPointerCapture(event.pointerId);
    move(event);
  }

  function move(event) {
    if (!drag) return;
    const { side, geometry: { room, width, height } } = drag;
    const [x, y] = place(event);
    const pulled = { left: room.left - x, right: x - room.left - width, top: room.top - y, bottom: y - room.top - height }[side];
    form.set(side, Math.min(MOST, Math.max(0, Math.round(pulled / STEP) * STEP)));
    paint();
  }

  function up() {
    drag = null;
    paint();
  }

  return {
    element,
    ready: () => Boolean(picture),
    changed: paint,
    image(next) {
      picture = next;
      element.firstChild.hidden = !picture;
      hint.textContent = picture ? "Drag a side outward; what lies beyond the picture is drawn." : "Choose the picture, then drag its sides outward.";
      paint();
    },
  };
}
