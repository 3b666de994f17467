// Shows a page in Chromium until standard input is closed, and does what the page asks of a person:
//
//   node show.mjs <URL of the page> <HTML> [click]
//
// The page at the URL is loaded and its document is replaced by the HTML, so that this acts with that page's origin. With
// `click`, the element with the id `click` is clicked. `shown` is printed once that is done, and for every line on standard
// input after that the text that the page shows, as JSON.
import { createInterface } from "node:readline";
import { launch } from "./chromium.mjs";

const [where, html, click] = process.argv.slice(2);
const browser = await launch();
try {
  const page = await browser.newPage();
  await page.goto(where);
  // Not setContent(), which waits until everything in the page has been loaded: a stream never is.
  await page.evaluate((text) => {
    document.open();
    document.write(text);
    document.close();
  }, html);
  // A stream that fills the tab is a navigation without an end.
  if (click) await page.click("#click", { noWaitAfter: true });
  console.log("shown");
  for await (const _ of createInterface({ input: process.stdin })) {
    console.log(JSON.stringify(await page.evaluate(() => document.body.innerText)));
  }
} finally {
  await browser.close();
}
process.exit(0);
