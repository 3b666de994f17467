// Sources of one page that share a connection, in node: also without Web Locks, as in a page without TLS.
import assert from "node:assert/strict";
import { test } from "node:test";
import { TopicSource } from "../dist/index.js";
import { until } from "./gateway.mjs";
import { next, OPEN, refuse, server, stream } from "./server.mjs";

async function serving(t, answer) {
  const it = await server(answer);
  t.after(() => it.stop());
  return it;
}

// What those who join read, before they follow: nothing.
const position = (request, response) => {
  if (request.headers.accept !== "application/json") return false;
  response.writeHead(200, { "content-type": "application/json" });
  response.end('{"messages":[],"gaps":[],"cursor":"e-0"}');
  return true;
};
const streams = (requests) => requests.filter(({ headers }) => headers.accept === "text/event-stream");

test("the sources of one page share a connection, and the next takes over at its cursor", async (t) => {
  let feed;
  const { url, requests } = await serving(t, (request, response) => {
    if (!position(request, response)) stream((feed = response), OPEN);
  });
  const sources = Array.from({ length: 5 }, () => new TopicSource(url));
  t.after(() => sources.forEach((each) => each.close()));
  const got = sources.map(() => []);
  sources.forEach((each, at) => each.addEventListener("any", ({ detail }) => got[at].push(detail.data)));
  await Promise.all(sources.map((each) => next(each, "open")));
  feed.write("id: e-1\ndata: one\n\n");
  await until("all have it", () => got.every((each) => each[0] === "one"));
  sources[0].close();
  await until("another reads", () => streams(requests).length === 2);
  assert.match(streams(requests)[1].url, /last_event_id=e-1$/);
  feed.write("id: e-1\ndata: one\n\nid: e-2\ndata: two\n\n");
  await until("the others have it", () => got.slice(1).every((each) => each.join() === "one,two"));
  assert.equal(streams(requests).length, 2);
});

test("many sources wait for a gateway that refuses as one would", async (t) => {
  const { url, requests } = await serving(t, (_, response) => {
    stream(response, 'event: stream-close\nretry: 500\ndata: {"code":"overloaded","reconnect":true}\n\n');
    response.end();
  });
  const sources = Array.from({ length: 8 }, () => new TopicSource(url));
  t.after(() => sources.forEach((each) => each.close()));
  const codes = await Promise.all(sources.map(async (each) => (await next(each, "error")).detail.code));
  assert.deepEqual(new Set(codes), new Set(["overloaded"]));
  await until("some time has passed", () => Date.now() - requests[0].at > 4000);
  const gaps = streams(requests).map(({ at }, index, all) => at - (all[index - 1]?.at ?? 0)).slice(2);
  // 0.5, 1 and 2 s, and never before its time.
  assert.ok(gaps.length >= 1 && gaps.length <= 3 && gaps[0] >= 1000, `${gaps}`);
});

test("sources that differ in the key, or that have a token and no key, share nothing", async (t) => {
  const { url, requests } = await serving(t, (request, response) => {
    if (!position(request, response)) stream(response, OPEN);
  });
  const token = () => "t";
  const options = [{}, { shareKey: "ann" }, { shareKey: "bob" }, { token }, { token }, { withCredentials: true }, { share: false }];
  const sources = options.map((each) => new TopicSource(url, each));
  t.after(() => sources.forEach((each) => each.close()));
  await Promise.all(sources.map((each) => next(each, "open")));
  assert.equal(streams(requests).length, options.length);
});

test("where what is shared is refused, each tries with its cookies by itself, and then says why", async (t) => {
  const { url, requests } = await serving(t, (_, response) => refuse(response, 401, "no_token"));
  const sources = [new TopicSource(url), new TopicSource(url)];
  const codes = await Promise.all(sources.map(async (each) => (await next(each, "refused")).detail.code));
  assert.deepEqual(codes, ["no_token", "no_token"]);
  assert.equal(requests.length, 4);
});
