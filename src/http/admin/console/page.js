// The console. It shows data that clients and publishers wrote, so it inserts it as text only, never as HTML.
"use strict";

const MAX_ROWS = 200;
const MAX_SHOWN = 2000; // characters of one payload
const SAMPLES = 300;
const REFRESH = 2000; // milliseconds between two requests for a list
const RETRY = 3000;

const $ = (id) => document.getElementById(id);

// --- Words -----------------------------------------------------------------------------------------------------------

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const fine = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });
const count = (n) => (n < 10 && n % 1 !== 0 ? fine : whole).format(n);

function bytes(n) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (n >= 1024 && unit < units.length - 1) {
    n /= 1024;
    unit += 1;
  }
  return (unit > 0 && n < 100 ? fine : whole).format(n) + " " + units[unit];
}

function span(ms) {
  if (ms === null) return "–";
  const s = Math.floor(ms / 1000);
  if (s < 1) return ms + " ms";
  if (s < 60) return s + " s";
  const m = Math.floor(s / 60);
  if (m < 60) return m + " min " + (s % 60) + " s";
  const h = Math.floor(m / 60);
  return h < 48 ? h + " h " + (m % 60) + " min" : Math.floor(h / 24) + " d " + (h % 24) + " h";
}

function clock(text) {
  const at = new Date(text);
  if (Number.isNaN(at.getTime())) return "";
  const two = (n, width = 2) => String(n).padStart(width, "0");
  return two(at.getHours()) + ":" + two(at.getMinutes()) + ":" + two(at.getSeconds()) + "." + two(at.getMilliseconds(), 3);
}

// --- Elements --------------------------------------------------------------------------------------------------------

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// A line of text, which may be an error and then looks like one.
function tell(element, text, fault) {
  say(element, text);
  element.classList.toggle("fault", fault);
}

// Brings a table up to date and leaves what stays alone, so that a button keeps its focus. A column says what is in a
// cell: `text`, and `look` for its class; or `node`, which is made once a row.
function fill(body, items, keyOf, columns) {
  const heads = [...body.closest("table").tHead.rows[0].cells].map((head) => head.textContent);
  const old = new Map([...body.children].map((row) => [row.dataset.key, row]));
  items.forEach((item, index) => {
    const key = String(keyOf(item));
    let row = old.get(key);
    old.delete(key);
    if (!row) {
      row = make("tr");
      row.dataset.key = key;
      row.setAttribute("role", "row"); // on a narrow screen it is a block, which has none by itself
      for (const [n, column] of columns.entries()) {
        const cell = make("td");
        cell.setAttribute("role", "cell");
        cell.dataset.head = heads[n];
        if (column.node) cell.append(column.node(item));
        row.append(cell);
      }
    }
    columns.forEach((column, n) => {
      const cell = row.children[n];
      const look = typeof column.look === "function" ? column.look(item) : column.look || "";
      if (cell.className !== look) cell.className = look;
      if (column.text) say(cell, column.text(item));
    });
    if (body.children[index] !== row) body.insertBefore(row, body.children[index] || null);
  });
  old.forEach((row) => row.remove());
}

function topicLink(topic) {
  const link = make("a", "", topic);
  link.href = "#topic=" + encodeURIComponent(topic);
  return link;
}

async function ask(path, options) {
  const answer = await fetch(path, { headers: { Accept: "application/json" }, ...options });
  const body = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(body.detail || answer.status + " " + answer.statusText);
  return body;
}

// --- Overview --------------------------------------------------------------------------------------------------------

const CHARTS = [
  { name: "Open streams", of: (samples) => samples.slice(1).map(({ streams }) => streams), show: count },
  { name: "Messages in", unit: "per second", of: rate("received"), show: count },
  { name: "Delivered", unit: "per second", of: rate("sent"), show: count },
  { name: "Bytes out", unit: "per second", of: rate("sent_bytes"), show: bytes },
  { name: "Gaps", unit: "in the last minute", of: within("gaps"), show: count, bad: true },
  { name: "Refused or ended", unit: "in the last minute", of: within("refused"), show: count, bad: true },
];

