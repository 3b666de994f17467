// A document that several people edit. Who edits, and which version is saved, is a value in a bucket of NATS.
import { nats, serve } from "../backend.mjs";

const broker = await nats();
const created = await broker.request("$JS.API.STREAM.CREATE.KV_documents", {
  name: "KV_documents", subjects: ["$KV.documents.>"], max_msgs_per_subject: 1, allow_rollup_hdrs: true, deny_delete: true,
  discard: "new", allow_direct: true, storage: "memory",
});
if (created.error && created.error.err_code !== 10058) throw new Error(created.error.description);

const state = { text: "Agenda\n\n1. Welcome\n2. The new boat house\n", version: 1, by: "nobody" };
const editors = new Map();
const put = () => {
  const now = Date.now();
  for (const [name, seen] of editors) if (now - seen > 6000) editors.delete(name);
  return broker.request("$KV.documents.agenda", { ...state, editors: [...editors.keys()].sort() });
};
await put();

await serve(new URL(".", import.meta.url), {
  // The page says so every two seconds while somebody types.
  "POST /editing": async ({ body: { name } }) => {
    const isNew = !editors.has(name);
    editors.set(String(name).slice(0, 40), Date.now());
    setTimeout(put, 6500);
    if (isNew) await put();
  },
  // Saved only if nobody else has saved since.
  "POST /save": async ({ body: { name, text, version } }) => {
    if (version !== state.version) return { status: 409, json: {} };
    Object.assign(state, { text: String(text).slice(0, 20000), version: version + 1, by: String(name).slice(0, 40) });
    editors.delete(name);
    await put();
    return { version: state.version };
  },
});
