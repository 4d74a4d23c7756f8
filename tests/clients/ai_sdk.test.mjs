// The Vercel AI SDK: @ai-sdk/openai-compatible, and @ai-sdk/openai through chat completions and responses.

import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, generateText, isStepCount, streamObject, streamText, tool } from "ai";
import assert from "node:assert/strict";
import { test } from "node:test";
import { z } from "zod";
import { collect, extracted, france, model, paris, record, sum, url, weather, weatherOf } from "./shared.mjs";

const apiKey = process.env.OPENAI_API_KEY;
const compatible = createOpenAICompatible({ name: "gossamer", baseURL: url, apiKey, includeUsage: true, supportsStructuredOutputs: true });
const openai = createOpenAI({ baseURL: url, apiKey });
const providers = { compatible: compatible(model), chat: openai.chat(model), responses: openai.responses(model) };
const schema = z.object({ score: z.number().int(), job: z.string(), email: z.string(), code: z.string() });
const tools = {
  get_weather: tool({ description: "Get the weather of a city.", inputSchema: z.object({ city: z.string() }), execute: async (input) => weatherOf(input) }),
};

for (const [name, provider] of Object.entries(providers)) {
  const base = { model: provider, temperature: 0, maxRetries: 0 };

  test(`${name}: generateText`, async () => {
    const { text, finishReason, usage } = await generateText({ ...base, prompt: sum });
    assert.equal(text, "42");
    assert.equal(finishReason, "stop");
    assert.equal(usage.totalTokens, usage.inputTokens + usage.outputTokens);
  });

  test(`${name}: streamText`, async () => {
    const result = streamText({ ...base, prompt: france });
    assert.equal((await collect(result.textStream)).join(""), paris);
    assert.ok((await result.usage).outputTokens > 0);
  });

  test(`${name}: a tool loop, whole and streamed`, async () => {
    const loop = { ...base, prompt: weather, tools, stopWhen: isStepCount(3) };
    const { text, steps } = await generateText(loop);
    assert.match(text, /31 degrees and windy/);
    assert.equal(steps.length, 2);
    const result = streamText(loop);
    await result.consumeStream();
    assert.match(await result.text, /31 degrees and windy/);
    assert.equal((await result.steps).length, 2);
  });

  test(`${name}: generateObject and streamObject`, async () => {
    assert.deepEqual((await generateObject({ ...base, schema, prompt: record })).object, extracted);
    const result = streamObject({ ...base, schema, prompt: record });
    assert.deepEqual((await collect(result.partialObjectStream)).at(-1), extracted);
    assert.deepEqual(await result.object, extracted);
  });

  test(`${name}: an error is no retry`, async () => {
    await assert.rejects(generateText({ ...base, prompt: sum, topP: 7 }), (e) => e.statusCode === 400 && !e.isRetryable);
  });
}

test("reasoning: by the compatible provider, and as a summary by OpenAI's", async () => {
  const whole = await generateText({ model: providers.compatible, temperature: 0, prompt: sum });
  assert.ok(whole.reasoningText);
  const asked = { openai: { reasoningSummary: "auto", forceReasoning: true } };
  const summed = await generateText({ model: providers.responses, prompt: sum, providerOptions: asked });
  assert.ok(summed.reasoningText);
});
