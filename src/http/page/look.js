// The five uses. They share the connection of the page, and each reads its own topic of it. Anyone may publish to these
// topics, so a message may be anything, and is shown as text.
const $ = (id) => document.getElementById(id);
const TOPICS = ["demo/dashboard", "demo/notifications", "demo/news", "demo/document", "demo/sensors/*"];
const POINTS = 60;
const ROWS = 4;
const MAX_TILES = 24;
const MAX_TEXT = 80;
const MAX_SEEN = 1000;
const SILENT = 4000; // milliseconds; a sensor publishes once a second

const points = [];
const tiles = new Map();
let unread = 0;
let streams = 0;

const short = (value) => String(value ?? "").slice(0, MAX_TEXT);

function dashboard(numbers) {
  for (const name of ["orders", "visitors", "latency"]) {
    const value = Number(numbers[name]);
    if (Number.isFinite(value)) $("look-" + name).textContent = value.toLocaleString("en", { maximumFractionDigits: 1 });
  }
  streams = Number(numbers.streams) || streams;
  const orders = Number(numbers.orders);
  if (!Number.isFinite(orders)) return;
  points.push(orders);
  if (points.length > POINTS) points.shift();
  if (points.length < 2) return;
  const top = Math.max(...points, 1) * 1.1;
  const line = points.map((value, at) => ((at * 100) / (points.length - 1)).toFixed(1) + "," + (39 - (value / top) * 38).toFixed(1)).join("L");
  document.querySelector(".chart .line").setAttribute("d", "M" + line);
  document.querySelector(".chart .area").setAttribute("d", "M0,40L" + line + "L100,40Z");
}

function row(list, mark, text) {
  const item = document.createElement("li");
  item.className = "new";
  const span = Object.assign(document.createElement("span"), { textContent: text });
  item.append(mark, span);
  list.prepend(item);
  while (list.children.length > ROWS) list.lastElementChild.remove();
}

function mark(name, text = "") {
  return Object.assign(document.createElement("span"), { className: name, textContent: text });
}

function notification(notice) {
  row($("look-notices"), mark("dot"), short(notice.text ?? notice));
  unread += 1;
  const badge = $("look-unread");
  badge.hidden = false;
  badge.textContent = unread > 99 ? "99+" : unread;
  badge.ariaLabel = unread + " unread";
}

function news(item, type) {
  row($("look-news-rows"), mark("tag", short(type)), short(item.title ?? item));
}

const WORDS = { saved: "Saved", editing: "Not saved yet", conflict: "Conflict" };

function documentStatus({ state, version, by, editors }) {
  const status = $("look-document-state");
  status.className = "docstate " + (Object.hasOwn(WORDS, state) ? state : "editing");
  status.textContent = (WORDS[state] ?? short(state)) + ": version " + short(version) + ", " + short(by);
  const names = [].concat(editors ?? []).slice(0, 4).map(short);
  $("look-editors").textContent = names.length ? names.join(" and ") + (names.length > 1 ? " are" : " is") + " editing" : "Nobody is editing";
}

function sensor(value, type, topic) {
  const degrees = Number(value);
  if (!Number.isFinite(degrees)) return;
  let tile = tiles.get(topic);
  if (!tile) {
    if (tiles.size >= MAX_TILES) return;
    const item = document.createElement("li");
    const name = topic.split("/").at(-1);
    item.append(mark(""), Object.assign(document.createElement("small"), { textContent: "No. " + short(name) }));
    tile = { item, name };
    tiles.set(topic, tile);
    const after = [...tiles.values()].filter((each) => Number(each.name) > Number(name)).sort((a, b) => a.name - b.name)[0];
    $("look-tiles").insertBefore(item, after?.item ?? null);
  }
  tile.seen = Date.now();
  tile.item.className = "";
  tile.item.firstChild.textContent = degrees.toFixed(1) + "°";
  tile.item.style.setProperty("--heat", Math.min(1, Math.max(0, (degrees - 15) / 12)).toFixed(2));
}

