// What went wrong, worst first, and the whole story of one request.

import { figure, h, placeholder, table } from "./dom.js";
import * as format from "./format.js";

const KINDS = [
  { name: "The service or Gemini failed", holds: (status) => status >= 500, open: true },
  { name: "A limit or budget was reached", holds: (status) => status === 402 || status === 429, open: false },
  { name: "The request was not accepted", holds: (status) => status < 500 && status !== 402 && status !== 429, open: false },
];

/** The last errors by severity and code; `tell` is called with what a person asks about, null where none may be asked. */
export function errors(list, clocks, tell) {
  if (!list.length) return placeholder("empty", "No errors since the start.");
  return KINDS.map(({ name, holds, open }) => {
    const mine = list.filter((error) => error.latest.length && holds(error.latest[0].status));
    if (!mine.length) return null;
    const all = mine.reduce((sum, error) => sum + error.count, 0);
    return h(
      "details",
      { class: "errors", open: open ? "" : null },
      h("summary", {}, `${name}: ${format.count(all)}`),
      mine.toSorted((a, b) => b.count - a.count).map((error) => errorsOfCode(error, clocks, tell)),
    );
  });
}

function errorsOfCode({ code, count, latest }, clocks, tell) {
  const cases = latest.map((seen) => {
    const when = new Date(seen.timestamp);
    const id = h(tell ? "button" : "code", tell ? { type: "button", class: "id", "aria-label": `Show request ${seen.request_id}` } : { title: "Request id" }, seen.request_id);
    if (tell) id.addEventListener("click", () => tell(seen));
    return h("li", {}, h("time", { datetime: seen.timestamp }, clocks.dateAndTime(when)), id, h("span", { class: "what" }, `${seen.status} ${seen.method} ${seen.path}`));
  });
  return h("article", {}, h("h3", {}, h("code", {}, code), h("span", { class: "muted" }, ` ${format.count(count)} ${count === 1 ? "time" : "times"}`)), h("ol", {}, cases));
}

/** Every call to Gemini (and cached answer) of one request. */
export function attempts(list, clocks) {
  if (!list.length) return placeholder("empty", "Gemini was not asked for it, so it cost nothing.");
  const rows = list.map((attempt) => [
    clocks.timeWithSeconds(new Date(attempt.timestamp)),
    attempt.status,
    h("span", { class: "name" }, attempt.model),
    figure("attempt.total_cost", attempt.total_cost, format.usd(attempt.total_cost)),
    format.usd(attempt.reserved),
  ]);
  return table("Calls of this request", ["Time", "Outcome", "Model", "Paid", "Not yet certain"], rows);
}
