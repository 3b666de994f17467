// Chromium, and pages that read with the module: tabs of one origin, at a server that has nothing but the page, the look of
// the examples, and the module as it is built into the gateway.
import { createServer } from "node:http";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { chromium } from "playwright-core";
import { until } from "./gateway.mjs";

const FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
  "--disable-background-networking", "--disable-component-update", "--disable-sync",
  // Each tab has a process of its own, however little memory there is: one of them will crash.
  "--renderer-process-limit=40"];

export const launch = () =>
  chromium.launch({
    executablePath: process.env.CHROMIUM || "/usr/bin/chromium",
    args: FLAGS,
    ignoreDefaultArgs: ["--disable-back-forward-cache"],
  });

const MODULE = new URL("../../../src/http/topicgate.js", import.meta.url);

const STYLE = new URL("../../../examples/style.css", import.meta.url);

// It keeps what it gets for the tests, and shows what a page would show of it: whether it is live, and what happened last.
const PAGE = `<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,"><link rel="stylesheet" href="/style.css"><title>reader</title>
<style>
body { font-size: 14px; } header, main { padding: .7rem .8rem 0; } h1 { font-size: 1.1rem; flex: none; } .state { white-space: nowrap; }
ol { list-style: none; margin: 0; padding: 0; } li { padding: .2rem 0; border-top: 1px solid var(--line); overflow-wrap: anywhere; } li b { color: var(--accent); }
</style>
<header><h1>Orders</h1><span class="state" id="state">Connecting</span></header><main><ol id="log"></ol></main>
<script type="module">
import { TopicSource, follow } from "/topicgate.js";
window.TopicSource = TopicSource;
window.follow = follow;
window.got = [];
window.events = [];
window.read = (url, options) => {
  const source = (window.source = new TopicSource(url, options));
  source.addEventListener("any", ({ detail }) => got.push(detail.data));
  for (const type of ["open", "error", "gap", "stale", "live", "refused", "closed"]) {
    source.addEventListener(type, ({ detail }) => {
      events.push([type, detail]);
      show(type, detail ?? {});
    });
  }
  return source;
};
const LIVE = ["live", "Live"];
const SAYS = {
  open: () => [...LIVE, ""],
  live: ({ topics }) => [...LIVE, topics],
  stale: ({ topics }) => ["stale", "Out of date: the broker is away", topics],
  error: ({ code, wait }) => ["away", "Reconnecting: " + code, code + (wait ? ", again after " + (wait / 1000).toFixed(1) + " s" : "")],
  refused: ({ status, code, detail }) => ["refused", "Refused: " + code, status + " " + code + ": " + detail],
  closed: ({ code }) => ["done", "Ended", code],
  gap: ({ topic, reason }) => [undefined, undefined, topic + ", " + reason],
};
function show(type, detail) {
  const [name, words, text] = SAYS[type](detail);
  if (name) [state.dataset.state, state.textContent] = [name, words];
  const row = document.createElement("li");
  row.append(Object.assign(document.createElement("b"), { textContent: type }), " " + text);
  log.append(row);
  if (log.children.length > 3) log.firstChild.remove();
}
addEventListener("pageshow", ({ persisted }) => { window.persisted = persisted; });
window.leads = () => navigator.locks.request("probe" + Math.random(), async () => {
  const { held } = await navigator.locks.query();
  const mine = held.find(({ name }) => name.startsWith("probe")).clientId;
  return held.some(({ name, clientId }) => name.startsWith("topicgate ") && clientId === mine);
});
window.ready = true;
</script>`;

