// Tabs of Chromium that share one connection to a real gateway, seen from both sides.
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { counting, launch, leader, pages, tab, windowOf } from "./browser.mjs";
import { gateway, until } from "./gateway.mjs";
import { broker } from "./nats.mjs";
import { JWT, token } from "./tokens.mjs";

let browser;
let site;
let gate;

before(async () => {
  [browser, site] = await Promise.all([launch(), pages()]);
  gate = await gateway(`[cors]\norigins = ["${site.origin}"]\ncredentials = true\n[streams]\nheartbeat = "1s"\n` +
    '[[topics]]\nmatch = "**"\nread = "anyone"\npublish = "anyone"\nreplay = { messages = 100000, bytes = "64MiB", age = "10m" }\n');
});

after(async () => {
  await browser?.close();
  site?.stop();
  await gate?.stop();
});

const streams = () => gate.metric('topicgate_streams{http="1.1"}');

async function tabs(t, number, topic, options) {
  const context = await browser.newContext();
  t.after(() => context.close());
  const url = `${gate.url}/topics/${topic}`;
  const all = await Promise.all(Array.from({ length: number }, () => tab(context, site.origin, url, options)));
  await Promise.all(all.map((each) => each.opened()));
  return { context, all };
}

/**
 * Every tab has 0, 1, 2 … from the first that it got to the last that was published, once and in order, and no gap but
 * of these topics.
 */
async function complete(all, count, topics = []) {
  for (const each of all) {
    await until(`a tab has message ${count - 1}`, async () => (await each.got()).includes(`${count - 1}`)).catch(async (error) => {
      throw new Error(`${error.message}; it has ${JSON.stringify((await each.got()).slice(-5))}, events ${JSON.stringify(await each.events())}`);
    });
    assert.deepEqual((await each.events()).filter(([type, detail]) => type === "gap" && !topics.includes(detail.topic)), []);
    const got = (await each.got()).map(Number);
    assert.deepEqual(got, Array.from({ length: count - got[0] }, (_, at) => got[0] + at));
  }
}

test("eight tabs have one connection over HTTP/1.1, and a plain fetch beside them works", async (t) => {
  const { all } = await tabs(t, 8, "eight");
  assert.equal(await streams(), 1);
  for (let count = 0; count < 200; count++) await gate.publish("eight", count);
  await complete(all, 200);
  for (const each of all) assert.equal((await each.got()).length, 200);
  const status = await all[7].evaluate(async (url) => (await fetch(url, { method: "POST", body: "200" })).status, `${gate.url}/topics/eight`);
  assert.equal(status, 202);
  await complete(all, 201);
  await Promise.all(all.slice(1).map((each) => each.close()));
  await until("the last reads by itself", () => all[0].leads());
  await until("there is one connection", async () => (await streams()) === 1);
  await all[0].evaluate(() => window.source.close());
  await until("the last closes the connection", async () => (await streams()) === 0);
});

test("the same URL in one tab is one connection, until the last is closed", async (t) => {
  const { all } = await tabs(t, 1, "counted");
  const [page] = all;
  await page.evaluate((url) => {
    window.more = Array.from({ length: 9 }, () => new TopicSource(url));
    return Promise.all(more.map((each) => new Promise((resolve) => (each.onopen = resolve)))).then(() => 0);
  }, `${gate.url}/topics/counted`);
  assert.equal(await streams(), 1);
  await page.evaluate(() => window.source.close());
  await page.evaluate(() => {
    window.heard = 0;
    for (const each of window.more) each.onmessage = () => window.heard++;
  });
  await until("another leads", () => page.leads());
  await gate.publish("counted", "x");
  await until("all nine have it", async () => (await page.evaluate(() => window.heard)) === 9);
  assert.equal(await streams(), 1);
  await page.evaluate(() => window.more.forEach((each) => each.close()));
  await until("the last closes the connection", async () => (await streams()) === 0);
});

const ENDS = {
  "is closed": async (page) => {
    await page.close();
  },
  "crashes": async (page) => {
    const session = await page.context().newCDPSession(page);
    const crashed = new Promise((resolve) => page.on("crash", resolve));
    session.send("Page.crash").catch(() => {});
    await crashed;
  },
  "navigates away and comes back": async (page) => {
    await page.goto(`${site.origin}/other`);
    return async () => {
      await page.goBack({ waitUntil: "commit" });
      assert.equal(await page.evaluate(() => window.persisted), true, "the page was kept in the back/forward cache");
    };
  },
  "reloads": async (page) => {
    await page.reload();
  },
};