// The value of a chart at each sample: a rate over five seconds, because the rate of a single second jumps.
function rate(key) {
  return over(5000, (a, b) => (b.time > a.time ? (Math.max(0, b[key] - a[key]) * 1000) / (b.time - a.time) : 0));
}

// Rare events are counted: a rate would show a single event as twelve per minute.
function within(key) {
  return over(60_000, (a, b) => Math.max(0, b[key] - a[key]));
}

function over(time, value) {
  return (samples) => {
    let from = 0;
    return samples.slice(1).map((sample) => {
      while (samples[from + 1].time <= sample.time - time) from += 1;
      return value(samples[from], sample);
    });
  };
}

let samples = [];

function svg(tag, className) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  if (className) element.setAttribute("class", className);
  return element;
}

for (const chart of CHARTS) {
  const figure = make("figure", chart.bad ? "chart bad" : "chart");
  const caption = make("figcaption", "", chart.name);
  chart.most = make("span");
  caption.append(chart.most);
  chart.number = make("output");
  chart.svg = svg("svg");
  chart.svg.setAttribute("viewBox", "0 0 300 60");
  chart.svg.setAttribute("preserveAspectRatio", "none");
  chart.svg.setAttribute("aria-hidden", "true"); // the numbers beside it say it
  chart.area = svg("path", "area");
  chart.line = svg("path", "line");
  const ground = svg("path", "ground");
  ground.setAttribute("d", "M0 60H300");
  chart.svg.append(chart.area, ground, chart.line);
  figure.append(caption, chart.number, chart.svg);
  $("charts").append(figure);
}

function draw() {
  if (samples.length < 2) return;
  for (const chart of CHARTS) {
    const values = chart.of(samples);
    const most = Math.max(...values);
    const x = (index) => 300 - ((values.length - 1 - index) * 300) / (SAMPLES - 2);
    const y = (value) => 58 - (most > 0 ? (value / most) * 54 : 0);
    const line = values.map((value, index) => x(index).toFixed(1) + " " + y(value).toFixed(1)).join("L");
    chart.line.setAttribute("d", "M" + line);
    chart.area.setAttribute("d", "M" + x(0).toFixed(1) + " 60L" + line + "L300 60Z");
    chart.number.replaceChildren(chart.show(values[values.length - 1]));
    if (chart.unit) chart.number.append(" ", make("small", "", chart.unit));
    say(chart.most, "max. " + chart.show(most) + " in 5 min");
  }
}

function pairs(list, entries) {
  const wanted = entries.flatMap(([term, text, look]) => [make("dt", "", term), make("dd", look || "", text)]);
  const same = wanted.length === list.children.length
    && wanted.every((element, index) => element.isEqualNode(list.children[index]));
  if (!same) list.replaceChildren(...wanted);
}

const ROOM = [
  ["streams", "Streams", whole.format],
  ["connections", "Connections", whole.format],
  ["topics", "Topics", whole.format],
  ["buffer_bytes", "Buffers", bytes],
];

for (const [key, name] of ROOM) {
  const label = make("label", "", name);
  const bar = make("progress");
  bar.id = label.htmlFor = "room-" + key;
  $("room").append(label, bar, make("span"));
}

function show(state) {
  say($("about"), "console · version " + state.version + " · up " + span(state.uptime_ms));
  const pill = $("state");
  const look = state.not_ready ? "pill bad" : "pill good";
  if (pill.className !== look) pill.className = look;
  say(pill, state.not_ready ? "Not ready: " + state.not_ready : "Ready");
  const { broker } = state;
  pairs($("broker"), [
    ["State", broker.away === null ? "Connected" : "Away: " + broker.away, broker.away === null ? "good" : "bad"],
    ["Address", broker.url],
    ["Connections lost", whole.format(broker.losses)],
    ["Client addresses", whole.format(state.addresses)],
    ...broker.refused.map(({ topics, why }) => ["Refuses " + topics, why, "bad"]),
  ]);
  ROOM.forEach(([key, , words], index) => {
    const [bar, text] = [...$("room").children].slice(index * 3 + 1, index * 3 + 3);
    const { now, limit } = state[key];
    bar.max = Math.max(1, limit);
    bar.value = now;
    bar.className = now >= 0.9 * limit ? "full" : "";
    say(text, words(now) + " of " + words(limit));
  });
  const all = [["refused", "request refused"], ["closed", "stream ended"], ["gaps", "gap"]].flatMap(([key, what]) =>
    Object.entries(state[key]).map(([code, times]) => ({ code, what, times })));
  const told = all.filter(({ code }) => !["gone", "answered", "ended"].includes(code)).sort((a, b) => b.times - a.times || (a.code < b.code ? -1 : 1));
  fill($("why"), told, ({ code, what }) => what + code, [
    { text: ({ code }) => code, look: "m" },
    { text: ({ what }) => what, look: "s" },
    { text: ({ times }) => whole.format(times), look: "n" },
  ]);
  $("why-none").hidden = told.length > 0;
}

