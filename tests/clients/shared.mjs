// What the Node suites share: where the server is, questions that the demo model can answer, its functions.

import assert from "node:assert/strict";

export const url = process.env.GOSSAMER_URL;
export const model = "gpt-oss-20b";
export const sum = "What is 17 + 25?";
export const france = "What is the capital of France?";
export const paris = "The capital of France is Paris.";
export const weather = "What is the weather in Paris?";
export const record = "Extract the data: The email is nafin@mail.com. The code is MAME. The score is 6. The job is singer.";
export const extracted = { score: 6, job: "singer", email: "nafin@mail.com", code: "MAME" };

/** The function, for real: what the model asks for is what it gets. */
export function weatherOf({ city }) {
  assert.equal(city, "Paris");
  return { temperature: 31, condition: "windy" };
}

export async function collect(stream) {
  const all = [];
  for await (const item of stream) all.push(item);
  return all;
}
