// What the back ends of the examples have in common: they serve a page, and publish to NATS or Redis. It uses nothing but
// Node, so that you see all of it; in your application, use your framework and a client library of your broker.
import { once } from "node:events";
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { connect } from "node:net";

/** Where browsers reach the gateway. */
export const GATEWAY = process.env.GATEWAY || "http://127.0.0.1:8080";
const NATS = new URL(process.env.NATS || "nats://127.0.0.1:4222");
const REDIS = new URL(process.env.REDIS || "redis://127.0.0.1:6379");

/** The text as HTML, so that nothing that a person types becomes an element. */
export const escape = (text) => String(text).replace(/[&<>"']/g, (letter) => `&#${letter.charCodeAt()};`);

const parse = (text, type = "") => (type.startsWith("application/x-www-form-urlencoded") ? Object.fromEntries(new URLSearchParams(text)) : text && JSON.parse(text));

/**
 * Serves index.html of `folder`, and the routes: `"POST /login": async ({ body, cookies, url }) => answer`. A body is JSON or
 * a form. An answer is JSON, or `{ status, headers, json }`, or `{ html }`.
 */
export async function serve(folder, routes = {}) {
  const server = createServer(async (request, response) => {
    const url = new URL(request.url, "http://backend");
    const send = (status, type, body, headers = {}) => response.writeHead(status, { "content-type": type, ...headers }).end(body);
    try {
      const route = routes[`${request.method} ${url.pathname}`];
      if (route) {
        let text = "";
        for await (const part of request) text += part;
        const cookies = Object.fromEntries((request.headers.cookie ?? "").split("; ").map((each) => each.split("=")));
        const answer = (await route({ body: parse(text, request.headers["content-type"]), cookies, url })) ?? {};
        if ("html" in answer) return send(200, "text/html; charset=utf-8", answer.html);
        const { status = 200, headers = {}, json = answer } = "status" in answer || "headers" in answer ? answer : {};
        return send(status, "application/json", JSON.stringify(json), headers);
      }
      if (url.pathname === "/style.css") return send(200, "text/css", await readFile(new URL("style.css", import.meta.url)));
      if (url.pathname !== "/") return send(404, "text/plain", "not found");
      // The page names the gateway as it is by default.
      const page = await readFile(new URL("index.html", folder), "utf8");
      send(200, "text/html; charset=utf-8", page.replaceAll("http://127.0.0.1:8080", GATEWAY));
    } catch (error) {
      send(500, "text/plain", String(error));
    }
  });
  server.listen(process.env.PORT ?? 3000, "127.0.0.1");
  await once(server, "listening");
  console.log(`open http://127.0.0.1:${server.address().port}/`);
}

/** A connection to NATS, which is plain text. It is opened again when NATS is back. */
export async function nats() {
  const inbox = `_INBOX.${Math.random().toString(36).slice(2)}`;
  const waiting = new Map();
  let socket;
  const dial = () => {
    let rest = "";
    socket = connect(Number(NATS.port || 4222), NATS.hostname);
    socket.write(`CONNECT {"verbose":false,"headers":true}\r\nSUB ${inbox}.* 1\r\n`);
    socket.on("error", () => {}).on("close", () => setTimeout(dial, 1000));
    socket.setEncoding("utf8").on("data", (text) => {
      rest += text;
      for (;;) {
        const line = rest.slice(0, rest.indexOf("\r\n") + 2);
        if (!line) return;
        const [, answer, bytes] = /^MSG \S+\.(\S+) 1 (\d+)\r\n$/.exec(line) ?? [];
        if (answer && rest.length < line.length + Number(bytes) + 2) return;
        if (answer) waiting.get(answer)?.(rest.slice(line.length, line.length + Number(bytes)));
        if (line === "PING\r\n") socket.write("PONG\r\n");
        rest = rest.slice(line.length + (answer ? Number(bytes) + 2 : 0));
      }
    });
  };
  dial();
  await once(socket, "connect");
  const pub = (subject, reply, payload) => {
    const text = typeof payload === "string" ? payload : JSON.stringify(payload);
    socket.write(`PUB ${subject} ${reply}${Buffer.byteLength(text)}\r\n${text}\r\n`);
  };
  let count = 0;
  return {
    publish: (subject, payload) => pub(subject, "", payload),
    /** Publishes with the header that the gateway reads the type from. */
    publishType: (subject, type, payload) => {
      const head = `NATS/1.0\r\nEvent-Type: ${type}\r\n\r\n`;
      const text = JSON.stringify(payload);
      socket.write(`HPUB ${subject} ${head.length} ${head.length + Buffer.byteLength(text)}\r\n${head}${text}\r\n`);
    },
    request: (subject, payload) =>
      new Promise((resolve) => {
        const id = String(++count);
        waiting.set(id, (text) => (waiting.delete(id), resolve(JSON.parse(text))));
        pub(subject, `${inbox}.${id} `, payload);
      }),
  };
}

/** A connection to Redis: `await command("PUBLISH", channel, text)`. It is opened again when Redis is back. */
export async function redis() {
  const waiting = [];
  let socket;
  const dial = () => {
    let rest = "";
    socket = connect(Number(REDIS.port || 6379), REDIS.hostname);
    socket.on("error", () => {}).on("close", () => {
      for (const { reject } of waiting.splice(0)) reject(new Error("the connection to Redis is lost"));
      setTimeout(dial, 1000);
    });
    socket.setEncoding("utf8").on("data", (text) => {
      rest += text;
      // The answers to these commands are a line, or a length and a line.
      for (let found; (found = /^(?:([-+:])(.*)|\$\d+\r\n(.*))\r\n/.exec(rest)); rest = rest.slice(found[0].length)) {
        const [, kind, line, long] = found;
        const { resolve, reject } = waiting.shift();
        kind === "-" ? reject(new Error(line)) : resolve(line ?? long);
      }
    });
  };
  dial();
  await once(socket, "connect");
  return (...words) =>
    new Promise((resolve, reject) => {
      waiting.push({ resolve, reject });
      socket.write(`*${words.length}\r\n` + words.map((word) => `$${Buffer.byteLength(String(word))}\r\n${word}\r\n`).join(""));
    });
}
