// The openai package for Node talks to an OpenAI-compatible address, as its users do.
//
// Usage: node openai_client.mjs http://HOST:PORT
// Prints one line of JSON. Exit code 1 and a line on stderr when anything is not as it should be.

import OpenAI from "openai";
import { VERSION } from "openai/version";

const QUESTION = [{ role: "user", content: "Count." }];

function expect(condition, what) {
  if (!condition) {
    console.error(`openai_client.mjs: ${what}`);
    process.exit(1);
  }
}

const textOf = (chunks) =>
  chunks.map((chunk) => chunk.choices[0]?.delta?.content ?? "").join("");

function checkUsage(usage, where) {
  expect(usage, `${where}: no usage`);
  expect(usage.completion_tokens > 0, `${where}: no completion tokens`);
  const total = usage.prompt_tokens + usage.completion_tokens;
  expect(usage.total_tokens === total, `${where}: total_tokens is not the sum`);
  return usage.total_tokens;
}

async function collect(stream) {
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  return chunks;
}

// A path that is not forwarded: our own 404 must become the package's own exception.
async function unknownPath(root) {
  const stranger = new OpenAI({ baseURL: `${root}/not-an-api`, apiKey: "sk-test", maxRetries: 0 });
  const error = await stranger.models.list().then(
    () => null,
    (error) => error,
  );
  expect(error instanceof OpenAI.NotFoundError, `an unknown path gave ${error}`);
  expect(error.requestID, "the 404 carries no x-request-id");
  expect(error.error?.message, "the 404 has no message");
  expect(error.code, "the 404 has no code");
  return { status: error.status, code: error.code, request_id: error.requestID };
}

expect(process.argv.length === 3, "usage: openai_client.mjs http://HOST:PORT");
const root = process.argv[2].replace(/\/$/, "");
// No retries: they would hide a fault.
const client = new OpenAI({
  baseURL: `${root}/v1`,
  apiKey: "sk-test",
  maxRetries: 0,
  timeout: 30_000,
});

const models = (await collect(await client.models.list())).map((model) => model.id);
expect(models.length > 0, "no models");
const model = models[0];

const ours = "node-client-1";
const whole = await client.chat.completions.create(
  { model, messages: QUESTION },
  { headers: { "x-request-id": ours } },
);
expect(whole.choices[0].message.content, "unstreamed: no content");
expect(whole._request_id === ours, `unstreamed: request id is ${whole._request_id}`);

const chunks = await collect(
  await client.chat.completions.create({ model, messages: QUESTION, stream: true }),
);
expect(chunks.length > 2, `streamed: ${chunks.length} chunks`);
expect(textOf(chunks), "streamed: no content");
expect(
  chunks.some((chunk) => chunk.choices[0]?.finish_reason),
  "streamed: never finished",
);

const counted = await collect(
  await client.chat.completions.create({
    model,
    messages: QUESTION,
    stream: true,
    stream_options: { include_usage: true },
  }),
);
expect(textOf(counted), "streamed with usage: no content");

const vectors = await client.embeddings.create({
  model,
  input: "Count.",
  encoding_format: "float",
});
expect(vectors.data[0].embedding.length > 0, "embeddings: no vector");

console.log(
  JSON.stringify({
    client: `openai-node ${VERSION}`,
    models,
    unstreamed_tokens: checkUsage(whole.usage, "unstreamed"),
    streamed_chunks: chunks.length,
    streamed_tokens: checkUsage(counted.at(-1).usage, "streamed"),
    embedding_length: vectors.data[0].embedding.length,
    refused: await unknownPath(root),
  }),
);
