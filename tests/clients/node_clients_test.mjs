// npm's openai and @ai-sdk/openai-compatible against a running server.
// usage: node node_clients_test.mjs URL CHAT_MODEL THINKING_MODEL, in a folder with node_modules
import assert from "node:assert";
import OpenAI from "openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, embedMany, generateObject, generateText, jsonSchema, streamText, tool } from "ai";

// "real": models that understand what they are asked; the shapes are checked with any.
const [url, chat, thinking, kind] = process.argv.slice(2);
const isReal = kind === "real";
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "Name a colour of the sea." }];
const person = { type: "object", properties: { name: { type: "string", maxLength: 30 }, age: { type: "integer", minimum: 0, maximum: 120 } },
                 required: ["name", "age"], additionalProperties: false };
const weather = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
const askWeather = "What is the weather in Paris?";
const provider = createOpenAICompatible({ name: "still", baseURL: `${url}/v1` });

async function nothingRuns() {
  for (let i = 0; i < 200; ++i) {
    if ((await (await fetch(`${url}/v1/generations`)).json()).data.length === 0) return;
    await new Promise((done) => setTimeout(done, 50));
  }
  assert.fail("the request goes on after its client has gone");
}

const tests = {
  async openaiChatAndStream() {
    const whole = await client.chat.completions.create({ model: chat, messages, max_tokens: 16, seed: 1 });
    let text = "";
    for await (const chunk of await client.chat.completions.create({ model: chat, messages, max_tokens: 16, seed: 1, stream: true }))
      text += chunk.choices[0]?.delta?.content ?? "";
    assert.equal(text, whole.choices[0].message.content);
  },
  async openaiErrors() {
    await assert.rejects(client.chat.completions.create({ model: "nosuch", messages }), (e) => e.status === 404);
    await assert.rejects(client.chat.completions.create({ model: chat, messages, temperature: -1 }), (e) => e.status === 400);
  },
  async openaiAborts() {
    const stream = await client.chat.completions.create({ model: chat, messages, stream: true, max_tokens: 1000, ignore_eos: true });
    for await (const _ of stream) break;
    await nothingRuns();
  },
  async openaiTools() {
    if (!isReal) return;  // the tiny models' templates know no tools
    const tools = [{ type: "function", function: { name: "get_weather", description: "Weather of a city", parameters: weather } }];
    const asked = { model: chat, messages: [{ role: "user", content: askWeather }], tools, max_tokens: 128, temperature: 0 };
    const { message, finish_reason } = (await client.chat.completions.create(asked)).choices[0];
    assert.equal(finish_reason, "tool_calls");
    assert.deepEqual(JSON.parse(message.tool_calls[0].function.arguments), { city: "Paris" });
    const streamed = await client.chat.completions.stream(asked).finalChatCompletion();
    assert.equal(streamed.choices[0].message.tool_calls[0].function.name, "get_weather");
    assert.deepEqual(JSON.parse(streamed.choices[0].message.tool_calls[0].function.arguments), { city: "Paris" });
  },
  async openaiStructuredOutput() {
    const answer = await client.chat.completions.create({ model: chat, messages: [{ role: "user", content: "Invent a person." }], seed: 1,
      max_tokens: 200, response_format: { type: "json_schema", json_schema: { name: "person", strict: true, schema: person } } });
    if (answer.choices[0].finish_reason !== "stop") return;
    assert.deepEqual(Object.keys(JSON.parse(answer.choices[0].message.content)), ["name", "age"]);
  },
  async openaiThinking() {
    const asked = { model: thinking, messages: [{ role: "user", content: "What is 3 + 4?" }], max_tokens: 120, seed: 1,
                    thinking: { type: "enabled", budget_tokens: 16 } };
    const answer = await client.chat.completions.create(asked);
    const { message } = answer.choices[0];
    assert.ok(message.reasoning_content);
    assert.ok(answer.usage.completion_tokens_details.reasoning_tokens > 0);
    let reasoning = "", content = "";
    for await (const chunk of await client.chat.completions.create({ ...asked, stream: true })) {
      reasoning += chunk.choices[0]?.delta?.reasoning_content ?? "";
      content += chunk.choices[0]?.delta?.content ?? "";
    }
    assert.equal(reasoning, message.reasoning_content);
    assert.equal(content, message.content);
  },
  async openaiEmbeddings() {
    const { data } = await client.embeddings.create({ model: chat, input: ["the sea", "the sky"] });
    assert.equal(data.length, 2);
    assert.ok(Math.abs(data[0].embedding.reduce((sum, v) => sum + v * v, 0) - 1) < 1e-3);
  },
  async aiSdkTools() {
    if (!isReal) return;
    let asked = null;
    const { toolCalls } = await generateText({ model: provider(chat), prompt: askWeather, maxOutputTokens: 128, temperature: 0, tools: {
      get_weather: tool({ description: "Weather of a city", inputSchema: jsonSchema(weather), execute: async ({ city }) => { asked = city; return "rain"; } }) } });
    assert.equal(toolCalls[0].toolName, "get_weather");
    assert.equal(asked, "Paris");
  },
  async aiSdkStructuredOutput() {
    if (!isReal) return;  // an answer that is cut off is an error there
    const strict = createOpenAICompatible({ name: "still", baseURL: `${url}/v1`, supportsStructuredOutputs: true });
    const { object } = await generateObject({ model: strict(chat), prompt: "Invent a person.", seed: 1, maxOutputTokens: 200,
                                              schema: jsonSchema(person) });
    assert.deepEqual(Object.keys(object), ["name", "age"]);
  },
  async aiSdkEmbeddings() {
    const { embeddings } = await embedMany({ model: provider.textEmbeddingModel(chat), values: ["the sea", "the sky"] });
    assert.equal(embeddings.length, 2);
  },
  async aiSdkErrorsAndAbort() {
    await assert.rejects(generateText({ model: provider("nosuch"), prompt: "x", maxRetries: 0 }),
                         (e) => APICallError.isInstance(e) && e.statusCode === 404 && /nosuch/.test(e.message));
    const abort = new AbortController();
    const { fullStream } = streamText({ model: provider(chat), prompt: "Tell me a long story", maxOutputTokens: 1000,
                                        abortSignal: abort.signal, onError: () => {} });
    for await (const part of fullStream) if (part.type === "text-delta") abort.abort();
    await nothingRuns();
  },
  async aiSdkReasoning() {
    const settings = { model: provider(thinking), prompt: "What is 3 + 4?", maxOutputTokens: 120, seed: 1,
                       providerOptions: { still: { thinking: { type: "enabled", budget_tokens: 16 } } } };
    const whole = await generateText(settings);
    assert.ok(whole.reasoningText, JSON.stringify(whole.content));
    const stream = streamText(settings);
    let text = "", reasoning = "";
    for await (const part of stream.fullStream) {
      if (part.type === "text-delta") text += part.text ?? part.textDelta ?? "";
      if (part.type === "reasoning-delta") reasoning += part.text ?? part.textDelta ?? "";
    }
    assert.equal(text, whole.text);
    assert.equal(reasoning, whole.reasoningText);
  },
};
let failed = 0;
for (const [name, test] of Object.entries(tests)) {
  try {
    await test();
    console.log(`ok    ${name}`);
  } catch (failure) {
    ++failed;
    console.log(`FAIL  ${name}: ${failure.stack ?? failure}`);
  }
}
console.log(`${Object.keys(tests).length - failed} passed, ${failed} failed`);
process.exit(failed ? 1 : 0);
