#!/usr/bin/env bash
# AI SDK: structured output at an OpenAI-compatible endpoint sends no schema at all, only "answer in JSON".
#
# One would guess:  Output.object({ schema }) sends the schema; that is what it is for.
# What happens:     createOpenAICompatible sends response_format {"type": "json_object"} without the schema, in the
#                   prompt neither: the model is never told which fields or labels are wanted, and their check comes only
#                   after the answer. A warning is all that says so. With supportsStructuredOutputs: true it is sent.
# Seen with:        ai 7.0.173, @ai-sdk/openai-compatible 3.0.92, Node 20.20.2; 2026-11-27
# Output seen:      default: {"type":"json_object"}, the label is nowhere in the request; with the option: json_schema

set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
npm install --silent --no-audit --no-fund --prefix "$work" ai@7.0.173 @ai-sdk/openai-compatible@3.0.92

cat >"$work/try.mjs" <<'JAVASCRIPT'
import http from "node:http";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, jsonSchema, Output } from "ai";

globalThis.AI_SDK_LOG_WARNINGS = false;
let sent;
const server = http.createServer(async (request, response) => {
  sent = "";
  for await (const piece of request) sent += piece;
  response.writeHead(200, { "content-type": "application/json" });
  response.end(
    JSON.stringify({
      id: "1",
      object: "chat.completion",
      created: 1,
      model: "m",
      choices: [{ index: 0, finish_reason: "stop", message: { role: "assistant", content: '{"label":"complaint"}' } }],
      usage: { prompt_tokens: 1, completion_tokens: 1, total_tokens: 2 },
    }),
  );
});
await new Promise((ready) => server.listen(0, "127.0.0.1", ready));
const schema = jsonSchema({
  type: "object",
  properties: { label: { type: "string", enum: ["complaint", "praise"] } },
  required: ["label"],
  additionalProperties: false,
});

/** What a request for this schema holds. */
async function request(options) {
  const provider = createOpenAICompatible({
    name: "service",
    baseURL: `http://127.0.0.1:${server.address().port}/v1`,
    ...options,
  });
  await generateText({ model: provider("m"), prompt: "Which label?", output: Output.object({ schema }) });
  const format = JSON.parse(sent).response_format;
  console.log(JSON.stringify(options), format.type, "label in the request:", sent.includes("complaint"));
  return { type: format.type, told: sent.includes("complaint") };
}

const plain = await request({});
const asked = await request({ supportsStructuredOutputs: true });
const held = plain.type === "json_object" && !plain.told && asked.type === "json_schema" && asked.told;
console.log(held ? "as described" : "CHANGED");
process.exit(held ? 0 : 1);
JAVASCRIPT
node "$work/try.mjs"
