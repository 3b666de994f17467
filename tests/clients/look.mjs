// Opens the first look in Chromium as a newcomer would: all five uses must be alive, in both colour schemes, on a telephone,
// and by keyboard; two tabs must share one stream; and the code that is shown must work.
//
//   node look.mjs <url> <url of the admin listener>      exits 1 if anything is not as it should be
//   node look.mjs <program> soon                         exits 1 if the dashboard takes five seconds from the program's start
//   node look.mjs <url> screenshot <folder>              writes what a person sees
import { spawn } from "node:child_process";
import { createInterface } from "node:readline";
import { launch } from "./chromium.mjs";

const [url, admin, folder] = process.argv.slice(2);
const browser = await launch();
const errors = [];

function insist(holds, what) {
  if (!holds) throw new Error(what);
}

async function open(context) {
  const page = await context.newPage();
  page.on("pageerror", (error) => errors.push(String(error)));
  page.on("console", (message) => ["error", "warning"].includes(message.type()) && !message.text().includes("status of 400") && errors.push(message.text()));
  await page.goto(url);
  return page;
}

const ALIVE = {
  dashboard: () => document.querySelector("#look-orders").textContent.match(/\d/) && document.querySelector(".chart .line").hasAttribute("d"),
  sensors: () => document.querySelectorAll("#look-tiles li").length >= 11,
  notifications: () => document.querySelectorAll("#look-notices li").length >= 2,
  news: () => document.querySelectorAll("#look-news-rows li").length >= 3,
  document: () => /version \d/.test(document.querySelector("#look-document-state").textContent),
};

async function alive(page) {
  for (const [name, is] of Object.entries(ALIVE)) {
    await page.waitForFunction(is).catch(() => { throw new Error(name + " shows no life"); });
  }
  const text = (name) => page.locator("#look-" + name).innerText();
  for (const name of ["dashboard", "sensors", "notifications", "news", "document"]) {
    const before = await text(name);
    await page.waitForFunction(([name, before]) => document.getElementById("look-" + name).innerText !== before, [name, before])
      .catch(() => { throw new Error(name + " stands still"); });
  }
}

const metric = async (name) => Number((await (await fetch(admin + "metrics")).text()).split("\n" + name + " ")[1].split("\n")[0]);
const streams = () => metric('topicgate_streams{http="1.1"}');

async function twoTabs(context, first) {
  insist(await streams() === 1, "one page has " + await streams() + " streams");
  const second = await open(context);
  await alive(second);
  await second.locator("#look-line", { hasText: "2 tabs in this browser, 1 stream at the gateway" }).waitFor();
  insist(await streams() === 1, "two tabs have " + await streams() + " streams");
  // The first leads; the second goes on without it.
  await first.close();
  await alive(second);
  return second;
}

// What the form publishes arrives in the card, and the form's topic may change while the cards go on.
async function form(page) {
  await page.locator("#look-notifications").getByRole("button", { name: "Send one" }).click();
  await page.keyboard.press("Enter");
  await page.locator("#look-notices li", { hasText: "Hello from the form" }).waitFor();
  await page.locator("#topic").fill("demo.>");
  await page.getByRole("button", { name: "Subscribe", exact: true }).click();
  await page.locator("#state", { hasText: "Refused" }).waitFor();
  await page.locator("#note", { hasText: "write demo/**" }).waitFor();
  await page.locator("#topic").fill("shop/1");
  await page.getByRole("button", { name: "Subscribe", exact: true }).click();
  await page.locator("#state", { hasText: "Live" }).waitFor();
  await page.locator("#to").fill("shop/1");
  await page.locator("#type").fill("sold");
  await page.locator("#payload").fill('{"big":12345678901234567890}');
  await page.getByRole("button", { name: "Publish", exact: true }).click();
  const row = page.locator("#rows tr", { hasText: '{"big":12345678901234567890}' });
  await row.waitFor();
  insist((await row.locator("td").nth(2).textContent()) === "sold", "the type is not shown");
  await alive(page);
  // A reload with a topic that cannot be read is an error of the form, and not the end of the rest.
  await page.goto(url + "#demo.>");
  await page.reload();
  await page.locator("#state", { hasText: "Refused" }).waitFor();
  await page.locator("#note", { hasText: "write demo/**" }).waitFor();
  await alive(page);
  await page.goto(url + "#demo/hello");
  await page.reload();
  await alive(page);
}

async function pause(page) {
  await page.getByRole("button", { name: "Pause", exact: true }).focus();
  await page.keyboard.press("Enter");
  await page.locator("#look-line", { hasText: "Paused" }).waitFor();
  const published = () => metric("topicgate_publish_seconds_count");
  for (let before; before !== (before = await published());) await page.waitForTimeout(5000); // until nothing happens
  await page.keyboard.press("Enter");
  await alive(page);
}

