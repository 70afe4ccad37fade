import { mkdirSync, writeFileSync } from "node:fs";
import vm from "node:vm";
import { attempt, launch, open } from "./browser.mjs";
import { contrast, findOverlaps, isNormalised, measure, paintedShare } from "./measure.mjs";
import { addPicture, finish, note, noteAll, readText } from "./report.mjs";

const html = readText("index.html");
const results = readText("results.js");
const changed = results.replace("182.5", "90.0").replace("74.8", "12.5").replace("Maple Next", "Maple Later");
const browser = await launch(process.argv[2]);
mkdirSync("pictures");

const wide = await look(results, 1280);
if (wide.seen === null) {
  noteAll(["runs", "both_names", "all_models", "normalised", "side_by_side", "colours_differ", "values_drawn", "missing_not_zero", "fits_390", "quiet", "follows_data"], false, "the page does not respond");
  noteAll(["painted", "radar", "overflow_1280", "labels_overlap", "low_contrast"], 0, "the page does not respond");
  finish();
  process.exit(0);
}
const { seen, picture } = wide;
const text = seen.texts.map((one) => one.text).join("\n");
const scores = readScores(results);
const painted = await paintedShare(browser, picture);
note("painted", painted, `${painted.toFixed(1)}% of 1280 x 800 pixels`);
const faults = wide.errors.filter((error) => error.startsWith("error"));
const draws = seen.charts.length > 0 || seen.rects.some((rect) => rect.width > 1 && rect.height > 1) || seen.shapes > 0;
note("runs", faults.length === 0 && draws, faults[0] ?? (draws ? "no script error" : "nothing is drawn"));
note("quiet", draws && wide.errors.length === 0, wide.errors[0] ?? (wide.refused[0] ? `asked for ${wide.refused[0]}` : "nothing on the console"));
const names = ["issue fixes", "puzzle points"].filter((name) => text.toLowerCase().includes(name));
note("both_names", names.length === 2, `reads ${names.join(" and ") || "neither name"}`);
const unread = scores[0].models.filter((name) => !reads(text, name));
note("all_models", unread.length === 0, unread.length === 0 ? "all nine can be read" : `not to be read: ${unread.join(", ")}`);
note("normalised", isNormalised(seen, scores), describe(seen));
note("radar", seen.charts.some((chart) => ["radar", "pie", "doughnut", "polarArea"].includes(chart.type)), seen.charts.map((chart) => chart.type).join(", ") || "no chart object");
note("side_by_side", isSideBySide(seen), describe(seen));
note("overflow_1280", seen.wide > 1, `${seen.wide} pixels wider than the window`);
note("colours_differ", coloursDiffer(seen), seen.charts.flatMap((chart) => chart.sets.map((set) => set.colours)).join(" ").slice(0, 200) || "by the bars' colours");
const top = scores.flatMap((one) => one.values.filter((value) => value !== null).sort((a, b) => b - a).slice(0, 3));
const labelled = top.filter((value) => drawsValue(seen.texts, value));
note("values_drawn", labelled.length >= 6, `${labelled.length} of the 6 best values are drawn`);
const overlaps = findOverlaps([...seen.drawn, ...seen.boxes.filter((box) => box.svg)]);
note("labels_overlap", overlaps.length > 0, overlaps.slice(0, 3).join("; ") || "none");
const pale = seen.texts.filter((one) => one.text && (contrast(one.colour, /, 0\)$/.test(seen.background) ? "rgb(255, 255, 255)" : seen.background) ?? 21) < 3);
note("low_contrast", pale.length > 2, pale.length > 2 ? `${pale[0].text} in ${pale[0].colour} on ${seen.background}` : "text can be read");
note("missing_not_zero", draws && !drawsZero(seen), "3 results are missing");

const small = (await look(results, 390)).seen;
note("fits_390", draws && small !== null && small.wide <= 1, small === null ? "the page does not respond" : `${small.wide} pixels wider than the window`);

const after = (await look(changed, 1280, null)).seen;
if (after === null) note("follows_data", false, "the page does not respond");
else note("follows_data", isNormalised(after, readScores(changed)) && reads(after.texts.map((one) => one.text).join("\n"), "Maple Later"), describe(after));
finish();
await Promise.race([browser.close(), new Promise((resolve) => setTimeout(resolve, 5_000))]);
process.exit(0);

// Open the page and measure it; `seen` is null where it does not respond. Without a `name` no picture is taken.
async function look(data, width, name = `${width}.png`) {
  const { page, errors, refused, late } = await open(browser, html, data, width);
  const hangs = late && (await attempt(browser, page, page.evaluate(() => true), 5)) === null;
  const seen = hangs ? null : await attempt(browser, page, measure(page));
  let picture = null;
  if (seen !== null && name) {
    picture = await page.screenshot({ path: `pictures/${name}` });
    addPicture(name);
  }
  if (seen !== null) await page.close();
  return { errors, refused, seen, picture };
}

function readScores(source) {
  const data = vm.runInNewContext(`${source}\nRESULTS`);
  return Object.entries(data.benchmarks).map(([key, { max }]) => ({
    key,
    models: data.models.map((one) => one.model),
    values: data.models.map((one) => (typeof one[key] === "number" ? (100 * one[key]) / max : null)),
  }));
}

// A name that an axis broke over several lines can be read as well.
function reads(all, name) {
  return all.includes(name) || name.split(" ").every((word) => all.split("\n").some((line) => line.split(" ").includes(word)));
}

function describe(one) {
  const sets = one.charts.flatMap((chart) => chart.sets.map((set) => `${set.label}: ${set.values.slice(0, 3)}...`));
  return sets.join("; ").slice(0, 300) || `${one.rects.length} bars`;
}

function isSideBySide(one) {
  if (one.charts.length === 0) return one.rects.filter((rect) => rect.width > 1 && rect.height > 1).length >= 14;
  return one.charts.length === 1 && one.charts[0].labels.length >= 8 && one.charts[0].sets.filter((set) => set.values.length >= 8).length === 2;
}

function coloursDiffer(one) {
  if (one.charts.length === 0) return new Set(one.rects.filter((rect) => rect.width > 1 && rect.height > 1).map((rect) => rect.colour)).size >= 2;
  const sets = one.charts.flatMap((chart) => chart.sets);
  return sets.length === 2 && sets[0].colours !== sets[1].colours;
}

function drawsValue(texts, value) {
  const forms = [value.toFixed(1), value.toFixed(0), value.toFixed(2), String(Math.round(value * 10) / 10)];
  return texts.some((one) => one.text.split(/[\s()%:,]+/).some((word) => forms.includes(word)));
}

function drawsZero(one) {
  if (one.charts.length > 0) return one.charts.some((chart) => chart.sets.some((set) => set.values.some((value) => value === 0)));
  return one.boxes.some((box) => /^0(\.0+)?%?$/.test(box.text) && one.boxes.filter((other) => other.text === box.text).length > 1);
}
