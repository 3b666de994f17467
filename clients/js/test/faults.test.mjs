// What a page shows when something is refused, away, slow or gone: a real gateway, real brokers, Chromium. docs/faults.md has
// it as a table, with the pictures that `npm run pictures` makes here.
import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer, request } from "node:http";
import { connect, createServer as listen } from "node:net";
import { after, before, test } from "node:test";
import { launch, pages, picture, tab, windowOf } from "./browser.mjs";
import { gateway, until } from "./gateway.mjs";
import { broker } from "./nats.mjs";
import { JWT, token } from "./tokens.mjs";

let browser;
let site;

before(async () => {
  [browser, site] = await Promise.all([launch(), pages()]);
});

after(async () => {
  await browser?.close();
  site?.stop();
});

const cors = () => `[cors]\norigins = ["${site.origin}"]\ncredentials = true\n`;
const PUBLIC = '[[topics]]\nmatch = "**"\nread = "anyone"\npublish = "anyone"\n';
const GRANTED = '[[topics]]\nmatch = "**"\nread = "granted"\npublish = "anyone"\n';

async function gate(t, toml = "", options) {
  const it = await gateway(toml, options);
  t.after(() => it.stop());
  return it;
}

async function context(t) {
  const it = await browser.newContext();
  t.after(() => it.close());
  return it;
}

const has = (page, what) =>
  until(`the page has ${what}`, async () => (await page.got()).includes(what)).catch(async (error) => {
    throw new Error(`${error.message}; it has ${JSON.stringify([await page.got(), await page.events()])}`);
  });
const happens = (page, type, check = () => true) =>
  until(`${type} at the page`, async () => (await page.events()).find((event) => event[0] === type && check(event[1]))).catch(async (error) => {
    throw new Error(`${error.message}; it has ${JSON.stringify([await page.got(), await page.events()])}`);
  });
const count = (gate, sample) => gate.metric(sample);
const STREAMS = 'topicgate_streams{http="1.1"}';

test("two identities in two tabs never see each other's messages", async (t) => {
  const one = await gate(t, JWT + cors() + GRANTED);
  const shared = await context(t);
  const url = `${one.url}/topics/secret`;
  const read = async (sub, topics, options) => {
    const page = await tab(shared, site.origin);
    await page.evaluate(([url, token, options]) => void window.read(url, { ...options, token: () => token }), [url, token(sub, topics), options]);
    return page;
  };
  // With keys: the tabs of Ann share, Bob is refused by himself.
  const ann = await read("ann", ["secret"], { shareKey: "ann" });
  await ann.opened();
  const again = await read("ann", ["secret"], { shareKey: "ann" });
  await again.opened();
  const bob = await read("bob", ["other"], { shareKey: "bob" });
  const [, { status, code }] = await happens(bob, "refused");
  assert.deepEqual([status, code], [403, "missing_grant"]);
  await picture(bob, "14 No permission");
  // Without keys nobody shares.
  const alone = await read("bob", ["other"]);
  assert.equal((await happens(alone, "refused"))[1].code, "missing_grant");
  // Without a token at all.
  const nobody = await tab(shared, site.origin, url);
  assert.equal((await happens(nobody, "refused"))[1].code, "no_token");
  await one.publish("secret", "for Ann");
  await has(ann, "for Ann");
  await has(again, "for Ann");
  assert.equal(await count(one, STREAMS), 1);
  for (const page of [bob, alone, nobody]) assert.deepEqual(await page.got(), []);
});

test("a cookie is not shared: the shared connection has none, and a tab that needs one has its own connection", async (t) => {
  const one = await gate(t, JWT + cors() + GRANTED + '[auth.token]\ncookie = "session"\n');
  const shared = await context(t);
  const url = `${one.url}/topics/secret`;
  const login = (sub, topics) => shared.addCookies([{ name: "session", value: token(sub, topics), url: site.origin }]);
  await login("ann", ["secret"]);
  const ann = await tab(shared, site.origin, url, { withCredentials: true });
  await ann.opened();
  // Somebody else logs in, in another tab of the same browser.
  await login("bob", ["other"]);
  const bob = await tab(shared, site.origin, url, { withCredentials: true });
  assert.equal((await happens(bob, "refused"))[1].code, "missing_grant");
  await one.publish("secret", "for Ann");
  await has(ann, "for Ann");
  assert.deepEqual(await bob.got(), []);
});

