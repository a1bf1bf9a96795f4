// Clocks and calendars of the time zone that the person chose.

const made = new Map();
const MINUTE = 60_000;
const HOUR = 60 * MINUTE;

/** How moments are written in `zone`. */
export function clocksOf(zone) {
  if (!made.has(zone)) {
    const writer = (options) => {
      const format = new Intl.DateTimeFormat("en-GB", { timeZone: zone, ...options });
      return (date) => format.format(date);
    };
    const [day, clock] = [{ day: "numeric", month: "short" }, { hour: "2-digit", minute: "2-digit" }];
    const dayName = new Intl.DateTimeFormat("en-CA", { timeZone: zone, year: "numeric", month: "2-digit", day: "2-digit" });
    made.set(zone, {
      zone,
      day: writer(day),
      time: writer(clock),
      timeWithSeconds: writer({ ...clock, second: "2-digit" }),
      dateAndTime: writer({ ...day, ...clock }),
      dayName: (date) => dayName.format(date),
    });
  }
  return made.get(zone);
}

const ownZone = () => Intl.DateTimeFormat().resolvedOptions().timeZone;

/** The zones to choose from: this browser's, UTC, and the one in which Google's days begin. */
export function zones() {
  return [...new Set([ownZone(), "UTC", "America/Los_Angeles"])];
}

/** The moment (ms) at which the day `name` (2026-11-23) begins in `zone`. */
function midnight(name, zone) {
  const { dayName } = clocksOf(zone);
  let moment = Date.parse(`${name}T00:00Z`) - 15 * HOUR; // no zone is further ahead
  while (dayName(moment) < name) moment += 15 * MINUTE;
  return moment;
}

const following = (name) => new Date(Date.parse(`${name}T00:00Z`) + 24 * HOUR).toISOString().slice(0, 10);

const RUNNING = {
  hour: { name: "last hour", seconds: 3600, groupBy: "minute" },
  day: { name: "last 24 hours", seconds: 86_400, groupBy: "hour" },
  month: { name: "last 30 days", seconds: 30 * 86_400, groupBy: "day" },
};
const STEPS = { minute: MINUTE, hour: HOUR, day: HOUR };

/**
 * The period that was chosen, at `now` (ms): {name, from, to, groupBy, clocks}, times in ms.
 * `first` and `last` are the days of the period "dates", both included.
 */
export function periodOf({ period, first, last, zone }, now) {
  const clocks = clocksOf(zone);
  if (period !== "dates") {
    const { name, seconds, groupBy } = RUNNING[period];
    return { name, from: Math.floor((now - seconds * 1000) / MINUTE) * MINUTE, to: Math.floor(now / 1000) * 1000 + 1000, groupBy, clocks };
  }
  const [begin, end] = [first || clocks.dayName(now), last || clocks.dayName(now)].sort();
  const [from, to] = [midnight(begin, zone), midnight(following(end), zone)];
  return { name: begin === end ? begin : `${begin} to ${end}`, from, to, groupBy: to - from > 60 * HOUR ? "day" : "hour", clocks };
}

/** The steps of a period, also those in which nothing happened: [{key, label, long}], keys as /usage has them. */
export function stepsOf({ from, to, groupBy, clocks }) {
  const steps = new Map();
  for (let start = Math.floor(from / STEPS[groupBy]) * STEPS[groupBy]; start < to; start += STEPS[groupBy]) {
    const date = new Date(start);
    const key = groupBy === "day" ? clocks.dayName(date) : `${date.toISOString().slice(0, 19)}Z`;
    if (steps.has(key)) continue;
    const [label, long] = { minute: [clocks.time, clocks.time], hour: [clocks.time, clocks.dateAndTime], day: [clocks.day, clocks.day] }[groupBy];
    steps.set(key, { key, label: label(date), long: long(date) });
  }
  return [...steps.values()];
}
