// The sections of the page: each takes figures of /stats or /usage and gives the elements that show them.

import { partsBar, range, spendChart } from "./charts.js";
import { facts, figure, h, placeholder, table } from "./dom.js";
import * as format from "./format.js";

const SCALE = { low: 0.1, high: 60_000 };
const TOP_CLIENTS = 8;
const BREAKER_STATES = {
  closed: ["ok", "Closed: calls pass"],
  open: ["bad", "Open: calls are refused"],
  "half-open": ["warn", "Half-open: one call tries"],
};

/** A figure of `group` by its name in it, shown by `show`. */
const of = (group, path) => (name, show) => figure(`${path}.${name}`, group[name], show(group[name]));

function tile(name, main, ...detail) {
  return h("div", { class: "tile" }, h("h2", {}, name), h("p", { class: "big" }, main), h("p", { class: "muted" }, ...detail));
}

/** The big numbers of one window. */
export function tiles(stats, window) {
  const usage = stats.usage_stats[window];
  const path = `usage_stats.${window}`;
  const [used, tokens] = [of(usage, path), of(usage.total_tokens, `${path}.total_tokens`)];
  const [cache, miss] = [of(stats.cache_stats, "cache_stats"), of(stats.latency.miss, "latency.miss")];
  const hit = of(stats.latency.hit, "latency.hit");
  const own = of(stats.latency.own, "latency.own");
  const wouldHaveCost = usage.total_cost + usage.cost_savings_from_cache;
  const { samples } = stats.latency.miss;
  return [
    tile("Spent", used("total_cost", format.usd), stats.service.offline ? "what Gemini would have cost" : "paid to Gemini"),
    tile(
      "Saved by the cache",
      used("cost_savings_from_cache", format.usd),
      wouldHaveCost ? `${format.share(usage.cost_savings_from_cache / wouldHaveCost)} of the full price` : "nothing asked twice yet",
    ),
    tile("Answers", used("total_requests", format.count), used("cached_requests", format.count), " of them cached"),
    tile("Cache hit ratio", cache("hit_ratio", format.share), cache("hits", format.count), ` of ${format.count(stats.cache_stats.hits + stats.cache_stats.misses)} look-ups since start`),
    tile(
      "Tokens paid",
      format.count(usage.total_tokens.input + usage.total_tokens.output),
      tokens("input", format.count), " in, ", tokens("output", format.count), " out",
    ),
    tile(
      "Miss latency, p95",
      samples ? miss("p95_ms", format.duration) : "–",
      stats.latency.hit.samples ? ["hit ", hit("p95_ms", format.duration), ", own ", own("p95_ms", format.duration)] : "no hit yet to compare",
    ),
  ];
}

/** The columns of the chart: one for every step of the period, also where nothing happened. */
export function columns(groups, period, from, now) {
  const byStart = new Map(groups.map((group) => [Date.parse(group.key), group]));
  const step = period.stepSeconds * 1000;
  const list = [];
  for (let start = Math.floor(from / step) * step; start <= now; start += step) {
    const group = byStart.get(start);
    const date = new Date(start);
    list.push({
      label: period.label(date),
      long: period.long(date),
      spent: group?.total_cost ?? 0,
      saved: group?.cost_savings_from_cache ?? 0,
      answers: group?.total_requests ?? 0,
    });
  }
  return list;
}

/** Spend and savings as bars. */
export function spend(list, width) {
  if (list.every((column) => column.answers === 0)) {
    return placeholder("empty", "No answers in this period. The first one will show up here by itself.");
  }
  return spendChart(list, width, format.usd);
}

/** The same as rows, without those in which nothing happened. */
export function spendTable(list) {
  const rows = list
    .filter((column) => column.answers)
    .map((column) => [column.long, format.usd(column.spent), format.usd(column.saved), format.count(column.answers)]);
  return rows.length ? table("Spend and savings over time", ["Time", "Paid", "Saved", "Answers"], rows.reverse()) : placeholder("empty", "No rows.");
}