async function looks(page) {
  const colour = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  const light = await colour();
  await page.emulateMedia({ colorScheme: "dark" });
  insist(await colour() !== light, "there is no dark mode");
  for (const scheme of ["light", "dark"]) {
    await page.emulateMedia({ colorScheme: scheme, reducedMotion: "reduce" });
    await contrast(page, scheme);
  }
  for (const width of [360, 700, 900]) {
    await page.setViewportSize({ width, height: 800 });
    const wide = await page.evaluate(() => document.documentElement.scrollWidth);
    insist(wide <= width, "on " + width + " pixels the page is " + wide + " wide");
  }
  const unnamed = await page.evaluate(() => [...document.querySelectorAll("button, input, textarea, svg[role], pre, article, section")]
    .filter((each) => !each.labels?.length && !each.ariaLabel && !each.getAttribute("aria-labelledby") && !each.textContent.trim())
    .map((each) => each.outerHTML));
  insist(unnamed.length === 0, "without a name: " + unnamed.join("\n"));
  await page.setViewportSize({ width: 1280, height: 900 });
}

// Text has at least 4.5:1 against what is behind it (WCAG 2.2, AA).
async function contrast(page, scheme) {
  const weak = await page.evaluate(() => {
    const canvas = Object.assign(document.createElement("canvas"), { width: 1, height: 1 }).getContext("2d", { willReadFrequently: true });
    const paint = (colours) => {
      canvas.clearRect(0, 0, 1, 1);
      for (const colour of colours) {
        canvas.fillStyle = colour;
        canvas.fillRect(0, 0, 1, 1);
      }
      return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
    };
    const light = (rgb) => rgb.map((each) => each / 255).map((each) => (each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4))
      .reduce((sum, each, at) => sum + each * [0.2126, 0.7152, 0.0722][at], 0);
    const found = [];
    for (const each of document.querySelectorAll("main *")) {
      const says = [...each.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
      if (!says || !each.checkVisibility()) continue;
      const behind = [];
      for (let at = each; at; at = at.parentElement) behind.unshift(getComputedStyle(at).backgroundColor);
      const [a, b] = [light(paint(behind)), light(paint([...behind, getComputedStyle(each).color]))].sort((one, other) => one - other);
      const ratio = (b + 0.05) / (a + 0.05);
      if (ratio < 4.5) found.push(ratio.toFixed(2) + ": " + each.outerHTML.slice(0, 120));
    }
    return found;
  });
  insist(weak.length === 0, "too weak in " + scheme + ":\n" + weak.join("\n"));
}

// Each piece of code, in a page of its own of this origin.
async function code() {
  const context = await browser.newContext({ bypassCSP: true });
  const page = await context.newPage();
  page.on("pageerror", (error) => errors.push("in the code that is shown: " + error));
  await page.goto(url);
  const all = {};
  for (const name of ["dashboard", "sensors", "notifications", "news", "document"]) all[name] = await page.locator("#code-" + name).textContent();
  for (const [name, text] of Object.entries(all)) {
    await page.goto(url + "topicgate.js"); // any other document of this origin, without scripts
    insist(text.split("\n").length <= 11, name + " takes more than ten lines");
    await page.evaluate((text) => {
      document.open();
      document.write(text);
      document.close();
    }, text);
    const isAlive = { dashboard: /\d+ orders/, sensors: /sensors\/\d+: \d/, notifications: /\w{4}/, news: /(city|sport|weather): \w/, document: /version \d/ }[name];
    await page.waitForFunction(([source]) => new RegExp(source).test(document.body.innerText), [isAlive.source])
      .catch(() => { throw new Error("the code of " + name + " shows nothing"); });
  }
  await context.close();
}

// From the start of the program to a dashboard with numbers and a line. The best of three, because a machine may be busy.
async function soon(program) {
  const took = [];
  const env = Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith("TOPICGATE_")));
  while (took.length < 3) {
    const begin = performance.now();
    const child = spawn(program, ["--listen", "127.0.0.1:0", "--log-format", "json"], { env, stdio: ["ignore", "ignore", "pipe"] });
    try {
      const address = await new Promise((resolve, reject) => {
        createInterface({ input: child.stderr }).on("line", (line) => line.includes("topicgate is listening") && resolve(JSON.parse(line).listen));
        child.on("exit", () => reject(new Error("the gateway has ended")));
      });
      const page = await browser.newPage();
      await page.goto(`http://${address}/`);
      await page.waitForFunction(ALIVE.dashboard);
      took.push(performance.now() - begin);
      await page.close();
    } finally {
      child.kill("SIGKILL");
    }
    if (took.at(-1) < 5000) return;
  }
  throw new Error("the dashboard is there after so many milliseconds: " + took.map(Math.round));
}

async function screenshots() {
  for (const [name, colorScheme, width] of [["light", "light", 1280], ["dark", "dark", 1280], ["phone", "light", 390]]) {
    const context = await browser.newContext({ colorScheme, viewport: { width, height: 900 } });
    const page = await open(context);
    await alive(page);
    await page.waitForTimeout(9000);
    await page.screenshot({ path: `${folder}/look-${name}.png`, fullPage: true });
    await page.screenshot({ path: `${folder}/look-${name}-top.png` });
    await context.close();
  }
}

try {
  if (admin === "screenshot") await screenshots();
  else if (admin === "soon") await soon(url);
  else {
    const context = await browser.newContext({ viewport: { width: 1280, height: 900 } });
    const first = await open(context);
    await alive(first);
    const page = await twoTabs(context, first);
    await form(page);
    await pause(page);
    await looks(page);
    await context.close();
    await code();
  }
  if (errors.length > 0) throw new Error(errors.join("\n"));
  console.log("all as it should be");
} finally {
  await browser.close();
}
