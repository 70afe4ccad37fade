import { writeFileSync } from "node:fs";
import { countChangedLines, merge } from "./merge.mjs";
import { finish, note, noteTests, readText, runTests } from "./report.mjs";
import { compile } from "./types.mjs";

const before = readText("useFolderWatch.ts");
const merged = merge(before, [readText("changes.ts")], "useFolderWatch", "useFolderWatch.ts");
writeFileSync("useFolderWatch.ts", merged.text);
note("applies", merged.problem === "" && merged.text !== before, merged.problem || `replaced ${merged.replaced.join(", ") || "the file"}, added ${merged.added.join(", ") || "nothing"}`);
note("changed_lines", countChangedLines(before, merged.text), "lines that the file did not have before");
const errors = compile(["useFolderWatch.ts"]);
note("compiles", errors.length === 0, errors[0]?.text ?? "tsc --strict has no complaint");
noteTests(runTests("behaviour.test.ts"), {
  ignored_not_added: "ignored file stays out",
  names_file: "notification names the file",
  others_added: "other files are added",
  still_works: "the rest works",
  ignored_folders: "ignored folders",
  any_case: "any case",
  empty_list: "empty list",
  double_suffix: "double suffix",
  outside: "outside",
  no_double: "no double",
  count_right: "count",
});
finish();
