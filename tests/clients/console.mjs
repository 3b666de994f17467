// Opens the console in Chromium and goes through its views as a person would, with the keyboard where that is the point.
//
//   node console.mjs <url> <topic> <hostile topic>     exits 1 if anything is not as it should be
//   node console.mjs <url> screenshot <file>           writes what a person sees who opens it
//
// The topic is published to all the time, with payloads that begin with "live"; the hostile topic has one message with
// markup in it, which calls boom(). Both have readers; those of the topic are ended here.
import { launch } from "./chromium.mjs";

const [url, topic, hostile] = process.argv.slice(2);
const browser = await launch();
const errors = [];

function insist(holds, what) {
  if (!holds) throw new Error(what);
}

async function open(options) {
  const page = await browser.newPage({ viewport: { width: 1280, height: 920 }, ...options });
  page.on("pageerror", (error) => errors.push(String(error)));
  // A filter that cannot be read is answered 400, on purpose, and the browser says so there.
  const isOurs = (message) => message.type() !== "error" || message.text().includes("status of 400");
  page.on("console", (message) => isOurs(message) || errors.push(message.text()));
  page.on("dialog", (dialog) => {
    errors.push("a dialog: " + dialog.message());
    dialog.dismiss();
  });
  await page.exposeFunction("boom", () => errors.push("what was published ran as a script"));
  await page.goto(url);
  await page.locator("#state", { hasText: "Ready" }).waitFor();
  return page;
}

async function tabTo(page, name) {
  for (let presses = 0; presses < 30; presses += 1) {
    await page.keyboard.press("Tab");
    if (await page.evaluate(() => document.activeElement.textContent.trim()) === name) return;
  }
  throw new Error("Tab does not lead to " + name);
}

async function overview(page) {
  await page.locator("#broker", { hasText: "Connected" }).waitFor();
  await page.locator("#room", { hasText: " of 10,000" }).waitFor();
  await page.waitForFunction(() => document.querySelectorAll(".chart .line[d^=M]").length === 6);
  const unnamed = await page.evaluate(() => [...document.querySelectorAll("input, progress, button, table, nav, section")]
    .filter((each) => !each.labels?.length && !each.ariaLabel && !each.getAttribute("aria-labelledby") && !each.textContent.trim())
    .map((each) => each.outerHTML));
  insist(unnamed.length === 0, "without a name: " + unnamed.join("\n"));
}

async function messages(page) {
  await tabTo(page, "Topics");
  await page.keyboard.press("Enter");
  const rows = page.locator("#topics-rows tr");
  await rows.filter({ hasText: topic }).waitFor();
  await page.locator("#prefix").fill(hostile.slice(0, 2));
  await page.waitForFunction(() => document.querySelectorAll("#topics-rows tr").length === 1);
  await page.getByRole("link", { name: hostile, exact: true }).click();
  const payload = page.locator("#messages td:last-child").first();
  await payload.getByText("boom").waitFor();
  insist((await payload.textContent()).includes("<img src=x onerror=boom()>"), "the payload is not shown as it is");
  insist(await page.locator("main img, main b, main script").count() === 0, "markup was not escaped");
  await page.goto(url + "#topic=" + encodeURIComponent(topic));
  await page.locator("#messages td", { hasText: "live" }).first().waitFor();
  await page.locator("#messages td", { hasText: "price" }).first().waitFor();
}

async function streams(page) {
  await page.getByRole("link", { name: "Streams", exact: true }).click();
  await page.locator("#streams-rows tr").first().waitFor();
  await page.locator("#f-address").fill("nowhere");
  await page.locator("#streams-note", { hasText: "address must be an address" }).waitFor();
  await page.locator("#f-address").fill("127.0.0.0/8");
  await page.locator("#f-topic").fill(topic);
  await page.waitForFunction((topic) => {
    const rows = [...document.querySelectorAll("#streams-rows tr")];
    return rows.length > 0 && rows.every((row) => row.textContent.includes(topic));
  }, topic);
  await page.getByRole("button", { name: "End all that match…" }).click();
  insist(await page.evaluate(() => document.activeElement.id) === "confirm-no", "the safe button has the focus");
  await page.keyboard.press("Tab");
  await page.keyboard.press("Enter");
  await page.locator("#streams-note", { hasText: "ended" }).waitFor();
}

