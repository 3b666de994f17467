// TopicSource: an EventSource on fetch, which knows its position, reports why it is refused, and shares one connection
// with the other tabs.

import { type Group, isWorker, join, tab } from "./group.js";
import { Accept, type Refusal } from "./line.js";
import { LOST, OPEN, type Row } from "./parse.js";

export interface TopicSourceOptions {
  /** Where to begin: a cursor, for example one that the server put into the page. */
  lastEventId?: string;
  /** The values of `topic=` in the URL. */
  topics?: readonly string[];
  /** Closes the source when it is aborted. */
  signal?: AbortSignal;
  /** Sends cookies to a gateway of another origin, too. */
  withCredentials?: boolean;
  /** Returns the token to send. It is called before each request, and once more if the gateway says that it has expired. */
  token?: () => string | undefined | Promise<string | undefined>;
  /**
   * The user whom the messages are for, such as the user's id. Only sources with the same key share a connection. Without a
   * key, the shared connection has no cookies, and a source with `token` or `withCredentials` has its own connection.
   */
  shareKey?: string;
  /** False for a connection of its own. */
  share?: boolean;
  /**
   * A SharedWorker that runs this module, and reads for the pages: none of them being closed or frozen then matters. It has
   * no `token`.
   */
  worker?: SharedWorker;
  /** The gateway's `streams.heartbeat` in milliseconds. After three of them without a byte the connection is dead. */
  heartbeat?: number;
}

/** A gap: messages of `topic` are, or may be, missing in this place. */
export interface Gap {
  topic: string;
  reason: string;
}

export interface TopicSourceEventMap {
  open: Event;
  message: MessageEvent<string>;
  /** `detail` says why, and after how many milliseconds (`wait`) the source connects again. */
  error: CustomEvent<Refusal>;
  /** Every message, whatever its type, and `stream-delete`: it is in `detail`. */
  any: CustomEvent<MessageEvent<string>>;
  gap: CustomEvent<Gap>;
  /** The broker of these topics is away: what the page shows may be out of date. */
  stale: CustomEvent<{ topics: string[] }>;
  /** The broker of these topics is back. */
  live: CustomEvent<{ topics: string[] }>;
  /** The request can never work as it is. The source is closed. */
  refused: CustomEvent<Refusal>;
  /** The stream has ended for good. The source is closed. */
  closed: CustomEvent<{ code: string }>;
}

/** The source's own events, which no publisher can imitate: messages of such a type come as `any` only. */
const OWN = /^(open|error|any|gap|stale|live|refused|closed)$/;

const enum Limit {
  /** Events about the state of the stream, for tabs that join. */
  States = 20,
  /** Ids of messages that a source remembers, to skip messages that it has received. */
  Remembered = 5000,
  /** Messages that wait for a slow reader of `messages()`. */
  Waiting = 10000,
}

export interface TopicSource {
  addEventListener<K extends keyof TopicSourceEventMap>(
    type: K,
    listener: (this: TopicSource, event: TopicSourceEventMap[K]) => any,
    options?: boolean | AddEventListenerOptions,
  ): void;
  addEventListener(
    type: string,
    listener: (this: EventSource, event: MessageEvent) => any,
    options?: boolean | AddEventListenerOptions,
  ): void;
  addEventListener(
    type: string,
    listener: EventListenerOrEventListenerObject,
    options?: boolean | AddEventListenerOptions,
  ): void;
  removeEventListener(type: string, listener: any, options?: boolean | EventListenerOptions): void;
}

// Members that begin with `_` are not for users. They are not `#private`, because esbuild makes `_` names shorter.
export class TopicSource extends EventTarget implements EventSource {
  static readonly CONNECTING = 0;
  static readonly OPEN = 1;
  static readonly CLOSED = 2;
  readonly CONNECTING = 0;
  readonly OPEN = 1;
  readonly CLOSED = 2;

  onopen: ((this: EventSource, event: Event) => any) | null = null;
  onmessage: ((this: EventSource, event: MessageEvent) => any) | null = null;
  onerror: ((this: EventSource, event: Event) => any) | null = null;

  /** The position of the source: the id of the last event that it has dispatched. */
  lastEventId: string;
  readyState: 0 | 1 | 2 = 0;
  readonly withCredentials: boolean;

