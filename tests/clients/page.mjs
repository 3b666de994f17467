// Opens the page at / in Chromium as a newcomer would: publishes from its form, and waits until the message is shown.
//
//   node page.mjs <url> [file for a screenshot]
//
// Then it checks what a newcomer needs: messages of a type, the shell line that sends one, a fault that looks like
// one, and all of it on a narrow screen. Prints what the page shows of the message; exits 1 if anything is not as it should
// be, or if the browser reports any error.
import { spawn } from "node:child_process";
import { once } from "node:events";
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

// The shell lines do what the form says, whatever it says.
async function shell(page) {
  const payload = `@it's "50 %" \`of\` $HOME\n& more`;
  const topic = "demo/o'clock/a&b";
  await page.locator("#topic").fill(topic);
  await page.getByRole("button", { name: "Subscribe", exact: true }).click();
  await page.locator("#state", { hasText: "Live" }).waitFor();
  const lines = async () => Promise.all(["read", "write"].map((name) => page.locator("#curl-" + name).textContent()));
  const [read] = await lines();
  const reader = spawn("sh", ["-c", "exec " + read], { stdio: ["ignore", "pipe", "ignore"] });
  let text = "";
  reader.stdout.on("data", (data) => (text += data));
  const has = async (what) => {
    for (const end = Date.now() + 30_000; !text.includes(what); await page.waitForTimeout(20)) {
      insist(Date.now() < end, read + " prints " + text);
    }
  };
  try {
    await has("stream-open");
    await page.locator("#type").fill("a/b c");
    await page.locator("#payload").fill(payload);
    const [, write] = await lines();
    const [status] = await once(spawn("sh", ["-c", write], { stdio: "ignore" }), "exit");
    insist(status === 0, write + " exits with " + status);
    const row = page.locator("#rows tr", { hasText: "@it's" });
    await row.waitFor();
    const cells = await row.locator("td").allTextContents();
    insist(cells[1] === topic && cells[2] === "a/b c" && cells[4] === payload, "the shell line sends " + JSON.stringify(cells));
    await has("data: & more");
    insist((await row.count()) === 1, "it is shown more than once");
  } finally {
    reader.kill("SIGKILL");
  }
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
  for (const step of [types, shell, narrow, fault]) await step(page);
  if (errors.length > 0) throw new Error(errors.join("\n"));
  console.log(text);
} finally {
  await browser.close();
}
