// TopicSource by itself, in node: what it makes of the answers of a server.
import assert from "node:assert/strict";
import { test } from "node:test";
import { TopicSource } from "../dist/index.js";
import { next, OPEN, refuse, server, stream } from "./server.mjs";

const open = (url, options) => new TopicSource(url, { share: false, ...options });

async function serving(t, answer) {
  const it = await server(answer);
  t.after(() => it.stop());
  return it;
}

test("it is an EventSource: constants, handlers, types, origin and ids", async (t) => {
  const { url } = await serving(t, (_, response) =>
    stream(response, `${OPEN}id: e-1\ndata: one\n\nid: e-2\nevent: price\ndata: two\n\n`));
  const source = open(url);
  t.after(() => source.close());
  assert.equal(source.readyState, TopicSource.CONNECTING);
  assert.equal(source.url, url);
  assert.deepEqual([source.CONNECTING, source.OPEN, source.CLOSED], [0, 1, 2]);
  const seen = [];
  source.onopen = () => seen.push("open");
  source.onmessage = ({ data, lastEventId, origin }) => seen.push([data, lastEventId, origin]);
  source.addEventListener("stream-open", ({ data }) => seen.push(JSON.parse(data).topics));
  source.addEventListener("any", ({ detail }) => seen.push([detail.type, detail.data]));
  const { data } = await next(source, "price");
  assert.equal(data, "two");
  await null;
  assert.equal(source.readyState, TopicSource.OPEN);
  assert.deepEqual(seen, ["open", ["a"], ["one", "e-1", new URL(url).origin], ["message", "one"], ["price", "two"]]);
  assert.equal(source.lastEventId, "e-2");
  source.close();
  assert.equal(source.readyState, TopicSource.CLOSED);
});

test("it reconnects with the last id after a cut, no earlier than retry, and drops an incomplete event", async (t) => {
  const { url, requests } = await serving(t, (_, response, count) => {
    if (count > 0) return stream(response, `id: e-2\ndata: two\n\n`);
    stream(response, `${OPEN}id: e-1\ndata: one\n\nid: e-2\ndata: tw`);
    setTimeout(() => response.destroy(), 50);
  });
  const source = open(`${url}?lastEventId=old&last=3`);
  t.after(() => source.close());
  const got = [];
  source.onmessage = ({ data }) => got.push(data);
  const { detail } = await next(source, "error");
  assert.equal(source.readyState, 0);
  assert.ok(detail.wait >= 500 && detail.wait <= 750, `${detail.wait}`);
  while (got.length < 2) await next(source, "message");
  assert.deepEqual(got, ["one", "two"]);
  assert.ok(requests[1].at - requests[0].at >= 500);
  assert.equal(new URL(requests[1].url, url).searchParams.getAll("last_event_id").at(-1), "e-1");
});

test("it begins at the cursor that the server put into the page", async (t) => {
  const { url, requests } = await serving(t, (_, response) => stream(response, OPEN));
  const source = open(url, { lastEventId: "e-7", topics: ["x/y", "z"] });
  t.after(() => source.close());
  await next(source, "open");
  assert.equal(requests[0].url, "/topics/a?topic=x%2Fy&topic=z&last_event_id=e-7");
  assert.deepEqual(source.topics, ["x/y", "z"]);
});

test("a refusal has a status, a code and a detail, and is final", async (t) => {
  const { url, requests } = await serving(t, (_, response) => refuse(response, 403, "missing_grant"));
  const source = open(url);
  const events = [];
  for (const type of ["error", "refused"]) source.addEventListener(type, () => events.push(type));
  const { detail } = await next(source, "refused");
  assert.deepEqual(detail, { status: 403, code: "missing_grant", detail: "because of missing_grant" });
  // A page that shows the last of the two shows the one that is final.
  assert.deepEqual(events, ["error", "refused"]);
  assert.equal(source.readyState, 2);
  await assert.rejects(async () => {
    for await (const _ of source.messages());
  }, { status: 403, code: "missing_grant" });
  assert.equal(requests.length, 1);
});