/** Finished requests of each task: where answers came from, and errors. */
export function tasks(requests) {
  const rows = Object.entries(requests).map(([task, outcome]) => {
    const errors = Object.values(outcome.errors).reduce((sum, count) => sum + count, 0);
    return { task, outcome, errors, all: outcome.paid + outcome.hit + outcome.shared + outcome.stale + errors };
  });
  if (rows.every((row) => row.all === 0)) return placeholder("empty", "No task requests since the start.");
  const most = Math.max(...rows.map((row) => row.all));
  const made = table(
    "Requests by task and outcome",
    ["Task", "Paid", "Hit", "Shared", "Stale", "Errors"],
    rows.map(({ task, outcome, errors }) => {
      const counted = of(outcome, `requests_by_task.${task}`);
      return [task, ...["paid", "hit", "shared", "stale"].map((name) => counted(name, format.count)), format.count(errors)];
    }),
  );
  [...made.tBodies[0].rows].forEach((row, index) => {
    const { outcome, errors } = rows[index];
    const bar = partsBar(
      [
        { class: "spent", value: outcome.paid, name: `${outcome.paid} paid` },
        { class: "saved", value: outcome.hit + outcome.shared + outcome.stale, name: "from the cache or shared" },
        { class: "failed", value: errors, name: `${errors} errors` },
      ],
      most,
    );
    const codes = Object.entries(outcome.errors).sort((a, b) => b[1] - a[1]);
    row.after(h("tr", { class: "under" }, h("td", { colspan: 6 }, bar, codes.length ? h("p", { class: "muted small" }, codes.map(([code, count]) => `${code} ${format.count(count)}`).join(", ")) : null)));
  });
  return made;
}

/** Percentiles of hits, of misses, and of this service's own share. */
export function latency(latencies) {
  const kinds = [["hit", "Hit"], ["miss", "Miss"], ["own", "Own"]].filter(([kind]) => latencies[kind].samples);
  if (!kinds.length) return placeholder("empty", "No completion measured since the start.");
  const made = table(
    "Latency percentiles",
    ["", "p50", "p95", "p99", "max"],
    kinds.map(([kind, name]) => [name, ...["p50_ms", "p95_ms", "p99_ms", "max_ms"].map((key) => of(latencies[kind], `latency.${kind}`)(key, format.duration))]),
  );
  [...made.tBodies[0].rows].forEach((row, index) => {
    row.after(h("tr", { class: "under" }, h("td", { colspan: 5 }, range(latencies[kinds[index][0]], SCALE.low, SCALE.high))));
  });
  return [made, h("p", { class: "muted small" }, "Lines run from p50 to p99 on a logarithmic scale from 0.1 ms to 60 s. Own: the share without Gemini and waiting for it.")];
}

function meter(name, parts, whole, ...words) {
  return h("div", { class: "meter" }, h("h3", {}, name), partsBar(parts, whole), h("p", {}, ...words));
}

function budget(state) {
  if (!state) return h("div", { class: "meter" }, h("h3", {}, "Budget today (UTC)"), h("p", { class: "muted" }, "None set (DAILY_BUDGET_USD)."));
  const money = of(state, "budget");
  const parts = [{ class: state.spent + state.reserved > 0.9 * state.limit ? "failed" : "spent", value: state.spent, name: "spent" }, { class: "reserved", value: state.reserved, name: "reserved" }];
  return meter("Budget today (UTC)", parts, state.limit, money("spent", format.usd), " spent, ", money("reserved", format.usd), " reserved of ", money("limit", format.usd));
}

/** Breaker, admission, budget and rate limits. */
export function guards(stats) {
  const [breaker, admission, limiter] = [stats.breaker, stats.admission, stats.rate_limit_stats];
  const [kind, words] = BREAKER_STATES[breaker.state];
  const places = of(admission, "admission");
  const limits = of(limiter, "rate_limit_stats");
  return [
    budget(stats.budget),
    meter(
      "Places for calls to Gemini",
      [{ class: admission.in_use === admission.places ? "failed" : "spent", value: admission.in_use, name: "in use" }],
      admission.places,
      places("in_use", format.count), " of ", places("places", format.count), " in use, ", places("shed", format.count), " refused since start, ", places("queued", format.count), " waiting",
    ),
    facts([
      ["Circuit breaker", h("span", { class: `pill ${kind}` }, figure("breaker.state", breaker.state, words)), breaker.state === "open" ? ` next try in ${Math.ceil(breaker.retry_in_seconds)} s` : null],
      ["Opened since start", of(breaker, "breaker")("times_opened", format.count)],
      ["Failures in a row", of(breaker, "breaker")("consecutive_failures", format.count)],
      ["Rate limits per client", limiter.limits.map((limit) => `${format.count(limit.requests)} per ${format.perUnit(limit.seconds)}`).join(", ") || "none"],
      ["Clients in the table", limits("cache_size", format.count), " of ", limits("max_size", format.count)],
      ["Clients at a limit", limits("protected", format.count)],
      ["Rejected since start", limits("rejected", format.count)],
    ]),
  ];
}