// Messages flow, something happens to the leader, messages flow, perhaps it comes back, messages flow.
async function takeOver(all, topic, end) {
  const numbers = counting(gate, topic);
  await until("messages flow", async () => (await all[0].got()).length > 20);
  const first = await leader(all);
  const others = all.filter((each) => each !== first);
  const back = await end(first, others);
  const next = await leader(others);
  const before = numbers.count;
  await until("messages flow again", async () => (await next.got()).at(-1) > before + 20);
  await back?.();
  await until("more messages", () => numbers.count > before + 100);
  const count = await numbers.stop();
  await complete(back ? all : others, count);
  await until("there is one connection", async () => (await streams()) === 1);
}

for (const [what, end] of Object.entries(ENDS)) {
  test(`the leader ${what}: every tab has every message, once and in order`, async (t) => {
    const topic = what.replaceAll(" ", "-");
    const { all } = await tabs(t, 4, topic);
    await takeOver(all, topic, end);
  });
}

test("the leader is frozen and thaws: every tab has every message, once and in order", async (t) => {
  const tab = await windowOf(browser);
  const all = [];
  for (let count = 0; count < 3; count++) all.push(await tab(site.origin, `${gate.url}/topics/frozen`));
  t.after(() => Promise.all(all.map((each) => each.close())));
  await Promise.all(all.map((each) => each.opened()));
  await takeOver(all, "frozen", async (first, [other]) => {
    await other.show();
    await first.freeze();
    return first.thaw;
  });
});

test("a leader that hangs is replaced, and follows when it is back: once and in order", async (t) => {
  const { all } = await tabs(t, 3, "hangs", { heartbeat: 1000 });
  await takeOver(all, "hangs", async (first, others) => {
    const hung = first.evaluate(() => new Promise((resolve) => setTimeout(() => {
      const end = Date.now() + 12_000;
      while (Date.now() < end);
      resolve();
    })));
    await leader(others);
    return () => hung;
  });
});

test("tabs that open later, with a cursor or with a start, get the earlier messages, over the same connection", async (t) => {
  const { context, all } = await tabs(t, 1, "late");
  const numbers = counting(gate, "late");
  await until("messages flow", async () => (await all[0].got()).length > 50);
  const url = `${gate.url}/topics/late`;
  const cursor = await all[0].evaluate(() => window.source.lastEventId);
  const after = Number((await all[0].got()).at(-1));
  await until("messages flow", () => numbers.count > after + 50);
  const late = await tab(context, site.origin, url, { lastEventId: cursor });
  const live = await tab(context, site.origin, url);
  for (const page of [late, live]) await page.opened();
  const count = await numbers.stop();
  await complete([...all, late, live], count);
  assert.ok(Number((await late.got())[0]) <= after + 1);
  assert.equal(await streams(), 1);
});

test("tabs with last= share a connection, and each has the last messages first", async (t) => {
  const reader = await fetch(`${gate.url}/topics/news`);
  t.after(() => reader.body.cancel());
  for (let count = 0; count < 100; count++) await gate.publish("news", count);
  const context = await browser.newContext();
  t.after(() => context.close());
  const url = `${gate.url}/topics/news?last=20`;
  const all = [];
  for (let count = 0; count < 3; count++) {
    all.push(await tab(context, site.origin, url));
    await until("it has the last", async () => (await all[count].got()).length >= 20);
    assert.deepEqual(await all[count].got(), Array.from({ length: 20 }, (_, at) => `${80 + at}`));
  }
  const numbers = counting(gate, "news", 100);
  for (let count = 0; count < 2; count++) {
    const before = numbers.count;
    all.push(await tab(context, site.origin, url));
    await all.at(-1).opened();
    await until("messages flow", () => numbers.count > before + 50);
  }
  await complete(all, await numbers.stop());
  await until("there is one connection, beside the reader's", async () => (await streams()) === 2);
});

test("tabs that read envelopes share a connection, and a later one has the last messages first", async (t) => {
  const reader = await fetch(`${gate.url}/topics/envelopes`);
  t.after(() => reader.body.cancel());
  for (let count = 0; count < 30; count++) await gate.publish("envelopes", count);
  const context = await browser.newContext();
  t.after(() => context.close());
  for (let count = 0; count < 2; count++) {
    const page = await tab(context, site.origin, `${gate.url}/topics/envelopes?last=20&format=cloudevents`);
    await until("it has the last", async () => (await page.got()).length >= 20);
    const numbers = (await page.got()).map((text) => JSON.parse(text).data);
    assert.deepEqual(numbers, Array.from({ length: 20 }, (_, at) => 10 + at));
  }
  await until("there is one connection, beside the reader's", async () => (await streams()) === 2);
});

