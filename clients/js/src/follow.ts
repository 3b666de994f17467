// State and stream without a race.

import { TopicSource, type TopicSourceOptions } from "./source.js";

export interface FollowOptions<State = unknown> extends TopicSourceOptions {
  /** Fetches the current state and shows it. It is called when the stream is open, and again after each gap. */
  load: (source: TopicSource) => State | Promise<State>;
  /** Applies one message to the state. It must tolerate a message that the state contains already. */
  apply: (message: MessageEvent<string>, source: TopicSource) => void;
}

const enum Limit {
  /** Messages that come while `load` runs. If there are more, it runs again. */
  Queued = 10000,
  /** Milliseconds until a `load` that failed runs again. */
  Again = 3000,
}

/**
 * Follows a state: `load` fetches it once the position in the stream is known, and `apply` then gets every message since
 * that position. After each gap it begins again. With `lastEventId`, the page has the state already, and `load` waits for
 * the first gap.
 */
export const follow = (url: string | URL, { load, apply, ...options }: FollowOptions): TopicSource => {
  const source = new TopicSource(url, options);
  let queue: MessageEvent<string>[] | undefined = options.lastEventId ? undefined : [];
  let round = 0;
  const again = async () => {
    const mine = ++round;
    queue = [];
    // Several gaps come at once: one for each topic.
    await null;
    try {
      if (mine === round) await load(source);
      if (mine !== round) return;
      const waiting = queue;
      queue = undefined;
      for (const message of waiting) apply(message, source);
    } catch (error) {
      source._fire("error", { status: 0, code: "load_failed", detail: `${error}`, wait: Limit.Again });
      setTimeout(() => mine === round && source.readyState < 2 && again(), Limit.Again);
    }
  };
  if (queue) source.addEventListener("open", again, { once: true });
  source.addEventListener("gap", again);
  source.addEventListener("any", ({ detail }) => {
    if (!queue) apply(detail, source);
    else if (queue.push(detail) > Limit.Queued) again();
  });
  return source;
};
