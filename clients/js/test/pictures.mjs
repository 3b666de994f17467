// Makes the pictures of docs/examples.md and docs/faults.md again, from what the tests show in Chromium:
//
//   npm run pictures            all of them; needs what the tests need: make tools, and target/debug/topicgate
//   npm run pictures faults     those of one
import { spawnSync } from "node:child_process";
import { copyFileSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { launch } from "./browser.mjs";

const here = new URL(".", import.meta.url).pathname;
const docs = new URL("../../../docs/", import.meta.url).pathname;
const folder = mkdtempSync(join(tmpdir(), "topicgate-pictures-"));
const [only] = process.argv.slice(2);
const tests = (only ? [only] : ["examples", "faults"]).map((name) => join(here, `${name}.test.mjs`));
const { status } = spawnSync(process.execPath, ["--test", ...tests], { env: { ...process.env, SCREENSHOTS: folder }, stdio: "inherit" });
if (status !== 0) process.exit(1);

// The pictures of faults begin with two digits: the sheet, and the place on it.
const sheets = {};
for (const file of readdirSync(folder).sort()) {
  const [, sheet, name] = /^(?:(\d)\d )?(.*)\.png$/.exec(file);
  if (sheet) (sheets[sheet] ??= []).push([name, readFileSync(join(folder, file)).toString("base64")]);
  else copyFileSync(join(folder, file), join(docs, "examples", file));
}

const browser = await launch();
const page = await browser.newPage({ viewport: { width: 1200, height: 600 } });
for (const [number, pictures] of Object.entries(sheets)) {
  const figures = pictures.map(([name, data]) => `<figure><figcaption>${name}</figcaption><img src="data:image/png;base64,${data}"></figure>`);
  await page.setContent(`<!doctype html><style>
    body { margin: 0; background: #fff; font: 600 14px system-ui, sans-serif; color: #17202b; }
    main { display: inline-grid; grid-template-columns: repeat(2, 320px); gap: 12px; padding: 12px; }
    figure { margin: 0; } figcaption { padding-bottom: 4px; } img { display: block; outline: 1px solid #d9dfe6; }
    </style><main>${figures.join("")}</main>`, { waitUntil: "load" });
  await page.locator("main").screenshot({ path: join(docs, "faults", `${number}.png`) });
}
await browser.close();
rmSync(folder, { recursive: true });
