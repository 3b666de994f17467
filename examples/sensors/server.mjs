// 200 thermometers that speak MQTT, as devices do. NATS takes MQTT, and `sensors/hall-1/17` is the same topic everywhere.
import { once } from "node:events";
import { connect } from "node:net";
import { serve } from "../backend.mjs";

const address = new URL(process.env.MQTT || "mqtt://127.0.0.1:1883");
const socket = connect(Number(address.port || 1883), address.hostname);
await once(socket, "connect");

// MQTT 3.1.1: a packet is its type, its length, and what is in it; a text is its length and its bytes.
const text = (value) => Buffer.concat([Buffer.from([Buffer.byteLength(value) >> 8, Buffer.byteLength(value) & 255]), Buffer.from(value)]);
const packet = (type, ...parts) => {
  const body = Buffer.concat(parts);
  return Buffer.concat([Buffer.from(body.length < 128 ? [type, body.length] : [type, (body.length & 127) | 128, body.length >> 7]), body]);
};
socket.write(packet(0x10, text("MQTT"), Buffer.from([4, 2, 0, 60]), text("thermometers")));
await once(socket, "data");
setInterval(() => socket.write(packet(0xc0)), 30_000);
const publish = (topic, payload) => socket.write(packet(0x30, text(topic), Buffer.from(payload)));

const sensors = Array.from({ length: 200 }, (_, at) => ({ topic: `sensors/hall-${Math.floor(at / 50) + 1}/${at}`, value: 18 + Math.random() * 6, silent: false }));
// One after the other falls silent for a while.
setInterval(() => {
  for (const each of sensors) each.silent = Math.random() < 0.04;
}, 15_000);
setInterval(() => {
  for (const each of sensors) {
    if (each.silent) continue;
    each.value += (Math.random() - 0.5) / 2;
    publish(each.topic, each.value.toFixed(1));
  }
}, 500);
await serve(new URL(".", import.meta.url), {
  "POST /silence": ({ body: { number } }) => void (sensors[number].silent = true),
});
