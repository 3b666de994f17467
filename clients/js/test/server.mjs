// A server that answers as the test says: what no gateway can be made to do on purpose.
import { createServer } from "node:http";
import { once } from "node:events";

/** `answer` gets each request for /topics…, its response, and how many came before it. */
export async function server(answer) {
  const requests = [];
  const http = createServer((request, response) => {
    request.at = Date.now();
    requests.push(request);
    answer(request, response, requests.length - 1);
  });
  http.listen(0, "127.0.0.1");
  await once(http, "listening");
  const { port } = http.address();
  return {
    url: `http://127.0.0.1:${port}/topics/a`,
    port,
    requests,
    stop: () => (http.closeAllConnections(), http.close()),
  };
}

export const stream = (response, text = "") => {
  response.writeHead(200, { "content-type": "text/event-stream; charset=utf-8" });
  response.write(text);
};

export const refuse = (response, status, code, more = {}) => {
  response.writeHead(status, { "content-type": "application/problem+json", ...more });
  response.end(JSON.stringify({ title: "", status, code, detail: "because of " + code }));
};

export const OPEN = 'event: stream-open\nid: e-0\nretry: 500\ndata: {"topics":["a"],"resumed":false}\n\n';

/** Resolves with the next event of this type, within some milliseconds. */
export const next = (source, type, limit = 20_000) =>
  new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error(`no ${type} in ${limit} ms`)), limit);
    source.addEventListener(type, (event) => (clearTimeout(timer), resolve(event)), { once: true });
  });
