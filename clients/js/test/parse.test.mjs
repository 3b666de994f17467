// The parser against an independent one, with hard payloads and with text that is cut anywhere.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { createParser } from "eventsource-parser";
import { parser } from "../dist/parse.js";

/** What ours makes of bytes that arrive in these pieces: events, the last id, the last retry. */
function ours(pieces) {
  const events = [];
  let last = "";
  let retry;
  const parse = parser((milliseconds) => (retry = milliseconds));
  const decoder = new TextDecoder();
  for (const piece of pieces) {
    for (const [type, data, id] of parse(decoder.decode(piece, { stream: true }))) {
      if (id !== undefined) last = id;
      if (data !== undefined) events.push({ type, data, id: last });
    }
  }
  return { events, retry };
}

/** The same of eventsource-parser, which reports the id that an event carries itself. */
function theirs(bytes) {
  const events = [];
  let last = "";
  let retry;
  const parse = createParser({
    onEvent({ event, data, id }) {
      if (id !== undefined) last = id;
      events.push({ type: event || "message", data, id: last });
    },
    onRetry: (milliseconds) => (retry = milliseconds),
  });
  // It takes no byte order mark off what is decoded already, and ends no line at a CR that is the last of all.
  parse.feed(new TextDecoder().decode(bytes));
  return { events, retry };
}

/** Numbers that look random and are the same in every run. */
function random(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let mixed = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296;
  };
}

function cut(bytes, next) {
  const pieces = [];
  for (let at = 0; at < bytes.length; ) {
    const length = next() < 0.3 ? 1 : 1 + Math.floor(next() * 12);
    pieces.push(bytes.subarray(at, at + length));
    at += length;
  }
  return pieces;
}

const WORDS = ["data", "data:", "data: ", "data:  x", "event:", "event: price", "event: message", "retry: 12", "retry: 1x",
  "retry:", "id", ": comment", ":", "x", "data: €🚀", "data: \u2028", "data\0: y", "foo: bar", " data: z", "data : q", "\ufeff"];
const ENDS = ["\n", "\n", "\n\n", "\r\n", "\r", "\r\n\r\n", "\n\n", "\r\r"];

test("the parser agrees with an independent parser on any text, cut anywhere", () => {
  for (let round = 0; round < 4000; round++) {
    const next = random(round);
    const pick = (list) => list[Math.floor(next() * list.length)];
    let text = next() < 0.1 ? "\ufeff" : "";
    for (let lines = 1 + Math.floor(next() * 14); lines > 0; lines--) text += pick(WORDS) + pick(ENDS);
    // The last line end is not a bare CR: whether LF follows it, eventsource-parser cannot know, and waits.
    const bytes = new TextEncoder().encode(text + "\n");
    assert.deepEqual(ours(cut(bytes, next)), theirs(bytes), JSON.stringify(text));
  }
});

test("ids are kept, emptied, and left alone where they have a NUL", () => {
  const read = (text) => ours([new TextEncoder().encode(text)]).events.map(({ data, id }) => [data, id]);
  const text = "id: 1\ndata: a\n\ndata: b\n\nid: 2\n\ndata: c\n\nid: 3\0\ndata: d\n\nid\ndata: e\n\nid: 4\ndata: cut";
  assert.deepEqual(read(text), [["a", "1"], ["b", "1"], ["c", "2"], ["d", "2"], ["e", ""]]);
});

test("a line end in two pieces ends one line", () => {
  const pieces = ["data: a\r", "\ndata: b\r", "\n\r", "\n", "data: c\r", "\r", "\n"].map((each) => new TextEncoder().encode(each));
  assert.deepEqual(ours(pieces).events.map(({ data }) => data), ["a\nb", "c"]);
});

// As the gateway frames a payload: one data line for each line.
const frame = (payload) => `id: 1\n${payload.split("\n").map((line) => `data: ${line}\n`).join("")}\n`;

test("difficult payloads arrive as documented, cut inside of events and characters", () => {
  const { payloads } = JSON.parse(readFileSync(new URL("../../../tests/clients/payloads.json", import.meta.url)));
  assert.ok(payloads.length >= 22);
  const expand = (text) => (typeof text === "string" ? text : text.repeat.repeat(text.times));
  for (const [index, { name, raw }] of payloads.entries()) {
    const payload = expand(raw);
    const bytes = new TextEncoder().encode(frame(payload));
    const pieces = bytes.length < 10_000 ? cut(bytes, random(index)) : [bytes.subarray(0, 7777), bytes.subarray(7777)];
    const { events } = ours(pieces);
    assert.equal(events.length, 1, name);
    assert.ok(events[0].data === payload && events[0].type === "message" && events[0].id === "1", name);
  }
});
