// The core in Firefox, over WebDriver BiDi, where firefox-esr is installed: `make tools` does not install it.
import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { test } from "node:test";
import { WebSocket } from "undici";
import { counting, pages } from "./browser.mjs";
import { gateway, until } from "./gateway.mjs";

const FIREFOX = process.env.FIREFOX || "firefox-esr";
const skip = spawnSync(FIREFOX, ["--version"]).error ? `${FIREFOX} is not installed` : false;

async function firefox(t) {
  const profile = mkdtempSync(join(tmpdir(), "topicgate-firefox-"));
  const child = spawn(FIREFOX, ["--headless", "--no-remote", "--profile", profile, "--remote-debugging-port", "0"], {
    stdio: ["ignore", "ignore", "pipe"],
    env: { ...process.env, HOME: profile, MOZ_DISABLE_AUTO_SAFE_MODE: "1" },
  });
  t.after(() => {
    child.kill("SIGKILL");
    rmSync(profile, { recursive: true, force: true, maxRetries: 20 });
  });
  const address = await new Promise((resolve, reject) => {
    createInterface({ input: child.stderr }).on("line", (line) => {
      const found = /WebDriver BiDi listening on (ws:\S+)/.exec(line);
      if (found) resolve(found[1]);
    });
    child.on("exit", () => reject(new Error("Firefox has ended")));
  });
  const socket = new WebSocket(`${address}/session`);
  await new Promise((resolve, reject) => Object.assign(socket, { onopen: resolve, onerror: reject }));
  const waiting = new Map();
  let count = 0;
  socket.onmessage = ({ data }) => {
    const message = JSON.parse(data);
    waiting.get(message.id)?.(message);
  };
  const send = async (method, params = {}) => {
    const id = ++count;
    const answer = new Promise((resolve) => waiting.set(id, resolve));
    socket.send(JSON.stringify({ id, method, params }));
    const { type, result, message } = await answer;
    if (type === "error") throw new Error(`${method}: ${message}`);
    return result;
  };
  await send("session.new", { capabilities: {} });
  return async function tab(origin, url, options) {
    const { context } = await send("browsingContext.create", { type: "tab" });
    await send("browsingContext.navigate", { context, url: `${origin}/page`, wait: "complete" });
    const evaluate = async (expression) => {
      const params = { expression: `(async () => JSON.stringify((await (${expression})) ?? null))()`, target: { context }, awaitPromise: true };
      const { type, result, exceptionDetails } = await send("script.evaluate", params);
      if (type === "exception") throw new Error(exceptionDetails.text);
      return JSON.parse(result.value);
    };
    await until("the page is loaded", () => evaluate("window.ready"));
    await evaluate(`void read(${JSON.stringify(url)}, ${JSON.stringify(options)})`);
    await until("the source is open", () => evaluate("source.readyState === 1"));
    return {
      evaluate,
      got: () => evaluate("got"),
      leads: () => evaluate("leads()"),
      close: () => send("browsingContext.close", { context }),
      visit: (url) => send("browsingContext.navigate", { context, url, wait: "complete" }),
      back: () => send("browsingContext.traverseHistory", { context, delta: -1 }),
    };
  };
}

test("in Firefox tabs share one connection, and another takes over: every message, once and in order", { skip, timeout: 180_000 }, async (t) => {
  const site = await pages();
  t.after(() => site.stop());
  const gate = await gateway(`[cors]\norigins = ["${site.origin}"]\n`);
  t.after(() => gate.stop());
  const tab = await firefox(t);
  const all = [];
  for (let count = 0; count < 8; count++) all.push(await tab(site.origin, `${gate.url}/topics/a`));
  const streams = () => gate.metric('topicgate_streams{http="1.1"}');
  assert.equal(await streams(), 1);
  const leader = (tabs) => until("a tab leads", async () => {
    for (const each of tabs) if (await each.leads()) return each;
  });
  const numbers = counting(gate, "a");
  const flows = async () => {
    const before = numbers.count;
    await until("messages flow", () => numbers.count > before + 30);
  };
  await flows();
  const first = await leader(all);
  await first.close();
  all.splice(all.indexOf(first), 1);
  const second = await leader(all);
  await flows();
  await second.visit(`${site.origin}/other`);
  await leader(all.filter((each) => each !== second));
  await flows();
  await second.back();
  await until("it is back", () => second.evaluate("window.ready"));
  const persisted = await second.evaluate("window.persisted");
  t.diagnostic(`kept in the back/forward cache: ${persisted}`);
  await flows();
  const count = await numbers.stop();
  for (const each of all) {
    if (each === second && !persisted) continue;
    await until("it has the last", async () => (await each.got()).at(-1) === `${count - 1}`);
    const got = (await each.got()).map(Number);
    assert.deepEqual(got, Array.from({ length: count - got[0] }, (_, at) => got[0] + at));
  }
  await until("there is one connection", async () => (await streams()) === 1);
});
