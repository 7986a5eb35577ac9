// What can be added to a prompt: LoRAs, embeddings, hypernetworks, styles and wildcards, by name.

import { button, dialog, h } from "./dom.js";

const KINDS = [
  ["loras", "LoRAs", ({ name, triggers = [] }) => [`<lora:${name}:1>`, ...(triggers ?? [])].join(" ")],
  ["embeddings", "Embeddings", ({ name }) => name],
  ["hypernetworks", "Hypernetworks", ({ name }) => `<hypernet:${name}:1>`],
  ["wildcards", "Wildcards", ({ name }) => `__${name}__`],
];

const named = (item) => (typeof item === "string" ? { name: item } : item);

function section(title, items) {
  return items.length > 0 && h("section", {}, h("h3", {}, title), h("ul", { class: "picks" }, items.map((item) => h("li", {}, item))));
}

/** Open the list. insert: is given the text to add at the cursor. */
export function openPicker(context, insert) {
  const extras = context.extras();
  const search = h("input", { type: "search", placeholder: "Search", "aria-label": "Search", oninput: fill });
  const list = h("div", { class: "scroll" });

  function fill() {
    const wanted = search.value.toLowerCase();
    const fits = (item) => named(item).name.toLowerCase().includes(wanted);
    const chosen = new Set(context.styles());
    const sections = KINDS.map(([key, title, write]) =>
      section(title, (extras[key] ?? []).filter(fits).map((item) => button(named(item).name, () => {
        opened.close();
        insert(write(named(item)));
      }))));
    const styles = (extras.styles ?? []).filter(fits).map((style) => {
      const toggle = button(style.name, () => {
        context.toggleStyle(style.name);
        toggle.setAttribute("aria-pressed", String(context.styles().includes(style.name)));
      }, { "aria-pressed": String(chosen.has(style.name)), title: style.prompt });
      return toggle;
    });
    sections.unshift(section("Styles", styles));
    const shown = sections.filter(Boolean);
    const none = wanted ? "Nothing has such a name." : "There is nothing yet. Put LoRAs, embeddings or wildcards in the server's folders.";
    list.replaceChildren(...(shown.length ? shown : [h("p", { class: "note" }, none)]));
  }

  const opened = dialog("Add to the prompt", [search, list], { kind: "narrow" });
  fill();
  search.focus();
}