/** A server of pages; its origin must be one that the gateway allows. */
export async function pages() {
  const server = createServer((request, response) => {
    const file = { "/topicgate.js": ["text/javascript", MODULE], "/style.css": ["text/css", STYLE] }[request.url];
    response.writeHead(200, { "content-type": file?.[0] ?? "text/html", "cache-control": "no-cache" });
    response.end(file ? readFileSync(file[1]) : request.url === "/page" ? PAGE : '<!doctype html><link rel="icon" href="data:,">other');
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const origin = `http://127.0.0.1:${server.address().port}`;
  return { origin, stop: () => (server.closeAllConnections(), server.close()) };
}

/** What the page shows now, as a picture for the documents, where SCREENSHOTS names a folder. */
export async function picture(page, name) {
  const { SCREENSHOTS } = process.env;
  if (!SCREENSHOTS) return;
  await page.setViewportSize({ width: 320, height: 150 });
  await page.screenshot({ path: join(SCREENSHOTS, `${name}.png`) });
}

/** A tab that reads `url`; `got()` returns its messages. */
export async function tab(context, origin, url, options) {
  const page = await context.newPage();
  await page.goto(`${origin}/page`);
  await page.waitForFunction(() => window.ready);
  if (url) await page.evaluate(([url, options]) => void window.read(url, options), [url, options]);
  return Object.assign(page, {
    got: () => page.evaluate(() => window.got),
    events: () => page.evaluate(() => window.events),
    leads: () => page.evaluate(() => window.leads()),
    opened: () => until("the source is open", () => page.evaluate(() => window.source.readyState === 1)),
  });
}

/**
 * Tabs of one window, of which one is visible. Playwright makes each page that it knows look visible, and Chromium freezes
 * only a page that is hidden: so these are tabs that Playwright does not know, and they take expressions as text.
 */
export async function windowOf(browser) {
  const cdp = await browser.newBrowserCDPSession();
  const waiting = new Map();
  let count = 0;
  cdp.on("Target.receivedMessageFromTarget", ({ message }) => {
    const answer = JSON.parse(message);
    waiting.get(answer.id)?.(answer);
  });
  return async function tab(origin, url, options) {
    const { targetId } = await cdp.send("Target.createTarget", { url: `${origin}/page` });
    const { sessionId } = await cdp.send("Target.attachToTarget", { targetId, flatten: false });
    const send = async (method, params = {}) => {
      const id = ++count;
      const answer = new Promise((resolve) => waiting.set(id, resolve));
      await cdp.send("Target.sendMessageToTarget", { sessionId, message: JSON.stringify({ id, method, params }) });
      const { result, error } = await answer;
      if (error) throw new Error(error.message);
      return result;
    };
    const evaluate = async (expression) => {
      const answer = await send("Runtime.evaluate", { expression, awaitPromise: true, returnByValue: true });
      if (answer.exceptionDetails) throw new Error(JSON.stringify(answer.exceptionDetails));
      return answer.result.value;
    };
    await until("the page is loaded", () => evaluate("window.ready"));
    if (url) await evaluate(`void read(${JSON.stringify(url)}, ${JSON.stringify(options)})`);
    return {
      evaluate,
      got: () => evaluate("got"),
      events: () => evaluate("events"),
      leads: () => evaluate("leads()"),
      opened: () => until("the source is open", () => evaluate("source.readyState === 1")),
      show: () => cdp.send("Target.activateTarget", { targetId }),
      freeze: () => send("Page.setWebLifecycleState", { state: "frozen" }),
      thaw: () => send("Page.setWebLifecycleState", { state: "active" }),
      close: () => cdp.send("Target.closeTarget", { targetId }),
    };
  };
}

/** The tab that reads for the others. */
export const leader = (tabs) =>
  until("a tab leads", async () => {
    for (const each of tabs) if (await each.leads()) return each;
  });

/** Publishes 0, 1, 2 … one after the other until it is stopped, which returns how many. */
export function counting(gateway, topic, count = 0) {
  let going = true;
  const running = (async () => {
    while (going) await gateway.publish(topic, count++);
  })();
  return {
    get count() {
      return count;
    },
    async stop() {
      going = false;
      await running;
      return count;
    },
  };
}
