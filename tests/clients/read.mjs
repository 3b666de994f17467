// Reads one stream with one client and prints what the client reports, a JSON line a thing:
//
//   node read.mjs <chromium | eventsource | undici> <url> [options as JSON]
//
//   {"kind":"open"}
//   {"kind":"error","readyState":0}                                       0: it reconnects, 2: it gave up
//   {"kind":"event","type":"message","data":"…","lastEventId":"…"}
//
// A reconnect is an error and then an open. It goes on until its standard input is closed.
//
// Options:
//   types            event types to listen for, beside `message` and the gateway's own
//   withCredentials  as EventSource has it
//   page             Chromium only, the page that opens the stream: a URL that is loaded for it; "same-origin", a
//                    blank page at the origin of <url>, which the server is not asked for; by default a blank
//                    page of another origin, so that the server has to allow it
import { createServer } from "node:http";

const TYPES = ["message", "stream-open", "stream-gap", "stream-end", "stream-close"];

// With an icon of its own: the browser would ask the server for one, on the connection that the stream then uses.
const BLANK = '<!doctype html><link rel="icon" href="data:,">';

// Runs in node and, as text, in the page too: it may use nothing from outside of itself.
function listen(EventSource, { url, withCredentials, types }, report) {
  const source = new EventSource(url, { withCredentials });
  const event = (e) => report({ kind: "event", type: e.type, data: e.data, lastEventId: e.lastEventId });
  // A message may call itself `open` or `error`, and then comes to the listeners of the connection's own events.
  const own = (e, thing) => ("data" in e ? event(e) : report(thing));
  source.addEventListener("open", (e) => own(e, { kind: "open" }));
  source.addEventListener("error", (e) => own(e, { kind: "error", readyState: source.readyState }));
  for (const type of types) {
    if (type !== "open" && type !== "error") source.addEventListener(type, event);
  }
  return source;
}

// Runs in the page. One call at a time takes all that has gathered: that keeps the order, and keeps up with a
// stream that is faster than a call.
function report(line) {
  const queue = (window.topicgateQueue ??= []);
  queue.push(line);
  if (queue.length > 1) return;
  const pump = async () => {
    while (queue.length > 0) {
      const batch = queue.slice();
      await window.topicgateReport(batch.map((each) => JSON.stringify(each)).join("\n"));
      queue.splice(0, batch.length);
    }
  };
  pump();
}

const print = (line) => process.stdout.write(`${line}\n`);

async function inNode(name, options) {
  const { EventSource } = await import(name);
  const source = listen(EventSource, options, (thing) => print(JSON.stringify(thing)));
  return async () => source.close();
}

async function inChromium({ page: where, ...options }) {
  const { launch } = await import("./chromium.mjs");
  const browser = await launch();
  const page = await browser.newPage();
  await page.exposeFunction("topicgateReport", print);

  let blank;
  if (where === "same-origin") {
    const address = new URL("/topicgate-blank-page", options.url).href;
    await page.route(address, (route) => route.fulfill({ contentType: "text/html", body: BLANK }));
    await page.goto(address);
    // Without any route the browser no longer asks us about requests: the stream is its own affair.
    await page.unroute(address);
  } else if (where) {
    await page.goto(where);
  } else {
    blank = createServer((_, response) => {
      response.writeHead(200, { "Content-Type": "text/html" }).end(BLANK);
    });
    await new Promise((resolve) => blank.listen(0, "127.0.0.1", resolve));
    await page.goto(`http://127.0.0.1:${blank.address().port}/`);
  }

  page.on("crash", () => fail(new Error("the page crashed")));
  browser.on("disconnected", () => fail(new Error("the browser went away")));
  await page.evaluate(`(${listen})(EventSource, ${JSON.stringify(options)}, ${report}); undefined`);

  return async () => {
    browser.removeAllListeners("disconnected");
    blank?.close();
    await browser.close();
  };
}

function fail(error) {
  process.stderr.write(`read.mjs: ${error.stack ?? error}\n`);
  process.exit(1);
}

async function main() {
  const [client, url, json = "{}"] = process.argv.slice(2);
  const { types = [], withCredentials = false, page } = JSON.parse(json);
  const options = { url: new URL(url).href, withCredentials, types: [...new Set([...TYPES, ...types])] };

  // Watched from the start: whoever began this may be gone before the browser is up.
  const ended = new Promise((resolve) => {
    process.stdin.on("end", resolve).on("error", resolve).resume();
    process.stdout.on("error", resolve);
    process.on("SIGTERM", resolve).on("SIGINT", resolve);
  });

  let close;
  if (client === "chromium") close = await inChromium({ page, ...options });
  else if (client === "eventsource" || client === "undici") close = await inNode(client, options);
  else throw new Error(`unknown client '${client}': chromium, eventsource or undici`);

  await ended;
  await close();
  process.exit(0);
}

main().catch(fail);
