// Opens many EventSources to one host in one page of Chromium, and prints a line for each thing that happens:
//
//   node many.mjs <origin> <number> [SHA-256 of the public key to trust, base64]
//
//   {"kind":"open","topic":7}
//   {"kind":"message","topic":7,"data":"…"}
//
// EventSource n reads /topics/many/n. It goes on until its standard input is closed.
import { chromium } from "playwright-core";

const [origin, number, trusted] = process.argv.slice(2);
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM || "/usr/bin/chromium",
  args: [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-sync",
    ...(trusted ? [`--ignore-certificate-errors-spki-list=${trusted}`] : []),
  ],
});
try {
  const ended = new Promise((resolve) => process.stdin.on("end", resolve).on("error", resolve).resume());
  const page = await browser.newPage();
  await page.exposeFunction("report", (line) => process.stdout.write(`${line}\n`));
  const blank = `${origin}/topicgate-blank-page`;
  await page.route(blank, (route) =>
    route.fulfill({ contentType: "text/html", body: '<!doctype html><link rel="icon" href="data:,">' }),
  );
  await page.goto(blank);
  await page.unroute(blank);
  await page.evaluate((count) => {
    for (let topic = 0; topic < count; topic++) {
      const source = new EventSource(`/topics/many/${topic}`);
      source.onopen = () => window.report(JSON.stringify({ kind: "open", topic }));
      source.onmessage = ({ data }) => window.report(JSON.stringify({ kind: "message", topic, data }));
    }
  }, Number(number));
  await ended;
} finally {
  await browser.close();
}
