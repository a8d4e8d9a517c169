// The AI SDK with its provider for compatible servers.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, streamText } from "ai";

const { MARLIN_BASE_URL, MARLIN_MODEL, MARLIN_QUESTION, MARLIN_MAX_TOKENS } = process.env;
const chat = { messages: [{ role: "user", content: MARLIN_QUESTION }] };
const report = (check, text) => console.log(JSON.stringify({ check, text, request: chat }));

const provider = createOpenAICompatible({
  name: "marlin", baseURL: MARLIN_BASE_URL, apiKey: "unused", includeUsage: true,
});
const options = {
  model: provider(MARLIN_MODEL),
  ...chat,
  temperature: 0,
  maxOutputTokens: Number(MARLIN_MAX_TOKENS),
  maxRetries: 0,
};

report("generateText", (await generateText(options)).text);

const stream = streamText({ ...options, onError: ({ error }) => { throw error; } });
let text = "";
for await (const piece of stream.textStream) text += piece;
if (!((await stream.usage).outputTokens > 0)) throw new Error("no usage at the stream's end");
report("streamText", text);

const effort = await generateText({
  ...options, providerOptions: { marlin: { reasoningEffort: "low", textVerbosity: "low" } },
});
report("reasoningEffort", effort.text);
