import "./worker.js";

export { follow, type FollowOptions } from "./follow.js";
export type { Refusal } from "./line.js";
export { type Gap, TopicSource, type TopicSourceEventMap, type TopicSourceOptions } from "./source.js";
