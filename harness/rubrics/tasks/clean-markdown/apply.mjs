// Runs in a process of its own: the answer's function over the texts of inputs.json.
import { readFileSync, writeFileSync } from "node:fs";
import * as answer from "./clean.mjs";

const clean = answer.cleanArticle ?? answer.default;
const inputs = JSON.parse(readFileSync("inputs.json", "utf8"));
const outputs = inputs.map((text) => {
  try {
    return String(clean(text));
  } catch (error) {
    return { error: String(error) };
  }
});
writeFileSync("outputs.json", JSON.stringify(outputs));
