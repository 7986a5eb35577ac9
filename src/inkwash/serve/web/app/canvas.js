// The canvas of a task: a mask to paint, sides to extend, or boxes to draw; most tasks have none.

import { makeBoxes } from "./boxes.js";
import { makeExtend } from "./extend.js";
import { isMask } from "./form.js";
import { makeMask } from "./mask.js";

/** The editor for a task: {element, ready(), image(picture), mask()?}, or null. form: to read and set its fields. */
export function makeCanvas(task, form) {
  const fields = task.schema.properties ?? {};
  if (Object.entries(task.images ?? {}).some(([role, { mode }]) => isMask(role, mode))) return makeMask(form);
  if (["left", "top", "right", "bottom"].every((name) => name in fields) && task.images?.image) return makeExtend(form);
  return "boxes" in fields ? makeBoxes(form) : null;
}
