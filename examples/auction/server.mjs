// An auction. The pages receive pieces of HTML, which are made here; htmx puts them in their place.
import { escape, redis, serve } from "../backend.mjs";

const publish = await redis();
const bids = [{ name: "Ann", amount: 80 }];

const euro = (amount) => `€ ${amount.toLocaleString("en")}`;
const send = (event, data) => publish("PUBLISH", "auction:7", JSON.stringify({ event, data }));

async function tell() {
  const [{ name, amount }] = bids;
  await send("price", `<b class="value">${euro(amount)}</b> <span class="soft">bid by ${escape(name)}</span>`);
  await send("bids", bids.slice(0, 6).map((bid) => `<li><span>${escape(bid.name)}</span><b>${euro(bid.amount)}</b></li>`).join(""));
}

async function bid(name, amount) {
  if (!(amount > bids[0].amount)) return { html: `<span class="low">Too low: bid more than ${euro(bids[0].amount)}.</span>` };
  bids.unshift({ name: String(name).slice(0, 30), amount: Math.min(Math.round(amount), 1e9) });
  bids.length = Math.min(bids.length, 6);
  await tell();
  return { html: `Your bid of ${euro(bids[0].amount)} is in.` };
}

// Others bid, too.
const OTHERS = ["Bob", "Carol", "Dan", "Eve"];
setInterval(() => bid(OTHERS.find((name) => name !== bids[0].name && Math.random() < 0.4) ?? "Frank", bids[0].amount + 5 * Math.ceil(Math.random() * 3)).catch(() => {}), 4000);
await tell();
await serve(new URL(".", import.meta.url), { "POST /bid": ({ body: { name, amount } }) => bid(name, Number(amount)) });