test("an answer that is no event stream is refused", async (t) => {
  const { url } = await serving(t, (_, response) => {
    response.writeHead(200, { "content-type": "text/html" });
    response.end("<h1>Log in</h1>");
  });
  const { detail } = await next(open(url), "refused");
  assert.deepEqual(detail, { status: 200, code: "http", detail: "no text/event-stream" });
});

test("Retry-After is obeyed, and a temporary refusal is retried", async (t) => {
  const { url, requests } = await serving(t, (_, response, count) =>
    count ? stream(response, OPEN) : refuse(response, 503, "overloaded", { "retry-after": "4" }));
  const source = open(url);
  t.after(() => source.close());
  const { detail } = await next(source, "error");
  assert.equal(detail.code, "overloaded");
  assert.ok(detail.wait >= 4000);
  await next(source, "open");
  assert.ok(requests[1].at - requests[0].at >= 4000);
});

test("Retry-After may be a date, and one that is far away or over is no reason to hammer", async (t) => {
  const soon = new Date(Math.ceil(Date.now() / 1000) * 1000 + 4000);
  const dates = [soon.toUTCString(), "Fri, 01 Jan 2010 00:00:00 GMT", "soon", "Fri, 31 Dec 2399 00:00:00 GMT", "99999999999"];
  for (const [at, date] of dates.entries()) {
    const { url, requests } = await serving(t, (_, response, count) =>
      count ? stream(response, OPEN) : refuse(response, 503, "overloaded", { "retry-after": date }));
    const source = open(url);
    t.after(() => source.close());
    const { detail: { wait } } = await next(source, "error");
    if (at > 2) assert.ok(wait >= 1e9 && wait < 2 ** 31, `${date}: ${wait}`);
    else if (at) assert.ok(wait >= 3000 && wait <= 4500, `${date}: ${wait}`);
    else {
      await next(source, "open");
      assert.ok(requests[1].at >= soon, `${requests[1].at - soon}`);
    }
  }
});

test("it waits longer after each failure, and each source for another time", async (t) => {
  const { url } = await serving(t, (_, response) => {
    stream(response, "retry: 10\n\n");
    setTimeout(() => response.destroy(), 5);
  });
  const waits = [];
  for (let sources = 0; sources < 2; sources++) {
    const source = open(url);
    t.after(() => source.close());
    for (let fails = 0; fails < 4; fails++) waits.push((await next(source, "error")).detail.wait);
  }
  for (const [at, wait] of waits.entries()) {
    const least = 10 * 2 ** (at % 4);
    assert.ok(wait >= least && wait <= least * 1.5, `${waits}`);
  }
  assert.equal(new Set(waits).size, 8);
});

test("204 and stream-close without a reconnect end it for good", async (t) => {
  const { url, requests } = await serving(t, (request, response) => {
    if (request.url.endsWith("over")) {
      response.writeHead(204);
      return response.end();
    }
    stream(response, `${OPEN}event: stream-close\nretry: 500\ndata: {"code":"ended","reconnect":false}\n\n`);
    response.end();
  });
  for (const query of ["", "?over"]) {
    const source = open(url + query);
    const list = [];
    const all = (async () => {
      for await (const { data } of source.messages()) list.push(data);
    })();
    const { detail } = await next(source, "closed");
    assert.equal(detail.code, "ended");
    assert.equal(source.readyState, 2);
    await all;
    assert.deepEqual(list, []);
  }
  assert.equal(requests.length, 2);
});

test("stream-close with a reconnect says why, and is no opening", async (t) => {
  const { url } = await serving(t, (_, response, count) => {
    if (count) return stream(response, OPEN);
    stream(response, 'event: stream-close\nretry: 500\ndata: {"code":"draining","reconnect":true}\n\n');
    response.end();
  });
  const source = open(url);
  t.after(() => source.close());
  let opened = 0;
  source.onopen = () => opened++;
  assert.equal((await next(source, "error")).detail.code, "draining");
  assert.equal(opened, 0);
  await next(source, "open");
});