let source = null;

function listen() {
  source = new EventSource("console/events");
  source.addEventListener("history", (event) => {
    samples = JSON.parse(event.data);
  });
  source.addEventListener("state", (event) => {
    const state = JSON.parse(event.data);
    document.body.classList.remove("stale");
    samples.push(state.sample);
    samples = samples.slice(-SAMPLES);
    show(state);
    if (!$("overview").hidden) draw();
  });
  source.addEventListener("error", () => {
    $("state").className = "pill bad";
    say($("state"), "topicgate does not answer");
    document.body.classList.add("stale"); // the page shows old data
  });
}

// --- Lists -----------------------------------------------------------------------------------------------------------

// A view whose list is fetched again regularly, page by page.
function lister(name, path, parameters, refresh) {
  const list = { after: "", next: null, turn: 0 };
  const [first, next] = [$(name + "-first"), $(name + "-next")];
  list.look = async () => {
    const turn = ++list.turn;
    const query = new URLSearchParams({ ...parameters(), after: list.after });
    let page;
    try {
      page = await ask(path + "?" + query);
    } catch (error) {
      if (turn === list.turn) refresh(null, error.message);
      return;
    }
    if (turn !== list.turn) return; // another page was requested meanwhile
    list.next = page.next;
    first.hidden = list.after === "";
    next.hidden = page.next === null;
    refresh(page, "");
  };
  list.first = () => {
    list.after = "";
    list.look();
  };
  first.addEventListener("click", list.first);
  next.addEventListener("click", () => {
    list.after = String(list.next);
    list.look();
  });
  return list;
}

const topics = lister("topics", "topics", () => ({ prefix: $("prefix").value.trim() }), (page, fault) => {
  tell($("topics-note"), fault, true);
  if (!page) return;
  fill($("topics-rows"), page.topics, ({ topic }) => topic, [
    { node: ({ topic }) => topicLink(topic), look: "m" },
    { text: ({ readers }) => whole.format(readers), look: "n" },
    { text: ({ rate }) => count(rate), look: "n" },
    { text: ({ messages }) => whole.format(messages), look: "n" },
    { text: (topic) => bytes(topic.bytes), look: "n" },
    { text: ({ oldest_ms }) => span(oldest_ms), look: "n s" },
    { text: ({ upstream, ended, idle_ms }) => upstream + (ended ? ", ended" : "") + (idle_ms === null ? "" : ", idle " + span(idle_ms)), look: "s" },
  ]);
  $("topics-none").hidden = page.topics.length > 0;
});

const filters = () => ({
  topic: $("f-topic").value.trim(), address: $("f-address").value.trim(), subject: $("f-subject").value.trim(),
});

const streams = lister("streams", "streams", filters, (page, fault) => {
  // The message about ended streams stays until there is another message.
  if (fault || $("streams-note").classList.contains("fault")) tell($("streams-note"), fault, true);
  if (!page) return;
  fill($("streams-rows"), page.streams, ({ id }) => id, [
    { text: ({ id }) => String(id), look: "n s" },
    { text: ({ address }) => address, look: "m" },
    { text: ({ subject }) => subject ?? "–", look: "m" },
    { text: named, look: "m" },
    { text: view, look: "m" },
    { text: ({ http }) => http, look: "s" },
    { text: ({ age_ms }) => span(age_ms), look: "n" },
    { text: ({ sent_bytes }) => bytes(sent_bytes), look: "n" },
    { text: behind, look: ({ lag_ms }) => (lag_ms > 5000 ? "n late" : "n") },
    { node: endButton, look: "n" },
  ]);
  $("streams-none").hidden = page.streams.length > 0;
  $("end-all").disabled = page.streams.length === 0 || Object.values(filters()).every((text) => text === "");
});

