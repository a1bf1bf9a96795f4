// Charts as plain SVG. Colours and fonts come from the style sheet; each chart says in words what it shows.

import { s } from "./dom.js";

const HEIGHT = 220;
const LEFT = 78;
const RIGHT = 8;
const TOP = 10;
const BOTTOM = 26;

/** The smallest of some round numbers times a power of ten that is not below `value`. */
function roundedUp(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 1.5, 2, 3, 4, 5, 6, 8, 10].map((step) => step * power).find((step) => step >= value * 0.999999);
}

/**
 * Bars of what was paid, with what was saved on top.
 * `columns`: [{label, long, spent, saved}] in order of time; `width` in pixels; `money` formats dollars.
 */
export function spendChart(columns, width, money) {
  const top = roundedUp(Math.max(...columns.map((column) => column.spent + column.saved)) || 1e-6);
  const plot = { width: width - LEFT - RIGHT, height: HEIGHT - TOP - BOTTOM };
  const y = (value) => TOP + plot.height * (1 - value / top);
  const step = plot.width / columns.length;
  const bar = Math.max(1, Math.min(28, step - Math.max(1, step * 0.25)));
  const summary = `From ${columns[0].long} to ${columns.at(-1).long}. Highest column: ${money(Math.max(...columns.map((c) => c.spent + c.saved)))}.`;
  const every = Math.ceil(columns.length / Math.max(2, Math.floor(plot.width / 72)));
  return s(
    "svg",
    { class: "chart", viewBox: `0 0 ${width} ${HEIGHT}`, width, height: HEIGHT, role: "img", "aria-label": `Spend and savings over time. ${summary}` },
    [0, 0.25, 0.5, 0.75, 1].map((part) => [
      s("line", { class: part ? "grid" : "axis", x1: LEFT, x2: width - RIGHT, y1: y(part * top), y2: y(part * top) }),
      part % 0.5 === 0 ? s("text", { class: "tick", x: LEFT - 8, y: y(part * top) + 4, "text-anchor": "end" }, money(part * top)) : null,
    ]),
    columns.map((column, index) => {
      const x = LEFT + index * step + (step - bar) / 2;
      const paidTop = y(column.spent);
      return s(
        "g",
        { class: "column" },
        s("title", {}, `${column.long}: ${money(column.spent)} paid, ${money(column.saved)} saved`),
        s("rect", { class: "hover", x: LEFT + index * step, y: TOP, width: step, height: plot.height }),
        column.spent ? s("rect", { class: "spent", x, y: paidTop, width: bar, height: Math.max(1, y(0) - paidTop) }) : null,
        column.saved ? s("rect", { class: "saved", x, y: y(column.spent + column.saved), width: bar, height: Math.max(1, paidTop - y(column.spent + column.saved)) }) : null,
      );
    }),
    columns.map((column, index) =>
      (columns.length - 1 - index) % every ? null : s("text", { class: "tick", x: labelX(LEFT + (index + 0.5) * step, width), y: HEIGHT - 6, "text-anchor": "middle" }, column.label),
    ),
  );
}

/** Labels of the outermost columns stay inside the picture. */
const labelX = (x, width) => Math.max(LEFT - 10, Math.min(width - 22, x));

/** Parts of a whole as one bar; figures in words stand beside it. `parts`: [{class, value, name}]. */
export function partsBar(parts, whole) {
  let x = 0;
  const rects = parts.map((part) => {
    const width = whole ? Math.min(100 - x, (100 * part.value) / whole) : 0;
    const rect = width > 0 ? s("rect", { class: part.class, x, y: 0, width, height: 8 }, s("title", {}, part.name)) : null;
    x += width;
    return rect;
  });
  return s("svg", { class: "bar", viewBox: "0 0 100 8", preserveAspectRatio: "none", "aria-hidden": "true" }, s("rect", { class: "track", width: 100, height: 8 }), rects);
}

/** Where percentiles lie on a logarithmic scale from `low` to `high`: a line from p50 to p99, marks at p50 and p95. */
export function range(percentiles, low, high) {
  const x = (value) => 4 + (192 * Math.log(Math.max(low, Math.min(high, value)) / low)) / Math.log(high / low);
  const { p50_ms, p95_ms, p99_ms } = percentiles;
  return s(
    "svg",
    { class: "range", viewBox: "0 0 200 14", preserveAspectRatio: "none", "aria-hidden": "true" },
    s("line", { class: "rail", x1: 4, x2: 196, y1: 7, y2: 7 }),
    s("line", { class: "span", x1: x(p50_ms), x2: x(p99_ms), y1: 7, y2: 7 }),
    s("line", { class: "mark", x1: x(p50_ms), x2: x(p50_ms), y1: 2, y2: 12 }),
    s("line", { class: "mark", x1: x(p95_ms), x2: x(p95_ms), y1: 4, y2: 10 }),
  );
}
