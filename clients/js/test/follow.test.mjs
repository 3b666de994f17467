// State and stream without a race: `follow` in Chromium, with a back end that is slow, fails, and counts.
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { launch, pages, tab } from "./browser.mjs";
import { gateway, until } from "./gateway.mjs";

let browser;
let site;
let gate;

before(async () => {
  [browser, site] = await Promise.all([launch(), pages()]);
  gate = await gateway(`[cors]\norigins = ["${site.origin}"]\n`);
});

after(async () => {
  await browser?.close();
  site?.stop();
  await gate?.stop();
});

/** A back end with a number in it, which grows; each change is published. `load` copies it and answers later. */
async function following(t, topic, options = {}) {
  const context = await browser.newContext();
  t.after(() => context.close());
  const page = await tab(context, site.origin);
  const back = { value: 0, loads: 0, fails: options.fails ?? 0 };
  back.change = async () => gate.publish(topic, ++back.value);
  await page.exposeFunction("fetchState", async () => {
    back.loads++;
    if (back.fails-- > 0) throw new Error("the back end is away");
    const { value } = back;
    await new Promise((resolve) => setTimeout(resolve, options.slow ?? 0));
    return value;
  });
  await page.evaluate(([url, options]) => {
    window.state = undefined;
    window.applied = [];
    window.jumps = 0;
    window.followed = window.follow(url, {
      ...options,
      load: async () => { window.state = await window.fetchState(); },
      apply: ({ data }) => {
        const value = Number(data);
        if (window.state !== undefined && value > window.state + 1) window.jumps++;
        window.state = Math.max(window.state ?? 0, value);
        window.applied.push(value);
      },
    });
    window.events = [];
    for (const type of ["error", "gap"]) window.followed.addEventListener(type, ({ detail }) => window.events.push([type, detail]));
  }, [`${gate.url}/topics/${topic}`, options.source]);
  const shows = (value) => until(`the page shows ${value}`, async () => (await page.evaluate(() => window.state)) === value);
  return { page, back, shows };
}

test("messages published while the state is loaded are not missed, and no message is applied before there is a state", async (t) => {
  const { page, back, shows } = await following(t, "orders", { slow: 500 });
  for (let changes = 0; changes < 100; changes++) await back.change();
  await shows(100);
  assert.equal(back.loads, 1);
  assert.equal(await page.evaluate(() => window.jumps), 0);
});

test("a topic that has ended already is loaded, and its messages are applied", async (t) => {
  await fetch(`${gate.url}/topics/over`); // from now on, the gateway holds the topic
  await gate.publish("over", 1);
  await fetch(`${gate.url}/topics/over?end=1`, { method: "POST", body: "2" });
  const { page, back } = await following(t, "over?since=all", { slow: 500 });
  await until("both are applied", async () => String(await page.evaluate(() => window.applied)) === "1,2");
  assert.equal(back.loads, 1);
});

test("a state that cannot be loaded is loaded again", async (t) => {
  const { page, back, shows } = await following(t, "flaky", { fails: 1 });
  await until("it says so", async () => (await page.evaluate(() => window.events)).some(([, detail]) => detail.code === "load_failed"));
  await back.change();
  await shows(1);
  assert.equal(back.loads, 2);
});

test("after a gap the state is loaded again, once for all gaps that come together", async (t) => {
  const { page, back, shows } = await following(t, "gaps", { source: { topics: ["more", "most"], lastEventId: "unknown" } });
  // The cursor is unknown: three gaps, one for each topic.
  await until("gaps", async () => (await page.evaluate(() => window.events)).filter(([type]) => type === "gap").length === 3);
  await until("the state is loaded", () => back.loads === 1);
  await back.change();
  await shows(1);
  assert.equal(back.loads, 1);
});

test("with a cursor in the page, the page begins there and loads nothing", async (t) => {
  const topic = "rendered";
  const read = async () => (await fetch(`${gate.url}/topics/${topic}`, { headers: { accept: "application/json" } })).json();
  const { cursor } = await read();
  await gate.publish(topic, 1);
  const { page, back, shows } = await following(t, topic, { source: { lastEventId: cursor } });
  await shows(1);
  assert.equal(back.loads, 0);
  assert.deepEqual(await page.evaluate(() => window.applied), [1]);
});