  private _url: URL;
  private _options: TopicSourceOptions;
  /** @internal */
  _heartbeat: number;
  private _group: Group | undefined;
  /** The group of a new list of topics, which replaces the other once it is open. */
  private _next: Group | undefined;
  private _off = new AbortController();
  /** @internal */
  _ids = new Set<string>();
  /** @internal */
  _state: Row[] = [];
  private _alone: boolean;
  private _why: Refusal | undefined;

  constructor(url: string | URL, options: TopicSourceOptions = {}) {
    super();
    this._url = new URL(url, globalThis.document?.baseURI ?? (globalThis.location as unknown as URL));
    this._options = options;
    this._heartbeat = options.heartbeat ?? 15000;
    this.lastEventId = options.lastEventId ?? "";
    this.withCredentials = !!options.withCredentials;
    this._alone =
      options.share === false ||
      !globalThis.BroadcastChannel ||
      (options.shareKey === undefined && !!(options.token || options.withCredentials));
    for (const type of ["open", "message", "error"] as const) {
      this.addEventListener(type, (event) => (this[`on${type}`] as any)?.(event));
    }
    if (options.topics) this._name(options.topics);

    const on = (target: any, type: string, listener: (event: any) => void) =>
      target?.addEventListener?.(type, listener, { signal: this._off.signal });
    const pause = () => this._leave();
    const wake = () => globalThis.document?.hidden || (this._group?._wake(), this._next?._wake());
    // A page that holds no connection, channel or lock stays in the back/forward cache; one that is frozen would hold up
    // the other tabs.
    on(globalThis, "pagehide", pause);
    on(globalThis.document, "freeze", pause);
    const back = () => this._group || this._again();
    on(globalThis, "pageshow", back);
    on(globalThis.document, "resume", back);
    on(globalThis, "online", wake);
    on(globalThis.document, "visibilitychange", wake);
    on(options.signal, "abort", () => this.close());
    if (options.signal?.aborted) this.close();
    this._again();
  }

  get url() {
    return this._url.href;
  }

  /** The values of `topic=` in the URL. A new list opens at the position of the old one, and then replaces it: nothing is lost. */
  get topics(): readonly string[] {
    return this._url.searchParams.getAll("topic");
  }

  set topics(topics: readonly string[]) {
    if (this.readyState > 1) return;
    this._next?._leave();
    this._url = new URL(this._url);
    this._name(topics);
    this._next = this._join();
  }

  close() {
    this.readyState = 2;
    this._leave();
    this._off.abort();
  }

  /** The messages of these types, or of all. It ends when the source does, and throws if the source is refused. */
  messages(...types: string[]): AsyncGenerator<MessageEvent<string>, void, void> {
    const queue: MessageEvent<string>[] = [];
    const off = new AbortController();
    let wake: () => void = () => {};
    const put = ({ detail }: TopicSourceEventMap["any"]) => {
      if (types[0] && !types.includes(detail.type)) return;
      if (queue.push(detail) > Limit.Waiting) {
        queue.splice(0);
        this._fire("gap", { topic: "", reason: "slow" });
      }
      wake();
    };
    this.addEventListener("any", put, off);
    this._off.signal.addEventListener("abort", () => wake(), off);
    const source = this;
    return (async function* () {
      try {
        for (;;) {
          while (queue[0]) yield queue.shift()!;
          if (source.readyState > 1) break;
          await new Promise<void>((resolve) => (wake = resolve));
        }
      } finally {
        off.abort();
      }
      if (source._why) throw Object.assign(new Error(source._why.detail), source._why);
    })();
  }

  private _name(topics: readonly string[]) {
    this._url.searchParams.delete("topic");
    for (const topic of topics) this._url.searchParams.append("topic", topic);
  }

