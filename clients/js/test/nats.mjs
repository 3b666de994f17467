// A NATS server as a child process, with JetStream.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { connect, createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { until } from "./gateway.mjs";

const program = new URL("../../../.tools/bin/nats-server", import.meta.url).pathname;

export async function broker(more = []) {
  const free = createServer().listen(0, "127.0.0.1");
  await once(free, "listening");
  const { port } = free.address();
  free.close();
  const folder = mkdtempSync(join(tmpdir(), "topicgate-js-nats-"));
  let child;
  const it = {
    port,
    url: `nats://127.0.0.1:${port}`,
    start: async () => {
      child = spawn(program, ["-js", "-sd", folder, "-a", "127.0.0.1", "-p", `${port}`, ...more], { stdio: "ignore" });
      await until("the broker listens", () => new Promise((resolve) => {
        const socket = connect(port, "127.0.0.1").on("connect", () => (socket.destroy(), resolve(true))).on("error", () => resolve(false));
      }));
    },
    kill: async () => {
      if (child.exitCode !== null || child.signalCode !== null) return;
      child.kill("SIGKILL");
      await once(child, "exit");
    },
    stop: async () => {
      await it.kill();
      rmSync(folder, { recursive: true, force: true });
    },
    /** Sends a request, and returns the payload of the answer. */
    request: (subject, payload) => new Promise((resolve, reject) => {
      const body = typeof payload === "string" ? payload : JSON.stringify(payload);
      let text = "";
      const socket = connect(port, "127.0.0.1").on("error", reject);
      socket.write(`CONNECT {"verbose":false}\r\nSUB answer 1\r\nPUB ${subject} answer ${Buffer.byteLength(body)}\r\n${body}\r\n`);
      socket.on("data", (data) => {
        text += data;
        const found = /\r\nMSG \S+ 1 (\d+)\r\n/.exec(text);
        if (!found || text.length < found.index + found[0].length + Number(found[1])) return;
        socket.destroy();
        resolve(text.slice(found.index + found[0].length, found.index + found[0].length + Number(found[1])));
      });
    }),
    bucket: async (name) => {
      const config = { name: `KV_${name}`, subjects: [`$KV.${name}.>`], max_msgs_per_subject: 1, allow_rollup_hdrs: true, deny_delete: true, discard: "new", storage: "memory", allow_direct: true };
      const answer = JSON.parse(await it.request(`$JS.API.STREAM.CREATE.KV_${name}`, config));
      if (answer.error) throw new Error(JSON.stringify(answer.error));
    },
    /** Puts the keys `k0` to `k<count - 1>`, with their numbers as values. */
    fill: async (bucket, count) => {
      const puts = Array.from({ length: count - 1 }, (_, key) => `PUB $KV.${bucket}.k${key} ${`${key}`.length}\r\n${key}\r\n`);
      const socket = connect(port, "127.0.0.1");
      await once(socket, "connect");
      socket.write(`CONNECT {"verbose":false}\r\n${puts.join("")}PING\r\n`);
      await new Promise((resolve) => socket.on("data", (data) => /PONG/.test(data) && resolve()));
      socket.destroy();
      await it.put(bucket, `k${count - 1}`, `${count - 1}`);
    },
    put: (bucket, key, value) => it.request(`$KV.${bucket}.${key}`, value),
  };
  await it.start();
  return it;
}
