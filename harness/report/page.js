"use strict";
// Everything a model wrote becomes text nodes here: nothing is ever parsed as markup.
const index = JSON.parse(document.getElementById("index").textContent);
const marks = { resolved: "●", unresolved: "○", patch_failed: "○", empty_patch: "◌", infra_error: "×", wall_clock: "×" };
const viewer = document.getElementById("viewer");
const panes = [...viewer.querySelectorAll(".pane")];
let shown = index.instances.map((_, place) => place);
let open = null; // {place, sides: [[arm, repeat], [arm, repeat]]}
let unfolded = false;

function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("aria-") || name === "scope") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children);
  return element;
}

// ---- sortable tables
function sortKey(text) {
  const number = text.replace(/,/g, "").match(/^[≥>=<+\s]*(-?\d+(\.\d+)?)/);
  return number ? parseFloat(number[1]) * (/GiB/.test(text) ? 1024 : 1) : text === "-" ? -Infinity : NaN;
}

function sortBy(table, column) {
  const head = table.tHead.rows[0].cells[column];
  const down = head.getAttribute("aria-sort") === "ascending";
  for (const cell of table.tHead.rows[0].cells) cell.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const text = row => row.cells[column].dataset.key ?? row.cells[column].textContent.trim();
  const rows = [...table.tBodies[0].rows].map(row => [row, text(row), sortKey(text(row))]);
  const numeric = rows.every(([, , key]) => !Number.isNaN(key));
  rows.sort((a, b) => (numeric ? a[2] - b[2] : a[1].localeCompare(b[1])) * (down ? -1 : 1));
  table.tBodies[0].append(...rows.map(([row]) => row));
}

function makeSortable(table) {
  [...table.tHead.rows[0].cells].forEach((cell, column) => {
    const button = make("button", { type: "button", title: "sort" }, cell.textContent);
    button.addEventListener("click", () => sortBy(table, column));
    cell.replaceChildren(button);
  });
}

// ---- the table of tasks
const table = document.getElementById("tasks");
const solved = tasks => tasks.filter(task => task.outcome === "resolved").length;

function drawTasks() {
  const titles = ["instance", "repository", "difficulty", ...index.arms];
  table.tHead.rows[0].append(...titles.map(title => make("th", { scope: "col" }, title)));
  makeSortable(table);
  const rows = index.instances.map((one, place) => {
    const row = make("tr", {}, make("td", {}, one.id), make("td", {}, one.repo), make("td", {}, one.difficulty));
    row.dataset.place = place;
    one.arms.forEach((tasks, arm) => {
      const cell = make("td");
      cell.dataset.key = tasks.length ? solved(tasks) / tasks.length : -1;
      tasks.forEach((task, number) => {
        const label = `${one.id}, ${index.arms[arm]}, repeat ${task.repeat}: ${task.outcome.replace("_", " ")}`;
        const button = make("button", { type: "button", className: task.outcome, title: label, "aria-label": label }, marks[task.outcome] ?? "?");
        button.dataset.arm = arm;
        button.dataset.number = number;
        cell.append(button);
        if (task.flags) cell.append(make("span", { title: task.flags, className: "infra_error" }, "⚑"));
      });
      row.append(cell);
    });
    return row;
  });
  table.tBodies[0].append(...rows);
  table.tBodies[0].addEventListener("click", event => {
    const button = event.target.closest("button");
    if (!button) return;
    const place = Number(button.closest("tr").dataset.place), arm = Number(button.dataset.arm);
    const partner = arm === index.baseline ? (index.arms.length > 1 ? (arm + 1) % index.arms.length : -1) : index.baseline;
    const chosen = [arm, Number(button.dataset.number)];
    show(place, arm === index.baseline ? [chosen, [partner, 0]] : [[partner, 0], chosen]);
  });
}

const kinds = {
  all: () => true,
  differ: one => new Set(one.arms.filter(tasks => tasks.length).map(tasks => solved(tasks) / tasks.length)).size > 1,
  none: one => one.arms.every(tasks => !solved(tasks)),
  every: one => one.arms.every(tasks => tasks.length && solved(tasks) === tasks.length),
  machine: one => one.arms.flat().some(task => ["infra_error", "wall_clock"].includes(task.outcome)),
};

function filterTasks() {
  const words = document.getElementById("filter").value.toLowerCase();
  const kind = kinds[document.getElementById("show").value];
  shown = [];
  for (const row of table.tBodies[0].rows) {
    const one = index.instances[row.dataset.place];
    row.hidden = !(`${one.id} ${one.repo}`.toLowerCase().includes(words) && kind(one));
    if (!row.hidden) shown.push(Number(row.dataset.place));
  }
  document.getElementById("count").textContent = `${shown.length} of ${index.instances.length} instances`;
}

