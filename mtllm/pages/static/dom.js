// Elements from data. Text only ever becomes text, so nothing a caller sent can become markup.

const SVG = "http://www.w3.org/2000/svg";

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return element;
}

/** An HTML element. */
export const h = (tag, attributes = {}, ...children) => filled(document.createElement(tag), attributes, children);

/** An SVG element. */
export const s = (tag, attributes = {}, ...children) => filled(document.createElementNS(SVG, tag), attributes, children);

/** A number as shown, with the exact one for machines and as a tooltip. `name` is its place in /stats or /usage. */
export const figure = (name, value, text) => h("data", { value: String(value), "data-figure": name, title: String(value) }, text);

/** Rows of cells under column heads; the first cell of a row is its head. */
export function table(caption, heads, rows) {
  const head = (text, index) => h("th", { scope: "col", class: index ? "number" : null }, text);
  const cell = (content, index) => (index ? h("td", { class: "number" }, content) : h("th", { scope: "row" }, content));
  return h(
    "table",
    {},
    h("caption", { class: "unseen" }, caption),
    h("thead", {}, h("tr", {}, heads.map(head))),
    h("tbody", {}, rows.map((row) => h("tr", {}, row.map(cell)))),
  );
}

/** Names and their values. */
export const facts = (pairs) =>
  h("dl", { class: "facts" }, pairs.map(([name, ...value]) => h("div", {}, h("dt", {}, name), h("dd", {}, ...value))));

/** What stands in the place of figures that are not there. */
export const placeholder = (kind, ...text) => h("p", { class: `placeholder ${kind}` }, ...text);
