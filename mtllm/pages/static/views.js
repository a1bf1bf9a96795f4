// The sections of the page: each takes figures of /stats or /usage and gives the elements that show them.

import { partsBar, range, spendChart } from "./charts.js";
import { facts, figure, h, placeholder, table } from "./dom.js";
import * as format from "./format.js";
import { stepsOf } from "./times.js";

const SCALE = { low: 0.1, high: 60_000 };
const TOP_CLIENTS = 8;
const BREAKER_STATES = {
  closed: ["ok", "Working"],
  open: ["bad", "Failing: not asked for now"],
  "half-open": ["warn", "Failing: a call tries"],
};

/** A figure of `group` by its name in it, shown by `show`. */
const of = (group, path) => (name, show) => figure(`${path}.${name}`, group[name], show(group[name]));

function tile(name, main, ...detail) {
  return h("div", { class: "tile" }, h("h2", {}, name), h("p", { class: "big" }, main), h("p", { class: "muted" }, ...detail));
}

const SUMMED = ["total_requests", "cached_requests", "input_tokens", "output_tokens", "total_cost", "cost_savings_from_cache"];

/** All groups of /usage together. */
export const sum = (groups) => Object.fromEntries(SUMMED.map((name) => [name, groups.reduce((all, group) => all + group[name], 0)]));

/** The big numbers of a period: all of them are sums over it. */
export function tiles(total, offline) {
  const used = of(total, "period");
  const wouldHaveCost = total.total_cost + total.cost_savings_from_cache;
  const paid = total.total_requests - total.cached_requests;
  const ratio = total.total_requests ? total.cached_requests / total.total_requests : 0;
  return [
    tile(offline ? "Would have cost" : "Spent", used("total_cost", format.usd), offline ? "at Gemini's prices; offline nothing is paid" : "paid to Gemini"),
    tile(
      "Saved by the cache",
      used("cost_savings_from_cache", format.usd),
      wouldHaveCost ? `${format.share(total.cost_savings_from_cache / wouldHaveCost)} of the full price` : "nothing asked twice yet",
    ),
    tile("Answers", used("total_requests", format.count), `${format.count(paid)} of them paid`),
    tile("Hit ratio", total.total_requests ? figure("period.hit_ratio", ratio, format.share(ratio)) : "–", used("cached_requests", format.count), " answers from the cache"),
    tile(
      "Tokens paid",
      format.count(total.input_tokens + total.output_tokens),
      used("input_tokens", format.count), " in, ", used("output_tokens", format.count), " out",
    ),
    tile("A paid answer", paid ? format.usd(total.total_cost / paid) : "–", "on average"),
  ];
}

/** The columns of the chart: one for every step of the period, also where nothing happened. */
export function columns(groups, period) {
  const byKey = new Map(groups.map((group) => [group.key, group]));
  return stepsOf(period).map(({ key, label, long }) => {
    const group = byKey.get(key);
    return { label, long, spent: group?.total_cost ?? 0, saved: group?.cost_savings_from_cache ?? 0, answers: group?.total_requests ?? 0 };
  });
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
    ["Task", "Paid", "Cached", "Shared", "Old", "Errors"],
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
  const kinds = [["hit", "Cached"], ["miss", "Gemini"], ["own", "Our part"]].filter(([kind]) => latencies[kind].samples);
  if (!kinds.length) return placeholder("empty", "No completion measured since the start.");
  const made = table(
    "Latency percentiles",
    ["", "p50", "p95", "p99", "max"],
    kinds.map(([kind, name]) => [name, ...["p50_ms", "p95_ms", "p99_ms", "max_ms"].map((key) => of(latencies[kind], `latency.${kind}`)(key, format.duration))]),
  );
  [...made.tBodies[0].rows].forEach((row, index) => {
    row.after(h("tr", { class: "under" }, h("td", { colspan: 5 }, range(latencies[kinds[index][0]], SCALE.low, SCALE.high))));
  });
  return [made, h("p", { class: "muted small" }, "p95: 95 of 100 took no longer. Lines run from p50 to p99, from 0.1 ms to 60 s, each step ten times the last. Our part: without Gemini and waiting for it.")];
}

function meter(name, parts, whole, ...words) {
  return h("div", { class: "meter" }, h("h3", {}, name), partsBar(parts, whole), h("p", {}, ...words));
}

/** Whether Gemini is asked, by how many at once, and how much one caller may ask. */
export function guards(stats) {
  const [breaker, admission, limiter] = [stats.breaker, stats.admission, stats.rate_limit_stats];
  const [kind, words] = BREAKER_STATES[breaker.state];
  const places = of(admission, "admission");
  const limits = of(limiter, "rate_limit_stats");
  return [
    meter(
      "Calls to Gemini at once",
      [{ class: admission.in_use === admission.places ? "failed" : "spent", value: admission.in_use, name: "in use" }],
      admission.places,
      places("in_use", format.count), " of ", places("places", format.count), " under way, ", places("queued", format.count), " waiting, ", places("shed", format.count), " turned away since start",
    ),
    facts([
      ["Gemini", h("span", { class: `pill ${kind}` }, figure("breaker.state", breaker.state, words)), breaker.state === "open" ? ` next try in ${Math.ceil(breaker.retry_in_seconds)} s` : null],
      ["Times given up since start", of(breaker, "breaker")("times_opened", format.count)],
      ["Failures in a row", of(breaker, "breaker")("consecutive_failures", format.count)],
      ["Limits per caller", limiter.limits.map((limit) => `${format.count(limit.requests)} per ${format.perUnit(limit.seconds)}`).join(", ") || "none"],
      ["Callers remembered", limits("cache_size", format.count), " of ", limits("max_size", format.count)],
      ["Callers at a limit", limits("protected", format.count)],
      ["Refused for it since start", limits("rejected", format.count)],
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
      ["Dropped for room, for age", kept("evictions", format.count), ", ", kept("expirations", format.count)],
      ["Our estimate of input tokens", drift("input_ratio")],
      ["Our estimate of output tokens", drift("output_ratio")],
      ["Compared with Gemini's count in", of(estimate, "token_estimate")("samples", format.count), " calls"],
    ]),
  ];
}

/** Who spent most; `groups` of /usage, null for a caller who may not know. */
export function clients(groups, adminKey) {
  if (!groups) {
    if (!adminKey) return placeholder("denied", "Figures by caller are the administrator's; no ADMIN_API_KEY is set.");
    return placeholder("denied", "Figures by caller need the admin key. ", h("a", { href: "/dashboard-sign-in" }, "Sign in with it"), ".");
  }
  const dearest = groups.toSorted((a, b) => b.total_cost - a.total_cost || b.total_requests - a.total_requests);
  if (!dearest.length) return placeholder("empty", "No caller in this period.");
  const shown = dearest.slice(0, TOP_CLIENTS).map((group) => {
    const money = of(group, `clients.${group.key}`);
    return [h("span", { class: "name" }, group.key), money("total_cost", format.usd), money("cost_savings_from_cache", format.usd), money("total_requests", format.count)];
  });
  const more = dearest.length - shown.length;
  return [table("Top callers by cost", ["Caller", "Paid", "Saved", "Answers"], shown), more > 0 ? h("p", { class: "muted small" }, `and ${format.count(more)} more`) : null];
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
