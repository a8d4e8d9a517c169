// The official SDKs for Node: OpenAI's runTools and Responses, Anthropic's messages.
import Anthropic from "@anthropic-ai/sdk";
import OpenAI from "openai";

const { MARLIN_ROOT_URL, MARLIN_MODEL } = process.env;
const report = (check, text) => console.log(JSON.stringify({ check, text }));
const question = [{ role: "user", content: "How warm is it in Rome?" }];
const description = "Tells how warm it is in a city.";
const parameters = {
  type: "object", properties: { city: { type: "string" } }, required: ["city"],
};
const weather = ({ city }) => {
  if (city !== "Rome") throw new Error(city);
  return "25 C";
};
const settings = { apiKey: "unused", maxRetries: 0 };

const openai = new OpenAI({ baseURL: `${MARLIN_ROOT_URL}/v1`, ...settings });
const tools = [{
  type: "function",
  function: { name: "weather", description, parameters, parse: JSON.parse, function: weather },
}];
for (const stream of [false, true]) {
  const runner = openai.chat.completions.runTools({
    model: MARLIN_MODEL, messages: question, tools, stream,
  });
  report(stream ? "runTools stream" : "runTools", await runner.finalContent());
}

const flat = [{ type: "function", name: "weather", description, parameters, strict: false }];
const first = await openai.responses.create({ model: MARLIN_MODEL, input: question, tools: flat });
const call = first.output.at(-1);
const output = weather(JSON.parse(call.arguments));
const result = { type: "function_call_output", call_id: call.call_id, output };
const input = [...question, ...first.output, result];
const second = await openai.responses.create({ model: MARLIN_MODEL, input, tools: flat });
report("responses", second.output_text);

const anthropic = new Anthropic({ baseURL: MARLIN_ROOT_URL, ...settings });
const options = {
  model: MARLIN_MODEL, max_tokens: 1000,
  tools: [{ name: "weather", description, input_schema: parameters }],
};
const answer = await anthropic.messages.stream({ ...options, messages: question }).finalMessage();
const use = answer.content.at(-1);
const content = [{ type: "tool_result", tool_use_id: use.id, content: weather(use.input) }];
const history = [...question, { role: "assistant", content: answer.content }];
const final = await anthropic.messages.create({
  ...options, messages: [...history, { role: "user", content }],
});
report("anthropic", final.content.at(-1).text);
