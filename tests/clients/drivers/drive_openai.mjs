// The official Node SDK: whole, streamed, its stream helper, and completions.
import OpenAI from "openai";

const { MARLIN_BASE_URL, MARLIN_MODEL, MARLIN_QUESTION, MARLIN_MAX_TOKENS } = process.env;
const options = {
  model: MARLIN_MODEL, temperature: 0, max_tokens: Number(MARLIN_MAX_TOKENS),
};
const chat = { messages: [{ role: "user", content: MARLIN_QUESTION }] };
const report = (check, text, request) => console.log(JSON.stringify({ check, text, request }));

const client = new OpenAI({ baseURL: MARLIN_BASE_URL, apiKey: "unused", maxRetries: 0 });

const answer = await client.chat.completions.create({ ...options, ...chat });
report("chat", answer.choices[0].message.content, chat);

let text = "";
for await (const chunk of await client.chat.completions.create({
  ...options, ...chat, stream: true,
})) {
  text += chunk.choices[0].delta.content ?? "";
}
report("chat stream", text, chat);

const helper = client.chat.completions.stream({ ...options, ...chat });
report("stream helper", await helper.finalContent(), chat);

const question = { role: "user", content: "Why?" };
const back = { messages: [...chat.messages, answer.choices[0].message, question] };
const second = await client.chat.completions.create({ ...options, ...back });
const { role, content } = answer.choices[0].message;
report("history", second.choices[0].message.content, {
  messages: [...chat.messages, { role, content }, question],
});

const prompt = { prompt: MARLIN_QUESTION };
const completion = await client.completions.create({ ...options, ...prompt });
report("completion", completion.choices[0].text, prompt);
