// Genkit with its Google plugin.
import { googleAI } from "@genkit-ai/google-genai";
import { genkit, z } from "genkit";
import { CLOSED, LABELS, MODEL, URL_BASE, holds, refused, run, same } from "./harness.mjs";

const ai = genkit({ plugins: [googleAI({ apiKey: "k", baseUrl: URL_BASE })] });
const ask = (prompt, more = {}, model = MODEL) => ai.generate({ model: googleAI.model(model), prompt, ...more });

await run({
  text: async () => holds((await ask("hello")).text, "canned"),
  stream: async () => {
    const { stream } = ai.generateStream({ model: googleAI.model(MODEL), prompt: "hello" });
    let text = "";
    for await (const piece of stream) text += piece.text;
    holds(text, "canned");
  },
  limit: async () => {
    holds((await ask("x", { system: "You write code." })).text, "```python");
    same((await ask("x", { config: { maxOutputTokens: 5 } })).finishReason, "length");
  },
  json: async () => {
    const schema = z.object({ name: z.string(), age: z.number().int() });
    same((await ask("x", { output: { schema } })).output.age, 1);
  },
  enum: async () => {
    // Its format "enum" sends no schema, it only asks for one of the words in the prompt.
    const schema = z.object({ mood: z.enum(LABELS) });
    same((await ask("I love it", { output: { schema } })).output.mood, "positive");
  },
  tools: async () => {
    const weather = ai.defineTool(
      { name: "weather", description: "weather", inputSchema: z.object({ city: z.string() }) },
      async () => "sun",
    );
    const answer = await ask("weather?", { tools: [weather], toolChoice: "required", returnToolRequests: true });
    same(answer.toolRequests[0].toolRequest.name, "weather");
  },
  error: () => refused(() => ask("x", {}, CLOSED)),
});