test("a token that expires is renewed before the stream is opened again, and nothing is lost", async (t) => {
  const one = await gate(t, JWT + cors() + GRANTED + '[streams]\nretry = "500ms"\n');
  const page = await tab(await context(t), site.origin);
  await page.exposeFunction("fresh", () => token("ann", ["a"], 3));
  await page.evaluate((url) => void window.read(url, { token: () => (window.tokens = (window.tokens ?? 0) + 1, window.fresh()), shareKey: "ann" }), `${one.url}/topics/a`);
  await page.opened();
  for (let number = 0; number < 60; number++) {
    await one.publish("a", number);
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  await has(page, "59");
  assert.deepEqual(await page.got(), Array.from({ length: 60 }, (_, number) => `${number}`));
  await happens(page, "error", ({ code }) => code === "expired");
  await page.opened();
  await picture(page, "11 The token expires");
  assert.ok((await page.evaluate(() => window.tokens)) >= 2);
});

test("an expired token is requested once more, and a refused token is final", async (t) => {
  const one = await gate(t, JWT + cors() + GRANTED);
  const page = await tab(await context(t), site.origin);
  const read = (tokens) =>
    page.evaluate(([url, tokens]) => void window.read(url, { token: () => tokens.shift() }), [`${one.url}/topics/a`, tokens]);
  await read([token("ann", ["a"], -60), token("ann", ["a"])]);
  await page.opened();
  await picture(page, "12 The token is rotated");
  await page.evaluate(() => window.source.close());
  await read([token("ann", ["a"], -60), token("ann", ["a"], -60), token("ann", ["a"])]);
  const [, { status, code, detail }] = await happens(page, "refused");
  assert.deepEqual([status, code], [401, "expired_token"]);
  await picture(page, "13 The token is refused");
  assert.ok(detail.length > 0);
});

test("after a restart of the gateway every tab gets a gap, and messages again, over one connection", async (t) => {
  const toml = cors() + PUBLIC + '[streams]\nretry = "500ms"\n';
  const first = await gate(t, toml);
  const shared = await context(t);
  const url = `${first.url}/topics/a`;
  const tabs = [await tab(shared, site.origin, url), await tab(shared, site.origin, url)];
  for (const page of tabs) await page.opened();
  await first.publish("a", "before");
  for (const page of tabs) await has(page, "before");
  await first.stop();
  for (const page of tabs) await happens(page, "error", ({ status }) => status === 0);
  await picture(tabs[0], "21 The gateway is away");
  const second = await gate(t, toml, { port: first.port });
  for (const page of tabs) {
    await page.opened();
    assert.equal((await happens(page, "gap"))[1].reason, "restarted");
  }
  await picture(tabs[0], "22 It has been restarted");
  await second.publish("a", "after");
  for (const page of tabs) await has(page, "after");
  assert.equal(await count(second, STREAMS), 1);
});

test("a gateway that drains or is full says so, and the page reconnects later", async (t) => {
  const toml = cors() + PUBLIC + '[streams]\nretry = "500ms"\n[limits]\nstreams = 1\n';
  const first = await gate(t, toml);
  const other = await fetch(`${first.url}/topics/other`);
  const page = await tab(await context(t), site.origin, `${first.url}/topics/a`);
  const [, { code, wait }] = await happens(page, "error");
  assert.equal(code, "overloaded");
  await picture(page, "23 The gateway is full");
  assert.ok(wait >= 500);
  await other.body.cancel();
  await page.opened();
  const ended = first.stop("SIGTERM");
  await happens(page, "error", ({ code }) => code === "draining");
  await picture(page, "24 The gateway is drained");
  await ended;
  const second = await gate(t, toml, { port: first.port });
  await page.opened();
  await second.publish("a", "after");
  await has(page, "after");
});

test("a browser that is offline and online again misses nothing", async (t) => {
  const one = await gate(t, cors() + PUBLIC);
  const shared = await context(t);
  const page = await tab(shared, site.origin, `${one.url}/topics/a`, { heartbeat: 1000 });
  await page.opened();
  await one.publish("a", "before");
  await has(page, "before");
  await shared.setOffline(true);
  await one.publish("a", "meanwhile");
  await happens(page, "error");
  await one.publish("a", "and then");
  await picture(page, "41 Offline");
  await shared.setOffline(false);
  for (const what of ["meanwhile", "and then"]) await has(page, what);
  await picture(page, "42 Online again");
  assert.deepEqual(await page.got(), ["before", "meanwhile", "and then"]);
});

test("a connection that dies silently is noticed, and nothing is lost", async (t) => {
  const one = await gate(t, cors() + PUBLIC + '[streams]\nheartbeat = "1s"\nretry = "500ms"\n');
  // A connection in between that forwards nothing any more once it is switched to that.
  const sockets = [];
  let dead = false;
  const middle = listen((near) => {
    const far = connect(one.port, "127.0.0.1");
    const state = { dead: false };
    sockets.push(state);
    near.on("data", (data) => state.dead || far.write(data)).on("error", () => {}).on("close", () => far.destroy());
    far.on("data", (data) => state.dead || near.write(data)).on("error", () => {}).on("close", () => state.dead || near.destroy());
  }).listen(0, "127.0.0.1");
  await once(middle, "listening");
  t.after(() => middle.close());
  const url = `http://127.0.0.1:${middle.address().port}/topics/a`;
  const page = await tab(await context(t), site.origin, url, { heartbeat: 1000 });
  await page.opened();
  await one.publish("a", "before");
  await has(page, "before");
  for (const state of sockets) state.dead = true;
  await one.publish("a", "meanwhile");
  await has(page, "meanwhile");
  assert.deepEqual(await page.got(), ["before", "meanwhile"]);
});

test("while the broker is away the page is stale, and it gets a gap when the broker is back", async (t) => {
  const nats = await broker();
  t.after(nats.stop);
  const one = await gate(t, `broker.url = "nats://127.0.0.1:${nats.port}"\n` + cors() + PUBLIC);
  const page = await tab(await context(t), site.origin, `${one.url}/topics/a`);
  await page.opened();
  await one.publish("a", "before");
  await has(page, "before");
  await nats.kill();
  await happens(page, "stale", ({ topics }) => topics.includes("a"));
  await picture(page, "31 The broker is away");
  // A tab that opens now is stale too, whichever tab is the leader.
  const late = await tab(page.context(), site.origin, `${one.url}/topics/a`);
  await happens(late, "stale");
  await nats.start();
  await happens(page, "live");
  assert.equal((await happens(page, "gap"))[1].reason, "broker");
  await picture(page, "32 The broker is back");
  await one.publish("a", "after");
  await has(page, "after");
  await has(late, "after");
});

test("a page that becomes visible again does not wait any longer", async (t) => {
  let refusals = 0;
  const server = createServer((_, response) => {
    refusals++;
    response.writeHead(503, { "access-control-allow-origin": "*", "access-control-expose-headers": "retry-after", "retry-after": "600" });
    response.end();
  }).listen(0, "127.0.0.1");
  await once(server, "listening");
  t.after(() => (server.closeAllConnections(), server.close()));
  const open = await windowOf(browser);
  const page = await open(site.origin, `http://127.0.0.1:${server.address().port}/topics/a`);
  const other = await open(site.origin);
  t.after(() => Promise.all([page.close(), other.close()]));
  await other.show();
  await happens(page, "error", ({ wait }) => wait >= 600_000);
  const before = refusals;
  await page.show();
  await until("it tries again", () => refusals > before);
});

test("a topic that has ended closes every tab for good", async (t) => {
  const one = await gate(t, cors() + PUBLIC);
  const shared = await context(t);
  const url = `${one.url}/topics/job`;
  const tabs = [await tab(shared, site.origin, url), await tab(shared, site.origin, url)];
  for (const page of tabs) await page.opened();
  await one.publish("job", "half");
  const answer = await fetch(`${url}?end=true`, { method: "POST", body: "whole" });
  assert.equal(answer.status, 202);
  for (const page of tabs) {
    assert.equal((await happens(page, "closed"))[1].code, "ended");
    assert.deepEqual(await page.got(), ["half", "whole"]);
    assert.equal(await page.evaluate(() => window.source.readyState), 2);
  }
  await picture(tabs[0], "44 The topic has ended");
  await until("nobody reads", async () => (await count(one, STREAMS)) === 0);
});

test("behind a proxy that buffers, messages come page by page, and none is lost", async (t) => {
  const one = await gate(t, cors() + PUBLIC);
  // It gives nothing of an answer before it has all of it.
  const proxy = createServer((near, answer) => {
    const far = request({ port: one.port, host: "127.0.0.1", path: near.url, method: near.method, headers: near.headers }, (response) => {
      const parts = [];
      response.on("data", (part) => parts.push(part)).on("end", () => {
        answer.writeHead(response.statusCode, response.headers);
        answer.end(Buffer.concat(parts));
      }).on("error", () => answer.destroy());
    });
    far.on("error", () => answer.destroy());
    near.on("close", () => answer.writableEnded || far.destroy());
    answer.on("close", () => far.destroy());
    far.end();
  }).listen(0, "127.0.0.1");
  await once(proxy, "listening");
  t.after(() => (proxy.closeAllConnections(), proxy.close()));
  const url = `http://127.0.0.1:${proxy.address().port}/topics/a`;
  const page = await tab(await context(t), site.origin, url);
  await page.opened();
  for (let number = 0; number < 50; number++) await one.publish("a", number);
  await has(page, "49");
  await picture(page, "43 Behind a proxy that buffers");
  assert.deepEqual(await page.got(), Array.from({ length: 50 }, (_, number) => `${number}`));
});
