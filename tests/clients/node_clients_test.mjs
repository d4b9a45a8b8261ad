// npm's openai and @ai-sdk/openai-compatible against a running server.
// usage: node node_clients_test.mjs URL CHAT_MODEL THINKING_MODEL, in a folder with node_modules
import assert from "node:assert";
import OpenAI from "openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, streamText } from "ai";

const [url, chat, thinking] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "Name a colour of the sea." }];
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
    for (let i = 0; i < 100; ++i) {
      if ((await (await fetch(`${url}/v1/generations`)).json()).data.length === 0) return;
      await new Promise((done) => setTimeout(done, 50));
    }
    assert.fail("the request goes on after its client has gone");
  },
  async aiSdkReasoning() {
    const provider = createOpenAICompatible({ name: "still", baseURL: `${url}/v1` });
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
