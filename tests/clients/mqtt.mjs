// An MQTT client, as a device has one:
//
//   node mqtt.mjs <mqtt://host:port> <what it subscribes to>
//
// Prints {"kind":"ready"}, then publishes what it reads from standard input, a line each: {"topic","payload","qos","retain"}.
// Each is answered with {"kind":"published"} once the server has confirmed it; a message that it receives is
// {"kind":"message","topic","payload"}.
import { createInterface } from "node:readline";
import mqtt from "mqtt";

const [url, commands] = process.argv.slice(2);
const print = (thing) => process.stdout.write(`${JSON.stringify(thing)}\n`);
const client = await mqtt.connectAsync(url);
client.on("message", (topic, payload) => print({ kind: "message", topic, payload: payload.toString() }));
await client.subscribeAsync(commands, { qos: 1 });
print({ kind: "ready" });
for await (const line of createInterface({ input: process.stdin })) {
  const { topic, payload, qos = 0, retain = false } = JSON.parse(line);
  await client.publishAsync(topic, payload, { qos, retain });
  print({ kind: "published" });
}
await client.endAsync();
