// The examples, as a person sees them: with their back end, a real broker and a real gateway, light and dark, on a telephone,
// with the keyboard. With SCREENSHOTS=<folder> it leaves a picture of each.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { after, before, test } from "node:test";
import { launch } from "./browser.mjs";
import { gateway, until } from "./gateway.mjs";
import { broker } from "./nats.mjs";
import { freePort, redis } from "./redis.mjs";

const EXAMPLES = new URL("../../../examples/", import.meta.url);
let browser;

before(async () => {
  browser = await launch();
});

after(() => browser?.close());

/** Scripts of other hosts come from node_modules: /npm/name@version/file. */
const PACKAGES = new URL("../node_modules/", import.meta.url);
const fromPackages = (route) => {
  const [, name, file] = /\/npm\/((?:@[^/]+\/)?[^/@]+)@[^/]+\/(.*)$/.exec(route.request().url());
  const headers = { "access-control-allow-origin": "*" };
  return route.fulfill({ contentType: "text/javascript", headers, body: readFileSync(new URL(`${name}/${file}`, PACKAGES)) });
};

/** Starts the broker, the gateway with the configuration of the example, and its back end. */
async function start(t, name, more = {}) {
  const [port, mqtt] = [await freePort(), await freePort()];
  const folder = mkdtempSync(join(tmpdir(), "topicgate-example-"));
  t.after(() => rmSync(folder, { recursive: true, force: true }));
  const config = join(folder, "nats.conf");
  if (name === "sensors") {
    writeFileSync(config, readFileSync(new URL("sensors/nats.conf", EXAMPLES), "utf8").replace("1883", `${mqtt}`));
  }
  const toml = readFileSync(new URL(`${name}/topicgate.toml`, EXAMPLES), "utf8");
  const source = toml.includes("redis://") ? await redis() : await broker(name === "sensors" ? ["-c", config] : []);
  t.after(source.stop);
  const gate = await gateway(
    toml.replace(/(nats|redis):\/\/127\.0\.0\.1:\d+/, source.url).replace("http://127.0.0.1:3000", `http://127.0.0.1:${port}`),
  );
  t.after(() => gate.stop());
  const env = { ...process.env, NATS: source.url, REDIS: source.url, MQTT: `mqtt://127.0.0.1:${mqtt}`, GATEWAY: gate.url, PORT: `${port}`, ...more };
  const backend = spawn(process.execPath, [new URL(`${name}/server.mjs`, EXAMPLES).pathname], { env, stdio: ["ignore", "pipe", "inherit"] });
  t.after(() => backend.kill("SIGKILL"));
  await new Promise((resolve, reject) => {
    createInterface({ input: backend.stdout }).once("line", resolve);
    backend.once("exit", () => reject(new Error("the back end has ended")));
  });
  const context = await browser.newContext({ viewport: { width: 1000, height: 640 } });
  t.after(() => context.close());
  await context.route("https://cdn.jsdelivr.net/**", fromPackages);
  const errors = [];
  const open = async (from = context) => {
    const page = await from.newPage();
    page.on("pageerror", (error) => errors.push(String(error)));
    await page.goto(`http://127.0.0.1:${port}/`);
    return page;
  };
  return { broker: source, gate, open, errors };
}

const live = (page) => page.locator('#state[data-state="live"]').waitFor();

/** A telephone, the dark, and the keyboard: the first Tab leads to `focused`. */
async function looks(page, name, errors, focused) {
  if (process.env.SCREENSHOTS) await page.screenshot({ path: join(process.env.SCREENSHOTS, `${name}.png`) });
  const background = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  const light = await background();
  await page.emulateMedia({ colorScheme: "dark" });
  assert.notEqual(await background(), light, "there is no dark mode");
  await page.setViewportSize({ width: 390, height: 800 });
  assert.ok((await page.evaluate(() => document.documentElement.scrollWidth)) <= 390, "wider than a telephone");
  const unnamed = await page.evaluate(() => [...document.querySelectorAll("input, button, textarea, select")]
    .filter((each) => !each.labels?.length && !each.ariaLabel && !each.textContent.trim()).map((each) => each.outerHTML));
  assert.deepEqual(unnamed, []);
  if (focused) {
    await page.mouse.click(1, 1);
    await page.keyboard.press("Tab");
    await page.locator(focused).and(page.locator(":focus")).waitFor();
  }
  assert.deepEqual(errors, []);
}

