// Opens a page of docs/recipes.md in Chromium, at the origin of a gateway, and does what its standard input says:
//
//   node recipe.mjs <URL of the page> <file of the page>
//
//   {"shows":"<selector>","text":"…"}   waits until the element has exactly this text
//   {"click":"<selector>"}
//   {"reload":true}
//   {"run":"<JavaScript>"}              an expression; its value is the answer
//
// Each line is answered with a line of JSON. The browser reaches no other host: https://cdn.jsdelivr.net/npm/ and
// https://esm.sh/ are answered from node_modules, the latter with all that a module imports in one file.
import { readFile } from "node:fs/promises";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";
import { launch } from "./chromium.mjs";

const here = fileURLToPath(new URL(".", import.meta.url));
const patience = { timeout: 50_000 };

// "@a/b@1.2/c/d.js" is the file c/d.js of the package @a/b.
function split(path) {
  const [, name, file = ""] = path.match(/^((?:@[^/]+\/)?[^/@]+)(?:@[^/]+)?(?:\/(.*))?$/);
  return { name, file };
}

async function module(path) {
  const { name, file } = split(path);
  const contents = `export * from "${name}${file && "/" + file}";`;
  const bundle = await build({ stdin: { contents, resolveDir: here }, bundle: true, format: "esm", write: false });
  return bundle.outputFiles[0].text;
}

async function script(path) {
  const { name, file } = split(path);
  return readFile(`${here}node_modules/${name}/${file}`, "utf8");
}

const [url, html] = process.argv.slice(2);
const origin = new URL(url).origin;
const browser = await launch();
const page = await browser.newPage();
const errors = [];
page.on("pageerror", (error) => errors.push(String(error)));

const headers = { "access-control-allow-origin": "*" };
const answer = async (route, body) =>
  route.fulfill({ contentType: "text/javascript", headers, body: await body }).catch((error) => errors.push(String(error)));
await page.route("https://**", (route) => route.abort());
await page.route("https://cdn.jsdelivr.net/npm/**", (route) => answer(route, script(route.request().url().slice(29))));
await page.route("https://esm.sh/**", (route) => answer(route, module(route.request().url().slice(15))));
await page.route(url, async (route) => route.fulfill({ contentType: "text/html", body: await readFile(html, "utf8") }));
await page.route(`${origin}/favicon.ico`, (route) => route.fulfill({ status: 204 }));

async function act({ shows, text, click, reload, run }) {
  if (shows) {
    const has = ([selector, text]) => document.querySelector(selector)?.textContent === text;
    await page.waitForFunction(has, [shows, text], patience).catch(async () => {
      const is = await page.locator(shows).allTextContents();
      throw new Error(`${shows} is ${JSON.stringify(is)}, not ${JSON.stringify(text)}`);
    });
  }
  if (click) await page.click(click, patience);
  if (reload) await page.reload({ waitUntil: "domcontentloaded" });
  if (run) return page.evaluate(run);
}

try {
  await page.goto(url, { waitUntil: "domcontentloaded" });
  console.log("{}");
  for await (const line of createInterface({ input: process.stdin })) {
    try {
      console.log(JSON.stringify({ value: await act(JSON.parse(line)) }));
    } catch (error) {
      console.log(JSON.stringify({ error: String(error), errors }));
    }
  }
} finally {
  await browser.close();
}
process.exit(0);