const named = ({ topics: some, topic_count }) =>
  some.join(", ") + (topic_count > some.length ? " and " + (topic_count - some.length) + " more" : "");

// What a stream asked for, as in its query.
const view = ({ types, without_types, every_ms }) =>
  [types.length > 0 && "type=" + types.join(","), without_types && "event=none", every_ms && "every=" + every_ms + "ms"]
    .filter(Boolean).join(" ") || "all";

const behind = ({ lag_messages, lag_ms }) =>
  lag_messages === null ? "unknown" : lag_messages === 0 ? "–" : whole.format(lag_messages) + (lag_messages === 1 ? " message, " : " messages, ") + span(lag_ms);

function endButton({ id, address }) {
  const button = make("button", "quiet", "End");
  button.type = "button";
  button.setAttribute("aria-label", "End stream " + id);
  button.addEventListener("click", () => confirm("This ends stream " + id + " of " + address + ".", { id }));
  return button;
}

let toEnd = null;

function confirm(text, wanted) {
  toEnd = wanted;
  say($("confirm-text"), text);
  $("confirm").showModal();
  $("confirm-no").focus();
}

$("confirm-no").addEventListener("click", () => $("confirm").close());
$("confirm-yes").addEventListener("click", async () => {
  $("confirm").close();
  try {
    const { closed, more } = await ask("streams?" + new URLSearchParams(toEnd), { method: "DELETE" });
    await streams.look();
    tell($("streams-note"), (closed === 1 ? "1 stream was ended." : closed + " streams were ended.") + (more ? " More streams match." : ""), false);
  } catch (error) {
    tell($("streams-note"), error.message, true);
  }
});
$("end-all").addEventListener("click", () => {
  const said = Object.entries(filters()).filter(([, text]) => text !== "");
  const words = said.map(([name, text]) => name + " " + text).join(" and ");
  confirm("This ends every stream with " + words + ", up to 1000 at once.", Object.fromEntries(said));
});

for (const [form, list] of [["topics-filter", topics], ["streams-filter", streams]]) {
  $(form).addEventListener("submit", (event) => event.preventDefault());
  $(form).addEventListener("input", list.first);
}

// --- Configuration ---------------------------------------------------------------------------------------------------

let settings = [];

async function readSettings() {
  try {
    settings = await ask("config");
    tell($("configuration-note"), "", false);
  } catch (error) {
    tell($("configuration-note"), error.message, true);
  }
  showSettings();
}

function showSettings() {
  const isSet = ({ origin }) => origin !== "default";
  const wanted = settings.filter((setting) => !$("only-set").checked || isSet(setting));
  fill($("configuration-rows"), wanted, ({ key }) => key, [
    { text: ({ key }) => key, look: "m" },
    { text: ({ value }) => value ?? "not set", look: ({ value }) => (value === null ? "s" : "m") },
    { text: ({ origin }) => origin, look: (setting) => (isSet(setting) ? "" : "s") },
  ]);
}

$("only-set").addEventListener("input", showSettings);

// --- A topic's messages ----------------------------------------------------------------------------------------------

// Uses fetch, not EventSource, which delivers only the types that it has listeners for.
let watching = null;
let paused = false;
let waiting = [];

function block(text) {
  const event = { type: "message", data: [], id: "", retry: 0 };
  for (const line of text.split("\n")) {
    const [, name, value] = /^([^:]+):? ?(.*)$/s.exec(line) || [];
    if (name === "data") event.data.push(value);
    else if (name === "event") event.type = value;
    else if (name === "id") event.id = value;
    else if (name === "retry") event.retry = Number(value);
  }
  return { ...event, data: event.data.join("\n") };
}

