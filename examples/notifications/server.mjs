// Users who log in, and notifications for each: kept here, and published to the topic of the user.
import { createHmac } from "node:crypto";
import { nats, serve } from "../backend.mjs";

const SECRET = "a secret of at least 32 characters, for this example only";
const broker = await nats();
const inboxes = { ann: [], bob: [] };
let count = 0;

// The token for the gateway: who it is, for an hour.
function token(sub) {
  const encode = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
  const message = `${encode({ alg: "HS256", typ: "JWT" })}.${encode({ sub, exp: Math.floor(Date.now() / 1000) + 3600 })}`;
  return `${message}.${createHmac("sha256", SECRET).update(message).digest("base64url")}`;
}

// The user of a session, which is that token: a real application has its own sessions.
function user({ cookies }) {
  const [head, body, signature] = (cookies.session ?? "").split(".");
  const isOurs = signature && createHmac("sha256", SECRET).update(`${head}.${body}`).digest("base64url") === signature;
  return isOurs ? JSON.parse(Buffer.from(body, "base64url")).sub : undefined;
}

function notify(name, text) {
  const entry = { id: ++count, text, read: false };
  inboxes[name].push(entry);
  broker.publish(`users.${name}.notifications`, entry);
}

const login = (value, age) => ({ headers: { "set-cookie": `session=${value}; HttpOnly; SameSite=Lax; Path=/; Max-Age=${age}` }, json: {} });
const only = (route) => (request) => {
  const name = user(request);
  return name ? route(name, request) : { status: 401, json: {} };
};

await serve(new URL(".", import.meta.url), {
  "POST /login": ({ body }) => (inboxes[body.name] ? login(token(body.name), 3600) : { status: 403, json: {} }),
  "POST /logout": () => login("", 0),
  "GET /inbox": only((name) => ({ name, entries: inboxes[name] })),
  "POST /read": only((name) => {
    for (const entry of inboxes[name]) entry.read = true;
    broker.publish(`users.${name}.notifications`, { allRead: true });
  }),
  "POST /send": only((name, { body }) => {
    if (inboxes[body.to]) notify(body.to, `${name} says: ${String(body.text).slice(0, 200)}`);
  }),
});
