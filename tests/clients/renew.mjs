// A page whose stream is let in by a cookie, in Chromium:
//
//   node renew.mjs <url>
//
// Prints {"kind":"ready"}, then reads tokens from standard input, a line each. Each becomes the page's cookie; the first
// opens the stream. What the page sees is printed as read.mjs does it, until standard input is closed.
import { createInterface } from "node:readline";
import { chromium } from "playwright-core";

const url = process.argv[2];
const print = (thing) => process.stdout.write(`${JSON.stringify(thing)}\n`);
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-sync"],
});
try {
  const page = await browser.newPage();
  await page.exposeFunction("topicgateReport", print);
  const address = new URL("/topicgate-blank-page", url).href;
  const body = '<!doctype html><link rel="icon" href="data:,">';
  await page.route(address, (route) => route.fulfill({ contentType: "text/html", body }));
  await page.goto(address);
  await page.unroute(address);
  print({ kind: "ready" });
  for await (const token of createInterface({ input: process.stdin })) {
    await page.evaluate(
      ({ url, token }) => {
        document.cookie = `topicgate=${token}; path=/; SameSite=Lax`;
        if (window.source) return;
        window.source = new EventSource(url);
        for (const type of ["stream-open", "stream-close", "stream-gap", "message"]) {
          source.addEventListener(type, (e) => window.topicgateReport({ kind: "event", type, data: e.data }));
        }
        source.onerror = () => window.topicgateReport({ kind: "error", readyState: source.readyState });
      },
      { url, token },
    );
  }
} finally {
  await browser.close();
}
