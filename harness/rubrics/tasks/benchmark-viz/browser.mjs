// The page in a real browser: libraries come from pinned copies, everything else that it asks for is refused.
import { existsSync, readFileSync } from "node:fs";
import { chromium } from "playwright-core";

const ORIGIN = "http://chart.test";
const LIBRARIES = [
  [/chartjs-plugin-datalabels/i, "chartjs-plugin-datalabels/dist/chartjs-plugin-datalabels.min.js"],
  [/chartjs-plugin-annotation/i, "chartjs-plugin-annotation/dist/chartjs-plugin-annotation.min.js"],
  [/\bchart\.?js\b|\/chart(\.umd)?(\.min)?\.js/i, "chart.js/dist/chart.umd.min.js", "chart.js/dist/chart.umd.js"],
  [/\bd3(@|\.v7|\/|\.min|\.js|$)/i, "d3/dist/d3.min.js"],
];

export function launch(program) {
  return chromium.launch({ executablePath: program, args: ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--force-color-profile=srgb"] });
}

// Open index.html with `results` as its results.js; returns {page, errors, refused, late}.
export async function open(browser, html, results, width, height = 800) {
  const page = await browser.newPage({ viewport: { width, height }, reducedMotion: "reduce" });
  const errors = [];
  const refused = [];
  page.on("pageerror", (error) => errors.push(`error: ${error.message}`));
  page.on("console", (message) => message.type() === "error" && errors.push(`console: ${message.text()}`));
  await page.route("**/*", (route) => {
    const url = route.request().url();
    if (url === `${ORIGIN}/index.html`) return route.fulfill({ contentType: "text/html; charset=utf-8", body: html });
    if (url === `${ORIGIN}/results.js`) return route.fulfill({ contentType: "text/javascript; charset=utf-8", body: results });
    if (url.endsWith("/favicon.ico")) return route.fulfill({ status: 204, body: "" });
    const file = library(url);
    if (file) return route.fulfill({ contentType: "text/javascript", body: readFileSync(file), headers: { "access-control-allow-origin": "*" } });
    refused.push(url.slice(0, 120));
    return route.abort();
  });
  await page.addInitScript(recordDrawing);
  // A page that has not loaded by then may hang, or the machine may be slow: late is no error of the page's.
  const late = await page.goto(`${ORIGIN}/index.html`, { waitUntil: "load", timeout: 30_000 }).then(() => false, () => true);
  await page.waitForTimeout(1_200);
  return { page, errors, refused, late };
}

// What `work` on the page comes to, or null where the page leaves, hangs or has crashed: a page of our own in the same
// browser still answers then. Where that one does not answer either, this throws, for it says nothing about the answer.
export async function attempt(browser, page, work, seconds = 30) {
  let failure = new Error(`no end within ${seconds} s`);
  const result = await within(work, seconds).catch((error) => void (failure = error));
  if (result !== undefined) return result;
  if (/context was destroyed|because of a navigation/i.test(failure.message)) return null;
  if (await within(page.evaluate(() => true), 5).catch(() => false)) throw failure;
  const own = await browser.newPage();
  if (!(await within(own.evaluate(() => true), 30).catch(() => false))) throw new Error("the browser does not answer");
  return null;
}

function within(work, seconds) {
  return Promise.race([work, new Promise((resolve) => setTimeout(resolve, 1000 * seconds).unref())]);
}

function library(url) {
  if (!/^https?:/.test(url) || !/\.js|\/npm\/|\/d3|chart/i.test(url)) return null;
  const entry = LIBRARIES.find(([pattern]) => pattern.test(url));
  return entry?.slice(1).map((path) => `node_modules/${path}`).find((path) => existsSync(path)) ?? null;
}

// Runs in the page before its own scripts: notes every text that a canvas draws, with its box and colour.
function recordDrawing() {
  window.__drawn = [];
  const original = CanvasRenderingContext2D.prototype.fillText;
  CanvasRenderingContext2D.prototype.fillText = function (text, x, y, ...rest) {
    const size = this.measureText(String(text));
    const matrix = this.getTransform();
    const ratio = this.canvas.width / (this.canvas.clientWidth || this.canvas.width);
    const [left, top] = [x - size.actualBoundingBoxLeft, y - size.actualBoundingBoxAscent];
    const place = matrix.transformPoint(new DOMPoint(left, top));
    const upright = Math.abs(matrix.b) < 0.01;
    const height = size.actualBoundingBoxAscent + size.actualBoundingBoxDescent;
    const width = size.actualBoundingBoxLeft + size.actualBoundingBoxRight;
    window.__drawn.push({ text: String(text), colour: String(this.fillStyle), upright, x: place.x / ratio, y: place.y / ratio, width: (width * matrix.a) / ratio, height: (height * matrix.d) / ratio });
    return original.call(this, text, x, y, ...rest);
  };
}
