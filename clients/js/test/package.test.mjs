// What is published and what is built into the gateway.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { gzipSync } from "node:zlib";

const here = new URL("..", import.meta.url).pathname;
const built = new URL("../../../src/http/topicgate.js", import.meta.url);
const scratch = mkdtempSync(join(tmpdir(), "topicgate-package-"));
after(() => rmSync(scratch, { recursive: true }));

const run = (program, ...args) =>
  execFileSync(join(here, "node_modules/.bin", program), args, { cwd: here, encoding: "utf8", stdio: ["ignore", "pipe", "pipe"] });

test("the module in the gateway is built from this source", () => {
  const file = join(scratch, "topicgate.js");
  execFileSync("npm", ["run", "--silent", "bundle", "--", `--outfile=${file}`], { cwd: here });
  assert.ok(readFileSync(file).equals(readFileSync(built)), "run `npm run bundle` in clients/js and commit src/http/topicgate.js");
});

test("the module has at most 4 KiB, minified and gzipped", (t) => {
  const bytes = gzipSync(readFileSync(built), { level: 9 }).length;
  t.diagnostic(`${bytes} bytes`);
  assert.ok(bytes <= 4096, `${bytes} bytes`);
});

test("the package has no dependency, and publint and attw find nothing", () => {
  const { dependencies, peerDependencies } = JSON.parse(readFileSync(join(here, "package.json")));
  assert.deepEqual([dependencies, peerDependencies], [undefined, undefined]);
  execFileSync("npm", ["pack", "--silent", "--ignore-scripts", "--pack-destination", scratch], { cwd: here });
  const archive = join(scratch, "topicgate-0.1.0.tgz");
  run("publint", "run", archive, "--strict");
  run("attw", archive, "--profile", "esm-only");
});

test("the types are those of an EventSource and of the module's events, also in a strict project", () => {
  const file = join(scratch, "user.mts");
  writeFileSync(file, `
import { follow, TopicSource, type Refusal } from ${JSON.stringify(join(here, "dist/index.js"))};
const native: EventSource = new TopicSource("/topics/a");
const source = new TopicSource("/topics/a", { token: async () => "t", shareKey: "ann", topics: ["b"], worker: new SharedWorker("/topicgate.js") });
native.onmessage = ({ data }) => void data;
source.addEventListener("refused", ({ detail }) => { const refusal: Refusal = detail; void refusal; });
source.addEventListener("gap", ({ detail: { topic, reason } }) => { const text: string = topic + reason; void text; });
source.addEventListener("price", ({ data, lastEventId }) => { const text: string = data + lastEventId; void text; });
for await (const { type, data } of source.messages("price")) { const text: string = type + data; void text; }
const followed: TopicSource = follow("/topics/a", { load: async () => {}, apply: ({ data }) => { const text: string = data; void text; } });
followed.close();
// @ts-expect-error: that is no detail of a gap
source.addEventListener("gap", ({ detail }) => detail.status);
export {};
`);
  run("tsc", "--noEmit", "--strict", "--target", "es2022", "--module", "nodenext", "--lib", "es2022,dom", "--types", "", "--ignoreConfig", file);
});