async function follow(path, signal, take) {
  const answer = await fetch(path, { signal, headers: { Accept: "text/event-stream" } });
  if (!answer.ok) throw new Error((await answer.json().catch(() => ({}))).detail || String(answer.status));
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    blocks.map(block).forEach(take);
  }
}

async function watch(topic) {
  const stop = new AbortController();
  watching?.abort();
  watching = stop;
  say($("h-topic"), topic);
  let retry = RETRY;
  while (!stop.signal.aborted) {
    waiting = [];
    $("messages").replaceChildren();
    try {
      await follow("console/messages?topic=" + encodeURIComponent(topic), stop.signal, (event) => {
        retry = event.retry || retry;
        add(event);
      });
      if (stop.signal.aborted) return;
      tell($("topic-note"), "The stream has ended. Reconnecting.", true);
    } catch (error) {
      if (stop.signal.aborted) return;
      tell($("topic-note"), error.message, true);
    }
    await new Promise((resolve) => setTimeout(resolve, retry));
  }
}

function add({ type, data, id }) {
  if (type === "stream-open") return tell($("topic-note"), "Live", false);
  let told = {};
  try {
    told = JSON.parse(data);
  } catch { /* then it is shown as it is */ }
  const control = type.startsWith("stream-");
  const payload = told.data_base64 ?? told.data;
  waiting.push({
    look: type === "stream-gap" ? "gap" : control ? "told" : "",
    cells: control
      ? ["", told.topic || "", type, id, data]
      : [clock(told.time), told.subject || "", type, told.id || id,
        typeof payload === "string" ? payload : JSON.stringify(payload)],
  });
  if (waiting.length > MAX_ROWS) waiting.shift();
  if (waiting.length === 1) requestAnimationFrame(drawMessages);
}

// Once a frame: a fast topic must not freeze the page.
function drawMessages() {
  if (paused) return;
  const drawn = document.createDocumentFragment();
  const heads = ["Time", "Topic", "Type", "Id", "Payload"];
  for (const { look, cells } of waiting.reverse()) {
    const row = make("tr", look);
    row.setAttribute("role", "row");
    cells.forEach((text = "", index) => {
      const shown = text.length > MAX_SHOWN ? text.slice(0, MAX_SHOWN) + "… (" + text.length + " characters)" : text;
      const cell = make("td", index === 0 ? "time" : "m", shown);
      cell.setAttribute("role", "cell");
      if (shown) cell.dataset.head = heads[index];
      row.append(cell);
    });
    drawn.append(row);
  }
  waiting = [];
  const rows = $("messages");
  rows.prepend(drawn);
  while (rows.children.length > MAX_ROWS) rows.lastElementChild.remove();
}

$("pause").addEventListener("click", () => {
  paused = !paused;
  $("pause").setAttribute("aria-pressed", String(paused));
  if (!paused) drawMessages();
});

// --- Views -----------------------------------------------------------------------------------------------------------

function route() {
  const hash = location.hash.slice(1);
  const topic = hash.startsWith("topic=") ? decode(hash.slice(6)) : "";
  const named = topic ? "topic" : hash;
  const view = document.querySelector(".view[id='" + CSS.escape(named) + "']") ? named : "overview";
  for (const each of document.querySelectorAll(".view")) each.hidden = each.id !== view;
  for (const link of document.querySelectorAll("nav a")) {
    const here = link.hash === "#" + (view === "topic" ? "topics" : view);
    if (here) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  watching?.abort();
  $("confirm").close(); // its question is about another view
  say($("streams-note"), "");
  if (view === "overview") draw();
  if (view === "topics") topics.first();
  if (view === "streams") streams.first();
  if (view === "configuration") readSettings();
  if (view === "topic") watch(topic);
}

function decode(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return "";
  }
}

window.addEventListener("hashchange", route);
setInterval(() => {
  if (document.hidden) return;
  if (!$("topics").hidden) topics.look();
  if (!$("streams").hidden) streams.look();
}, REFRESH);
// A hidden page holds no connection: a browser has six per host, and all its pages share them.
document.addEventListener("visibilitychange", () => {
  if (document.hidden) {
    source?.close();
    watching?.abort();
  } else {
    listen();
    route();
  }
});
listen();
route();
