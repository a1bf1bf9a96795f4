#!/usr/bin/env bash
# openai (npm): "Retry-After: 61" is retried after less than a second; 2 is waited for.
#
# One would guess:  a client that is told to wait longer than it cares to either waits as long as it can, or gives up.
# What happens:     a Retry-After of more than 60 s counts as none: the client asks again after its usual half second.
#                   The longer a server asks for quiet (a spent budget of the day: 3600), the
#                   sooner it is asked again. "x-should-retry: false" stops it.
# Seen with:        openai 7.57.0, Node 20.20.2 (the package asks for Node 22); 2026-11-27
# Output seen:      Retry-After 2: again after 2.0 s; 61: 0.4 s; 3600: 0.4 s; 3600 with x-should-retry false: not again

set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
npm install --silent --no-audit --no-fund --prefix "$work" openai@7.57.0

cat >"$work/try.mjs" <<'JAVASCRIPT'
import http from "node:http";
import OpenAI from "openai";

const refusal = JSON.stringify({ error: { message: "later", type: "rate_limit", param: null, code: null } });
const answer = JSON.stringify({
  id: "1",
  object: "chat.completion",
  created: 1,
  model: "m",
  choices: [{ index: 0, finish_reason: "stop", message: { role: "assistant", content: "hi" } }],
});

/** Seconds from a 429 with `headers` to the next request, or null if none came. */
async function pauseAfter(headers) {
  const times = [];
  const server = http.createServer((request, response) => {
    request.resume().on("end", () => {
      times.push(Date.now());
      const first = times.length === 1;
      response.writeHead(first ? 429 : 200, { "content-type": "application/json", ...(first ? headers : {}) });
      response.end(first ? refusal : answer);
    });
  });
  await new Promise((ready) => server.listen(0, "127.0.0.1", ready));
  const client = new OpenAI({ apiKey: "none", baseURL: `http://127.0.0.1:${server.address().port}/v1` });
  try {
    await client.chat.completions.create({ model: "m", messages: [{ role: "user", content: "hello" }] });
  } catch (error) {
    if (!(error instanceof OpenAI.RateLimitError)) throw error;
  }
  server.close();
  server.closeAllConnections();
  return times.length > 1 ? (times[1] - times[0]) / 1000 : null;
}

const seen = [];
for (const headers of [
  { "retry-after": "2" },
  { "retry-after": "61" },
  { "retry-after": "3600" },
  { "retry-after": "3600", "x-should-retry": "false" },
]) {
  seen.push(await pauseAfter(headers));
  console.log(JSON.stringify(headers), seen.at(-1));
}
const [two, sixtyOne, hour, stopped] = seen;
const held = two >= 1.9 && sixtyOne !== null && sixtyOne < 1.9 && hour !== null && hour < 1.9 && stopped === null;
console.log(held ? "as described" : "CHANGED");
process.exit(held ? 0 : 1);
JAVASCRIPT
node "$work/try.mjs"
