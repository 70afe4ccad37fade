import { writeFileSync } from "node:fs";
import { finish, firstLine, note, noteTests, readText, runTests } from "./report.mjs";
import { census, compile, functionsOf, transpile } from "./types.mjs";

const code = readText("severity.ts");
const functions = functionsOf(code);
const alternatives = functions.filter((one) => /^severityAlternative\d+$/.test(one.name));
const rest = blank(code, alternatives);

const errors = compile(["severity.ts"]).filter((error) => error.file !== "severity.ts" || !owner(error, alternatives));
note("compiles", errors.length === 0 && functions.some((one) => one.name === "severity"), errors[0]?.text ?? "tsc --strict has no complaint");
writeFileSync("severity.mjs", transpile(code));
const tests = runTests("behaviour.test.mjs");
noteTests(tests, { behaves: "known messages", unknown_topics: "other topics", odd_plugins: "borrowed topics" });

const counts = census(rest);
note("clean", counts.assertions + counts.nonNull + counts.any + counts.suppressions === 0, JSON.stringify(counts));
note("inline_in", census(outsideOfGuards(rest)).in > 0, `${counts.in} in`);
noteAlternatives();
noteType("returns_exact", "type Same<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false;\nexport const same: Same<ReturnType<typeof severity>, number | undefined> = true;\n");
noteType("not_widened", "import type { Message } from './messages';\ntype Same<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false;\nexport const same: Same<Parameters<typeof severity>, [message: Message]> = true;\n");
finish();

function blank(text, parts) {
  return parts.reduce((left, part) => left.slice(0, part.start) + " ".repeat(part.end - part.start) + left.slice(part.end), text);
}

function owner(error, parts) {
  return parts.some((part) => error.position >= part.start && error.position < part.end);
}

// The code without functions that declare a type predicate: an `in` inside such a guard is not inline.
function outsideOfGuards(text) {
  return blank(text, functionsOf(text).filter((one) => census(one.code).predicates > 0));
}

// A further way counts where it compiles, is clean, works, and differs from the main one by more than its name.
function noteAlternatives() {
  const main = functions.find((one) => one.name === "severity")?.code ?? "";
  const verdicts = alternatives.map((one) => {
    const own = census(one.code);
    const wrong = compile(["severity.ts"]).find((error) => error.file === "severity.ts" && owner(error, [one]));
    process.env.SEVERITY = one.name;
    const result = runTests("behaviour.test.mjs");
    delete process.env.SEVERITY;
    const clean = own.assertions + own.nonNull + own.any + own.suppressions === 0;
    const works = !wrong && clean && result.tests["known messages"]?.passed === true && result.tests["borrowed topics"]?.passed === true;
    return { name: one.name, works, differs: shape(one) !== shape({ name: "severity", code: main }), why: wrong?.text ?? firstLine(result.output) };
  });
  note("alternative_works", verdicts.some((one) => one.works && one.differs), verdicts.map((one) => `${one.name}: ${one.works ? "works" : one.why}`).join("; ") || "no alternative");
  note("alternative_fails", verdicts.some((one) => !one.works), verdicts.filter((one) => !one.works).map((one) => `${one.name}: ${one.why}`).join("; ") || "none fails");
}

function shape(one) {
  return transpile(one.code).replaceAll(one.name, "").replace(/\s+/g, "");
}

function noteType(fact, text) {
  writeFileSync(`${fact}.ts`, `import { severity } from "./severity";\n${text}`);
  const wrong = compile([`${fact}.ts`]).filter((error) => error.file === `${fact}.ts`);
  note(fact, wrong.length === 0, wrong[0]?.text ?? "the types are equal");
}
