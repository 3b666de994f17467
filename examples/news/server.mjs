// Publishes a headline every few seconds, and those that the page sends.
import { nats, serve } from "../backend.mjs";

const broker = await nats();
const NEWS = [
  ["sport", "The harbour eight wins the regatta by a bow"],
  ["weather", "Fog until noon, then sun over the bay"],
  ["city", "The tram runs through the night at weekends"],
  ["sport", "Late goal takes the cup to the north"],
  ["city", "The library lends bicycles"],
  ["weather", "First frost expected in the valleys"],
];
let count = 0;
const publish = (type, title) => broker.publishType("news.local", type, { number: ++count, title, at: new Date().toISOString() });
const next = () => publish(...NEWS[count % NEWS.length]);
for (let first = 0; first < 8; first++) next();
setInterval(next, 4000);
await serve(new URL(".", import.meta.url), {
  "POST /news": ({ body: { type, title } }) => publish(["sport", "weather", "city"].includes(type) ? type : "city", String(title).slice(0, 200)),
});
