// Sources of one page that share a connection, in node: also without Web Locks, as in a page without TLS.
import assert from "node:assert/strict";
import { test } from "node:test";
import { TopicSource } from "../dist/index.js";
import { gateway, until } from "./gateway.mjs";
import { broker } from "./nats.mjs";
import { next, OPEN, refuse, server, stream } from "./server.mjs";

async function serving(t, answer) {
  const it = await server(answer);
  t.after(() => it.stop());
  return it;
}

// What those who join read, before they follow: nothing.
const nothing = (_, response, count = 0) => {
  response.writeHead(200, { "content-type": "application/json" });
  response.end(`{"messages":[],"gaps":[],"cursor":"e-${count}"}`);
};
const position = (request, response) => {
  if (request.headers.accept !== "application/json") return false;
  nothing(request, response);
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

test("many sources that are refused retry as a single one would", async (t) => {
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

test("if the shared connection is refused, each source tries alone with its cookies, and then reports the refusal", async (t) => {
  const { url, requests } = await serving(t, (_, response) => refuse(response, 401, "no_token"));
  const sources = [new TopicSource(url), new TopicSource(url)];
  const codes = await Promise.all(sources.map(async (each) => (await next(each, "refused")).detail.code));
  assert.deepEqual(codes, ["no_token", "no_token"]);
  assert.equal(requests.length, 4);
});

test("a stream without events of the gateway is joined too, and nothing is lost", async (t) => {
  let feed;
  const { url, requests } = await serving(t, (request, response) => {
    if (!position(request, response)) stream((feed = response), ": open\n\n");
  });
  const first = new TopicSource(`${url}?control=none`);
  await next(first, "open");
  const second = new TopicSource(`${url}?control=none`);
  t.after(() => (first.close(), second.close()));
  await next(second, "open");
  feed.write("id: e-1\ndata: one\n\n");
  const [one, two] = await Promise.all([next(first, "message"), next(second, "message")]);
  assert.deepEqual([one.data, two.data], ["one", "one"]);
  assert.equal(streams(requests).length, 1);
});

/** A server whose stream has a message every few milliseconds; `page` answers those who join. */
async function busy(t, page) {
  let count = 0;
  const { url } = await serving(t, (request, response) => {
    if (request.headers.accept === "application/json") return page(request, response, count);
    stream(response, OPEN);
    const timer = setInterval(() => response.write(`id: e-${++count}\ndata: ${count}\n\n`), 2);
    response.on("close", () => clearInterval(timer));
  });
  const join = (options) => {
    const source = new TopicSource(url, options);
    t.after(() => source.close());
    return source;
  };
  const first = join();
  await next(first, "message");
  return join;
}

test("a source that joins while messages flow asks the leader, however early the messages come", async (t) => {
  const join = await busy(t, nothing);
  for (let count = 0; count < 100; count++) await next(join(), "open", 5000);
});

test("a source that cannot read the missing messages tries again while messages flow", async (t) => {
  let refusals = 2;
  const join = await busy(t, (...of) => (refusals-- > 0 ? refuse(of[1], 503, "overloaded", { "retry-after": "1" }) : nothing(...of)));
  await next(join(), "open", 10_000);
  assert.ok(refusals < 0);
});

test("a source whose read of the missing messages hangs tries again while messages flow", async (t) => {
  let reads = 0;
  const join = await busy(t, (...of) => reads++ && nothing(...of));
  await next(join({ heartbeat: 300 }), "open", 15_000);
});

/** Numbers that look random and are the same in every run. */
function random(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let mixed = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296;
  };
}

/** A gateway of one topic that keeps all messages, answers when it likes, and cuts streams inside of events. */
function logging(next) {
  const log = [];
  const streams = new Set();
  const event = (number) => `id: e-${number}\ndata: ${number}\n\n`;
  const answer = (request, response) => {
    const { searchParams } = new URL(request.url, "http://a");
    const cursor = searchParams.get("last_event_id");
    const last = searchParams.get("last");
    const from = cursor ? Number(cursor.slice(2)) : last ? Math.max(0, log.length - Number(last)) : log.length;
    setTimeout(() => {
      if (request.headers.accept === "application/json") {
        const messages = log.slice(from, from + 5).map((data, at) => ({ id: `e-${from + at + 1}`, topic: "a", data }));
        const end = from + messages.length;
        response.writeHead(200, { "content-type": "application/json" });
        return response.end(JSON.stringify({ messages, gaps: [], cursor: `e-${end}`, more: end < log.length || undefined }));
      }
      // Where a live stream begins, it begins when it is answered.
      const start = cursor || last ? from : log.length;
      stream(response, `event: stream-open\nid: e-${start}\nretry: 1\ndata: {"topics":["a"]}\n\n`);
      for (let number = start + 1; number <= log.length; number++) response.write(event(number));
      response.since = Date.now();
      streams.add(response);
      response.on("close", () => streams.delete(response));
    }, next() * 8);
  };
  return {
    log,
    answer,
    publish() {
      log.push(`${log.length + 1}`);
      for (const response of streams) response.write(event(log.length));
    },
    cut() {
      for (const response of streams) {
        // Not before the page knows how long to wait.
        if (Date.now() - response.since < 20) continue;
        response.write(`id: e-${log.length + 1}\ndata: ${log.length + 1}\n`);
        response.destroy();
      }
    },
  };
}

test("with sources that join, leave and break at random, every source gets every message once and in order", { timeout: 120_000 }, async (t) => {
  for (let round = 0; round < 8; round++) {
    const next = random(round);
    const gate = logging(next);
    const { url } = await serving(t, gate.answer);
    const sources = [];
    const open = () => {
      const kind = next();
      const options = kind < 0.3 && gate.log.length ? { lastEventId: `e-${Math.max(0, gate.log.length - Math.floor(next() * 12))}` } : {};
      const source = new TopicSource(kind > 0.7 ? `${url}?last=3` : url, options);
      const entry = { source, got: [], from: options.lastEventId && Number(options.lastEventId.slice(2)) };
      source.onmessage = ({ data }) => entry.got.push(Number(data));
      sources.push(entry);
    };
    for (let step = 0; step < 150; step++) {
      const what = next();
      if (what < 0.6) gate.publish();
      else if (what < 0.75) await new Promise((resolve) => setTimeout(resolve, next() * 20));
      else if (what < 0.85 && sources.length < 12) open();
      else if (what < 0.92) gate.cut();
      // As a page that is frozen, and thaws at once.
      else if (what < 0.96) sources[Math.floor(next() * sources.length)]?.source._again();
      else sources[Math.floor(next() * sources.length)]?.source.close();
    }
    const living = sources.filter(({ source }) => source.readyState < 2);
    await until("all are open", () => living.every(({ source }) => source.readyState === 1));
    gate.publish();
    await until("all have the last message", () => living.every(({ got }) => got.at(-1) === gate.log.length), 20_000).catch((error) => {
      throw new Error(`round ${round}: ${error.message} ${JSON.stringify(living.map(({ got }) => got.slice(-5)))} of ${gate.log.length}`);
    });
    for (const { got, from, source } of sources) {
      const start = from === undefined ? got[0] : from + 1;
      assert.deepEqual(got, got.map((_, at) => start + at), `round ${round}`);
      source.close();
    }
  }
});

/** A gateway that begins to follow a bucket of 1,500 keys, which are more than one page; `read` opens a source of it. */
async function ofBucket(t) {
  const nats = await broker();
  t.after(nats.stop);
  await nats.bucket("prices");
  await nats.fill("prices", 1500);
  const it = await gateway(`broker.url = "${nats.url}"\n[[topics]]\nmatch = "prices/*"\nsource = "kv"\nbucket = "prices"\nread = "anyone"\n`);
  t.after(() => it.stop());
  const asked = t.mock.method(globalThis, "fetch");
  const reads = () => asked.mock.calls.filter(({ arguments: [url] }) => `${url}`.includes("/topics/prices")).length;
  const read = (more = "") => {
    const source = new TopicSource(`${it.url}/topics/prices/*${more}`);
    t.after(() => source.close());
    const got = [];
    source.addEventListener("any", ({ detail }) => got.push(detail.data));
    source.addEventListener("gap", ({ detail }) => got.push(detail));
    return Object.assign(got, { source });
  };
  return { nats, read, reads };
}
const numbers = Array.from({ length: 1500 }, (_, number) => `${number}`);

test("a source that joins the readers of a large bucket has each value once, after a few reads", async (t) => {
  const { nats, read, reads } = await ofBucket(t);
  const all = [read()];
  await until("it has all values", () => all[0].length === 1500);
  for (const count of [1, 2]) {
    const before = reads();
    all.push(read());
    await until("it has all values", () => all[count].length === 1500);
    assert.ok(reads() - before <= 4, `${reads() - before} reads`);
  }
  await nats.put("prices", "k7", "new");
  for (const got of all) {
    await until("it has the change", () => got.length > 1500);
    assert.deepEqual([...got], [...numbers, "new"]);
  }
});

test("sources that open at once, while a key of their large bucket changes, have each value once", async (t) => {
  const { nats, read } = await ofBucket(t);
  let going = true;
  let count = 0;
  const writing = (async () => {
    while (going) await nats.put("prices", "hot", `hot ${count++}`);
  })();
  const all = [];
  for (let opened = 0; opened < 6; opened++) {
    all.push(read());
    await new Promise((resolve) => setTimeout(resolve, 15));
  }
  await until("all have all values", () => all.every((got) => got.length > 1520));
  going = false;
  await writing;
  for (const got of all) {
    await until("it has the last change", () => got.includes(`hot ${count - 1}`));
    const hot = got.filter((data) => /^hot/.test(data)).map((data) => +data.slice(4));
    assert.deepEqual(got.filter((data) => !/^hot/.test(data)), numbers);
    // The bucket itself drops a value when the next one comes.
    const wrong = hot.findIndex((number, index) => index && number <= hot[index - 1]);
    assert.equal(wrong, -1, `in order, and each once: ${hot.slice(wrong - 3, wrong + 3)}`);
  }
});