test("dashboard: numbers and a chart move, and the page says when they are out of date", async (t) => {
  const { broker, open, errors } = await start(t, "dashboard");
  const page = await open();
  await live(page);
  const number = () => page.locator("#latency .value").textContent();
  const first = await until("a number", async () => /\d/.exec(await number())?.input);
  await until("it moves", async () => (await number()) !== first);
  await page.waitForFunction(() => document.querySelector(".line").getAttribute("d")?.split("L").length > 14);
  await looks(page, "dashboard", errors, "#requests");
  await page.locator("#latency").focus();
  await page.keyboard.press("Enter");
  await page.locator("#caption", { hasText: "Latency" }).waitFor();
  await broker.kill();
  await page.setViewportSize({ width: 700, height: 440 });
  await page.locator('#state[data-state="stale"]').waitFor();
  if (process.env.SCREENSHOTS) await page.screenshot({ path: join(process.env.SCREENSHOTS, "stale.png") });
  assert.ok(await page.locator("main.stale").count());
});

test("notifications: each user has their own, unread ones outlive a reload, and tabs agree", async (t) => {
  const { gate, open, errors } = await start(t, "notifications");
  const ann = await open();
  await ann.getByRole("button", { name: "Ann" }).click();
  await live(ann);
  const other = await browser.newContext();
  t.after(() => other.close());
  const bob = await open(other);
  await bob.getByRole("button", { name: "Bob" }).click();
  await live(bob);
  await bob.getByLabel("Text").fill("Lunch?");
  await bob.keyboard.press("Enter");
  await ann.locator("li.unread", { hasText: "bob says: Lunch?" }).waitFor();
  assert.equal(await bob.locator("li").count(), 0);
  await ann.reload();
  await ann.locator("li.unread", { hasText: "Lunch?" }).waitFor();
  const second = await open(ann.context());
  await second.locator("li.unread").waitFor();
  assert.equal(await gate.metric('topicgate_streams{http="1.1"}'), 2);
  await looks(second, "notifications", errors, "[name=text]");
  await second.getByRole("button", { name: "Mark all as read" }).click();
  for (const page of [ann, second]) await page.locator("li:not(.unread)").waitFor();
});

test("news: the last messages first, each type by itself, and a message that a person publishes", async (t) => {
  const { open, errors } = await start(t, "news");
  const page = await open();
  await live(page);
  await page.locator("li").nth(7).waitFor();
  await page.getByLabel("Headline").fill("<b>Read by everyone</b>");
  await page.keyboard.press("Enter");
  await page.locator("li", { hasText: "<b>Read by everyone</b>" }).waitFor();
  await page.getByRole("button", { name: "city", exact: true }).click();
  await page.locator("li", { hasText: "Read by everyone" }).waitFor({ state: "hidden" });
  await page.getByRole("button", { name: "city", exact: true }).click();
  const second = await open();
  await second.locator("li", { hasText: "Read by everyone" }).waitFor();
  await looks(second, "news", errors, "#filters button:first-child");
});

test("document: the state first, the editors, and a conflict", async (t) => {
  const { open, errors } = await start(t, "document");
  const [one, two] = [await open(), await open()];
  for (const page of [one, two]) {
    await live(page);
    await page.locator("#status", { hasText: "Version 1" }).waitFor();
    assert.match(await page.locator("textarea").inputValue(), /boat house/);
  }
  await one.getByLabel("You are").fill("Ann");
  await two.getByLabel("You are").fill("Bob");
  await one.locator("textarea").pressSequentially("3. Songs");
  await two.locator("#editors", { hasText: "Ann is editing" }).waitFor();
  await two.locator("textarea").pressSequentially("3. Cake");
  await one.getByRole("button", { name: "Save" }).click();
  await two.locator('#status[data-status="conflict"]', { hasText: "Ann has saved version 2" }).waitFor();
  await looks(two, "document", errors, "#name");
  await two.getByRole("button", { name: "Take their version" }).click();
  assert.match(await two.locator("textarea").inputValue(), /Songs/);
});

