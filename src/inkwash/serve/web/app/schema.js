// From a task's JSON schema to the fields of its form, so that a new task or option appears by itself.

const ACRONYMS = { cfg: "CFG", clip: "CLIP", ema: "EMA", lr: "learning rate", pag: "PAG", sag: "SAG", sdxl: "SDXL", vae: "VAE", perp: "Perp", neg: "Neg" };

/** The title of a field: cfg_scale is CFG scale. */
export function titleOf(name) {
  const words = name.split("_").map((word) => ACRONYMS[word] ?? word);
  return words[0].charAt(0).toUpperCase() + words.join(" ").slice(1);
}

/** A help text without the command line's options: --cfg-scale is named as its field is. */
function withoutFlags(text) {
  return text
    .replace(/; --no-[a-z-]+:/g, "; off:")
    .replace(/--([a-z][a-z-]*)/g, (_, flag) => titleOf(flag.replaceAll("-", "_")));
}

function resolve(schema, root) {
  return schema.$ref ? { ...root.$defs[schema.$ref.split("/").pop()], ...schema } : schema;
}

function kindOf(name, type) {
  if (type.enum) return "choice";
  if (type.type === "boolean") return "switch";
  if (type.type === "integer" || type.type === "number") return "number";
  if (type.type === "string") return /prompt$/.test(name) ? "prompt" : "text";
  if (type.type !== "array") return "json";
  if (type.prefixItems?.length === 2 && type.prefixItems.every((item) => item.type === "integer")) return "pair";
  return { string: "list", integer: "numbers", number: "numbers" }[type.items?.type] ?? "json";
}

/** What a schema leaves no choice of. */
export function constantsOf(schema) {
  const fixed = Object.entries(schema.properties ?? {}).filter(([, own]) => own.const !== undefined);
  return Object.fromEntries(fixed.map(([name, own]) => [name, own.const]));
}

/**
 * The fields of a schema, in its order: {name, title, help, group, kind, choices, min, max, whole, initial, ...}. Controls
 * are left out: they are units rather than fields, see controls.js.
 */
export function fieldsOf(schema) {
  const chosen = Object.entries(schema.properties ?? {}).filter(([name, own]) => name !== "controls" && own.const === undefined);
  return chosen.map(([name, own]) => {
    const variants = (own.anyOf ?? [own]).map((variant) => resolve(variant, schema));
    const type = { ...variants.find((variant) => variant.type !== "null"), ...own };
    const automatic = name.replaceAll("_", " ").toLowerCase() === own.title?.toLowerCase();
    return {
      name,
      title: own.title && !automatic ? own.title : titleOf(name),
      help: withoutFlags(own.description ?? ""),
      group: own.group ?? "Parameters",
      kind: ["boxes", "regions"].includes(name) ? name : kindOf(name, type),
      choices: type.enum ?? [],
      titles: type.titles ?? {},
      min: type.minimum ?? type.exclusiveMinimum ?? null,
      max: type.maximum ?? type.exclusiveMaximum ?? null,
      whole: type.type === "integer",
      nullable: variants.some((variant) => variant.type === "null"),
      unset: /default: /i.test(own.description ?? "") ? "auto" : "none", // how a nullable field is that has no value
      required: (schema.required ?? []).includes(name),
      initial: own.default ?? null,
      examples: own.examples ?? (own.example === undefined ? [] : [own.example]),
    };
  });
}

/** Whether a value says the same as another one. */
export const same = (a, b) => a === b || JSON.stringify(a, plain) === JSON.stringify(b, plain);
export const plain = (key, value) => (typeof value === "bigint" ? String(value) : value);

/** The names that every task has: what is in one task only is its own. */
export function common(tasks) {
  const [first, ...rest] = tasks.map((task) => Object.keys(task.schema.properties ?? {}));
  return new Set((first ?? []).filter((name) => rest.every((names) => names.includes(name))));
}
