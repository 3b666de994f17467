// Tries read.mjs with each client against a small SSE server, so that a test of the gateway that fails points at
// the gateway. `npm test` runs it.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { createInterface } from "node:readline";
import { after, before, describe, test } from "node:test";
import { fileURLToPath } from "node:url";

const CLIENTS = ["chromium", "eventsource", "undici"];
const READ = fileURLToPath(new URL("read.mjs", import.meta.url));
const PAYLOADS = JSON.parse(readFileSync(new URL("payloads.json", import.meta.url))).payloads;

const bytes = (form) =>
  typeof form === "string"
    ? Buffer.from(form, "base64")
    : Buffer.concat(Array(form.times).fill(Buffer.from(form.repeat, "base64")));
const text = (form) => (typeof form === "string" ? form : form.repeat.repeat(form.times));

// An independent implementation of the gateway's encoding of a payload.
function data(payload) {
  let shown;
  try {
    shown = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(payload);
  } catch {
    shown = `data:application/octet-stream;base64,${payload.toString("base64")}`;
  }
  return shown
    .split(/\r\n|\r|\n/)
    .map((line) => `data: ${line}\n`)
    .join("");
}

const OPEN = 'event: stream-open\nid: e-0\nretry: 50\ndata: {"topics":["t"],"resumed":false}\n\n';
const LAST = 12;
const number = (n) => `id: e-${n}\ndata: ${n}\n\n`;

// Each path is one behaviour. A connection to /cut gives two numbers and then ends, each in another way: cleanly or
// with a reset, at the end of an event or inside one.
const behaviours = {
  "/payloads": (_, response) => {
    response.write(OPEN);
    PAYLOADS.forEach((each, n) => response.write(`id: e-${n + 1}\n${data(bytes(each.base64))}\n`));
  },
  "/types": (_, response) => {
    response.write(OPEN);
    response.write('event: stream-gap\nid: e-1\ndata: {"topic":"t","reason":"slow","missed":3}\n\n');
    response.write("event: price\nid: e-2\ndata: 5\n\n");
    response.write("event: unheard\nid: e-3\ndata: 6\n\n");
    response.write(":\n");
    response.write("event: error\ndata: 7\n\n");
    response.write('event: stream-close\nid: e-4\ndata: {"code":"draining","reconnect":true}\n\n');
  },
  "/cut": (request, response, visit) => {
    const resumed = request.headers["last-event-id"];
    const from = resumed ? Number(resumed.slice(2)) : 0;
    if (!resumed) response.write(OPEN);
    const to = Math.min(from + 2, LAST);
    for (let n = from + 1; n <= to; n++) response.write(number(n));
    if (to === LAST) return;
    const half = number(to + 1).slice(0, -1);
    // Time for what was written to arrive: a reset also throws away what the reader has not taken yet.
    setTimeout(() => {
      if (visit % 4 === 0) response.end();
      if (visit % 4 === 1) response.socket.resetAndDestroy();
      if (visit % 4 === 2) response.end(half);
      if (visit % 4 === 3) response.write(half, () => response.socket.resetAndDestroy());
    }, 50);
  },
};

const visits = new Map();
const server = createServer((request, response) => {
  const path = request.url.split("?")[0];
  if (path === "/page") {
    // As strict as the gateway's own page: the reader has to work in it.
    const policy = "default-src 'none'; connect-src 'self'";
    response.writeHead(200, { "Content-Type": "text/html", "Content-Security-Policy": policy });
    return response.end("<!doctype html>");
  }
  if (!behaviours[path]) {
    response.writeHead(503, { "Content-Type": "application/problem+json" });
    return response.end('{"title":"away"}');
  }
  response.writeHead(200, {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-store",
    ...(request.url.endsWith("?cors") && { "Access-Control-Allow-Origin": request.headers.origin ?? "*" }),
  });
  const visit = visits.get(request.url) ?? 0;
  visits.set(request.url, visit + 1);
  behaviours[path](request, response, visit);
});

let origin;
before(async () => {
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  origin = `http://127.0.0.1:${server.address().port}`;
});
after(() => {
  server.closeAllConnections();
  server.close();
});

