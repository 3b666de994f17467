// The examples, as a person sees them: with their back end, a real NATS and a real gateway, light and dark, on a telephone, with
// the keyboard. With SCREENSHOTS=<folder> it leaves a picture of each.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { after, before, test } from "node:test";
import { launch } from "./browser.mjs";
import { gateway, until } from "./gateway.mjs";
import { broker } from "./nats.mjs";

const EXAMPLES = new URL("../../../examples/", import.meta.url);
let browser;

before(async () => {
  browser = await launch();
});

after(() => browser?.close());

async function freePort() {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address();
  server.close();
  return port;
}

/** Starts NATS, the gateway with the configuration of the example, and its back end. */
async function start(t, name) {
  const [port, mqtt] = [await freePort(), await freePort()];
  const folder = mkdtempSync(join(tmpdir(), "topicgate-example-"));
  t.after(() => rmSync(folder, { recursive: true, force: true }));
  const config = join(folder, "nats.conf");
  if (name === "sensors") {
    writeFileSync(config, readFileSync(new URL("sensors/nats.conf", EXAMPLES), "utf8").replace("1883", `${mqtt}`));
  }
  const nats = await broker(name === "sensors" ? ["-c", config] : []);
  t.after(nats.stop);
  const toml = readFileSync(new URL(`${name}/topicgate.toml`, EXAMPLES), "utf8");
  const gate = await gateway(toml.replace("nats://127.0.0.1:4222", nats.url).replace("http://127.0.0.1:3000", `http://127.0.0.1:${port}`));
  t.after(() => gate.stop());
  const env = { ...process.env, NATS: nats.url, MQTT: `mqtt://127.0.0.1:${mqtt}`, GATEWAY: gate.url, PORT: `${port}` };
  const backend = spawn(process.execPath, [new URL(`${name}/server.mjs`, EXAMPLES).pathname], { env, stdio: ["ignore", "pipe", "inherit"] });
  t.after(() => backend.kill("SIGKILL"));
  await new Promise((resolve, reject) => {
    createInterface({ input: backend.stdout }).once("line", resolve);
    backend.once("exit", () => reject(new Error("the back end has ended")));
  });
  const context = await browser.newContext({ viewport: { width: 1000, height: 640 } });
  t.after(() => context.close());
  const errors = [];
  const open = async (from = context) => {
    const page = await from.newPage();
    page.on("pageerror", (error) => errors.push(String(error)));
    await page.goto(`http://127.0.0.1:${port}/`);
    return page;
  };
  return { nats, gate, open, errors };
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
  const { nats, open, errors } = await start(t, "dashboard");
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
  await nats.kill();
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