// One that ended is one in the last minute, and not the twelve that it would be at this rate.
async function counted(page) {
  await page.getByRole("link", { name: "Overview", exact: true }).click();
  const shown = page.locator("figure", { hasText: "Refused or ended" }).locator("output");
  await page.waitForFunction(() => [...document.querySelectorAll("figure.bad output")].some((each) => parseInt(each.textContent) > 0));
  const [now, times] = [await shown.textContent(), await page.locator("#why td:last-child").allTextContents()];
  const all = times.reduce((sum, text) => sum + Number(text), 0);
  insist(now.endsWith("in the last minute"), now);
  insist(parseInt(now) > 0 && parseInt(now) <= all, now + ", of " + all + " since the start");
}

// What a question is about is on one view, and so is the question.
async function dialog(page) {
  await page.getByRole("link", { name: "Streams", exact: true }).click();
  await page.locator("#f-topic").fill("");
  await page.locator("#f-address").fill("");
  await page.getByRole("button", { name: /^End stream / }).first().click();
  await page.locator("#confirm").waitFor();
  await page.evaluate(() => { location.hash = "#topics"; });
  await page.locator("#topics-rows tr").first().waitFor();
  insist(!(await page.locator("#confirm").isVisible()), "the question is asked over another view");
}

// On a telephone, every action is in sight, and no view is wider than the screen.
async function narrow(page) {
  await page.setViewportSize({ width: 400, height: 800 });
  for (const view of ["Overview", "Topics", "Streams", "Configuration"]) {
    await page.getByRole("link", { name: view, exact: true }).click();
    await page.locator(`#${view.toLowerCase()} ${view === "Overview" ? "figure" : "tbody tr"}`).first().waitFor();
    const outside = await page.evaluate(() => [...document.querySelectorAll("main button, main a, main input, main td")]
      .filter((each) => each.checkVisibility() && (each.getBoundingClientRect().right > 400 || each.getBoundingClientRect().left < 0))
      .map((each) => each.outerHTML));
    insist(outside.length === 0, "out of sight on 400 pixels: " + outside.join("\n"));
    const wide = await page.evaluate(() => document.documentElement.scrollWidth);
    insist(wide <= 400, view + " is " + wide + " wide on 400 pixels");
  }
  await page.setViewportSize({ width: 1280, height: 920 });
}

async function configuration(page) {
  await page.getByRole("link", { name: "Configuration", exact: true }).click();
  const rows = page.locator("#configuration-rows tr");
  await rows.filter({ hasText: "limits.streams" }).first().waitFor();
  const all = await rows.count();
  await page.getByRole("checkbox").check();
  const set = await rows.count();
  insist(set > 0 && set < all, set + " of " + all + " settings are set");
}

try {
  if (topic === "screenshot") {
    const page = await open({ deviceScaleFactor: 1 });
    await page.waitForTimeout(2500);
    await page.screenshot({ path: hostile, fullPage: true });
  } else {
    const page = await open();
    for (const step of [overview, messages, streams, counted, dialog, configuration, narrow]) await step(page);
    const light = await page.evaluate(() => getComputedStyle(document.body).backgroundColor);
    await page.emulateMedia({ colorScheme: "dark" });
    insist(await page.evaluate(() => getComputedStyle(document.body).backgroundColor) !== light, "there is no dark mode");
  }
  if (errors.length > 0) throw new Error(errors.join("\n"));
  console.log("all as it should be");
} finally {
  await browser.close();
}
