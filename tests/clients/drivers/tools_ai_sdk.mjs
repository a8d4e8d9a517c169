// The AI SDK in tool loops of two steps: providers for OpenAI (Responses, its default, and chat), for
// compatible servers and for Anthropic; whole and streamed.
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const { MARLIN_ROOT_URL, MARLIN_MODEL } = process.env;
const baseURL = `${MARLIN_ROOT_URL}/v1`;
const report = (check, text) => console.log(JSON.stringify({ check, text }));
const openai = createOpenAI({ baseURL, apiKey: "unused" });
const compatible = createOpenAICompatible({
  name: "marlin", baseURL, apiKey: "unused", includeUsage: true,
});
const models = {
  responses: openai(MARLIN_MODEL),
  chat: openai.chat(MARLIN_MODEL),
  compatible: compatible(MARLIN_MODEL),
  anthropic: createAnthropic({ baseURL, apiKey: "unused" })(MARLIN_MODEL),
};
const weather = tool({
  description: "Tells how warm it is in a city.",
  inputSchema: z.object({ city: z.string() }),
  execute: async ({ city }) => {
    if (city !== "Rome") throw new Error(city);
    return "25 C";
  },
});

for (const [name, model] of Object.entries(models)) {
  const options = {
    model, prompt: "How warm is it in Rome?", tools: { weather }, stopWhen: stepCountIs(3),
    maxRetries: 0,
  };
  report(name, (await generateText(options)).text);
  const stream = streamText({ ...options, onError: ({ error }) => { throw error; } });
  let text = "";
  for await (const piece of stream.textStream) text += piece;
  report(`${name} stream`, text);
}
