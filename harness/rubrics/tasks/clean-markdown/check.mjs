import { existsSync, writeFileSync } from "node:fs";
import { finish, note, readText, run } from "./report.mjs";
import { transpile } from "./types.mjs";

const RULES = [
  ["---\na: 1\n---\nText.", "Text."],
  ["import A from \"a\";\n\nText.", "Text."],
  ["Before.\n\n| a | b |\n| - | - |\n| 1 | 2 |\n\nAfter.", "Before.\n\nAfter."],
  ["Before.\n\n<Box>\ninside\n</Box>\n\nAfter.", "Before.\n\nAfter."],
  ["Before.\n\n<Divider />\n\nAfter.", "Before.\n\nAfter."],
  ["### Deep\n\nText.", "Deep\n\nText."],
  ["See [here](/a) and [there](/b).", "See here and there."],
  ["Run:\n\n```sh\nls  -l\n```\n\nDone.", "Run:\n\nls  -l\n\nDone."],
  ["One.\n\n\n\n\nTwo.\n", "One.\n\nTwo."],
];
const HIDDEN = {
  crlf: ["# Title\r\n\r\nSee [it](/a).\r\n\r\n\r\n\r\nEnd.\r\n", "Title\n\nSee it.\n\nEnd."],
  link_titles: ["A [link](/path \"With a title\") here.", "A link here."],
  hash_in_code: ["```py\n# set up\n## twice\nx = [a](b)\n```", "# set up\n## twice\nx = [a](b)"],
  aligned_table: ["Up.\n\n| name | n |\n|:-----|--:|\n| a    | 1 |\n\nDown.", "Up.\n\nDown."],
  nested: ["Up.\n\n<Tabs>\n<Tab name=\"one\">\nfirst\n</Tab>\n<Tab name=\"two\">\nsecond\n</Tab>\n</Tabs>\n\nDown.", "Up.\n\nDown."],
  inline_component: ["Press <Key name=\"F5\" /> to reload.", /^Press ? to reload\.$/],
  multi_line_import: ["import {\n  One,\n  Two,\n} from \"parts\";\n\nText.", "Text."],
  later_rule: ["Up.\n\n---\n\nDown.\n\n---\n\nEnd.", "Up.\n\n---\n\nDown.\n\n---\n\nEnd."],
  tilde_fence: ["~~~\n# kept\n~~~\n\nEnd.", "# kept\n\nEnd."],
  component_in_code: ["```tsx\nimport X from \"x\";\n<Box>kept</Box>\n```", "import X from \"x\";\n<Box>kept</Box>"],
};

const code = readText("clean.ts");
note("exported", /\bexport\b/.test(transpile(code).replace(/export \{\};?\s*$/, "")), "an export of the module");
writeFileSync("clean.mjs", transpile(code) + (/export[^;]*\bcleanArticle\b|export default/.test(code) ? "" : "\nexport { cleanArticle };\n"));
const sample = readText("sample.md");
const wanted = readText("sample.txt").trim();
const inputs = [sample, ...RULES.map((rule) => rule[0]), ...Object.values(HIDDEN).map((one) => one[0])];
writeFileSync("inputs.json", JSON.stringify(inputs));
const done = run("node", ["apply.mjs"], 20);
const outputs = existsSync("outputs.json") ? JSON.parse(readText("outputs.json")) : [];
note("loads", outputs.length === inputs.length, done.output || "it ran");
const got = typeof outputs[0] === "string" ? outputs[0] : "";
note("exact", got.trim() === wanted, difference(got.trim(), wanted));
note("same_words", squeeze(got) === squeeze(wanted), difference(squeeze(got), squeeze(wanted)));
note("has_newlines", got.trim().includes("\n"), `${got.split("\n").length} lines`);
const passed = RULES.filter((rule, number) => outputs[number + 1] !== undefined && squeeze(String(outputs[number + 1])) === squeeze(rule[1]));
note("rules_share", passed.length / RULES.length, `${passed.length} of ${RULES.length} rules, white space aside`);
Object.entries(HIDDEN).forEach(([name, [, want]], number) => {
  const output = outputs[1 + RULES.length + number];
  const fits = typeof output === "string" && (want instanceof RegExp ? want.test(output.trim()) : output.trim().replaceAll("\r\n", "\n") === want);
  note(name, fits, `gives ${JSON.stringify(output)}`);
});
finish();

function squeeze(text) {
  return text.replace(/\s+/g, " ").trim();
}

function difference(got, want) {
  if (got === want) return "equal";
  let at = 0;
  while (got[at] === want[at]) at += 1;
  return `from character ${at}: ${JSON.stringify(got.slice(at, at + 60))} instead of ${JSON.stringify(want.slice(at, at + 60))}`;
}
