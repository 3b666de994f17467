// One connection for all tabs. The sources of one name, in all tabs of the origin, are a group: the source that has the Web
// Lock of that name is the leader, reads the stream, and passes its rows on over a BroadcastChannel. If the leader closes,
// crashes, is frozen or navigates, the lock passes to another source, which continues from its own cursor.
//
// Nothing is lost and nothing comes twice, because each source keeps its own cursor and the ids of its last messages. A
// source that is ahead of a new leader skips the messages that it has received. A source that is behind, or begins
// elsewhere, reads the missing messages by itself.

import { Accept, type Ask, connect, type Line, type Page, type Refusal, rows } from "./line.js";
import { LOST, OPEN, type Row } from "./parse.js";

/** The interface of a source for its group. The names begin with `_` because esbuild shortens those. */
export interface Member {
  /** The position of the source; empty before the first event. */
  lastEventId: string;
  readyState: number;
  _heartbeat: number;
  /** Sends a request for this URL. */
  _ask(url: URL, ...of: Parameters<Ask>): Promise<Response>;
  /** The ids of its last messages. */
  _ids: Set<string>;
  /** The rows that a source that joins must know. */
  _state: Row[];
  _take(rows: Row[], group: Group): void;
  _end(why: Refusal, group: Group): void;
  /** Leaves, and joins again from the cursor. */
  _again(): void;
}

export interface Group {
  _url: URL;
  _leave(): void;
  _wake(): void;
}

/**
 * A message of a leader: its term, its position before the rows, whether the stream is open, and the rows. In answer to a
 * member that joins, also the rows that such a member must know. A member says hello with the term 0, and with whether a
 * leader that waits must hurry.
 */
type Said = [term: number, from: string, open: boolean, rows: Row[], state?: Row[] | undefined];

const enum Limit {
  /** A leader that does not answer for this long is replaced. */
  Answer = 5000,
  /** Rows that wait while a member reads missing messages. */
  Held = 10000,
}

/** A member waits for the position of the leader, then perhaps reads missing messages, then follows. */
const enum Phase {
  Waiting,
  Holding,
  Reading,
  Following,
}

const locks = globalThis.navigator?.locks;

/** Without Web Locks (a page without TLS), the sources of one tab are a group. */
export const tab = locks ? "" : Math.random();
const queues: Record<string, Promise<void>> = {};

/**
 * The id of a message without what a reader adds to it: the id of a value of a bucket also says as of when that reader has
 * the values.
 */
const same = (id?: string) => id?.replace(/_[^.]*/g, "");

/** This is the SharedWorker of some pages: it is always the leader. */
export const isWorker = "SharedWorkerGlobalScope" in globalThis;

