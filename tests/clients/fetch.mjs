// Sends one request from a page in Chromium with fetch(), and prints what the page may see of the answer:
//
//   node fetch.mjs <URL of the page> <URL> [options as JSON]
//
//   {"status":200,"headers":{"content-type":"…"},"body":"…"}
//   {"error":"TypeError: Failed to fetch"}                                 what a page sees of a refusal by CORS
//
// Options: those of fetch() that are JSON, and
//   until      the body is read until it holds this text, rather than to its end
import { launch } from "./chromium.mjs";

// Runs in the page.
async function ask([url, { until, ...init }]) {
  try {
    const response = await fetch(url, init);
    const headers = Object.fromEntries(response.headers);
    const reader = response.body.getReader();
    const decoder = new TextDecoder();
    let body = "";
    while (until === undefined || !body.includes(until)) {
      const { done, value } = await reader.read();
      if (done) break;
      body += decoder.decode(value, { stream: true });
    }
    await reader.cancel();
    return { status: response.status, headers, body };
  } catch (error) {
    return { error: String(error) };
  }
}

const [where, url, options = "{}"] = process.argv.slice(2);
const browser = await launch();
try {
  const page = await browser.newPage();
  await page.goto(where);
  console.log(JSON.stringify(await page.evaluate(ask, [url, JSON.parse(options)])));
} finally {
  await browser.close();
}
