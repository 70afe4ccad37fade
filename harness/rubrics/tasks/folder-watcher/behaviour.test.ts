import { beforeEach, expect, test } from "vitest";
import { effectScope } from "vue";
import { emit } from "./host";
import { shown } from "./notifications";
import { settings } from "./settings";
import { useFolderWatch } from "./useFolderWatch";

const ROOT = "/home/ada/notes";
const settled = () => new Promise((resolve) => setTimeout(resolve, 120));

beforeEach(() => {
  shown.length = 0;
  settings.ignoredSuffixes = [".log", ".tmp"];
  settings.ignoredFolders = [];
});

async function watch(...paths: string[]): Promise<string[]> {
  const scope = effectScope();
  const folder = scope.run(() => useFolderWatch(ROOT))!;
  folder.start();
  for (const path of paths) emit({ kind: "added", path });
  await settled();
  const names = folder.files.value.map((file) => file.path);
  scope.stop();
  return names;
}

const told = (name: string) => shown.filter((one) => one.text.includes(name));

test("ignored file stays out", async () => {
  expect(await watch(`${ROOT}/debug.log`)).toEqual([]);
});

test("notification names the file", async () => {
  await watch(`${ROOT}/deep/debug.log`);
  expect(told("debug.log").length).toBeGreaterThan(0);
});

test("other files are added", async () => {
  expect(await watch(`${ROOT}/a.md`, `${ROOT}/debug.log`, `${ROOT}/log`, `${ROOT}/b.log.md`)).toEqual([`${ROOT}/a.md`, `${ROOT}/b.log.md`, `${ROOT}/log`]);
});

test("the rest works", async () => {
  const scope = effectScope();
  const folder = scope.run(() => useFolderWatch(ROOT))!;
  await folder.addByHand([`${ROOT}/by-hand.log`, "/elsewhere/x.md"]);
  expect(folder.files.value.map((file) => file.path)).toEqual([`${ROOT}/by-hand.log`]);
  expect(told("x.md").length).toBe(1);
  folder.start();
  emit({ kind: "added", path: `${ROOT}/c.md` });
  emit({ kind: "removed", path: `${ROOT}/by-hand.log` });
  await settled();
  expect(folder.files.value).toEqual([{ path: `${ROOT}/c.md`, size: `${ROOT}/c.md`.length, addedBy: "watcher" }]);
  folder.stop();
  expect(folder.watching.value).toBe(false);
  emit({ kind: "added", path: `${ROOT}/late.md` });
  await settled();
  expect(folder.files.value.length).toBe(1);
  scope.stop();
});

test("ignored folders", async () => {
  settings.ignoredFolders = ["cache"];
  expect(await watch(`${ROOT}/cache/a.md`, `${ROOT}/b.md`)).toEqual([`${ROOT}/b.md`]);
});

test("any case", async () => {
  settings.ignoredSuffixes = [".log", ".TMP"];
  expect(await watch(`${ROOT}/A.LOG`, `${ROOT}/b.tmp`)).toEqual([]);
});

test("empty list", async () => {
  settings.ignoredSuffixes = [];
  expect(await watch(`${ROOT}/a.log`, `${ROOT}/b`)).toEqual([`${ROOT}/a.log`, `${ROOT}/b`]);
  expect(shown.map((one) => one.level)).toEqual(["info"]);
});

test("double suffix", async () => {
  settings.ignoredSuffixes = [".tar.gz"];
  expect(await watch(`${ROOT}/a.tar.gz`, `${ROOT}/b.gz`)).toEqual([`${ROOT}/b.gz`]);
});

test("outside", async () => {
  await watch("/home/ada/elsewhere/debug.log");
  expect(shown).toEqual([]);
});

test("no double", async () => {
  await watch(`${ROOT}/debug.log`);
  expect(told("debug.log").length).toBe(1);
});

test("count", async () => {
  await watch(`${ROOT}/a.md`, `${ROOT}/debug.log`);
  const counts = shown.filter((one) => /\bnew files?\b/.test(one.text) && one.level === "info" && !one.text.includes("debug.log"));
  expect(counts.map((one) => one.text)).toEqual(["1 new file in notes"]);
});
