// Vercel's AI SDK with @ai-sdk/google.
import { createGoogleGenerativeAI } from "@ai-sdk/google";
import * as sdk from "ai";
import { z } from "zod";
import { CLOSED, LABELS, MODEL, URL_BASE, holds, refused, run, same } from "./harness.mjs";

const google = createGoogleGenerativeAI({ apiKey: "k", baseURL: `${URL_BASE}/v1beta` });
const { generateText, streamText, tool, Output } = sdk;
const ask = (prompt, more = {}, model = MODEL) => generateText({ model: google(model), prompt, maxRetries: 0, ...more });

await run({
  text: async () => holds((await ask("hello")).text, "canned"),
  stream: async () => {
    let text = "";
    for await (const piece of streamText({ model: google(MODEL), prompt: "hello" }).textStream) text += piece;
    holds(text, "canned");
  },
  limit: async () => {
    holds((await ask("x", { system: "You write code." })).text, "```python");
    same((await ask("x", { maxOutputTokens: 5 })).finishReason, "length");
  },
  json: async () => {
    // ai 6 does not send a minimum, so none is asked for.
    const schema = z.object({ name: z.string(), age: z.number().int(), boss: z.string().nullable() });
    same((await ask("x", { output: Output.object({ schema }) })).output.age, 1);
  },
  enum: async () => same((await ask("I love it", { output: Output.choice({ options: LABELS }) })).output, "positive"),
  tools: async () => {
    const weather = tool({ description: "weather", inputSchema: z.object({ city: z.string() }) });
    const answer = await ask("weather?", { tools: { weather }, toolChoice: "required" });
    same(answer.toolCalls[0].toolName, "weather");
  },
  thinking: async () => {
    const answer = await ask("x", {}, "level-model");
    same(answer.usage.outputTokenDetails?.reasoningTokens ?? answer.usage.reasoningTokens, 256);
  },
  error: () => refused(() => ask("x", {}, CLOSED)),
});