  /** @internal */
  _fire(type: string, detail?: unknown) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }

  private _leave() {
    this._group?._leave();
    this._next?._leave();
    this._group = this._next = undefined;
  }

  /** @internal */
  _again() {
    if (this.readyState > 1) return;
    this._leave();
    this.readyState = 0;
    this._group = this._join();
  }

  /** @internal */
  async _ask(url: URL, signal: AbortSignal, accept: Accept, hold?: boolean, begin?: () => void, cursor = this.lastEventId, again?: boolean): Promise<Response> {
    const { token, shareKey } = this._options;
    const target = new URL(url);
    // In the query, because a header would cost pages of other origins a preflight.
    const { searchParams } = target;
    if (cursor) searchParams.append("last_event_id", cursor);
    // A read without a start is a position alone. One since a time to come has the values of a bucket, as a stream has.
    else if (accept === Accept.Page && !/[?&](since|last)/i.test(target.search)) searchParams.append("since", "9999999999");
    if (hold) searchParams.append("wait", "20s");
    const headers: Record<string, string> = { accept };
    const bearer = await token?.();
    if (bearer) headers.authorization = "Bearer " + bearer;
    begin?.();
    const response = await fetch(target, {
      headers,
      signal,
      cache: "no-store",
      credentials: this.withCredentials ? "include" : this._alone || shareKey !== undefined ? "same-origin" : "omit",
    });
    const { status, headers: fields } = response;
    if (status === 204 || (status === 200 && fields.get("content-type")?.startsWith(accept))) return response;
    const after = fields.get("retry-after")!;
    const { code = "http", detail = `no ${accept}` } = await response.json().catch(() => ({}));
    if (status === 401 && code === "expired_token" && token && !again) return this._ask(url, signal, accept, hold, begin, cursor, true);
    throw {
      status,
      code,
      detail,
      // The others may be different the next time.
      final: !/408|42[59]|5../.test(status as any),
      // Seconds, or a date. A timer of more than 24 days ends at once.
      wait: Math.min(+after * 1000 || Date.parse(after) - Date.now() || 0, 2e9),
    };
  }

  private _join(): Group {
    const url = new URL(this._url);
    const { shareKey, heartbeat, withCredentials, worker } = this._options;
    const name = this._alone ? "" : `topicgate ${tab} ${shareKey ?? ""} ${url}`;
    return join(this, url, name, worker && ((by) => worker.port.postMessage([name, by, url.href, { shareKey, heartbeat, withCredentials }])));
  }

  /** @internal */
  _end(why: Refusal, group: Group) {
    group._leave();
    if (group === this._next) {
      // The old list stays.
      this._url = this._group!._url;
      this._next = undefined;
      this._fire("refused", why);
    } else if (why.status !== 204 && !this._alone && !isWorker && this._options.shareKey === undefined) {
      // The shared connection carries no cookies. Perhaps the gateway requires them.
      this._alone = true;
      this._again();
    } else this._finish(why);
  }

  private _finish(why: Refusal) {
    if (this.readyState > 1) return;
    const isRefusal = why.status !== 204;
    if (isRefusal) this._why = why;
    this.close();
    // What says that it is for good comes last: a page that shows both shows this.
    this._fire("error", why);
    this._fire(isRefusal ? "refused" : "closed", why);
  }

  /** @internal */
  _take(rows: Row[], group: Group) {
    const isNew = group === this._next;
    if (isNew) {
      if (!rows.some(([type]) => type === OPEN)) return;
      this._group?._leave();
      this._group = group;
      this._next = undefined;
    }
    for (const [type, data, id] of rows) {
      if (this.readyState > 1) return;
      if (type === OPEN) {
        if (this.readyState < 1) {
          this.readyState = 1;
          this._fire("open");
        }
      } else if (type === LOST) {
        this.readyState = 0;
        this._fire("error", data);
      } else this._dispatch(type, data, id, isNew);
    }
  }

  private _dispatch(type: string, data: string | undefined, id: string | undefined, isNew: boolean) {
    const isMessage = !/^stream-(?!delete$)/.test(type);
    const ids = this._ids;
    // After a gap the gateway may send messages again that the page had, and the page wants them. But a new list of topics
    // overlaps with the old one, and its gaps are in topics that are new.
    if (type === "stream-gap" && !isNew) ids.clear();
    if (id !== undefined) {
      if (isMessage && data !== undefined && ids.has(id)) return;
      this.lastEventId = id;
    }
    ids.add(this.lastEventId);
    for (const old of ids) { if (ids.size <= Limit.Remembered) break; ids.delete(old); }
    if (data === undefined) return;
    const event = new MessageEvent(type, { data, lastEventId: this.lastEventId, origin: this._url.origin });
    if (isMessage) {
      if (!OWN.test(type)) this.dispatchEvent(event);
      this._fire("any", event);
      return;
    }
    let detail: any = {};
    try {
      detail = JSON.parse(data);
    } catch {}
    const name = type.slice(7);
    if (name === "open") this._state = [];
    if (/open|stale|live/.test(name) && this._state.push([type, data]) > Limit.States) this._state.splice(1, 1);
    this.dispatchEvent(event);
    if (/gap|stale|live/.test(name)) this._fire(name, detail);
    if (detail.reconnect === false) this._finish({ status: 204, code: detail.code, detail: "" });
  }
}
