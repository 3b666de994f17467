// A function writes the answer of a model to a Redis Stream, token by token. It knows nothing of the page that asked.
import { randomUUID } from "node:crypto";
import { setTimeout } from "node:timers/promises";
import { redis, serve } from "../backend.mjs";

const PAUSE = Number(process.env.PAUSE ?? 70);
const store = await redis();

const ANSWERS = {
  sky: "Sunlight holds all colours, and air bends each of them a little. Blue light has short waves, so the molecules of the air " +
    "throw it about far more than red.\n\nBlue therefore reaches your eye from every direction, which is why the whole sky looks blue. " +
    "In the evening the light comes a longer way through the air. Most of the blue is gone by then, and what is left is red.",
  tea: "Cold tea is still tea. It loses its aroma first, because what you smell leaves the cup with the steam, and its taste only " +
    "later.\n\nPour it over ice while it is hot, and most of the aroma stays in the glass.",
};

// Stands for a model, in the form of the AI SDK's UI message stream: yours are streamText(…).toUIMessageStream().
async function* pieces(question) {
  yield { type: "start" };
  yield { type: "data-question", data: question };
  yield { type: "text-start", id: "text" };
  const subject = Object.keys(ANSWERS).find((word) => question.toLowerCase().includes(word));
  const answer = ANSWERS[subject] ?? "I only stand for a model, so I know about two things: the sky, and tea. Ask me about one of them.";
  for (const delta of answer.match(/\s*\S+/g)) {
    await setTimeout(PAUSE);
    yield { type: "text-delta", id: "text", delta };
  }
  yield { type: "text-end", id: "text" };
  yield { type: "finish" };
}

async function write(id, question) {
  const key = `answers:${id}`;
  for await (const piece of pieces(question)) {
    await store("XADD", key, "*", "data", JSON.stringify(piece));
    await store("EXPIRE", key, 3600);
  }
  // The field ends the topic: streams of it end, and nobody reconnects.
  await store("XADD", key, "*", "data", "[DONE]", "Topicgate-End", "true");
}

await serve(new URL(".", import.meta.url), {
  "POST /ask": ({ body }) => {
    const id = randomUUID();
    write(id, String(body.question).slice(0, 300)).catch((error) => console.error(`the answer ${id} is cut short: ${error.message}`));
    return { id };
  },
});
