// A Redis server as a child process: the one of the system, or that REDIS_SERVER names.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { connect, createServer } from "node:net";
import { until } from "./gateway.mjs";

export async function freePort() {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address();
  server.close();
  return port;
}

export async function redis() {
  const port = await freePort();
  const options = ["--port", `${port}`, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"];
  const child = spawn(process.env.REDIS_SERVER || "redis-server", options, { stdio: "ignore" });
  await until("Redis listens", () => new Promise((resolve) => {
    const socket = connect(port, "127.0.0.1").on("connect", () => (socket.destroy(), resolve(true))).on("error", () => resolve(false));
  }));
  const kill = async () => {
    if (child.exitCode !== null || child.signalCode !== null) return;
    child.kill("SIGKILL");
    await once(child, "exit");
  };
  return { port, url: `redis://127.0.0.1:${port}`, kill, stop: kill };
}
