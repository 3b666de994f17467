// What a page costs that reads 1,000 messages per second, with the module and with the browser's own EventSource:
//
//   node test/measure.mjs [seconds] [messages per second]
//
// CPU is that of the page's process, from /proc; memory is its JavaScript heap after a collection, and its private pages.
import { readFileSync, readdirSync } from "node:fs";
import { Agent, request } from "node:http";
import { gateway } from "./gateway.mjs";
import { launch, pages, tab } from "./browser.mjs";

const [seconds = 20, rate = 1000] = process.argv.slice(2).map(Number);
const site = await pages();
const gate = await gateway(`[cors]\norigins = ["${site.origin}"]\n`);
const agent = new Agent({ keepAlive: true, maxSockets: 4 });
const payload = (number) => JSON.stringify({ number, symbol: "EURUSD", bid: 1.0834, ask: 1.0836, at: Date.now() });

const post = (number) =>
  new Promise((resolve, reject) => {
    const options = { agent, method: "POST", host: "127.0.0.1", port: gate.port, path: "/topics/prices" };
    request(options, (response) => response.resume().on("end", resolve)).on("error", reject).end(payload(number));
  });

async function publish(total) {
  const start = performance.now();
  for (let sent = 0; sent < total; ) {
    const due = Math.min(total, Math.floor(((performance.now() - start) / 1000) * rate));
    const batch = [];
    for (; sent < due; sent++) batch.push(post(sent));
    await Promise.all(batch);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
  return (performance.now() - start) / 1000;
}

/** Of the child processes of this one, those that show pages. */
function renderers() {
  return readdirSync("/proc").filter((pid) => /^\d+$/.test(pid)).filter((pid) => {
    try {
      return readFileSync(`/proc/${pid}/cmdline`, "utf8").includes("--type=renderer") && parents(pid).includes(process.pid);
    } catch {
      return false;
    }
  });
}

function parents(pid) {
  const parent = Number(/PPid:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, "utf8"))[1]);
  return parent > 1 ? [parent, ...parents(parent)] : [parent];
}

const ticks = (pid) => {
  const fields = readFileSync(`/proc/${pid}/stat`, "utf8").split(") ")[1].split(" ");
  return Number(fields[11]) + Number(fields[12]);
};
const privateKiB = (pid) => Number(/Private_Dirty:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/smaps_rollup`, "utf8"))[1]);

const shared = (url) => { window.reader = new TopicSource(url); };
const READERS = {
  "EventSource": [(url) => { window.reader = new EventSource(url); }],
  "TopicSource, alone": [(url) => { window.reader = new TopicSource(url, { share: false }); }],
  "TopicSource, leader of two": [shared, shared],
  "TopicSource, follower": [shared, shared, true],
};

for (const [name, [read, other, isFollower]] of Object.entries(READERS)) {
  const browser = await launch();
  const context = await browser.newContext();
  const open = async (read) => {
    const page = await tab(context, site.origin);
    await page.evaluate(read, `${gate.url}/topics/prices`);
    await page.evaluate(() => {
      window.count = 0;
      window.reader.onmessage = ({ data }) => { window.count += JSON.parse(data).number >= 0; };
      if (window.reader.readyState < 1) return new Promise((resolve) => { window.reader.onopen = () => resolve(); });
    });
    return page;
  };
  const first = await open(read);
  const second = other && (await open(other));
  const page = isFollower ? second : first;
  // The leader is the busiest process, the follower the next. There is a spare one, which does nothing.
  const pids = renderers();
  const session = await page.context().newCDPSession(page);
  const before = pids.map(ticks);
  const took = await publish(seconds * rate);
  await page.waitForFunction((total) => window.count >= total, seconds * rate);
  const spent = pids.map((pid, at) => [(ticks(pid) - before[at]) * 10, pid]).sort(([a], [b]) => b - a);
  const [cpu, pid] = spent[isFollower ? 1 : 0];
  const dirty = privateKiB(pid);
  await session.send("HeapProfiler.collectGarbage");
  const { usedSize } = await session.send("Runtime.getHeapUsage");
  const count = await page.evaluate(() => window.count);
  console.log(`${name}: ${count} messages in ${took.toFixed(1)} s, ${(cpu / took / 10).toFixed(1)} % of a CPU, ` +
    `heap ${(usedSize / 1024).toFixed(0)} KiB, private ${(dirty / 1024).toFixed(1)} MiB`);
  await browser.close();
}
site.stop();
await gate.stop();
process.exit();