test("the token is requested before each opening, and once more if it has expired", async (t) => {
  const { url, requests } = await serving(t, (request, response) => {
    const token = request.headers.authorization;
    if (token === "Bearer 1" || token === "Bearer 2") return refuse(response, 401, "expired_token");
    stream(response, OPEN);
    setTimeout(() => response.destroy(), 20);
  });
  let tokens = 1;
  const source = open(url, { token: async () => `${tokens++}` });
  const [refused] = await Promise.all([next(source, "refused")]);
  assert.equal(refused.detail.code, "expired_token");
  assert.deepEqual(requests.map((each) => each.headers.authorization), ["Bearer 1", "Bearer 2"]);
  const other = open(url, { token: () => `${tokens++}` });
  t.after(() => other.close());
  await next(other, "open");
  await next(other, "open");
  assert.deepEqual(requests.slice(2).map((each) => each.headers.authorization), ["Bearer 3", "Bearer 4"]);
});

test("a token function that fails is a temporary fault", async (t) => {
  const { url } = await serving(t, (_, response) => stream(response, OPEN));
  let calls = 0;
  const source = open(url, { token: () => (calls++ ? "t" : Promise.reject(new Error("no network"))) });
  t.after(() => source.close());
  assert.equal((await next(source, "error")).detail.detail, "no network");
  await next(source, "open");
});

test("gap, stale and live have the data of the gateway's events, and no publisher can imitate them", async (t) => {
  const said = (type, data) => `event: ${type}\nid: ${type}-${data.length}\ndata: ${data}\n\n`;
  const { url } = await serving(t, (_, response) => {
    stream(response, OPEN + said("refused", "forged") + said("gap", "forged") + said("error", "forged") +
      said("stream-stale", '{"topics":["a"]}') + said("stream-gap", '{"topic":"a","reason":"broker"}') +
      said("stream-live", '{"topics":["a"]}') + said("stream-gap", "no JSON") + said("end", ""));
  });
  const source = open(url);
  t.after(() => source.close());
  const seen = [];
  for (const type of ["gap", "stale", "live", "refused", "error", "stream-gap"]) {
    source.addEventListener(type, ({ type, detail, data }) => seen.push([type, detail ?? data]));
  }
  const any = [];
  source.addEventListener("any", ({ detail }) => any.push(detail.type));
  await next(source, "end");
  await null;
  const gap = { topic: "a", reason: "broker" };
  assert.deepEqual(seen, [["stale", { topics: ["a"] }], ["stream-gap", JSON.stringify(gap)], ["gap", gap],
    ["live", { topics: ["a"] }], ["stream-gap", "no JSON"], ["gap", {}]]);
  assert.deepEqual(any, ["refused", "gap", "error", "end"]);
});

test("a connection that is silent for three heartbeats counts as dead", async (t) => {
  const { url, requests } = await serving(t, (_, response) => stream(response, OPEN));
  const source = open(url, { heartbeat: 100 });
  t.after(() => source.close());
  const { detail } = await next(source, "error");
  assert.deepEqual([detail.status, detail.code], [0, "cut"]);
  assert.ok(Date.now() - requests[0].at >= 300);
  await next(source, "open");
  assert.equal(new URL(requests[1].url, url).searchParams.get("last_event_id"), "e-0");
});

test("a new list of topics opens at the position of the old one, and then replaces it", async (t) => {
  let first;
  const { url, requests } = await serving(t, (request, response, count) => {
    if (count === 0) {
      first = response;
      return stream(response, `${OPEN}id: e-1\ndata: one\n\n`);
    }
    first.write("id: e-2\ndata: two\n\n");
    setTimeout(() => stream(response, `${OPEN}id: x-1\ndata: new\n\nid: e-2\ndata: two\n\nid: e-3\ndata: three\n\n`), 100);
  });
  const source = open(url, { topics: ["b"] });
  t.after(() => source.close());
  const got = [];
  source.onmessage = ({ data }) => got.push(data);
  await next(source, "message");
  const closed = new Promise((resolve) => first.on("close", resolve));
  source.topics = ["c", "d"];
  while (got.length < 4) await next(source, "message");
  assert.deepEqual(got, ["one", "two", "new", "three"]);
  assert.equal(requests[1].url, "/topics/a?topic=c&topic=d&last_event_id=e-1");
  assert.equal(source.readyState, 1);
  await closed;
});

