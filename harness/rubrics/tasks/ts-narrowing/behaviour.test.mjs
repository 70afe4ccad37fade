import { expect, test } from "vitest";
import * as answer from "./severity.mjs";

const name = process.env.SEVERITY ?? "severity";
const severity = answer[name];

test("known messages", () => {
  expect(severity({ topic: "reading", celsius: 25 })).toBe(5);
  expect(severity({ topic: "reading", celsius: 12.5 })).toBe(7.5);
  expect(severity({ topic: "alarm", level: 3, silenced: false })).toBe(3);
  expect(severity({ topic: "alarm", level: 3, silenced: true })).toBe(0);
  expect(severity({ topic: "reading", celsius: 20 })).toBe(0);
});

test("other topics", () => {
  expect(severity({ topic: "door", payload: { open: true } })).toBeUndefined();
  expect(severity({ topic: "", payload: null })).toBeUndefined();
});

test("borrowed topics", () => {
  expect(severity({ topic: "reading", payload: 7 })).toBeUndefined();
  expect(severity({ topic: "alarm", payload: "level" })).toBeUndefined();
});
