// What every check.mjs builds on: facts with their evidence, child processes with a time limit, the report file.
import { spawnSync } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";

const facts = {};
const pictures = [];

// Note a fact: `value` is a boolean or a number, `evidence` what was seen.
export function note(name, value, evidence) {
  facts[name] = { value, evidence: String(evidence ?? "").slice(0, 1500) };
}

// Note one value for several facts, where what they ask for cannot be looked at.
export function noteAll(names, value, evidence) {
  for (const name of names) note(name, value, evidence);
}

export function addPicture(name) {
  pictures.push(name);
}

// Write the report. Called once, at the end of check.mjs.
export function finish() {
  writeFileSync(".report.json", JSON.stringify({ facts, pictures }));
}

// Run a program; a child that overruns `seconds` is killed and has `ok` false.
export function run(program, args, seconds = 30) {
  const done = spawnSync(program, args, { encoding: "utf8", timeout: seconds * 1000, killSignal: "SIGKILL", maxBuffer: 1 << 24 });
  const output = `${done.stdout ?? ""}${done.stderr ?? ""}`.trim();
  const late = done.error?.code === "ETIMEDOUT";
  if (done.error && !late && done.error.code !== "ENOBUFS") throw done.error;
  return { ok: done.status === 0, output: late ? `no end within ${seconds} s; ${output}` : output, stdout: done.stdout ?? "" };
}

// Run one vitest file; returns {tests: {title: {passed, message}}, output}. A file that does not load has no tests;
// where vitest itself runs none, not even its own, this throws: that says nothing about the answer.
export function runTests(file, seconds = 120) {
  const result = runVitest(file, seconds);
  if (Object.keys(result.tests).length === 0) {
    writeFileSync("canary.test.mjs", 'import { expect, test } from "vitest";\ntest("canary", () => expect(1 + 1).toBe(2));\n');
    const canary = runVitest("canary.test.mjs", seconds);
    if (canary.tests.canary?.passed !== true) throw new Error(`vitest does not run: ${canary.output}`);
  }
  return result;
}

function runVitest(file, seconds) {
  const out = `.${file.replaceAll("/", "-")}.json`;
  const args = ["node_modules/vitest/vitest.mjs", "run", file, "--reporter=json", `--outputFile=${out}`, "--no-cache", "--pool=forks", "--testTimeout=60000", "--hookTimeout=60000"];
  const done = run("node", args, seconds);
  let report;
  try {
    report = JSON.parse(readText(out));
  } catch {
    return { tests: {}, output: done.output };
  }
  const tests = {};
  for (const suite of report.testResults)
    for (const one of suite.assertionResults)
      tests[one.title] = { passed: one.status === "passed", message: firstLine(one.failureMessages?.[0]) };
  const output = report.testResults.map((suite) => suite.message).filter(Boolean).join("\n") || done.output;
  return { tests, output };
}

// Note a fact for each test of `names` (fact -> title): whether it passed, and what it said where it did not.
export function noteTests(result, names) {
  for (const [fact, title] of Object.entries(names)) {
    const test = result.tests[title];
    note(fact, test?.passed === true, test ? (test.passed ? "passed" : test.message) : `did not run: ${firstLine(result.output)}`);
  }
}

export function firstLine(text) {
  return (text ?? "").split("\n").map((line) => line.trim()).find(Boolean)?.slice(0, 300) ?? "";
}

export function readText(path) {
  return readFileSync(path, "utf8");
}
