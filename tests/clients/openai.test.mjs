// The official openai package for Node.

import assert from "node:assert/strict";
import { test } from "node:test";
import OpenAI from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";
import { collect, extracted, france, model, paris, record, sum, url, weather, weatherOf } from "./shared.mjs";

const client = new OpenAI({ baseURL: url, maxRetries: 0, timeout: 60_000 });
const Record = z.object({ score: z.number().int(), job: z.string(), email: z.string(), code: z.string() });
const ask = (content) => ({ model, temperature: 0, messages: [{ role: "user", content }] });
const parameters = { type: "object", properties: { city: { type: "string" } }, required: ["city"], additionalProperties: false };
const getWeather = { name: "get_weather", description: "Get the weather of a city.", parameters };

test("models", async () => {
  const names = (await collect(client.models.list())).map((m) => m.id);
  assert.equal(names.length, 1);
  assert.equal((await client.models.retrieve("openai/gpt-oss-20b")).object, "model");
});

test("chat, whole and streamed", async () => {
  const { choices, usage } = await client.chat.completions.create(ask(sum));
  assert.equal(choices[0].message.content, "42");
  assert.equal(choices[0].finish_reason, "stop");
  assert.equal(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens);
  const chunks = await collect(await client.chat.completions.create({ ...ask(france), stream: true }));
  assert.equal(chunks.map((chunk) => chunk.choices[0].delta.content ?? "").join(""), paris);
  const helper = client.chat.completions.stream(ask(france));
  assert.equal(await helper.finalContent(), paris);
});

test("a stream that is given up does not hold the next one", async () => {
  const stream = await client.chat.completions.create({ ...ask("Repeat exactly: " + "parrot gray camel ".repeat(300)), stream: true });
  for await (const _ of stream) break;
  assert.equal((await client.chat.completions.create(ask(sum))).choices[0].message.content, "42");
});

test("a tool loop run by the package", async () => {
  for (const stream of [false, true]) {
    const tools = [{ type: "function", function: { ...getWeather, function: weatherOf, parse: JSON.parse } }];
    const runner = client.chat.completions.runTools({ ...ask(weather), tools, stream });
    assert.match(await runner.finalContent(), /31 degrees and windy/);
  }
});

test("parse", async () => {
  const chat = await client.chat.completions.parse({ ...ask(record), response_format: zodResponseFormat(Record, "record") });
  assert.deepEqual(chat.choices[0].message.parsed, extracted);
  const response = await client.responses.parse({ model, temperature: 0, input: record, text: { format: zodTextFormat(Record, "record") } });
  assert.deepEqual(response.output_parsed, extracted);
});

test("responses, whole and streamed", async () => {
  const response = await client.responses.create({ model, temperature: 0, input: sum });
  assert.equal(response.output_text, "42");
  assert.equal((await client.responses.retrieve(response.id)).output_text, "42");
  const stream = client.responses.stream({ model, temperature: 0, input: france });
  const deltas = (await collect(stream)).filter((event) => event.type === "response.output_text.delta");
  assert.equal(deltas.map((event) => event.delta).join(""), paris);
  assert.equal((await stream.finalResponse()).output_text, paris);
});

test("a tool loop over responses", async () => {
  const tools = [{ type: "function", strict: true, ...getWeather }];
  const first = await client.responses.create({ model, temperature: 0, input: weather, tools });
  const call = first.output.find((item) => item.type === "function_call");
  const output = JSON.stringify(weatherOf(JSON.parse(call.arguments)));
  const input = [{ type: "function_call_output", call_id: call.call_id, output }];
  const last = await client.responses.create({ model, temperature: 0, input, tools, previous_response_id: first.id });
  assert.match(last.output_text, /31 degrees and windy/);
});

test("completions", async () => {
  const { choices } = await client.completions.create({ model, prompt: "Hello", max_tokens: 3, temperature: 0 });
  const chunks = await collect(await client.completions.create({ model, prompt: "Hello", max_tokens: 3, temperature: 0, stream: true }));
  assert.equal(chunks.map((chunk) => chunk.choices[0].text).join(""), choices[0].text);
});

test("errors", async () => {
  await assert.rejects(client.chat.completions.create({ ...ask(sum), model: "gpt-7" }), (e) => e instanceof OpenAI.NotFoundError && e.code === "model_not_found");
  await assert.rejects(client.chat.completions.create({ ...ask(sum), temperature: 9 }), (e) => e instanceof OpenAI.BadRequestError && e.param === "temperature");
  await assert.rejects(client.withOptions({ apiKey: "sk-wrong" }).models.list(), OpenAI.AuthenticationError);
});
