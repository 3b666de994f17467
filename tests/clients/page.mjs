// Opens the page at / in Chromium as a newcomer would: publishes from its form, and waits until the message is shown.
//
//   node page.mjs <url> [file for a screenshot]
//
// Prints what the page shows of the message; exits 1 if it is not shown, or if the browser reports any error.
import { launch } from "./chromium.mjs";

const [url, screenshot] = process.argv.slice(2);
const browser = await launch();
try {
  const page = await browser.newPage();
  const errors = [];
  page.on("pageerror", (error) => errors.push(String(error)));
  page.on("console", (message) => message.type() === "error" && errors.push(message.text()));
  await page.goto(url);
  await page.locator("#state", { hasText: "Live" }).waitFor();
  const payload = `hello from the form ${Date.now()}`;
  await page.locator("#payload").fill(payload);
  await page.getByRole("button", { name: "Publish", exact: true }).click();
  const shown = page.locator("tbody, ol, ul").getByText(payload, { exact: true }).first();
  await shown.waitFor();
  if (screenshot) await page.screenshot({ path: screenshot, fullPage: true });
  if (errors.length > 0) throw new Error(errors.join("\n"));
  console.log(await shown.textContent());
} finally {
  await browser.close();
}