// ---- chunks
async function decode(number) {
  if (document.readyState === "loading") await new Promise(done => addEventListener("DOMContentLoaded", done, { once: true }));
  const bytes = Uint8Array.from(atob(document.getElementById(`chunk-${number}`).textContent), letter => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(stream).text());
}

// ---- the viewer
function drawDiff(lines) {
  const classes = { "+": "add", "-": "del", "@": "hunk" };
  const block = make("pre", { className: "diff" });
  for (const line of lines) {
    const kind = /^(\+\+\+|---|diff )/.test(line) ? "hunk" : classes[line[0]];
    block.append(kind ? make("span", { className: kind }, line || " ") : `${line}\n`);
  }
  return block;
}

function compareTexts(before, after) {
  const old = before === "" ? [] : before.split("\n"), now = after === "" ? [] : after.split("\n");
  let start = 0, end = 0;
  while (start < Math.min(old.length, now.length) && old[start] === now[start]) start++;
  while (end < Math.min(old.length, now.length) - start && old.at(-1 - end) === now.at(-1 - end)) end++;
  return [
    ...old.slice(0, start).map(line => ` ${line}`),
    ...old.slice(start, old.length - end).map(line => `-${line}`),
    ...now.slice(start, now.length - end).map(line => `+${line}`),
    ...old.slice(old.length - end).map(line => ` ${line}`),
  ];
}

function drawCall(call) {
  let given = null;
  try { given = JSON.parse(call.arguments); } catch { /* shown as the model wrote it */ }
  const body = make("div", {}, make("strong", {}, call.name));
  if (given === null || typeof given !== "object") return body.append(make("pre", {}, call.arguments)), body;
  const text = value => (typeof value === "string" ? value : JSON.stringify(value));
  const before = given.old ?? given.old_str, after = given.new ?? given.new_str ?? given.file_text;
  if (typeof after === "string") {
    body.append(` ${text(given.path ?? "")}`, drawDiff(compareTexts(typeof before === "string" ? before : "", after)));
  } else if (typeof given.command === "string" && given.path === undefined) {
    body.append(make("pre", {}, `$ ${given.command}`));
  } else if (Object.keys(given).length) {
    body.append(make("pre", {}, Object.entries(given).map(([name, value]) => `${name}: ${text(value)}`).join("\n")));
  }
  return body;
}

function drawMessage(message) {
  if (message.role === "assistant") {
    const parts = message.calls.map(drawCall);
    if (message.text) parts.unshift(make("p", { className: "said" }, message.text));
    return parts;
  }
  const lines = message.text.split("\n");
  const summary = make("summary", {}, `${message.role}: ${lines[0].slice(0, 90)}${lines.length > 1 ? ` (${lines.length} lines)` : ""}`);
  return [make("details", { className: "observation", open: unfolded }, summary, make("pre", {}, message.text))];
}

function drawStep(step) {
  const share = step.prompt ? step.cached / step.prompt : 0;
  const meter = make("span", { className: "meter", title: "share of the prompt from the cache" }, make("span"));
  meter.firstChild.style.width = `${100 * share}%`;
  const exits = step.exits.filter(code => code !== null && code !== 0);
  const facts = `step ${step.number}: ${step.prompt.toLocaleString("en")} prompt tokens, ${(100 * share).toFixed(0)}% cached `;
  const rest = ` ${step.completion.toLocaleString("en")} written, ${step.model} s model, ${step.tools} s tools` +
    (exits.length ? `, exit ${exits.join(", ")}` : "") + (step.error ? `, malformed: ${step.error}` : "");
  return make("article", { className: "step", tabIndex: -1, "aria-label": `step ${step.number}` },
    make("h4", {}, facts, meter, rest), ...step.messages.flatMap(drawMessage));
}

function drawLog(task) {
  const names = task.failed;
  const block = make("pre", { className: "log" });
  for (const line of task.log.split("\n")) {
    const bad = /^(FAILED|ERROR)\b|\b(FAIL|ERROR)$/.test(line) || names.some(name => line.includes(name) && !/PASS|\bok\b/i.test(line));
    block.append(bad ? make("span", { className: "fail" }, line) : `${line}\n`);
  }
  return block;
}

