// Publishes what a shop would measure, ten times a second.
import { nats, serve } from "../backend.mjs";

const broker = await nats();
let load = 0.5;
setInterval(() => {
  load = Math.min(1, Math.max(0.1, load + (Math.random() - 0.5) / 10));
  broker.publish("metrics.requests", { value: Math.round(load * 1200 + Math.random() * 60) });
  broker.publish("metrics.latency", { value: Math.round(20 + load ** 3 * 180 + Math.random() * 8) });
  broker.publish("metrics.errors", { value: Number((load ** 6 * 3 + Math.random() / 5).toFixed(2)) });
  broker.publish("metrics.orders", { value: Math.round(load * 90 + Math.random() * 9) });
}, 100);
await serve(new URL(".", import.meta.url));
