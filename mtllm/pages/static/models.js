// Which models were asked and which answered, what they cost, and how long the budgets last.

import { facts, figure, h, placeholder, table } from "./dom.js";
import { partsBar } from "./charts.js";
import * as format from "./format.js";

const rates = (prices) => (prices.input_price === null ? "unknown" : `${format.rate(prices.input_price)} / ${format.rate(prices.output_price)}`);

/** Every model of the chain, and every other that was asked or answered in the period. */
export function models(stats, answered, asked) {
  const counts = (groups) => new Map(groups.map((group) => [group.key, group.total_requests]));
  const [answers, questions] = [counts(answered), counts(asked)];
  const chain = new Map(stats.models.map((model) => [model.model, model]));
  const names = [...new Set([...chain.keys(), ...questions.keys(), ...answers.keys()])].filter(Boolean);
  const made = table(
    "Models",
    ["Model", "Asked", "Answered", "Price"],
    names.map((name) => [
      h("span", { class: "name" }, name),
      figure(`asked.${name}`, questions.get(name) ?? 0, format.count(questions.get(name) ?? 0)),
      figure(`answered.${name}`, answers.get(name) ?? 0, format.count(answers.get(name) ?? 0)),
      chain.has(name) ? rates(chain.get(name)) : "–",
    ]),
  );
  [...made.tBodies[0].rows].forEach((row, index) => {
    const told = chain.has(names[index]) ? standing(chain.get(names[index])) : "not in use now";
    row.after(h("tr", { class: "under" }, h("td", { colspan: 4, class: "muted small" }, told)));
  });
  const instead = stats.fallbacks.map((one) => `${one.model} answered ${format.count(one.answers)} times for ${one.requested_model} (${one.reason})`);
  return [
    made,
    h("p", { class: "muted small" }, "Price: dollars per million tokens in / out, today."),
    instead.length ? h("p", { class: "small" }, `Since start: ${instead.join("; ")}.`) : null,
  ];
}

function standing({ answers, refusal, next_price: next }) {
  const now = answers ? "answers now" : refusal ? `does not answer: ${refusal}` : "answers when those above cannot";
  return next ? `${now}; from ${next.since} on ${rates(next)}` : now;
}

/** The budgets of the service: of the day and of the month. */
export function budgets(stats, clocks) {
  const shown = [["budget", "Today"], ["monthly_budget", "This month"]].filter(([name]) => stats[name]);
  if (!shown.length) return placeholder("empty", "No budget is set: DAILY_BUDGET_USD and MONTHLY_BUDGET_USD limit what is spent.");
  return shown.map(([name, title]) => budget(name, title, stats[name], clocks));
}

function budget(name, title, state, clocks) {
  const money = (key) => figure(`${name}.${key}`, state[key], format.usd(state[key]));
  const short = state.spent + state.reserved > 0.9 * state.limit;
  const parts = [
    { class: short ? "failed" : "spent", value: state.spent, name: "spent" },
    { class: "reserved", value: state.reserved, name: "held back" },
  ];
  const pace = state.used_up_at
    ? `At the pace so far it is used up at ${clocks.dateAndTime(new Date(state.used_up_at))}.`
    : "At the pace so far it lasts.";
  return h(
    "div",
    { class: "meter" },
    h("h3", {}, title),
    partsBar(parts, state.limit),
    facts([
      ["Spent", money("spent"), " of ", money("limit")],
      ["Held back, not yet certain", money("reserved")],
      ["Begins anew", clocks.dateAndTime(new Date(state.ends_at))],
    ]),
    h("p", {}, pace),
  );
}
