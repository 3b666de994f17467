// One connection: opens it, reads it, notices that it is dead, and opens it again. It does not know who reads the events.

import { LOST, OPEN, parser, type Row } from "./parse.js";

/** Why the gateway, or something in front of it, did not answer the request. */
export interface Refusal {
  /** The status of the answer; 0 if there was none. */
  status: number;
  /** For machines; the gateway's documents list them. */
  code: string;
  /** For people. */
  detail: string;
  /** Milliseconds until the next attempt; undefined if there will be none. */
  wait?: number | undefined;
}

/** A read that is not a stream: `Accept: application/json`. */
export interface Page {
  messages: { id: string; topic: string; type?: string; data?: string; data_base64?: string }[];
  gaps: { topic: string; reason: string }[];
  cursor: string;
  more?: boolean;
}

/** Sends a request with the cursor, and calls `begin` when it does. Throws a Refusal. */
export type Ask = (signal: AbortSignal, accept: Accept, hold?: boolean, begin?: () => void, cursor?: string) => Promise<Response>;

export interface Line {
  _close(): void;
  /** Ends a wait that is over, or any, and a connection that has been silent for suspiciously long. */
  _wake(any: unknown): void;
}

/** Values of `Accept`. */
export const enum Accept {
  Stream = "text/event-stream",
  Page = "application/json",
}

/** Milliseconds. */
const enum Time {
  /** The first bytes of a stream take no longer, unless something holds them back. The gateway itself may take 8 s. */
  First = 10000,
  /** A read that may be held open for 20 s. */
  Page = 30000,
  LongestPause = 30000,
}

/** A page of messages as the rows that a stream has for them. */
export const rows = ({ gaps, messages, cursor }: Page): Row[] => [
  ...gaps.map((gap): Row => ["stream-gap", JSON.stringify(gap)]),
  ...messages.map(({ type, data, data_base64, id }): Row => [
    type || "message",
    data?.replace(/\r\n?/g, "\n") ?? `data:application/octet-stream;base64,${data_base64}`,
    id,
  ]),
  ["", , cursor],
];

export const connect = (ask: Ask, heartbeat: number, tell: (rows: Row[]) => void, end: (why: Refusal) => void): Line => {
  let closed: boolean | undefined;
  let attempt: AbortController;
  let last = 0;
  let due = 0;
  let wake: (() => void) | undefined;
  let soon: boolean;
  let timer: ReturnType<typeof setTimeout>;

  // There is one timer: for bytes that do not come, or for a pause.
  const within = (milliseconds: number, otherwise = () => attempt.abort()) => {
    last = Date.now();
    clearTimeout(timer);
    timer = setTimeout(otherwise, milliseconds);
  };
  const pause = (milliseconds: number) =>
    new Promise<void>((resolve) => {
      within(milliseconds, (wake = resolve));
      due = last + milliseconds;
    }).then(() => (wake = undefined));

  const run = async () => {
    let retry = 3000;
    let fails = 0;
    let polls = 0;
    while (!closed) {
      const { signal } = (attempt = new AbortController());
      let any: boolean | undefined;
      let why: any;
      soon = false;
      try {
        const hold = polls > 1;
        // The function that returns a token may take long: it may ask a person.
        const response = await ask(signal, polls ? Accept.Page : Accept.Stream, hold, () => within(hold ? Time.Page : Time.First));
        if (response.status === 204) return end({ status: 204, code: "ended", detail: "" });
        if (polls) {
          const page = rows(await response.json());
          if (polls++ < 2) page.unshift([OPEN]);
          soon = any = true;
          tell(page);
          if (!page[1]) await pause(1000);
        } else {
          const reader = response.body!.getReader();
          const decoder = new TextDecoder();
          const parse = parser((milliseconds) => (retry = milliseconds));
          for (;;) {
            const { done, value } = await reader.read();
            if (done) break;
            within(heartbeat * 3);
            const events = parse(decoder.decode(value, { stream: true }));
            for (const [type, data, id] of events) {
              if (id) fails = 0;
              if (type === "stream-close") why = JSON.parse(data);
            }
            if (!any && (!why || events[1])) events.unshift([OPEN]);
            any = true;
            tell(events);
          }
        }
      } catch (error) {
        why = error;
      }
      clearTimeout(timer);
      if (soon || closed) continue;
      // A proxy that buffers lets nothing through: read page by page, if that works.
      polls = !any && !polls && signal.aborted ? 1 : 0;
      if (polls) continue;
      const { status = 0, code = "cut", detail = why?.message ?? "", wait = 0, final } = why ?? {};
      if (final) return end({ status, code, detail });
      // `retry` is different for each stream, so that not all reconnect at once. No stream reconnects earlier.
      const next = Math.max(wait, retry, Math.min(retry * 2 ** fails++, Time.LongestPause) * (1 + Math.random() / 2));
      // An error of the browser has a number.
      tell([[LOST, { status, code: code > 0 ? "cut" : code, detail, wait: next }]]);
      await pause(next);
    }
  };
  run();
  return {
    _close() {
      closed = true;
      clearTimeout(timer);
      wake?.();
      attempt.abort();
    },
    _wake(any) {
      if (wake) (any || Date.now() >= due) && wake();
      else if (Date.now() - last > heartbeat * 1.5) {
        soon = true;
        attempt.abort();
      }
    },
  };
};
