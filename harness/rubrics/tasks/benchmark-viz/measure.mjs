// What is on the page: texts, bars, charts, colours, painted area.

// Everything that the checks need to know of an open page, as plain data.
export async function measure(page) {
  const seen = await page.evaluate(() => {
    const charts = Object.values(window.Chart?.instances ?? {});
    if (charts.length > 0) {
      window.__drawn = [];
      for (const chart of charts) chart.draw();
    }
    const number = (value) => (value === null || value === undefined ? null : typeof value === "object" ? (value.y ?? value.x ?? value.v ?? null) : Number(value));
    const raw = charts.map((chart) => ({
      type: chart.config._config.type,
      labels: (chart.data.labels ?? []).map(String),
      sets: chart.data.datasets.map((set) => ({ label: String(set.label ?? ""), values: Array.from(set.data ?? [], number), type: set.type ?? null, colours: JSON.stringify(set.backgroundColor ?? set.borderColor ?? null) })),
    }));
    const boxes = [];
    for (const element of document.querySelectorAll("svg text, body *")) {
      const own = element.closest("svg") ? element.tagName === "text" : [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
      if (!own || ["SCRIPT", "STYLE", "TITLE", "OPTION"].includes(element.tagName)) continue;
      const box = element.getBoundingClientRect();
      if (box.width === 0 || box.height === 0) continue;
      const style = getComputedStyle(element);
      boxes.push({ text: element.textContent.trim(), colour: element.closest("svg") ? style.fill : style.color, upright: true, x: box.x, y: box.y, width: box.width, height: box.height, svg: Boolean(element.closest("svg")) });
    }
    const rects = [...document.querySelectorAll("svg rect, [class*=bar], [style*=width], [style*=height]")].map((element) => {
      const box = element.getBoundingClientRect();
      const style = getComputedStyle(element);
      return { width: box.width, height: box.height, colour: element.tagName === "rect" ? style.fill : style.backgroundColor };
    });
    const shapes = document.querySelectorAll("canvas, svg *, progress, meter").length;
    return { charts: raw, drawn: window.__drawn, boxes, rects, shapes, background: getComputedStyle(document.body).backgroundColor, wide: document.documentElement.scrollWidth - window.innerWidth };
  });
  return { ...seen, texts: [...seen.drawn, ...seen.boxes] };
}

// Share of the window, in per cent, whose pixels differ from the corner's colour.
export async function paintedShare(browser, picture) {
  const page = await browser.newPage();
  const share = await page.evaluate(async (data) => {
    const image = new Image();
    image.src = `data:image/png;base64,${data}`;
    await image.decode();
    const canvas = new OffscreenCanvas(image.width, image.height);
    const context = canvas.getContext("2d");
    context.drawImage(image, 0, 0);
    const { data: pixels } = context.getImageData(0, 0, image.width, image.height);
    let painted = 0;
    for (let at = 0; at < pixels.length; at += 4)
      if (Math.abs(pixels[at] - pixels[0]) + Math.abs(pixels[at + 1] - pixels[1]) + Math.abs(pixels[at + 2] - pixels[2]) > 36) painted += 1;
    return (100 * painted) / (image.width * image.height);
  }, picture.toString("base64"));
  await page.close();
  return share;
}

// Whether the scores stand on one scale of 0 to 100: in a chart's data, or as bars whose lengths are in proportion.
export function isNormalised(seen, scores) {
  const wanted = scores.flatMap((one) => one.values).filter((value) => value !== null);
  const values = seen.charts.flatMap((chart) => chart.sets.flatMap((set) => set.values)).filter((value) => typeof value === "number");
  if (values.length > 0) return wanted.every((want) => values.some((value) => Math.abs(value - want) < 0.6)) && values.every((value) => !(value > 100.6));
  return ["width", "height"].some((side) => {
    const lengths = seen.rects.map((rect) => rect[side]).filter((length) => length > 1);
    return lengths.some((length) => {
      const scale = length / Math.max(...wanted);
      return wanted.filter((want) => lengths.some((other) => Math.abs(other - want * scale) < Math.max(1, 0.02 * want * scale))).length >= wanted.length * 0.9;
    });
  });
}

// Pairs of texts that cover one another by more than a fifth of the smaller one.
export function findOverlaps(texts) {
  const found = [];
  const upright = texts.filter((one) => one.upright && one.text && one.width > 0);
  for (const [number, one] of upright.entries())
    for (const other of upright.slice(number + 1)) {
      const across = Math.min(one.x + one.width, other.x + other.width) - Math.max(one.x, other.x);
      const down = Math.min(one.y + one.height, other.y + other.height) - Math.max(one.y, other.y);
      const least = Math.min(one.width * one.height, other.width * other.height);
      if (across > 0 && down > 0 && across * down > 0.2 * least) found.push(`${one.text} / ${other.text}`);
    }
  return found;
}

// Contrast ratio of two CSS colours as WCAG 2.1 defines it; null where one cannot be read.
export function contrast(first, second) {
  const [one, other] = [luminance(first), luminance(second)];
  return one === null || other === null ? null : (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
}

function luminance(colour) {
  const hex = /^#([0-9a-f]{6})/i.exec(colour)?.[1];
  const parts = hex ? [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16)) : /^rgba?\(([^)]*)\)/.exec(colour)?.[1].split(/[,/ ]+/).map(Number);
  if (!parts || parts.length < 3 || parts[3] === 0) return null;
  const [r, g, b] = parts.map((value) => (value / 255 <= 0.04045 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}
