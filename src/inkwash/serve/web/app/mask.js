// A mask painted over a picture: brush, eraser, layers, undo. What is painted is drawn anew; with a soft mask, each layer by
// a strength of its own.

import { button, h } from "./dom.js";

const UNDO = 30; // strokes, or fewer of a large picture
const UNDO_BYTES = 2 ** 28;
const STRIPE = 5; // pixels of the screen
const KEY_STEP = 8; // pixels of the screen that an arrow key moves the brush

function blank(width, height) {
  return Object.assign(document.createElement("canvas"), { width, height });
}

function copy(canvas) {
  const made = blank(canvas.width, canvas.height);
  made.getContext("2d").drawImage(canvas, 0, 0);
  return made;
}

/** form: whose soft_mask and blend_mask say whether layers have strengths. */
export function makeMask(form) {
  let picture = null;
  let layers = [];
  let active = 0;
  let undone = [];
  let done = []; // what to go back to: [layers, active]
  let tool = "brush";
  let last = null; // of the stroke under way
  let cursor = null; // in pixels of the picture

  const canvas = h("canvas", {
    tabindex: 0, role: "img", class: "paint",
    "aria-label": "Mask over the picture. Arrow keys move the brush, space paints, E erases, B is the brush, the square brackets change its size.",
    onpointerdown: down, onpointermove: move, onpointerup: up, onpointercancel: up, onpointerleave: leave, onkeydown: key,
  });
  const size = h("input", { type: "range", min: 2, max: 100, value: 24, "aria-label": "Size of the brush, percent", oninput: paint });
  const tools = h("div", { class: "pills", role: "radiogroup", "aria-label": "Tool" }, ["brush", "eraser"].map((name) => h("label", {},
    h("input", { type: "radio", name: "tool", value: name, checked: name === tool, onchange: () => (tool = name) }),
    h("span", {}, name === "brush" ? "Brush" : "Eraser"))));
  const strength = h("input", { type: "range", min: 5, max: 100, step: 5, value: 100, "aria-label": "Strength of the layer, percent", oninput: weigh });
  const strengths = h("label", { class: "size", hidden: true }, "Strength", strength);
  const layerList = h("div", { class: "layers", role: "group", "aria-label": "Layers of the mask" });
  const undoButton = button("Undo", undo, { name: "undo", kind: "quiet" });
  const redoButton = button("Redo", redo, { name: "redo", kind: "quiet" });
  const bar = h("div", { class: "actions", role: "toolbar", "aria-label": "Mask" }, tools, h("label", { class: "size" }, "Size", size),
    undoButton, redoButton, button("Invert", invert, { name: "invert", kind: "quiet" }), button("Clear", clear, { name: "trash", kind: "quiet" }));
  const hint = h("p", { class: "note" }, "Choose the picture, then paint what is to be drawn anew.");
  const work = h("div", { hidden: true }, h("div", { class: "frame" }, canvas), bar, layerList, h("div", { class: "actions" }, strengths));
  const element = h("div", { class: "editor" }, hint, work);

  const radius = () => Math.max(1, ((size.value / 100) * Math.min(canvas.width, canvas.height)) / 2);

  /** The picture with the visible layers over it, and the brush. */
  function paint() {
    const context = canvas.getContext("2d");
    context.drawImage(picture, 0, 0);
    const tint = union();
    const brush = tint.getContext("2d");
    brush.globalCompositeOperation = "source-in";
    brush.fillStyle = stripes(brush);
    brush.fillRect(0, 0, tint.width, tint.height);
    context.globalAlpha = 0.7;
    context.drawImage(tint, 0, 0);
    context.globalAlpha = 1;
    if (cursor) {
      for (const [colour, width] of [["#fff", 3], ["#000", 1]]) {
        context.beginPath();
        context.arc(cursor.x, cursor.y, radius(), 0, 2 * Math.PI);
        context.lineWidth = width * pixel();
        context.strokeStyle = colour;
        context.stroke();
      }
    }
    undoButton.disabled = !done.length;
    redoButton.disabled = !undone.length;
  }

  const pixel = () => canvas.width / (canvas.clientWidth || canvas.width); // of the screen, in the picture's

  /** Red and white, so that it is seen on any picture. */
  function stripes(context) {
    const tile = blank(2 * STRIPE, 2 * STRIPE);
    const inside = tile.getContext("2d");
    inside.fillStyle = "#d63a20";
    inside.fillRect(0, 0, 2 * STRIPE, 2 * STRIPE);
    inside.strokeStyle = "#fff";
    inside.lineWidth = STRIPE / 2;
    for (const x of [-STRIPE, STRIPE, 3 * STRIPE]) {
      inside.moveTo(x - STRIPE, 2 * STRIPE + STRIPE);
      inside.lineTo(x + 2 * STRIPE, 0);
    }
    inside.stroke();
    const pattern = context.createPattern(tile, "repeat");
    pattern.setTransform(new DOMMatrix().scale(pixel()));
    return pattern;
  }

  const soft = () => ["soft_mask", "blend_mask"].some((name) => form.value(name) === true);

  function union() {
    const whole = blank(canvas.width, canvas.height);
    const context = whole.getContext("2d");
    for (const layer of layers.filter((other) => other.visible)) {
      context.globalAlpha = soft() ? layer.strength : 1;
      context.drawImage(layer.canvas, 0, 0);
    }
    return whole;
  }

  function weigh() {
    layers[active].strength = strength.value / 100;
    paint();
  }

  const state = () => [layers.map((layer) => ({ ...layer })), active];

  /** Keep the state for undo, before a change: the active layer goes on as a copy. */
  function remember() {
    const most = Math.max(2, Math.min(UNDO, Math.floor(UNDO_BYTES / (4 * canvas.width * canvas.height))));
    done = [...done, state()].slice(-most);
    undone = [];
    layers[active].canvas = copy(layers[active].canvas);
  }

  function go(from, to) {
    if (!from.length) return;
    to.push(state());
    [layers, active] = from.pop();
    listLayers();
    paint();
  }

  function undo() {
    go(done, undone);
  }

  function redo() {
    go(undone, done);
  }

  function place(event) {
    const box = canvas.getBoundingClientRect();
    return { x: ((event.clientX - box.left) / box.width) * canvas.width, y: ((event.clientY - box.top) / box.height) * canvas.height };
  }

  function stroke(from, to) {
    const context = layers[active].canvas.getContext("2d");
    context.globalCompositeOperation = tool === "eraser" ? "destination-out" : "source-over";
    context.lineWidth = radius() * 2;
    context.strokeStyle = context.fillStyle = "#fff";
    context.beginPath();
    context.moveTo(from.x, from.y);
    context.lineTo(to.x, to.y);
    context.stroke();
    context.beginPath(); // the round end, also of a stroke without length
    context.arc(to.x, to.y, radius(), 0, 2 * Math.PI);
    context.fill();
  }

  function down(event) {
    if (event.button) return;
    event.preventDefault();
    canvas.focus({ preventScroll: true });
    canvas.setPointerCapture(event.pointerId);
    remember();
    last = cursor = place(event);
    stroke(last, last);
    paint();
  }

  function move(event) {
    for (const part of event.getCoalescedEvents?.() ?? [event]) {
      const next = place(part);
      if (last) stroke(last, next);
      if (last) last = next;
    }
    cursor = place(event);
    paint();
  }

  function up() {
    last = null;
  }

  function leave() {
    cursor = null;
    paint();
  }

  function key(event) {
    const ways = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const way = ways[event.key];
    if (way) {
      const far = KEY_STEP * pixel();
      cursor ??= { x: canvas.width / 2, y: canvas.height / 2 };
      const next = { x: clamp(cursor.x + way[0] * far, canvas.width), y: clamp(cursor.y + way[1] * far, canvas.height) };
      cursor = next;
    } else if (event.key === " ") {
      cursor ??= { x: canvas.width / 2, y: canvas.height / 2 };
      remember();
      stroke(cursor, cursor);
    } else if (event.key === "b" || event.key === "e") {
      choose(event.key === "b" ? "brush" : "eraser");
    } else if (event.key === "[" || event.key === "]") {
      size.value = Number(size.value) + (event.key === "]" ? 4 : -4);
    } else if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "z") {
      if (event.shiftKey) redo();
      else undo();
    } else {
      return;
    }
    event.preventDefault();
    paint();
  }

  function choose(name) {
    tool = name;
    tools.querySelector(`[value=${name}]`).checked = true;
  }

  function clear() {
    remember();
    layers[active].canvas = blank(canvas.width, canvas.height);
    paint();
  }

  function invert() {
    remember();
    const made = blank(canvas.width, canvas.height);
    const context = made.getContext("2d");
    context.fillStyle = "#fff";
    context.fillRect(0, 0, made.width, made.height);
    context.globalCompositeOperation = "destination-out";
    context.drawImage(layers[active].canvas, 0, 0);
    layers[active].canvas = made;
    paint();
  }

  const addLayer = () => {
    if (layers.length) remember();
    const number = 1 + Math.max(0, ...layers.map((layer) => layer.number));
    layers.push({ canvas: blank(canvas.width, canvas.height), visible: true, strength: 1, number });
    active = layers.length - 1;
    listLayers();
    paint();
  };

  function listLayers() {
    const chips = layers.map((layer, i) => h("span", { class: "layer", "data-active": String(i === active) },
      button(`Layer ${layer.number}`, () => ((active = i), listLayers()), { "aria-pressed": String(i === active) }),
      button(`${layer.visible ? "Hide" : "Show"} layer ${layer.number}`, () => {
        layer.visible = !layer.visible;
        listLayers();
        paint();
      }, { name: "eye", kind: `quiet${layer.visible ? "" : " off"}` }),
      layers.length > 1 && button(`Remove layer ${layer.number}`, () => {
        remember();
        layers.splice(i, 1);
        active = Math.min(active, layers.length - 1);
        listLayers();
        paint();
      }, { name: "close", kind: "quiet" })));
    strength.value = 100 * layers[active].strength;
    layerList.replaceChildren(...chips, button("New layer", addLayer, { name: "add", kind: "quiet" }));
  }

  return {
    element,
    ready: () => Boolean(picture),
    changed() {
      strengths.hidden = !soft();
      if (picture) paint();
    },
    image(next) {
      const sized = picture && next && picture.naturalWidth === next.naturalWidth && picture.naturalHeight === next.naturalHeight;
      picture = next;
      work.hidden = !picture;
      hint.hidden = Boolean(picture);
      if (!picture) return;
      if (!sized) {
        // another size: nothing of the old mask fits
        Object.assign(canvas, { width: picture.naturalWidth, height: picture.naturalHeight });
        canvas.style.setProperty("--ratio", canvas.width / canvas.height);
        [layers, done, undone, active] = [[], [], [], 0];
        addLayer();
      }
      paint();
    },
    /** White where it is painted, black elsewhere, as a data URL; null where nothing is. */
    mask() {
      if (!picture) return null;
      const made = blank(canvas.width, canvas.height);
      const context = made.getContext("2d");
      const painted = union();
      if (!painted.getContext("2d").getImageData(0, 0, made.width, made.height).data.some((value, i) => i % 4 === 3 && value)) return null;
      context.fillRect(0, 0, made.width, made.height);
      context.drawImage(painted, 0, 0);
      return made.toDataURL("image/png");
    },
  };
}

const clamp = (value, below) => Math.min(Math.max(value, 0), below - 1);
