// This module as a SharedWorker: it reads the topics that pages request, and is the leader of their group.

import { isWorker } from "./group.js";
import { TopicSource } from "./source.js";

const sources: Record<string, [source: TopicSource, pages: number]> = {};

if (isWorker) {
  (globalThis as any).onconnect = ({ ports: [port] }: MessageEvent) => {
    port!.onmessage = ({ data: [name, by, url, options] }) => {
      const entry = (sources[name] ??= [new TopicSource(url, options), 0]);
      if ((entry[1] += by)) return;
      entry[0].close();
      delete sources[name];
    };
  };
}