test("a new list that is refused leaves the old one unchanged", async (t) => {
  let first;
  const { url } = await serving(t, (_, response, count) =>
    count ? refuse(response, 404, "not_found") : stream((first = response), OPEN));
  const source = open(url);
  t.after(() => source.close());
  await next(source, "open");
  source.topics = ["secret"];
  assert.equal((await next(source, "refused")).detail.code, "not_found");
  assert.deepEqual([source.readyState, source.topics, source.url], [1, [], url]);
  first.write("id: e-1\ndata: still\n\n");
  assert.equal((await next(source, "message")).data, "still");
});

test("a signal closes it, and messages() ends", async (t) => {
  const { url } = await serving(t, (_, response) => stream(response, `${OPEN}id: 1\nevent: a\ndata: 1\n\nid: 2\nevent: b\ndata: 2\n\n`));
  const abort = new AbortController();
  const source = open(url, { signal: abort.signal });
  const got = [];
  for await (const { data } of source.messages("b")) {
    got.push(data);
    abort.abort();
  }
  assert.deepEqual(got, ["2"]);
  assert.equal(source.readyState, 2);
  assert.equal(open(url, { signal: abort.signal }).readyState, 2);
});

test("a reader of messages() that is too slow gets a gap, and memory stays bounded", async (t) => {
  let text = OPEN;
  for (let count = 0; count < 10_050; count++) text += `id: m-${count}\ndata: ${count}\n\n`;
  const { url } = await serving(t, (_, response) => stream(response, text + "event: last\nid: l\ndata: \n\n"));
  const source = open(url);
  t.after(() => source.close());
  const messages = source.messages();
  const gap = next(source, "gap");
  await next(source, "last");
  assert.equal((await gap).detail.reason, "slow");
  assert.equal((await messages.next()).value.data, "10001");
  await messages.return();
});

test("if a proxy holds the stream back, it reads page by page", { timeout: 60_000 }, async (t) => {
  const page = (response, messages, cursor, gaps = []) => {
    response.writeHead(200, { "content-type": "application/json" });
    response.end(JSON.stringify({ messages, gaps, cursor }));
  };
  const { url, requests } = await serving(t, (request, response, count) => {
    if (request.headers.accept === "text/event-stream") return response.writeHead(200, { "content-type": "text/event-stream" }).flushHeaders();
    const { searchParams } = new URL(request.url, "http://a");
    const at = searchParams.get("last_event_id");
    if (!at) page(response, [], "e-0");
    else if (at === "e-0") page(response, [{ id: "e-1", topic: "a", data: "o\r\nne" }, { id: "e-2", topic: "a", type: "price", data_base64: "/w==" }], "e-2");
    else if (at === "e-2") page(response, [], "e-5", [{ topic: "a", reason: "slow" }]);
    else setTimeout(() => page(response, [{ id: "e-6", topic: "a", data: "six" }], "e-6"), 100);
  });
  const source = open(url);
  t.after(() => source.close());
  const got = [];
  source.addEventListener("open", () => got.push("open"));
  source.addEventListener("gap", ({ detail }) => got.push(detail.reason));
  source.addEventListener("any", ({ detail }) => got.push([detail.type, detail.data, detail.lastEventId]));
  while (got.length < 5) await next(source, "any");
  assert.deepEqual(got, ["open", ["message", "o\nne", "e-1"], ["price", "data:application/octet-stream;base64,/w==", "e-2"], "slow", ["message", "six", "e-6"]]);
  assert.equal(requests[1].headers.accept, "application/json");
  assert.match(requests[2].url, /wait=20s/);
});
