// The npm client `ollama` against a server. Arguments: folder with node_modules, URL, small model, larger model, and
// perhaps one that thinks.
import assert from 'node:assert/strict';
import { createRequire } from 'node:module';
import path from 'node:path';
import { pathToFileURL } from 'node:url';

const [folder, host, small, larger, thinking] = process.argv.slice(2);
const require = createRequire(path.join(path.resolve(folder), 'x.js'));
const { Ollama } = await import(pathToFileURL(require.resolve('ollama')));
const client = new Ollama({ host });
const options = { temperature: 0, seed: 1, num_predict: 40 };
const question = [{ role: 'user', content: 'What is 2+2? Answer with a number.' }];

const answer = await client.chat({ model: larger, messages: question, options });
assert.match(answer.message.content, /4/);

let text = '';
for await (const part of await client.chat({ model: larger, messages: question, options, stream: true }))
  text += part.message.content;
assert.equal(text, answer.message.content);

const schema = { type: 'object', required: ['n'], properties: { n: { type: 'integer' } }, additionalProperties: false };
const structured = await client.chat({ model: larger, messages: question, options, format: schema });
assert.equal(typeof JSON.parse(structured.message.content).n, 'number');

const tool = { type: 'function', function: { name: 'get_weather', description: 'The weather of a city now',
  parameters: { type: 'object', required: ['city'], properties: { city: { type: 'string' } } } } };
const called = await client.chat({ model: larger, tools: [tool], options: { ...options, num_predict: 80 },
  messages: [{ role: 'user', content: 'What is the weather in Paris? Use the tool.' }] });
assert.deepEqual(called.message.tool_calls.map((c) => [c.function.name, c.function.arguments]),
                 [['get_weather', { city: 'Paris' }]]);

const vectors = (await client.embed({ model: small, input: ['the sea', 'the sky'] })).embeddings;
assert.equal(vectors.length, 2);
assert.ok(Math.abs(vectors[0].reduce((sum, v) => sum + v * v, 0) - 1) < 1e-3);

if (thinking) {
  const thought = await client.chat({ model: thinking, messages: question, think: true, options });
  assert.ok(thought.message.thinking);
  assert.ok(!thought.message.content.includes('think>'));
}

const shown = await client.show({ model: small });
assert.equal(shown.model_info['general.architecture'], 'llama');
assert.ok((await client.list()).models.some((m) => m.name === small));
await assert.rejects(client.chat({ model: 'nope', messages: question }), /model 'nope' not found/);

// Cancellation: the stream ends with an AbortError.
const stream = await client.chat({
  model: larger, messages: [{ role: 'user', content: 'Write a long story.' }], stream: true,
  options: { num_predict: 2000 },
});
await assert.rejects(async () => {
  for await (const part of stream) client.abort();
}, /abort/i);
console.log('ok');
