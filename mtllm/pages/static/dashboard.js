// Asks this server for its figures every few seconds while somebody looks, and shows them.

import * as format from "./format.js";
import * as views from "./views.js";

const EVERY_MS = 5000;
const SLOWEST_MS = 30_000;
const GIVE_UP_MS = 10_000;

const PERIODS = {
  hour: { name: "last hour", window: "last_hour", seconds: 3600, groupBy: "minute", stepSeconds: 60, label: format.time, long: format.time },
  day: { name: "last 24 hours", window: "last_24_hours", seconds: 86_400, groupBy: "hour", stepSeconds: 3600, label: format.time, long: format.dateAndTime },
  month: { name: "last 30 days", window: "last_30_days", seconds: 30 * 86_400, groupBy: "day", stepSeconds: 86_400, label: format.day, long: (date) => `${format.day(date)} (UTC)` },
};

const byId = (id) => document.getElementById(id);

let figures = null; // what the last complete answer said
let failures = 0;
let timer = null;
let asking = null;

class Refused extends Error {
  constructor(status, sentence) {
    super(sentence);
    this.status = status;
  }
}

async function ask(path, signal) {
  const response = await fetch(new URL(path, location.origin), { signal: AbortSignal.any([signal, AbortSignal.timeout(GIVE_UP_MS)]), headers: { Accept: "application/json" } });
  const body = await response.json().catch(() => null);
  if (!response.ok) throw new Refused(response.status, body?.error ?? `The service answered ${response.status}.`);
  return { body, at: Date.parse(response.headers.get("Date")) || Date.now() };
}

/** Everything the page shows, of one moment of the server's clock. */
async function askAll(period, signal) {
  const { body: stats, at } = await ask("/api/v1/stats", signal);
  const from = Math.floor((at / 1000 - period.seconds) / 60) * 60;
  const usage = (groupBy) => ask(`/api/v1/usage?group_by=${groupBy}&from=${from}`, signal).then((reply) => reply.body);
  const [overTime, clients] = await Promise.all([usage(period.groupBy), stats.caller.admin ? usage("client") : null]);
  return { period, stats, at, columns: views.columns(overTime.groups, period, from * 1000, at), clients: clients?.groups ?? null };
}

async function refresh() {
  asking?.abort();
  clearTimeout(timer);
  const mine = (asking = new AbortController());
  try {
    figures = await askAll(PERIODS[new FormData(document.forms[0]).get("period")], mine.signal);
    failures = 0;
    render();
  } catch (problem) {
    if (mine.signal.aborted) return;
    failures += 1;
    explain(problem);
  }
  if (!document.hidden) timer = setTimeout(refresh, Math.min(SLOWEST_MS, EVERY_MS * 2 ** Math.max(0, failures - 1)));
}

const shown = new Map();

/** Put what `make` makes of `data` into the element `id`, unless it shows that already: selections and focus stay. */
function put(id, data, make) {
  const text = JSON.stringify(data);
  if (shown.get(id) === text) return;
  shown.set(id, text);
  byId(id).replaceChildren(...[make()].flat(2).filter(Boolean));
}

function render() {
  const { stats, period, columns, clients } = figures;
  state("ready", "Live");
  document.querySelectorAll("[data-period]").forEach((element) => (element.textContent = period.name));
  put("service", [stats.service, stats.caller], () => `${stats.service.model}${stats.service.offline ? ", offline" : ""}${stats.service.draining ? ", shutting down" : ""}${stats.caller.key ? `, seen as ${stats.caller.key}` : ""}`);
  put("tiles", [period.window, stats], () => views.tiles(stats, period.window));
  renderChart();
  put("spend-table", columns, () => views.spendTable(columns));
  put("tasks", stats.requests_by_task, () => views.tasks(stats.requests_by_task));
  put("latency", stats.latency, () => views.latency(stats.latency));
  put("guards", [stats.budget, stats.breaker, stats.admission, stats.rate_limit_stats], () => views.guards(stats));
  put("tokens", [stats.token_estimate, stats.cache_stats], () => views.tokens(stats));
  put("clients", clients, () => views.clients(clients));
  put("totals", stats.overall_stats, () => views.totals(stats.overall_stats));
  put("errors", stats.last_errors, () => views.errors(stats.last_errors));
}

function renderChart() {
  const width = byId("spend").clientWidth;
  put("spend", [width, figures.columns], () => views.spend(figures.columns, width));
}

function explain(problem) {
  const known = problem instanceof Refused;
  if (known && (problem.status === 401 || problem.status === 403)) {
    state("denied", "No access", `${problem.message} Reload the page to enter another one.`);
  } else {
    state("error", "Not live", `${known ? problem.message : "The service cannot be reached."} ${figures ? "The figures are the last ones known; trying again." : "Trying again."}`);
  }
}

function state(name, live, notice = "") {
  document.body.dataset.state = name;
  byId("figures").setAttribute("aria-busy", "false");
  const seen = figures ? `, ${name === "ready" ? "" : "last "}${format.timeWithSeconds(new Date(figures.at))}` : "";
  byId("live-text").textContent = live + seen;
  const element = byId("notice");
  element.hidden = !notice;
  if (element.textContent !== notice) element.textContent = notice;
}

document.forms[0].addEventListener("change", refresh);
document.forms[0].addEventListener("submit", (event) => event.preventDefault());
document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(timer) : refresh()));
new ResizeObserver(() => figures && requestAnimationFrame(renderChart)).observe(byId("spend"));
refresh();
