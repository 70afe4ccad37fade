import { writeFileSync } from "node:fs";
import { merge, route, topLevelNames } from "./merge.mjs";
import { finish, note, noteAll, noteTests, readText, runTests } from "./report.mjs";
import { compile } from "./types.mjs";

process.env.TZ = "UTC";
const TESTS = { stores: "stores", lists: "lists", shows: "shows", null_safe: "no time", order_kept: "order", database_default: "database default" };
const FILES = ["db.ts", "page.tsx"];
const blocks = JSON.parse(readText("blocks.json"));
const before = Object.fromEntries(FILES.map((name) => [name, readText(name)]));
const routed = route(before, blocks);
const merged = FILES.map((name) => [name, routed[name].trim() ? merge(before[name], [routed[name]], null, name) : { text: before[name], problem: "", replaced: [] }]);
for (const [name, one] of merged) writeFileSync(name, one.text);

const problems = merged.filter(([, one]) => one.problem).map(([name, one]) => `${name}: ${one.problem}`);
const changed = merged.filter(([name, one]) => one.text !== before[name]).map(([name]) => name);
const applies = problems.length === 0 && changed.length > 0;
note("applies", applies, problems.join("; ") || `changed ${changed.join(" and ") || "nothing"}`);
const repeated = FILES.filter((name) => topLevelNames(before[name]).every((one) => topLevelNames(routed[name]).includes(one)));
note("whole_files", repeated.length > 0, repeated.length > 0 ? `repeats all of ${repeated.join(" and ")}` : "no file is repeated as a whole");
note("actions_untouched", !/\b(createTodo|flipTodo|deleteTodo)\s*\(\s*form\b|use server/.test(blocks.join("\n")), "no action is defined again");
const errors = compile(FILES, { jsx: 4, types: ["react"] });
note("compiles", errors.length === 0, errors[0]?.text ?? "tsc --strict has no complaint");
if (applies) {
  const result = runTests("behaviour.test.tsx");
  noteTests(result, TESTS);
  note("iso_display", result.tests.shows?.passed === true && result.tests.iso?.passed === false, result.tests.iso?.message || "no ISO time stamp in the text");
} else noteAll([...Object.keys(TESTS), "iso_display"], false, "nothing was put in");
finish();
