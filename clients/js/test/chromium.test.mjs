// Tabs of Chromium that share one connection to a real gateway, seen from both sides.
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { counting, launch, leader, pages, tab, windowOf } from "./browser.mjs";
import { gateway, until } from "./gateway.mjs";

let browser;
let site;
let gate;
let reads;

before(async () => {
  [browser, site] = await Promise.all([launch(), pages()]);
  gate = await gateway(`[cors]\norigins = ["${site.origin}"]\ncredentials = true\n`);
  reads = (await fetch(`${gate.url}/topics/a`, { headers: { accept: "application/json" } })).status === 200;
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

/** Every tab has 0, 1, 2 … from the first that it got to the last that was published, once and in order. */
async function complete(all, count) {
  for (const each of all) {
    await until(`a tab has message ${count - 1}`, async () => (await each.got()).includes(`${count - 1}`)).catch(async (error) => {
      throw new Error(`${error.message}; it has ${JSON.stringify((await each.got()).slice(-5))}, events ${JSON.stringify(await each.events())}`);
    });
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
  // Who comes back reads what it lacks. Without that, it would have a connection of its own.
  if (!back || reads) await until("there is one connection", async () => (await streams()) === 1);
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
