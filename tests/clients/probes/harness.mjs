// What every probe does: run its checks against the server at GEMINI_URL and print a line of JSON for each.

export const URL_BASE = process.env.GEMINI_URL;
export const MODEL = "offline-gemini";
export const CLOSED = "closed-model";
export const LABELS = ["positive", "negative", "neutral"];

export async function run(checks) {
  for (const [check, work] of Object.entries(checks)) {
    try {
      await work();
      console.log(JSON.stringify({ check, ok: true }));
    } catch (error) {
      const note = `${error.name}: ${error.message}`.split("\n")[0].slice(0, 200);
      console.log(JSON.stringify({ check, ok: false, note }));
    }
  }
  process.exit(0);
}

export function same(found, wanted) {
  if (JSON.stringify(found) !== JSON.stringify(wanted)) {
    throw new Error(`${JSON.stringify(found)}, not ${JSON.stringify(wanted)}`);
  }
}

export function holds(found, part) {
  if (!String(found).includes(part)) throw new Error(`${part} is not in ${found}`);
}

export async function refused(ask) {
  let found;
  try {
    found = await ask();
  } catch (error) {
    holds(`${error.message} ${error.responseBody ?? ""} ${error.lastError?.responseBody ?? ""}`, "no longer available");
    return;
  }
  throw new Error(`a closed model answered ${JSON.stringify(found)}`);
}