// Reads until `done(things)`, closes the reader's standard input and waits for its end.
async function read(client, path, options, done) {
  visits.clear();
  const child = spawn(process.execPath, [READ, client, origin + path, JSON.stringify(options)], {
    stdio: ["pipe", "pipe", "pipe"],
  });
  let complaints = "";
  child.stderr.on("data", (chunk) => (complaints += chunk));
  const exit = once(child, "exit");
  const timer = setTimeout(() => child.kill("SIGTERM"), 30_000);
  const things = [];
  try {
    for await (const line of createInterface({ input: child.stdout, crlfDelay: Infinity })) {
      things.push(JSON.parse(line));
      if (done(things)) break;
    }
  } finally {
    clearTimeout(timer);
    child.stdin.end();
  }
  const [code] = await exit;
  assert.equal(code, 0, complaints);
  assert.ok(done(things), `ended too early: ${JSON.stringify(things).slice(0, 2000)}\n${complaints}`);
  return things;
}

const events = (things) => things.filter((thing) => thing.kind === "event");

for (const client of CLIENTS) {
  describe(client, () => {
    const options = { page: "same-origin" };

    test("payloads arrive exactly", async () => {
      const things = await read(client, "/payloads", options, (t) => events(t).length > PAYLOADS.length);
      const [open, ...rest] = events(things);
      assert.equal(open.type, "stream-open");
      PAYLOADS.forEach((each, n) => {
        const same = rest[n].data === text(each.raw);
        assert.ok(same, `${each.name}: got ${JSON.stringify(rest[n].data).slice(0, 200)}`);
        assert.equal(rest[n].type, "message", each.name);
        assert.equal(rest[n].lastEventId, `e-${n + 1}`, each.name);
      });
    });

    test("types", async () => {
      const things = await read(client, "/types", { ...options, types: ["price", "error"] }, (t) =>
        events(t).some((event) => event.type === "stream-close"),
      );
      assert.deepEqual(things[0], { kind: "open" });
      assert.deepEqual(
        events(things).map((event) => [event.type, event.data]),
        [
          ["stream-open", '{"topics":["t"],"resumed":false}'],
          ["stream-gap", '{"topic":"t","reason":"slow","missed":3}'],
          ["price", "5"],
          ["error", "7"],
          ["stream-close", '{"code":"draining","reconnect":true}'],
        ],
      );
    });

    test("a cut connection is resumed by Last-Event-ID", async () => {
      const things = await read(client, "/cut", options, (t) => t.at(-1)?.data === String(LAST));
      const numbers = events(things).filter((event) => event.type === "message");
      assert.deepEqual(
        numbers.map((event) => [event.data, event.lastEventId]),
        Array.from({ length: LAST }, (_, n) => [String(n + 1), `e-${n + 1}`]),
      );
      // On a slow machine a reset can come before the client has seen the response head: such a visit opens nothing.
      const ups = things.filter((thing) => thing.kind === "open").length;
      const downs = things.filter((thing) => thing.kind === "error");
      assert.ok(ups > 1 && ups <= visits.get("/cut"), `${ups} opens`);
      assert.ok(downs.length >= ups - 1 && downs.every((down) => down.readyState === 0));
    });

    test("a status other than 200 is final", async () => {
      const things = await read(client, "/nowhere", options, (t) => t.length > 0);
      assert.deepEqual(things, [{ kind: "error", readyState: 2 }]);
    });
  });
}

describe("chromium's page", () => {
  const opened = (things) => events(things).length > 0;
  const refused = (things) => things.some((thing) => thing.readyState === 2);

  test("a page with a strict policy", async () => {
    await read("chromium", "/types", { page: `${origin}/page` }, opened);
  });

  test("a page that is an error", async () => {
    await read("chromium", "/types", { page: `${origin}/nowhere` }, opened);
  });

  test("another origin, which the server allows", async () => {
    await read("chromium", "/types?cors", {}, opened);
  });

  test("another origin, which the server does not allow", async () => {
    const things = await read("chromium", "/types", {}, refused);
    assert.equal(events(things).length, 0);
  });
});

test("an unknown client is said so", async () => {
  const child = spawn(process.execPath, [READ, "netscape", origin], { stdio: ["pipe", "pipe", "pipe"] });
  let complaints = "";
  child.stderr.on("data", (chunk) => (complaints += chunk));
  const [code] = await once(child, "exit");
  assert.equal(code, 1);
  assert.match(complaints, /unknown client 'netscape'/);
});