test("sensors: 200 tiles over MQTT, and a silent sensor is grey", async (t) => {
  const { open, errors } = await start(t, "sensors");
  const page = await open();
  await live(page);
  await until("200 tiles", async () => (await page.locator("li").count()) === 200);
  await page.evaluate(() => fetch("/silence", { method: "POST", body: JSON.stringify({ number: 17 }) }));
  await page.locator('li.silent[data-number="17"]').waitFor();
  await looks(page, "sensors", errors);
});

test("answer: a reload in the middle, a second tab, and one that comes after the end have all of it", async (t) => {
  const { gate, open, errors } = await start(t, "answer", { PAUSE: "30" });
  const page = await open();
  await page.getByRole("button", { name: "Ask" }).click();
  await live(page);
  await page.locator("#text", { hasText: "Sunlight holds all colours" }).waitFor();
  await page.reload();
  const whole = /^Sunlight holds all colours[^]*Blue therefore reaches[^]*what is left is red\.$/;
  const second = await open(page.context());
  await second.goto(page.url());
  for (const each of [page, second]) {
    await each.locator('#state[data-state="done"]').waitFor();
    assert.match(await each.locator("#text").textContent(), whole);
    await each.locator("#question", { hasText: "Why is the sky blue?" }).waitFor();
  }
  await until("nobody reads", async () => (await gate.metric('topicgate_streams{http="1.1"}')) === 0);
  const late = await open();
  await late.goto(page.url());
  await late.locator('#state[data-state="done"]').waitFor();
  assert.match(await late.locator("#text").textContent(), whole);
  await looks(late, "answer", errors, "[name=question]");
  await late.getByLabel("Your question").fill("<i>Tea?</i>");
  await late.keyboard.press("Enter");
  await late.locator("#text", { hasText: "Cold tea is still tea." }).waitFor();
  await late.locator("#question", { hasText: "<i>Tea?</i>" }).waitFor();
  await late.goBack();
  await late.locator("#text", { hasText: "what is left is red." }).waitFor();
});

test("auction: htmx shows the newest price and bids, and two tabs share the connection", async (t) => {
  const { gate, open, errors } = await start(t, "auction");
  const page = await open();
  await live(page);
  await page.locator("#price b").waitFor();
  const bid = async (name, amount) => {
    await page.getByLabel("Your name").fill(name);
    await page.getByLabel("Your bid in euro").fill(amount);
    await page.keyboard.press("Enter");
  };
  await bid("Ann", "500");
  await page.locator("#answer", { hasText: "is in" }).waitFor();
  const second = await open();
  for (const each of [page, second]) await each.locator("li", { hasText: "Ann€ 500" }).waitFor();
  assert.equal(await gate.metric('topicgate_streams{http="1.1"}'), 1);
  await page.locator("#price", { hasNotText: "€ 500" }).waitFor();
  await bid("Ann", "10");
  await page.locator("#answer .low").waitFor();
  await looks(page, "auction", errors, "[name=name]");
  await bid("<i>Ann</i>", "5000");
  await second.locator("li", { hasText: "<i>Ann</i>€ 5,000" }).waitFor();
});

test("orders: what Laravel and Rails broadcast, over one connection, and the state after a reload", async (t) => {
  const { gate, open, errors } = await start(t, "orders");
  const [page, second] = [await open(), await open()];
  for (const each of [page, second]) {
    await live(each);
    await each.locator('li[aria-current="step"]', { hasText: "Packed" }).waitFor();
    await each.locator("#messages p", { hasText: "Thank you" }).waitFor();
  }
  await page.getByRole("button", { name: "Next step" }).click();
  const ask = async (text) => {
    await page.getByLabel("Message").fill(text);
    await page.keyboard.press("Enter");
    for (const each of [page, second]) await each.locator("#messages p", { hasText: `You ${text}` }).waitFor();
  };
  await ask("When will it be here?");
  for (const each of [page, second]) await each.locator('li[aria-current="step"]', { hasText: "With Sea & Co" }).waitFor();
  assert.equal(await gate.metric('topicgate_streams{http="1.1"}'), 1);
  await second.reload();
  await second.locator('li[aria-current="step"]', { hasText: "With Sea & Co" }).waitFor();
  await until("both messages are there, once", async () => (await second.locator("#messages p").count()) === 2);
  await looks(page, "orders", errors, "#move");
  await ask("<i>&amp;</i>");
});
