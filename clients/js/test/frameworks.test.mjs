// The components of docs/browser.md as they stand there, each with its framework in Chromium, and a real gateway.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { after, before, test } from "node:test";
import { build } from "esbuild";
import { compile as svelte } from "svelte/compiler";
import { compileScript, parse } from "vue/compiler-sfc";
import { launch } from "./browser.mjs";
import { gateway, until } from "./gateway.mjs";

const here = new URL("..", import.meta.url).pathname;
const [, chapter] = /\n## In a framework\n([^]*?)\n## /.exec(readFileSync(`${here}../../docs/browser.md`, "utf8"));

// How each is compiled and shown. The component is the import "component".
const FRAMEWORKS = {
  jsx: {
    name: "React",
    compile: (text) => text,
    show: `import { createElement, StrictMode } from "react";
      import { createRoot } from "react-dom/client";
      import { Price } from "component";
      const root = createRoot(document.querySelector("app-price"));
      root.render(createElement(StrictMode, null, createElement(Price)));
      window.leave = () => root.unmount();`,
  },
  vue: {
    name: "Vue",
    compile: (text) => compileScript(parse(text).descriptor, { id: "price", inlineTemplate: true }).content,
    show: `import { createApp } from "vue";
      import Price from "component";
      const app = createApp(Price);
      app.mount("app-price");
      window.leave = () => app.unmount();`,
  },
  svelte: {
    name: "Svelte",
    compile: (text) => svelte(text, { generate: "client" }).js.code,
    show: `import { mount, unmount } from "svelte";
      import Price from "component";
      const app = mount(Price, { target: document.querySelector("app-price") });
      window.leave = () => unmount(app);`,
  },
  ts: {
    name: "Angular",
    compile: (text) => text,
    show: `import "@angular/compiler";
      import { provideZonelessChangeDetection } from "@angular/core";
      import { bootstrapApplication } from "@angular/platform-browser";
      import { Price } from "component";
      bootstrapApplication(Price, { providers: [provideZonelessChangeDetection()] }).then((app) => {
        window.leave = () => app.destroy();
      });`,
  },
};

async function bundle(language, text) {
  const { compile, show } = FRAMEWORKS[language];
  const component = {
    name: "component",
    setup({ onResolve, onLoad }) {
      onResolve({ filter: /^component$/ }, () => ({ path: "component", namespace: "document" }));
      onLoad({ filter: /./, namespace: "document" }, () => ({
        contents: compile(text),
        loader: { jsx: "jsx", ts: "ts" }[language] ?? "js",
        resolveDir: here,
      }));
    },
  };
  const { outputFiles } = await build({
    stdin: { contents: show, resolveDir: here },
    plugins: [component],
    bundle: true,
    write: false,
    format: "iife",
    jsx: "automatic",
    conditions: ["browser"],
    alias: { topicgate: `${here}dist/index.js` },
    define: { "process.env.NODE_ENV": '"production"', __VUE_OPTIONS_API__: "true", __VUE_PROD_DEVTOOLS__: "false", __VUE_PROD_HYDRATION_MISMATCH_DETAILS__: "false" },
    tsconfigRaw: { compilerOptions: { experimentalDecorators: true, useDefineForClassFields: false } },
  });
  return outputFiles[0].text;
}

let browser;
let gate;

before(async () => {
  [browser, gate] = await Promise.all([launch(), gateway('streams.retry = "500ms"\n[[topics]]\nmatch = "prices/*"\nread = "anyone"\npublish = "anyone"\n')]);
});

after(async () => {
  await browser?.close();
  await gate?.stop();
});

for (const [language, { name }] of Object.entries(FRAMEWORKS)) {
  test(`${name}: a component shows what is published, says whether it is live, and closes its connection`, async (t) => {
    const blocks = [...chapter.matchAll(new RegExp(`\`\`\`${language}\n([^]*?)\`\`\``, "g"))].map(([, text]) => text);
    assert.equal(blocks.length, 1);
    const [text] = blocks;
    assert.ok(text.trimEnd().split("\n").length <= 20, "it has more than 20 lines");
    const script = await bundle(language, text);
    const page = await browser.newPage();
    t.after(() => page.close());
    const errors = [];
    page.on("pageerror", (error) => errors.push(String(error)));
    await page.route(`${gate.url}/app.js`, (route) => route.fulfill({ contentType: "text/javascript", body: script }));
    await page.route(`${gate.url}/app`, (route) =>
      route.fulfill({ contentType: "text/html", body: '<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,"><app-price></app-price><script src="/app.js"></script>' }));
    await page.goto(`${gate.url}/app`);
    const shows = (look, text) => page.locator(`b.${look}`, { hasText: text }).waitFor();
    await shows("live", "–");
    for (const price of [1, 2, 3]) await gate.publish("prices/eur", JSON.stringify({ price }));
    await shows("live", "3");
    await gate.close();
    await shows("old", "3");
    await shows("live", "3");
    await page.evaluate(() => window.leave());
    await until("nobody reads", async () => (await gate.metric('topicgate_streams{http="1.1"}')) === 0);
    assert.deepEqual(errors, []);
  });
}