function drawTask(task) {
  const parts = [];
  const fold = (title, isOpen, ...children) => parts.push(make("details", { open: isOpen }, make("summary", {}, title), ...children));
  if (task.patch) fold("patch", true, drawDiff(task.patch.split("\n")));
  if (task.log || task.failed.length) {
    const title = `tests: ${task.passed} passed, ${task.failed.length} failed`;
    const list = make("ul", {}, ...task.failed.map(name => make("li", { className: "fail" }, name)));
    fold(title, task.failed.length > 0, list, drawLog(task));
  }
  if (task.opening) fold("prompt", false, ...task.opening.flatMap(drawMessage));
  parts.push(...(task.steps ?? []).map(drawStep), ...(task.rest ?? []).flatMap(drawMessage));
  if (task.ending) {
    const { limit, submitted, notes, error } = task.ending;
    parts.push(make("p", { className: "soft" }, `ended: ${submitted ? "submitted" : limit} ${notes.join("; ")} ${error}`));
  }
  parts.push(make("p", { className: "soft" }, `files: ${task.folder}`));
  return parts;
}

async function drawSide(side) {
  const [arm, number] = open.sides[side], pane = panes[side], asked = open;
  pane.hidden = arm < 0;
  pane.parentElement.classList.toggle("single", panes.some(one => one.hidden));
  if (arm < 0) return;
  const one = index.instances[open.place], tasks = one.arms[arm], task = tasks[Math.min(number, tasks.length - 1)];
  const choice = make("select", { "aria-label": "level and repeat" });
  index.arms.forEach((label, place) => one.arms[place].forEach((entry, repeat) => {
    const option = make("option", { value: `${place}/${repeat}` }, `${label}, repeat ${entry.repeat}: ${entry.outcome.replace("_", " ")}`);
    option.selected = place === arm && entry === task;
    choice.append(option);
  }));
  choice.addEventListener("change", () => { open.sides[side] = choice.value.split("/").map(Number); drawSide(side); });
  pane.replaceChildren(make("div", { className: "bar" }, choice));
  if (!task) { pane.append(make("p", {}, "no task of this level")); return; }
  const why = [task.limit !== "none" ? task.limit : "", task.reason, task.flags].filter(Boolean).join(", ");
  pane.append(make("p", {}, make("span", { className: task.outcome }, task.outcome.replace("_", " ")),
    ` ${why ? `(${why})` : ""} ${task.steps} steps, ${task.tokens.toLocaleString("en")} tokens, ${task.seconds} s`));
  if (task.chunk < 0) { pane.append(make("p", { className: "soft" }, "no trajectory on this page")); return; }
  const content = await decode(task.chunk);
  if (open === asked && asked.sides[side][0] === arm && asked.sides[side][1] === number) pane.append(...drawTask(content));
}

function show(place, sides) {
  open = { place, sides };
  const one = index.instances[place], labels = sides.filter(([arm]) => arm >= 0).map(([arm]) => index.arms[arm]);
  document.getElementById("viewer-title").textContent = one.id;
  const [left, right = ""] = labels;
  history.replaceState(null, "", `#task=${encodeURIComponent(one.id)}&left=${encodeURIComponent(left)}&right=${encodeURIComponent(right)}`);
  if (!viewer.open) viewer.showModal();
  return Promise.all([drawSide(0), drawSide(1)]);
}

function move(by) {
  const at = shown.indexOf(open.place);
  const next = shown[at + by];
  if (next !== undefined) show(next, open.sides.map(([arm]) => [arm, 0]));
}

function foldAll() {
  unfolded = !unfolded;
  document.getElementById("fold").setAttribute("aria-pressed", unfolded);
  for (const one of viewer.querySelectorAll(".observation")) one.open = unfolded;
}

function openFromAddress() {
  const asked = new URLSearchParams(location.hash.slice(1));
  const place = index.instances.findIndex(one => one.id === asked.get("task"));
  if (place < 0) return;
  const arm = name => index.arms.indexOf(asked.get(name));
  const left = arm("left");
  show(place, [[left < 0 ? index.baseline : left, 0], [arm("right"), 0]]);
}

document.querySelectorAll("table.sortable").forEach(makeSortable);
drawTasks();
filterTasks();
document.getElementById("filter").addEventListener("input", filterTasks);
document.getElementById("show").addEventListener("change", filterTasks);
document.getElementById("close").addEventListener("click", () => viewer.close());
document.getElementById("previous").addEventListener("click", () => move(-1));
document.getElementById("next").addEventListener("click", () => move(1));
document.getElementById("fold").addEventListener("click", foldAll);
document.getElementById("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});
viewer.addEventListener("close", () => { open = null; history.replaceState(null, "", "#"); });
addEventListener("hashchange", openFromAddress);
addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey || ["INPUT", "SELECT"].includes(event.target.tagName)) return;
  if (event.key === "/" && !open) { event.preventDefault(); document.getElementById("filter").focus(); }
  if (open && event.key === "j") move(1);
  if (open && event.key === "k") move(-1);
  if (open && event.key === "o") foldAll();
});
openFromAddress();
document.documentElement.dataset.ready = "yes";
