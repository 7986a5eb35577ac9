// Controls: networks that steer the drawing, each with the picture that it sees and how strongly it acts.

import { button, h } from "./dom.js";
import { makeField } from "./fields.js";
import { makeSlot } from "./images.js";
import { fieldsOf } from "./schema.js";

const OF_FILES = ["model", "image", "mask", "annotator"]; // beside the options that become fields

/** The controls of a form. schema: of one control; extras: what the server has; source: the picture that the task changes. */
export function makeControls(schema, { controlnets, annotators }, source, changed) {
  const names = controlnets.map(({ name }) => name);
  const units = [];
  let fitting = { model: "", misfits: {} };
  let opened = 0;
  const list = h("div", { class: "units" });
  const add = button("Add a control", () => open({}), { name: "add", kind: "small", text: true });
  const element = h("div", { class: "controls" }, list, add);

  function open(given) {
    const unit = makeUnit(schema, names, annotators ?? [], source, changed, `control-${++opened}-`, () => {
      units.splice(units.indexOf(unit), 1);
      show();
      add.focus();
    });
    units.push(unit);
    unit.fit(fitting);
    unit.write(given);
    show();
  }

  function show() {
    units.forEach((unit, i) => unit.element.setAttribute("aria-label", `Control ${i + 1}`));
    list.replaceChildren(...units.map((unit) => unit.element));
    changed();
  }

  return {
    element,
    /** Group the networks by whether they fit a model. misfits: name -> why it does not, or null. */
    fit(model, misfits) {
      fitting = { model, misfits };
      for (const unit of units) unit.fit(fitting);
    },
    /** What a request holds of them. */
    read: () => units.map((unit) => unit.read()),
    clear() {
      units.splice(0);
      show();
    },
  };
}

function makeUnit(schema, names, annotators, source, changed, scope, remove) {
  const fields = fieldsOf(schema).filter((field) => !OF_FILES.includes(field.name)).map((field) => makeField(field, changed, scope));
  const problem = h("p", { class: "note", role: "status", hidden: true });
  const model = h("select", { "aria-label": "Model of the control", onchange: choose });
  let misfits = {};
  let chosen = false; // by the user or a recipe, and so it stays

  function choose() {
    chosen = true;
    showProblem();
    changed();
  }

  function showProblem() {
    problem.textContent = misfits[model.value] ?? "";
    problem.hidden = !problem.textContent;
  }

  const options = (some) => some.map((name) => h("option", { value: name }, name));
  const slots = {
    image: makeSlot("hint", { required: false }, changed, { annotators, source, scope }),
    mask: makeSlot("region", { required: false }, changed, { scope }),
  };
  const more = fields.filter((field) => field.name !== "weight");
  const element = h(
    "fieldset",
    { class: "unit" },
    h("div", { class: "joined" }, model, button("Remove this control", remove, { name: "close" })),
    problem,
    h("div", { class: "slots" }, slots.image.element, slots.mask.element),
    fields.find((field) => field.name === "weight")?.element,
    h("details", {}, h("summary", {}, "When and how it acts"), h("div", { class: "fields" }, more.map((field) => field.element))),
  );
  return {
    element,
    fit(fitting) {
      const before = model.value;
      misfits = fitting.misfits;
      const groups = Object.groupBy(names, (name) => (misfits[name] ? "others" : "fitting"));
      model.replaceChildren(
        ...(groups.others
          ? [h("optgroup", { label: `For ${fitting.model}` }, options(groups.fitting ?? [])), h("optgroup", { label: "For other models" }, options(groups.others))]
          : options(names)),
      );
      model.value = chosen ? before : (groups.fitting ?? names)[0];
      showProblem();
    },
    read() {
      const values = fields.map((field) => [field.name, field.read(), field.initial]);
      const set = values.filter(([, value, initial]) => value !== null && value !== initial && String(value) !== String(initial));
      const pictures = Object.entries(slots).filter(([, slot]) => slot.url()).map(([name, slot]) => [name, slot.url()]);
      return { model: model.value, ...Object.fromEntries([...set.map(([name, value]) => [name, value]), ...pictures]) };
    },
    write(given) {
      if (names.includes(given.model)) {
        model.value = given.model;
        chosen = true;
        showProblem();
      }
      for (const field of fields) if (field.name in given) field.write(given[field.name]);
    },
  };
}
