// Publishes on Redis what Laravel and Rails publish there, byte for byte in their envelopes.
import { escape, redis, serve } from "../backend.mjs";

const publish = await redis();
const order = { step: 1, carrier: "Sea & Co" };
const messages = [{ id: 1, by: "Shop", text: "Thank you for your order." }];

// In Laravel: broadcast(new OrderMoved($order)), with BROADCAST_CONNECTION=redis and an empty REDIS_PREFIX.
const broadcast = (event, data) => publish("PUBLISH", "orders.42", JSON.stringify({ event, data, socket: null }));

// In Rails: Turbo::StreamsChannel.broadcast_append_to "messages", with the Redis adapter of Action Cable and
// channel_prefix: shop. Rails escapes < and > in JSON.
const html = ({ id, by, text }) => `<p id="message-${id}"><b>${escape(by)}</b> ${escape(text)}</p>`;
const append = (content) => `<turbo-stream action="append" target="messages"><template>${content}</template></turbo-stream>`;
const broadcastAppend = (content) =>
  publish("PUBLISH", "shop:messages", JSON.stringify(append(content)).replace(/[<>&]/g, (letter) => `\\u00${letter.charCodeAt().toString(16)}`));

await serve(new URL(".", import.meta.url), {
  "GET /order": () => ({ order, messages: messages.map(html).join("") }),
  "POST /move": async () => {
    order.step = (order.step + 1) % 4;
    await broadcast("OrderMoved", order);
  },
  "POST /say": async ({ body: { text } }) => {
    messages.push({ id: messages.at(-1).id + 1, by: "You", text: String(text).slice(0, 200) });
    if (messages.length > 50) messages.shift();
    await broadcastAppend(html(messages.at(-1)));
  },
});
