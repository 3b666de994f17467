// A gateway as a child process: the binary that cargo has built, or that TOPICGATE names.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";

const target = process.env.CARGO_TARGET_DIR || new URL("../../../target", import.meta.url).pathname;
const program = process.env.TOPICGATE || join(target, "debug/topicgate");

export async function gateway(toml = "", { port = 0, env = {} } = {}) {
  if (!existsSync(program)) throw new Error(`${program} is missing: run cargo build`);
  const folder = mkdtempSync(join(tmpdir(), "topicgate-js-"));
  const file = join(folder, "topicgate.toml");
  writeFileSync(file, `listen = "127.0.0.1:${port}"\n${toml}\n[admin]\nlisten = "127.0.0.1:0"\n`);
  const child = spawn(program, ["--config", file], { env: { ...process.env, ...env }, stdio: ["ignore", "pipe", "pipe"] });
  const output = [];
  const addresses = new Promise((resolve, reject) => {
    const read = (line) => {
      output.push(line);
      const found = /listen=(\S+) admin=(\S+)/.exec(line);
      if (found) resolve(found.slice(1));
    };
    for (const stream of [child.stdout, child.stderr]) createInterface({ input: stream }).on("line", read);
    child.on("exit", () => reject(new Error("the gateway has ended:\n" + output.join("\n"))));
  });
  const [listen, admin] = await addresses;
  const url = `http://${listen}`;
  const self = {
    url,
    port: Number(listen.split(":")[1]),
    output,
    async publish(topic, data, type) {
      const query = type ? `?type=${encodeURIComponent(type)}` : "";
      const response = await fetch(`${url}/topics/${topic}${query}`, { method: "POST", body: String(data) });
      if (response.status !== 202) throw new Error(`${response.status} ${await response.text()}`);
    },
    async metric(sample) {
      const text = await (await fetch(`http://${admin}/metrics`)).text();
      const line = text.split("\n").find((each) => each.startsWith(sample + " "));
      return Number(line?.slice(sample.length + 1) ?? NaN);
    },
    async close() {
      await fetch(`http://${admin}/streams?address=127.0.0.1`, { method: "DELETE" });
    },
    async stop(signal = "SIGKILL") {
      if (child.exitCode === null && child.signalCode === null) {
        child.kill(signal);
        await once(child, "exit");
      }
      rmSync(folder, { recursive: true, force: true });
    },
  };
  await until("the gateway is ready", async () => (await fetch(`http://${admin}/readyz`)).ok);
  return self;
}

/** Waits until `holds` returns something true, which it returns. */
export async function until(what, holds, limit = 60_000) {
  const end = Date.now() + limit;
  let last;
  for (;;) {
    try {
      last = await holds();
      if (last) return last;
    } catch (error) {
      last = error;
    }
    if (Date.now() > end) throw new Error(`not so in ${limit} ms: ${what}; the last was ${last?.stack ?? JSON.stringify(last)}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}
