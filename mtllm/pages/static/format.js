// Numbers as people read them. Exact values stand beside them, in <data value>.

const whole = new Intl.NumberFormat("en-US");
const compact = new Intl.NumberFormat("en-US", { notation: "compact", maximumSignificantDigits: 3 });
const fine = new Intl.NumberFormat("en-US", { maximumSignificantDigits: 3 });
const percent = new Intl.NumberFormat("en-US", { style: "percent", maximumFractionDigits: 1 });
const shift = new Intl.NumberFormat("en-US", { style: "percent", maximumFractionDigits: 1, signDisplay: "exceptZero" });

/** Dollars: at least cents, below one dollar three significant digits, down to a billionth. */
export function usd(dollars) {
  if (dollars === 0) return "$0";
  const digits = dollars >= 1 ? 2 : Math.min(9, 2 - Math.floor(Math.log10(dollars)));
  return `$${dollars.toLocaleString("en-US", { minimumFractionDigits: 2, maximumFractionDigits: digits })}`;
}

/** A price per million tokens: as many decimals as it has, two at least. */
export const rate = (dollars) => `$${dollars.toLocaleString("en-US", { minimumFractionDigits: 2, maximumFractionDigits: 6 })}`;

/** A count, in full up to 99,999. */
export const count = (number) => (number < 100_000 ? whole : compact).format(number);

/** A share of one as a percentage. */
export const share = (ratio) => percent.format(ratio);

/** How far a ratio is from one: "+3.2%". */
export const deviation = (ratio) => shift.format(ratio - 1);

/** Milliseconds, as seconds from one second on; three significant digits. */
export const duration = (ms) => (ms >= 1000 ? `${fine.format(ms / 1000)} s` : `${fine.format(ms)} ms`);

/** Bytes in the unit that fits. */
export function bytes(number) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const power = number < 1 ? 0 : Math.min(units.length - 1, Math.floor(Math.log2(number) / 10));
  return `${fine.format(number / 1024 ** power)} ${units[power]}`;
}

/** A number of seconds as the unit a limit is written in: "minute", "3 seconds". */
export function perUnit(seconds) {
  for (const [unit, length] of [["day", 86_400], ["hour", 3600], ["minute", 60], ["second", 1]]) {
    if (seconds % length === 0) return seconds === length ? unit : `${whole.format(seconds / length)} ${unit}s`;
  }
  return `${seconds} seconds`;
}
