// Tokens as the gateways of the tests accept them.
import { createHmac } from "node:crypto";

const SECRET = "0123456789abcdef0123456789abcdef";
export const JWT = `[auth.jwt]\nsecret = "${SECRET}"\nleeway = "0s"\n`;

const encode = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");

/** A token of `sub` that may read `topics`; it is valid for that many seconds. */
export function token(sub, topics, seconds = 3600) {
  const claims = { sub, exp: Math.floor(Date.now() / 1000) + seconds, topicgate: { subscribe: topics } };
  const message = `${encode({ alg: "HS256", typ: "JWT" })}.${encode(claims)}`;
  return `${message}.${createHmac("sha256", SECRET).update(message).digest("base64url")}`;
}
