// A grid: the same picture along one or two of its settings.

import { h, pictureUrl } from "./dom.js";

/** The values of a text such as 10, 20, "a, b"; commas within double quotes separate nothing. */
export function split(text) {
  return [...text.matchAll(/"((?:[^"]|"")*)"|[^,]+/g)]
    .map(([whole, quoted]) => (quoted === undefined ? whole.trim() : quoted.replaceAll('""', '"')))
    .filter(Boolean);
}

function typed(field, text) {
  if (field.kind === "number") return Number.isFinite(Number(text)) ? Number(text) : text;
  if (field.kind === "switch") return /^(true|on|yes|1)$/i.test(text);
  return text;
}

/** The part of the form that asks for axes; read() gives {grid} or nothing. */
export function makeGrid(fields) {
  const usable = fields.filter((field) => ["number", "choice", "switch", "prompt", "text"].includes(field.kind) && field.name !== "batch_size");
  const axes = ["X, columns", "Y, rows"].map((label) => {
    const name = h("select", { "aria-label": `${label}: setting`, onchange: suggest },
      h("option", { value: "" }, "none"), usable.map((field) => h("option", { value: field.name }, field.title)));
    const values = h("input", { type: "text", "aria-label": `${label}: values`, placeholder: "values, with commas", autocomplete: "off" });
    function suggest() {
      const field = usable.find((other) => other.name === name.value);
      if (field?.kind === "choice" && !values.value) values.value = field.choices.slice(0, 4).join(", ");
      values.disabled = !field;
    }
    suggest();
    return { name, values, element: h("div", { class: "axis" }, h("span", { class: "label" }, label), name, values) };
  });
  return {
    element: h("div", { class: "axes" }, axes.map((axis) => axis.element)),
    read() {
      const used = axes.filter((axis) => axis.name.value && axis.values.value.trim());
      const grid = used.map(({ name, values }) => {
        const field = usable.find((other) => other.name === name.value);
        return [field.name, split(values.value).map((text) => typed(field, text))];
      });
      return grid.length ? { grid: Object.fromEntries(grid) } : {};
    },
  };
}

/** The pictures of a grid as a table: columns along the first axis, rows along the second. choose: is given a picture's number. */
export function gridTable(job, choose) {
  const [[xName, xs], [yName, ys] = [null, [null]]] = Object.entries(job.grid);
  const cell = (x, y) => {
    const k = y * xs.length + x;
    const picture = job.pictures[k];
    if (!picture) return h("td", {});
    const label = [`${xName} ${xs[x]}`, yName && `${yName} ${ys[y]}`].filter(Boolean).join(", ");
    return h("td", {}, h("button", { type: "button", class: "cell", onclick: () => choose(k) }, h("img", { src: pictureUrl(picture.url), alt: label })));
  };
  return h(
    "div",
    { class: "scroll", tabindex: "0", role: "group", "aria-label": "Grid of settings" },
    h("table", { class: "grid" },
      h("thead", {}, h("tr", {}, yName && h("td", {}), xs.map((value) => h("th", { scope: "col" }, `${xName} ${value}`)))),
      h("tbody", {}, ys.map((value, y) => h("tr", {}, yName && h("th", { scope: "row" }, `${yName} ${value}`), xs.map((_, x) => cell(x, y)))))),
  );
}