/** Joins the group of `name`; without a name, the source is alone. `work` counts this source at its SharedWorker. */
export const join = (member: Member, url: URL, name: string, work?: (by: number) => void): Group => {
  let channel: BroadcastChannel | undefined;
  let line: Line | undefined;
  let term = 0;
  let phase: Phase = Phase.Waiting;
  let left: boolean | undefined;
  let held: Row[] = [];
  let waiting = new AbortController();
  let release: (() => void) | undefined;
  let timer: ReturnType<typeof setTimeout>;

  const ask: Ask = (...of) => member._ask(url, ...of);
  const take = (rows: Row[]) => member._take(rows, group);
  const end = (why: Refusal) => member._end(why, group);
  const say = (rows: Row[], state?: Row[]) => channel?.postMessage([term, member.lastEventId, member.readyState > 0, rows, state] satisfies Said);
  const listen = (patience: number) => {
    clearTimeout(timer);
    timer = setTimeout(() => {
      channel!.postMessage([0, !patience]);
      timer = setTimeout(enter, Limit.Answer, true);
    }, patience);
  };

  const lead = async () => {
    if (left || line) return;
    clearTimeout(timer);
    term = Math.max(Date.now() + Math.random(), term + 1);
    say([], member._state);
    line = connect(
      ask,
      member._heartbeat,
      (rows) => {
        say(rows);
        take(rows);
      },
      end,
    );
    await new Promise<void>((resolve) => (release = resolve));
  };

  const enter = (steal?: boolean) => {
    waiting.abort();
    const { signal } = (waiting = new AbortController());
    const led = locks
      ? locks.request(name, steal ? { steal } : { signal }, lead)
      : (queues[name] = Promise.resolve(queues[name]).then(lead));
    led.catch(() => {
      if (signal.aborted) return;
      // Another took the lock, because this page was frozen: follow. Or there are no locks for this page.
      if (line) member._again();
      else lead();
    });
  };

  // Reads the messages between the cursor of the source and the leader.
  const catchUp = async (from: string) => {
    phase = Phase.Reading;
    const mine = term;
    const ids = new Set<string>();
    const read = async (cursor?: string): Promise<Row[]> => {
      const page: Page = await (await ask(waiting.signal, Accept.Page, false, undefined, cursor)).json();
      // If there is no more, everything was read, which is at least as much as the leader had read.
      return page.more ? [...rows(page), ...(await read(page.cursor))] : rows(page);
    };
    try {
      const cursor = member.lastEventId;
      // The rows that the leader has not passed on yet. With a cursor, it may be behind the member: these rows must be
      // skipped. Without one, the start of the URL, and then rows that may be newer than the start.
      const start = await read(cursor ? from : undefined);
      const rest: Row[] = cursor || start[1] ? await read(cursor || from) : [["", , from]];
      if (mine !== term) return;
      for (const [type, , id] of cursor ? [...start, ...rest] : rest) if (type && id) ids.add(id).add(same(id)!);
      phase = Phase.Following;
      take([[OPEN], ...start.filter(([type, , id]) => !cursor && type && !ids.has(same(id)!)), ...rest]);
      for (const id of ids) member._ids.add(id);
      take(held.slice(held.findLastIndex((row) => ids.has(row[2]!)) + 1));
    } catch (error: any) {
      if (mine !== term) return;
      phase = Phase.Waiting;
      error.final ? end(error) : listen(error.wait ?? 3000);
    }
  };

  const heard = ({ data: [theirs, from, isOpen, rows, state] }: MessageEvent<Said>) => {
    if (!theirs) {
      if (line) {
        say([], member._state);
        line._wake(from);
      }
      return;
    }
    if (theirs < term || line) return;
    if (theirs > term || (state && phase < Phase.Reading)) {
      term = theirs;
      phase = Phase.Waiting;
      // The rows came before an answer.
      if (!state) return listen(0);
      phase = Phase.Holding;
      held = state;
    }
    // A page in sight keeps the time of a leader in the background, whose timers the browser slows down. Rows do not put off
    // the hello of a member that waits, nor the end of a read that hangs.
    const lost = rows.find((row) => row[0] === LOST);
    if (lost) {
      listen(lost[1].wait);
      return take(rows);
    }
    if (!phase) return;
    if (phase === Phase.Reading) {
      if (held.push(...rows) > Limit.Held) member._again();
      return;
    }
    listen(member._heartbeat * 3);
    if (phase === Phase.Following) return take(rows);
    held.push(...rows);
    if (from && member._ids.has(from)) {
      phase = Phase.Following;
      take([...(isOpen ? [[OPEN] as Row] : []), ...held]);
    } else {
      from ||= held.find((row) => row[2])?.[2] || "";
      // An open stream without a position has passed nothing on: it has no events of the gateway (`control=none`).
      if (from || isOpen) catchUp(from);
    }
  };

  const group: Group = {
    _url: url,
    _leave() {
      if (!left && name) work?.(-1);
      left = true;
      term = Infinity;
      clearTimeout(timer);
      waiting.abort();
      release?.();
      line?._close();
      channel?.close();
    },
    _wake() {
      line ? line._wake(true) : listen(0);
    },
  };
  if (name) {
    channel = new BroadcastChannel(name);
    channel.onmessage = heard;
    listen(0);
    enter(isWorker);
    work?.(1);
  } else lead();

  return group;
};
