// Google's SDK for JavaScript.
import { GoogleGenAI, Type } from "@google/genai";
import { CLOSED, LABELS, MODEL, URL_BASE, holds, refused, run, same } from "./harness.mjs";

const ai = new GoogleGenAI({ apiKey: "k", httpOptions: { baseUrl: URL_BASE } });
const ask = (contents, config = {}, model = MODEL) => ai.models.generateContent({ model, contents, config });

await run({
  text: async () => holds((await ask("hello")).text, "canned"),
  stream: async () => {
    let pieces = 0;
    for await (const _ of await ai.models.generateContentStream({ model: MODEL, contents: "hello" })) pieces += 1;
    same(pieces, 4);
  },
  limit: async () => {
    holds((await ask("x", { systemInstruction: "You write code." })).text, "```python");
    same((await ask("x", { maxOutputTokens: 5 })).candidates[0].finishReason, "MAX_TOKENS");
  },
  json: async () => {
    const schema = { type: Type.OBJECT, properties: { n: { type: Type.INTEGER } }, required: ["n"] };
    same(JSON.parse((await ask("x", { responseMimeType: "application/json", responseSchema: schema })).text), { n: 1 });
    const standard = { type: "object", properties: { n: { type: "integer" } }, required: ["n"] };
    const config = { responseMimeType: "application/json", responseJsonSchema: standard };
    same(JSON.parse((await ask("x", config)).text), { n: 1 });
  },
  enum: async () => {
    const schema = { type: Type.STRING, enum: LABELS };
    same((await ask("I love it", { responseMimeType: "text/x.enum", responseSchema: schema })).text, "positive");
  },
  tools: async () => {
    const weather = { name: "weather", parameters: { type: Type.OBJECT, properties: { city: { type: Type.STRING } } } };
    const toolConfig = { functionCallingConfig: { mode: "ANY" } };
    const answer = await ask("weather?", { tools: [{ functionDeclarations: [weather] }], toolConfig });
    same(answer.functionCalls[0].name, "weather");
  },
  count: async () => same((await ai.models.countTokens({ model: MODEL, contents: "hello" })).totalTokens, 2),
  models: async () => {
    const names = [];
    for await (const one of await ai.models.list()) names.push(one.name);
    holds(names, MODEL);
  },
  thinking: async () => {
    const answer = await ask("x", { thinkingConfig: { includeThoughts: true } }, "level-model");
    same(answer.usageMetadata.thoughtsTokenCount, 256);
  },
  error: () => refused(() => ask("x", {}, CLOSED)),
});
