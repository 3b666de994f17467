// Opens the page at / in Chromium as a newcomer would: publishes from its form, and waits until the message is shown.
//
//   node page.mjs <url> [file for a screenshot]
//
// Then it checks what a newcomer needs: messages of a type, the shell line that sends one, a fault that looks like
// one, and all of it on a narrow screen. Prints what the page shows of the message; exits 1 if anything is not as it should
// be, or if the browser reports any error.
import { launch } from "./chromium.mjs";

function insist(holds, what) {
  if (!holds) throw new Error(what);
}

// A message of each type is a row with its type, whoever published it, and the shell line sends the same.
async function types(page) {
  await page.locator("#type").fill("price");
  await page.locator("#payload").fill("typed in the form");
  await page.getByRole("button", { name: "Publish", exact: true }).click();
  await page.request.post(url + "topics/demo/hello?type=alert", { data: "typed elsewhere" });
  for (const [type, payload] of [["price", "typed in the form"], ["alert", "typed elsewhere"]]) {
    const row = page.locator("#rows tr", { hasText: payload });
    await row.waitFor();
    insist((await row.locator("td").nth(2).textContent()) === type, "the type of " + payload + " is not shown");
  }
  const line = await page.locator("#curl-write").textContent();
  insist(line === `curl -d 'typed in the form' '${url}topics/demo/hello?type=price'`, "the shell line is " + line);
}

// A refusal of the gateway is shown as text, in the colour of an error.
async function fault(page) {
  await page.locator("#topic").fill("demo.>");
  await page.getByRole("button", { name: "Subscribe", exact: true }).click();
  await page.locator("#state", { hasText: "Refused" }).waitFor();
  await page.locator("#note", { hasText: "write demo/**" }).waitFor();
  const [note, pill] = await page.evaluate(() => ["note", "state"].map((id) => getComputedStyle(document.getElementById(id)).color));
  insist(note === pill, "the error has the colour " + note + " and not " + pill);
}

async function narrow(page) {
  await page.setViewportSize({ width: 400, height: 800 });
  const wide = await page.evaluate(() => document.documentElement.scrollWidth);
  insist(wide <= 400, "on 400 pixels the page is " + wide + " wide");
}

const [url, screenshot] = process.argv.slice(2);
const browser = await launch();
try {
  const page = await browser.newPage();
  const errors = [];
  page.on("pageerror", (error) => errors.push(String(error)));
  page.on("console", (message) => message.type() === "error" && !message.text().includes("status of 400") && errors.push(message.text()));
  await page.goto(url);
  await page.locator("#state", { hasText: "Live" }).waitFor();
  const payload = `hello from the form ${Date.now()}`;
  await page.locator("#payload").fill(payload);
  await page.getByRole("button", { name: "Publish", exact: true }).click();
  const shown = page.locator("tbody, ol, ul").getByText(payload, { exact: true }).first();
  await shown.waitFor();
  const text = await shown.textContent();
  if (screenshot) await page.screenshot({ path: screenshot, fullPage: true });
  for (const step of [types, narrow, fault]) await step(page);
  if (errors.length > 0) throw new Error(errors.join("\n"));
  console.log(text);
} finally {
  await browser.close();
}
