// Pictures that a task is given: chosen, dropped, pasted, sent from another one, or made by an annotator.

import { post } from "./api.js";
import { button, h, icon, pictureUrl, toast } from "./dom.js";
import { titleOf } from "./schema.js";

/** A data URL of a file or blob. */
export function dataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}

/** A data URL of one of the server's pictures. */
export async function fetchPicture(url) {
  return url.startsWith("data:") ? url : dataUrl(await (await fetch(url)).blob());
}

/** A decoded picture. Rejects files that are not pictures. */
export async function decode(url) {
  const image = new Image();
  image.src = pictureUrl(url);
  await image.decode();
  return image;
}

/** The first picture that was dropped or pasted, or null. */
export function pictureOf(transfer) {
  return [...(transfer?.files ?? [])].find((file) => file.type.startsWith("image/")) ?? null;
}

/** A place for the picture of a role: {element, url(), write(url)}. from: makes it of the main picture, or null. */
export function makeSlot(role, { required = true }, changed, { annotators = [], source = () => null, scope = "" } = {}) {
  let url = null;
  let chosen = null; // the picture that annotators start from: the last one that none of them made
  const input = h("input", { type: "file", accept: "image/*", class: "visually-hidden", id: `slot-${scope}${role}`, onchange: () => take(input.files[0]) });
  const shown = h("img", { alt: "", hidden: true });
  const empty = h("span", { class: "empty" }, icon("add"), h("span", {}, "Choose, drop or paste"));
  const clear = button(`Remove the ${role}`, () => write(null), { name: "close", kind: "quiet", hidden: true });
  const zone = h(
    "label",
    { class: "zone", for: input.id, ondragover: (event) => event.preventDefault(), ondrop: onDrop },
    h("span", { class: "visually-hidden" }, `Choose the ${role}`), shown, empty,
  );

  function onDrop(event) {
    const file = pictureOf(event.dataTransfer);
    if (!file) return;
    event.preventDefault();
    event.stopPropagation(); // elsewhere on the page a drop reads the recipe
    document.body.classList.remove("dropping");
    take(file);
  }

  async function take(file) {
    if (file) await write(await dataUrl(file));
    input.value = "";
  }

  async function write(next, made = false) {
    try {
      if (next) await decode(next);
    } catch {
      return toast("This file is not a picture that can be read.", "problem");
    }
    url = next;
    if (!made) chosen = next;
    shown.src = next ?? "";
    shown.hidden = clear.hidden = !next;
    empty.hidden = Boolean(next);
    changed(role, next);
  }

  async function annotate(kind) {
    const image = chosen ?? source();
    if (!image) return toast("Choose the picture first.", "problem");
    try {
      await write((await post("/api/annotate", { kind, image })).image, true);
    } catch (error) {
      toast(error.message, "problem");
    }
  }

  const make = annotators.length > 0 && h(
    "select",
    { "aria-label": `Make the ${role} from the picture`, onchange: () => (annotate(make.value), (make.value = "")) },
    h("option", { value: "" }, "From picture …"),
    annotators.map((kind) => h("option", { value: kind }, titleOf(kind))),
  );
  const heading = h("div", { class: "field-head" }, h("span", { class: "label" }, titleOf(role), !required && " (optional)"), clear);
  return { element: h("div", { class: "slot", "data-role": role }, heading, input, zone, make), url: () => url, write: (next) => write(next) };
}
