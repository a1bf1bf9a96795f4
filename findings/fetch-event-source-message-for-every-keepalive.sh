#!/usr/bin/env bash
# @microsoft/fetch-event-source: a keep-alive comment reaches onmessage as a message with empty data.
#
# One would guess:  ": keep-alive" and a blank line is a comment, so nothing happens; that is what the event stream format
#                   says of an event without data, and how a browser's EventSource takes it.
# What happens:     onmessage is called with data "". The usual JSON.parse(message.data) throws there, and the library
#                   answers an error in onmessage with a new request: the question is asked, and paid, again at each
#                   pause. The comment line alone, without the blank line, is taken as nothing.
# Seen with:        @microsoft/fetch-event-source 2.0.1, Node 20.20.2; 2026-11-27
# Output seen:      ": keep-alive\n\n" gives ["", "{\"a\":1}", ""]; ": keep-alive\n" gives ["{\"a\":1}"];
#                   a page that parses every message asks a second time

set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
npm install --silent --no-audit --no-fund --prefix "$work" @microsoft/fetch-event-source@2.0.1

cat >"$work/try.mjs" <<'JAVASCRIPT'
import http from "node:http";

globalThis.window = globalThis; // the library expects a browser's names
globalThis.document = { hidden: false, addEventListener() {}, removeEventListener() {} };
const { fetchEventSource } = await import("@microsoft/fetch-event-source");

/** How often a stream with a keep-alive is asked for by a page that parses every message; it leaves after the second. */
async function requestsOfAParser() {
  let requests = 0;
  const leave = new AbortController();
  const server = http.createServer((request, response) => {
    requests += 1;
    if (requests === 2) leave.abort();
    response.writeHead(200, { "content-type": "text/event-stream" });
    response.end(': keep-alive\n\ndata: {"a":1}\n\n');
  });
  await new Promise((ready) => server.listen(0, "127.0.0.1", ready));
  await fetchEventSource(`http://127.0.0.1:${server.address().port}/`, {
    openWhenHidden: true,
    signal: leave.signal,
    onmessage: (message) => JSON.parse(message.data),
  });
  server.close();
  server.closeAllConnections();
  console.log("requests of a page that parses every message:", requests);
  return requests;
}

/** The data of all messages of a stream that holds one event between two keep-alives. */
async function messagesWith(keepAlive) {
  const server = http.createServer((request, response) => {
    response.writeHead(200, { "content-type": "text/event-stream" });
    response.end(`${keepAlive}data: {"a":1}\n\n${keepAlive}`);
  });
  await new Promise((ready) => server.listen(0, "127.0.0.1", ready));
  const messages = [];
  await fetchEventSource(`http://127.0.0.1:${server.address().port}/`, {
    openWhenHidden: true,
    onmessage: (message) => messages.push(message.data),
  });
  server.close();
  server.closeAllConnections();
  console.log(JSON.stringify(keepAlive), JSON.stringify(messages));
  return JSON.stringify(messages);
}

const withBlankLine = await messagesWith(": keep-alive\n\n");
const alone = await messagesWith(": keep-alive\n");
const requests = await requestsOfAParser();
const held =
  withBlankLine === JSON.stringify(["", '{"a":1}', ""]) && alone === JSON.stringify(['{"a":1}']) && requests === 2;
console.log(held ? "as described" : "CHANGED");
process.exit(held ? 0 : 1);
JAVASCRIPT
node "$work/try.mjs"
