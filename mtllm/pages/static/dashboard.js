// Asks this server for its figures every few seconds while somebody looks, and shows them.

import { h, placeholder } from "./dom.js";
import * as format from "./format.js";
import { budgets, models } from "./models.js";
import * as requests from "./requests.js";
import { clocksOf, periodOf, zones } from "./times.js";
import * as views from "./views.js";

const EVERY_MS = 5000;
const SLOWEST_MS = 30_000;
const GIVE_UP_MS = 10_000;
const FILTERS = ["key", "model", "task", "tag"];

const byId = (id) => document.getElementById(id);
const form = byId("choice");

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

/** What the person chose. */
const choice = () => Object.fromEntries(new FormData(form));

/** Everything the page shows, of one moment of the server's clock. */
async function askAll(chosen, signal) {
  const { body: stats, at } = await ask("/api/v1/stats", signal);
  const period = periodOf(chosen, at);
  const { admin } = stats.caller;
  const wanted = Object.fromEntries(FILTERS.filter((name) => chosen[name]).map((name) => [name, chosen[name]]));
  const range = { from: period.from / 1000, to: period.to / 1000 };
  const usage = async (groupBy, filters) => {
    const query = new URLSearchParams({ group_by: groupBy, ...range, tz: chosen.zone, ...filters });
    return (await ask(`/api/v1/usage?${query}`, signal)).body.groups;
  };
  const [overTime, answered, asked, clients, ...choices] = await Promise.all([
    usage(period.groupBy, wanted),
    usage("model", wanted),
    usage("requested_model", wanted),
    admin ? usage("client", wanted) : null,
    ...FILTERS.map((name) => (name === "key" && !admin ? [] : usage(name, {}))),
  ]);
  const names = Object.fromEntries(FILTERS.map((name, index) => [name, choices[index].map((group) => group.key).filter(Boolean)]));
  return { chosen, period, stats, at, range, columns: views.columns(overTime, period), total: views.sum(overTime), answered, asked, clients, names };
}

async function refresh() {
  asking?.abort();
  clearTimeout(timer);
  const mine = (asking = new AbortController());
  try {
    figures = await askAll(choice(), mine.signal);
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
  const { stats, period, columns, total, answered, asked, clients, chosen, names } = figures;
  const { zone } = chosen;
  state("ready", "Live");
  document.querySelectorAll("[data-period]").forEach((element) => (element.textContent = `${period.name}, ${zone}`));
  FILTERS.forEach((name) => renderFilter(name, names[name], chosen[name]));
  put("service", [stats.service, stats.caller], () => `${stats.service.model}${stats.service.offline ? ", offline" : ""}${stats.service.draining ? ", shutting down" : ""}${stats.caller.key ? `, seen as ${stats.caller.key}` : ""}`);
  put("tiles", [total, stats.service.offline], () => views.tiles(total, stats.service.offline));
  renderChart();
  put("spend-table", columns, () => views.spendTable(columns));
  renderExport();
  put("models", [stats.models, stats.fallbacks, answered, asked], () => models(stats, answered, asked));
  put("budgets", [stats.budget, stats.monthly_budget, zone], () => budgets(stats, period.clocks));
  put("tasks", stats.requests_by_task, () => views.tasks(stats.requests_by_task));
  put("latency", stats.latency, () => views.latency(stats.latency));
  put("guards", [stats.breaker, stats.admission, stats.rate_limit_stats], () => views.guards(stats));
  put("tokens", [stats.token_estimate, stats.cache_stats], () => views.tokens(stats));
  put("clients", [clients, stats.service.admin_key], () => views.clients(clients, stats.service.admin_key));
  put("totals", stats.overall_stats, () => views.totals(stats.overall_stats));
  put("errors", [stats.last_errors, stats.caller.admin, zone], () => requests.errors(stats.last_errors, period.clocks, stats.caller.admin ? tell : null));
}

/** The names that a filter offers; the chosen one stays on offer where the period has nothing of it. */
function renderFilter(name, found, chosen) {
  const select = form.elements[name];
  const offered = [...new Set([...found, ...(chosen ? [chosen] : [])])];
  select.closest("label").hidden = !offered.length;
  put(select.id, offered, () => [h("option", { value: "" }, "all"), ...offered.map((one) => h("option", { value: one }, one))]);
  select.value = chosen ?? "";
}

function renderExport() {
  byId("csv").hidden = !figures.stats.caller.admin;
  byId("csv").href = `/api/v1/usage/export?${new URLSearchParams({ format: "csv", ...figures.range })}`;
}

function renderChart() {
  const width = byId("spend").clientWidth;
  put("spend", [width, figures.columns], () => views.spend(figures.columns, width));
}

/** Open the story of one request. */
async function tell(seen) {
  const story = byId("story");
  byId("request-title").textContent = `Request ${seen.request_id}`;
  byId("request-line").textContent = `${seen.status} ${seen.method} ${seen.path}`;
  story.replaceChildren(placeholder("waiting", "Loading"));
  byId("request").showModal();
  try {
    const { body } = await ask(`/api/v1/usage/requests/${encodeURIComponent(seen.request_id)}`, new AbortController().signal);
    story.replaceChildren(requests.attempts(body.attempts, figures.period.clocks));
  } catch (problem) {
    story.replaceChildren(placeholder("denied", problem instanceof Refused ? problem.message : "The service cannot be reached."));
  }
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
  const seen = figures ? `, ${name === "ready" ? "" : "last "}${clocksOf(choice().zone).timeWithSeconds(new Date(figures.at))}` : "";
  byId("live-text").textContent = live + seen;
  const element = byId("notice");
  element.hidden = !notice;
  if (element.textContent !== notice) element.textContent = notice;
}

function begin() {
  form.elements.zone.replaceChildren(...zones().map((zone) => h("option", { value: zone }, zone)));
  form.addEventListener("change", () => {
    const dated = choice().period === "dates";
    byId("dates").hidden = !dated;
    for (const name of ["first", "last"]) {
      if (dated && !form.elements[name].value) form.elements[name].value = clocksOf(choice().zone).dayName(new Date());
    }
    refresh();
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  byId("request-close").addEventListener("click", () => byId("request").close());
  document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(timer) : refresh()));
  new ResizeObserver(() => figures && requestAnimationFrame(renderChart)).observe(byId("spend"));
  refresh();
}

begin();