const USES = {
  "demo/dashboard": dashboard,
  "demo/notifications": notification,
  "demo/news": news,
  "demo/document": documentStatus,
};

// What is read at first and what arrives may overlap.
const seen = new Set();

function take({ id, subject, type, data }) {
  if (look.isPaused || seen.has(id)) return;
  seen.add(id);
  if (seen.size > MAX_SEEN) seen.delete(seen.values().next().value);
  const use = USES[subject] ?? (String(subject).startsWith("demo/sensors/") ? sensor : undefined);
  try {
    if (data !== null && data !== undefined) use?.(data, type, subject);
  } catch { /* not what this use shows */ }
}

// How many tabs of this browser share the connection: each has a lock while it is shown.
const LOCK = "topicgate: a tab with the first look";
let leave = () => {};
const enter = () => navigator.locks?.request(LOCK, { mode: "shared" }, () => new Promise((resolve) => { leave = resolve; }));
addEventListener("pageshow", enter);
addEventListener("pagehide", () => leave());

async function tell(source) {
  const held = (await navigator.locks?.query())?.held ?? [];
  const tabs = held.filter(({ name }) => name === LOCK).length;
  const live = look.isPaused ? "Paused: nobody reads, so the back end is quiet." : source.readyState === 1 ? "● " : "Connecting";
  $("look-line").classList.toggle("waits", look.isPaused || source.readyState !== 1);
  const silent = [...tiles.values()].filter(({ item, seen }) => item.classList.toggle("silent", Date.now() - seen > SILENT)).length;
  $("look-silent").textContent = tiles.size ? tiles.size + " sensors, " + (silent ? silent + " silent" : "none silent") : "";
  if (live !== "● ") return ($("look-line").textContent = live);
  const ofTabs = tabs ? (tabs === 1 ? "1 tab" : tabs + " tabs") + " in this browser" : "Connected";
  $("look-line").textContent = live + ofTabs + (streams ? ", " + (streams === 1 ? "1 stream" : streams + " streams") + " at the gateway" : "");
}

let current;
const look = {
  isPaused: false,
  get topics() { return look.isPaused ? [] : TOPICS; },
  /** The last messages of each topic, for what is seen at once. */
  async load(url) {
    if (look.isPaused) return;
    const past = new URL(url);
    past.searchParams.set("last", "20");
    for (const topic of TOPICS) past.searchParams.append("topic", topic);
    const answer = await fetch(past, { headers: { accept: "application/json" }, cache: "no-store" });
    if (answer.ok) for (const { data } of (await answer.json()).messages) take(JSON.parse(data));
  },
  apply: ({ data }) => take(JSON.parse(data)),
  /** The page has opened a source. */
  shows(source) {
    current = source;
    source.addEventListener("stream-open", () => tell(source));
  },
  /** Set by the page: to be called when `topics` has changed. */
  changed() {},
};
globalThis.firstLook = look;
setInterval(() => current && tell(current), 1000);

$("look-pause").addEventListener("click", ({ target }) => {
  look.isPaused = !look.isPaused;
  target.ariaPressed = String(look.isPaused);
  target.textContent = look.isPaused ? "Go on" : "Pause";
  document.querySelector(".cards").classList.toggle("paused", look.isPaused);
  look.changed();
  tell(current);
});

$("look-read").addEventListener("click", () => {
  unread = 0;
  $("look-unread").hidden = true;
  for (const item of $("look-notices").children) item.classList.add("read");
});

// Fills the form below, so that publishing is one more key.
for (const button of document.querySelectorAll(".send")) {
  button.addEventListener("click", () => {
    for (const name of ["to", "type", "payload"]) $(name).value = button.dataset[name];
    $("payload").dispatchEvent(new Event("input"));
    $("publish").scrollIntoView({ block: "center" });
    document.querySelector("#publish button").focus({ preventScroll: true });
  });
}