/** tiktoken's estimate beside Gemini's counts, and what the cache holds. */
export function tokens(stats) {
  const [estimate, cache] = [stats.token_estimate, stats.cache_stats];
  const drift = (name) => (estimate[name] === null ? "–" : of(estimate, "token_estimate")(name, format.deviation));
  const kept = of(cache, "cache_stats");
  return [
    meter("Answers kept", [{ class: "saved", value: cache.size, name: "kept" }], cache.max_size, kept("size", format.count), " of ", kept("max_size", format.count)),
    meter("Memory of the cache", [{ class: "saved", value: cache.bytes, name: "used" }], cache.max_bytes, kept("bytes", format.bytes), cache.max_bytes ? [" of ", kept("max_bytes", format.bytes)] : " used"),
    facts([
      ["Evicted, expired", kept("evictions", format.count), ", ", kept("expirations", format.count)],
      ["Estimate of input against Gemini", drift("input_ratio")],
      ["Estimate of output against Gemini", drift("output_ratio")],
      ["Calls compared", of(estimate, "token_estimate")("samples", format.count)],
    ]),
  ];
}

/** Who spent most; `groups` of /usage, null for a caller who may not know. */
export function clients(groups) {
  if (!groups) {
    return placeholder("denied", "Figures by client need the admin key. ", h("a", { href: "/dashboard-sign-in" }, "Sign in with it"), ".");
  }
  const dearest = groups.toSorted((a, b) => b.total_cost - a.total_cost || b.total_requests - a.total_requests);
  if (!dearest.length) return placeholder("empty", "No client in this period.");
  const shown = dearest.slice(0, TOP_CLIENTS).map((group) => {
    const money = of(group, `clients.${group.key}`);
    return [h("span", { class: "name" }, group.key), money("total_cost", format.usd), money("cost_savings_from_cache", format.usd), money("total_requests", format.count)];
  });
  const more = dearest.length - shown.length;
  return [table("Top clients by cost", ["Client", "Paid", "Saved", "Answers"], shown), more > 0 ? h("p", { class: "muted small" }, `and ${format.count(more)} more`) : null];
}

/** Sums that survive restarts. */
export function totals(overall) {
  const total = of(overall, "overall_stats");
  const paid = of(overall.total_tokens_all_time, "overall_stats.total_tokens_all_time");
  return facts([
    ["Paid", total("total_cost_all_time", format.usd)],
    ["Saved by the cache", total("cache_savings_all_time", format.usd)],
    ["Answers", total("total_requests_all_time", format.count)],
    ["Cached answers", total("cached_requests_all_time", format.count)],
    ["Tokens in, out", paid("input", format.count), ", ", paid("output", format.count)],
    ["Answers without a known price", total("unpriced_requests_all_time", format.count)],
    ["Paid since start", total("total_cost_since_start", format.usd)],
  ]);
}

/** The last errors, by code. */
export function errors(list) {
  if (!list.length) return placeholder("empty", "No errors since the start.");
  return h("div", { class: "errors" }, list.map(errorsOfCode));
}

function errorsOfCode({ code, count, latest }) {
  const cases = latest.map((seen) => {
    const when = new Date(seen.timestamp);
    return h(
      "li",
      {},
      h("time", { datetime: seen.timestamp, title: when.toString() }, format.dateAndTime(when)),
      h("span", { class: "what" }, `${seen.status} ${seen.method} ${seen.path}`),
      h("code", { title: "Request id" }, seen.request_id),
    );
  });
  return h("article", {}, h("h3", {}, h("code", {}, code), h("span", { class: "muted" }, ` ${format.count(count)} ${count === 1 ? "time" : "times"}`)), h("ol", {}, cases));
}