test("a tab that reads other topics changes its connection without a loss, whether or not it is the leader", async (t) => {
  const context = await browser.newContext();
  t.after(() => context.close());
  const url = `${gate.url}/topics`;
  const all = [];
  for (let count = 0; count < 3; count++) {
    all.push(await tab(context, site.origin, url, { topics: ["change/a", "change/b"] }));
    await all[count].opened();
  }
  const numbers = counting(gate, "change/a");
  for (const page of [all[1], await leader(all)]) {
    const before = numbers.count;
    await until("messages flow", () => numbers.count > before + 30);
    await page.evaluate(() => { window.source.topics = ["change/a", "change/c"]; });
    await until("messages flow", () => numbers.count > before + 80);
  }
  const changed = [];
  const count = await numbers.stop();
  for (const page of all) {
    const isChanged = (await page.evaluate(() => window.source.topics))[1] === "change/c";
    if (isChanged) changed.push(page);
    // Nobody has read the new topic, so the gateway does not know what it had after the cursor.
    await complete([page], count, isChanged ? ["change/c"] : []);
  }
  await gate.publish("change/c", "c");
  for (const page of changed) await until("it has the new topic", async () => (await page.got()).includes("c"));
  await until("there is one for each list", async () => (await streams()) === (changed.length < 3 ? 2 : 1));
});

test("a tab that joins the readers of a bucket has the value of each key first, and then the changes", async (t) => {
  const nats = await broker();
  t.after(nats.stop);
  await nats.bucket("prices");
  for (const key of ["a", "b", "c"]) await nats.put("prices", key, `${key}1`);
  const kv = await gateway(`broker.url = "${nats.url}"\n[cors]\norigins = ["${site.origin}"]\n` +
    '[[topics]]\nmatch = "prices/*"\nsource = "kv"\nbucket = "prices"\nread = "anyone"\n');
  t.after(() => kv.stop());
  const context = await browser.newContext();
  t.after(() => context.close());
  const all = [];
  for (let count = 0; count < 3; count++) {
    all.push(await tab(context, site.origin, `${kv.url}/topics/prices/*`));
    await until("it has all values", async () => (await all[count].got()).length === 3);
    assert.deepEqual((await all[count].got()).sort(), ["a1", "b1", "c1"]);
  }
  await nats.put("prices", "b", "b2");
  for (const page of all) await until("it has the change", async () => (await page.got())[3] === "b2");
  assert.equal(await kv.metric('topicgate_streams{http="1.1"}'), 1);
});

test("a SharedWorker reads for all tabs, and stops when the last source is closed", async (t) => {
  const context = await browser.newContext();
  t.after(() => context.close());
  const url = `${gate.url}/topics/worker`;
  const all = await Promise.all([1, 2, 3].map(() => tab(context, site.origin)));
  const read = (page) => page.evaluate((url) => {
    const worker = (window.worker ??= new SharedWorker("/topicgate.js", { type: "module" }));
    window.read(url, { worker });
  }, url);
  for (const page of all) {
    await read(page);
    await page.opened();
  }
  await until("no tab leads", async () => (await Promise.all(all.map((page) => page.leads()))).every((leads) => !leads));
  const numbers = counting(gate, "worker");
  await until("messages flow", () => numbers.count > 50);
  await all[0].close();
  await until("messages flow", () => numbers.count > 100);
  const count = await numbers.stop();
  await complete(all.slice(1), count);
  await until("there is one connection", async () => (await streams()) === 1);
  for (const page of all.slice(1)) await page.evaluate(() => window.source.close());
  await until("nobody reads", async () => (await streams()) === 0);
});

test("a page of the gateway's own origin imports the module from it, and sends its cookies if they are needed", async (t) => {
  const own = await gateway(JWT + '[auth.token]\ncookie = "session"\n[[topics]]\nmatch = "open"\nread = "anyone"\npublish = "anyone"\n' +
    '[[topics]]\nmatch = "users/{sub}"\nread = "token"\npublish = "token"\n');
  t.after(() => own.stop());
  const context = await browser.newContext();
  t.after(() => context.close());
  await context.addCookies([{ name: "session", value: token("ann", []), url: own.url }]);
  const open = async (path) => {
    const page = await context.newPage();
    await page.goto(`${own.url}/topicgate.js`);
    await page.evaluate(async (path) => {
      const { TopicSource } = await import("/topicgate.js");
      window.got = [];
      window.source = new TopicSource(path);
      window.source.onmessage = ({ data }) => window.got.push(data);
    }, path);
    await until("the source is open", () => page.evaluate(() => window.source.readyState === 1));
    return page;
  };
  const pages = [await open("/topics/open"), await open("/topics/open"), await open("/topics/users/ann")];
  await own.publish("open", "1");
  const headers = { authorization: `Bearer ${token("ann", [])}` };
  assert.equal((await fetch(`${own.url}/topics/users/ann`, { method: "POST", body: "2", headers })).status, 202);
  for (const [at, page] of pages.entries()) {
    await until("it has its message", async () => (await page.evaluate(() => window.got)).join() === (at < 2 ? "1" : "2"));
  }
  assert.equal(await own.metric('topicgate_streams{http="1.1"}'), 2);
});
