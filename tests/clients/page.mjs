// What a browser does for a page of https://chat.example that asks another origin for a stream: a
// preflight, the request, and a look at whether the page may have the answer. Node's fetch sends
// the same requests and keeps nothing from anybody, so that look is taken here, by the rules of the
// Fetch standard.
//
// Usage: page.mjs https://HOST:PORT
// Prints one line of JSON. Exit code 1 and a line on stderr when anything is not as it should be.

const root = process.argv[2];
const url = `${root}/v1/chat/completions`;

function expect(condition, what) {
  if (!condition) {
    console.error(`page.mjs: ${what}`);
    process.exit(1);
  }
}

const list = (answer, name) =>
  (answer.headers.get(name) ?? "").split(",").map((item) => item.trim().toLowerCase());

function preflight(origin) {
  return fetch(url, {
    method: "OPTIONS",
    headers: {
      origin,
      "access-control-request-method": "POST",
      "access-control-request-headers": "authorization,content-type",
    },
  });
}

const allowed = await preflight("https://chat.example");
expect(allowed.ok, `the preflight was answered ${allowed.status}`);
const mayAsk = allowed.headers.get("access-control-allow-origin");
expect(mayAsk === "https://chat.example", `the preflight allows ${mayAsk}`);
expect(list(allowed, "access-control-allow-methods").includes("post"), "no POST is allowed");
for (const field of ["authorization", "content-type"]) {
  expect(list(allowed, "access-control-allow-headers").includes(field), `no ${field} is allowed`);
}

const stranger = await preflight("https://elsewhere.example");
expect(!stranger.headers.has("access-control-allow-origin"), "a stranger is allowed");

const answer = await fetch(url, {
  method: "POST",
  headers: {
    origin: "https://chat.example",
    authorization: "Bearer sk-test",
    "content-type": "application/json",
    "x-mock-gap-ms": "20",
  },
  body: JSON.stringify({ model: "m", stream: true, messages: [{ role: "user", content: "?" }] }),
});
expect(answer.status === 200, `the request was answered ${answer.status}`);
const mayRead = answer.headers.get("access-control-allow-origin");
expect(mayRead === "https://chat.example", `the answer allows ${mayRead}`);
expect(list(answer, "access-control-expose-headers").includes("x-request-id"), "no id is exposed");
expect(list(answer, "vary").includes("origin"), "a cache would give it to another page");

let text = "";
let pieces = 0;
const decoder = new TextDecoder();
for await (const piece of answer.body) {
  text += decoder.decode(piece, { stream: true });
  pieces += 1;
}
const events = text.split("\n\n").filter((event) => event.startsWith("data: "));
expect(events.at(-1) === "data: [DONE]", "the stream has no end");
console.log(JSON.stringify({ events: events.length, pieces }));
