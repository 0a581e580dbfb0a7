"use strict";

// Charts of one head, drawn as SVG from arrays of numbers when they are asked for. A text only ever becomes a text node.

const DASHES = ["", "7 3", "2 2", "8 3 2 3", "12 3", "4 4"];
const COLOURS = JSON.parse(document.getElementById("colours").textContent);

function made(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

function drawn(name, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

function short(value, digits = 3) {
  if (!Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size >= 1e7 || size < 1e-3)) return value.toExponential(digits - 1);
  return Number(value.toPrecision(size >= 1000 ? 7 : digits)).toLocaleString("en", { maximumFractionDigits: 6 });
}

function fixed(value, decimals) {
  const [whole, rest] = value.toFixed(Math.min(20, decimals)).split(".");
  return whole.replace(/\B(?=(\d{3})+$)/g, ",") + (rest ? `.${rest}` : "");
}

// Round values from `low` to `high`, about `count` of them.
function ticks(low, high, count) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((factor) => factor * power >= rough) * power;
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(i * step);
  return found;
}

function range(values) {
  let low = Infinity;
  let high = -Infinity;
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return low <= high ? [low, high] : [0, 1];
}

// Where things are in a chart of `width`: the frame, and places for values.
function frame(chart, rows, width) {
  const height = Math.round(width * 0.56);
  const [left, right, top, bottom] = [chart.kind === "heat" && chart.series.length ? 86 : 50, 12, 10, chart.xTitle ? 40 : 24];
  const at = { width, height, left, top, inner: width - left - right, tall: height - top - bottom };
  at.x = chart.x ?? Array.from({ length: chart.n }, (_, i) => i);
  let [low, high] = range(rows.flatMap((row) => Array.from(row)));
  if (chart.kind === "bars" || (low > 0 && low < 0.5 * high)) [low, high] = [Math.min(0, low), Math.max(0, high)];
  if (low === high) [low, high] = [low - 0.5 * Math.abs(low || 1), high + 0.5 * Math.abs(high || 1)];
  at.low = low;
  at.high = high;
  at.up = (value) => top + at.tall * (1 - (value - low) / (high - low));
  const [first, last] = range(at.x);
  const slot = at.inner / chart.n;
  const isLine = chart.kind === "line";
  at.slot = slot;
  at.across = (i) => (isLine && last > first ? left + (at.inner * (at.x[i] - first)) / (last - first) : left + slot * (i + 0.5));
  at.span = [first, last];
  return at;
}

function label(x, y, text, anchor, more = {}) {
  return drawn("text", { x, y, "text-anchor": anchor, ...more }, text);
}

function axes(chart, at) {
  const group = drawn("g", { "aria-hidden": "true" });
  const floor = at.top + at.tall;
  const [first, last] = at.span;
  const many = Math.max(2, Math.floor(at.inner / 55));
  if (chart.kind === "line" && last > first) {
    for (const value of ticks(first, last, many)) {
      const x = at.left + (at.inner * (value - first)) / (last - first);
      group.append(label(x, floor + 14, short(value, 6), "middle"));
    }
  } else {
    const step = Math.ceil(chart.n / many);
    for (let i = 0; i < chart.n; i += step) group.append(label(at.across(i), floor + 14, short(at.x[i], 4), "middle"));
  }
  if (chart.xTitle) group.append(label(at.left + at.inner / 2, at.height - 6, chart.xTitle, "middle"));
  if (chart.kind === "heat") {
    const step = Math.ceil(chart.rows / Math.max(1, Math.floor(at.tall / 14)));
    for (let i = 0; i < chart.rows; i += step) {
      const name = chart.series[i] ?? String(i);
      const cut = name.length > 11 ? name.slice(0, 10) + "…" : name;
      group.append(label(at.left - 5, at.top + (at.tall * (i + 0.5)) / chart.rows + 4, cut, "end"));
    }
  } else {
    for (const value of ticks(at.low, at.high, 5)) {
      group.append(drawn("line", { class: "axis", x1: at.left, x2: at.left + at.inner, y1: at.up(value), y2: at.up(value) }));
      group.append(label(at.left - 5, at.up(value) + 4, short(value), "end"));
    }
  }
  group.append(drawn("rect", { class: "axis", x: at.left, y: at.top, width: at.inner, height: at.tall }));
  return group;
}

function look(i) {
  return { class: `s${i % 6}`, "stroke-dasharray": DASHES[(i + Math.floor(i / 6)) % 6] };
}

function lines(chart, rows, at) {
  return rows.map((row, i) => {
    let path = "";
    let isOn = false;
    row.forEach((value, j) => {
      if (Number.isFinite(value)) path += `${isOn ? "L" : "M"}${at.across(j).toFixed(1)} ${at.up(value).toFixed(1)}`;
      isOn = Number.isFinite(value);
    });
    const style = look(i);
    return drawn("path", { ...style, class: `curve ${style.class}`, d: path });
  });
}

function bars(chart, rows, at) {
  const wide = (at.slot * 0.84) / rows.length;
  return rows.flatMap((row, i) =>
    Array.from(row, (value, j) => {
      const zero = at.up(0);
      const y = Number.isFinite(value) ? at.up(value) : zero;
      const x = at.left + at.slot * (j + 0.08) + wide * i;
      const size = { x, y: Math.min(y, zero), width: Math.max(wide, 0.5), height: Math.abs(zero - y) };
      return drawn("rect", { class: `block s${i % 6}`, ...size, "fill-opacity": i % 2 ? 0.45 : 1 });
    }),
  );
}

function heat(chart, rows, at) {
  const canvas = made("canvas", { width: chart.n, height: chart.rows });
  const pen = canvas.getContext("2d");
  const [low, high] = range(rows.flatMap((row) => Array.from(row)));
  rows.forEach((row, i) =>
    row.forEach((value, j) => {
      if (!Number.isFinite(value)) return;
      pen.fillStyle = COLOURS[colourStep(value, low, high)];
      pen.fillRect(j, i, 1, 1);
    }),
  );
  const place = { x: at.left, y: at.top, width: at.inner, height: at.tall };
  return [drawn("image", { ...place, href: canvas.toDataURL(), preserveAspectRatio: "none", "image-rendering": "pixelated" })];
}

function colourStep(value, low, high) {
  const share = high > low ? (value - low) / (high - low) : 0.5;
  return Math.min(COLOURS.length - 1, Math.floor(share * COLOURS.length));
}

function legend(chart, rows) {
  if (chart.kind === "heat") {
    const [low, high] = range(rows.flatMap((row) => Array.from(row)));
    const bar = made("span", { class: "bar", "aria-hidden": "true" });
    for (let i = 0; i < COLOURS.length; i += 2) bar.append(made("i", { class: `c${i}` }));
    return made("p", { class: "legend" }, made("span", {}, short(low)), bar, made("span", {}, short(high)));
  }
  const box = made("p", { class: "legend" });
  if (chart.series.length > 1) {
    chart.series.forEach((name, i) => {
      const key = drawn("svg", { class: "key", viewBox: "0 0 26 10", "aria-hidden": "true" });
      const style = look(i);
      if (chart.kind === "line") key.append(drawn("path", { ...style, class: `curve ${style.class}`, d: "M0 5H26" }));
      else key.append(drawn("rect", { class: `block s${i % 6}`, width: 26, height: 10, "fill-opacity": i % 2 ? 0.45 : 1 }));
      box.append(made("span", {}, key, ` ${name}`));
    });
  }
  return box;
}

// A chart's value as text; a heat map's are stored in 255 steps, so it has no more digits than those can tell.
function valueText(chart, at, value) {
  if (chart.kind !== "heat" || !Number.isFinite(value)) return short(value);
  return fixed(value, Math.max(0, Math.floor(-Math.log10((at.high - at.low) / 254))));
}

// What a chart says about place i, of row j in a heat map.
function told(chart, rows, at, i, j) {
  const place = `${chart.xTitle || "place"} ${short(at.x[i], 6)}`;
  if (chart.kind === "heat") {
    return `${chart.series[j] ?? `${chart.yTitle || "row"} ${j}`}, ${place}: ${valueText(chart, at, rows[j][i])}`;
  }
  const values = rows.map((row, k) => (rows.length > 1 ? `${chart.series[k] ?? k} ` : "") + valueText(chart, at, row[i]));
  return `${place}: ${values.join(", ")}`;
}

// A mark that follows the pointer and the arrow keys, and the values where it stands.
function follow(svg, chart, rows, at, readout) {
  const isHeat = chart.kind === "heat";
  const high = isHeat ? at.tall / chart.rows : at.tall;
  const wide = isHeat ? at.slot : 0;
  const mark = drawn("rect", { class: "cursor", y: at.top, width: wide, height: high, visibility: "hidden" });
  svg.append(mark);
  let [i, j] = [0, 0];
  const show = () => {
    mark.setAttribute("x", at.across(i) - wide / 2);
    if (isHeat) mark.setAttribute("y", at.top + high * j);
    mark.setAttribute("visibility", "visible");
    readout.textContent = told(chart, rows, at, i, j);
  };
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * at.width;
    const y = ((event.clientY - box.top) / box.height) * at.height;
    const gap = (k) => Math.abs(at.across(k) - x);
    i = 0;
    for (let k = 1; k < chart.n; k++) if (gap(k) < gap(i)) i = k;
    j = Math.max(0, Math.min(chart.rows - 1, Math.floor(((y - at.top) / at.tall) * chart.rows)));
    show();
  });
  svg.addEventListener("focus", show);
  svg.addEventListener("keydown", (event) => {
    const [dx, dy] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key] ?? [0, 0];
    if (!dx && !(dy && isHeat)) return;
    event.preventDefault();
    i = Math.max(0, Math.min(chart.n - 1, i + dx));
    j = Math.max(0, Math.min(chart.rows - 1, j + dy));
    show();
  });
}

function numbers(chart, rows, at) {
  const folded = made("details", {}, made("summary", {}, "Numbers"));
  folded.addEventListener("toggle", () => {
    if (folded.children.length > 1) return;
    const names = rows.map((_, k) => chart.series[k] ?? (rows.length > 1 ? String(k) : chart.yTitle || "value"));
    const head = made("tr", {}, ...[chart.xTitle || "place", ...names].map((name) => made("th", { scope: "col" }, name)));
    const body = at.x.map((x, i) =>
      made("tr", {}, made("th", { scope: "row" }, short(x, 6)), ...rows.map((row) => made("td", { class: "figure" }, valueText(chart, at, row[i])))),
    );
    folded.append(made("div", { class: "scroll", tabindex: 0 }, made("table", {}, made("thead", {}, head), made("tbody", {}, ...body))));
  });
  return folded;
}

// The figure of a chart, in `box`, which must be on the page: its width decides the drawing's.
function draw(chart, rows, box, whose) {
  const readout = made("p", { class: "readout", "aria-live": "polite" });
  const figure = made("figure", {}, made("h5", {}, chart.title));
  box.append(figure);
  const at = frame(chart, rows, Math.max(240, Math.min(560, figure.clientWidth)));
  const [low, high] = range(rows.flatMap((row) => Array.from(row)));
  const said = `${chart.title}, ${whose}: from ${short(low)} to ${short(high)}. Arrow keys read the values.`;
  const svg = drawn("svg", { class: "chart", viewBox: `0 0 ${at.width} ${at.height}`, role: "img", "aria-label": said, tabindex: 0 });
  const shapes = { line: lines, bars, heat }[chart.kind](chart, rows, at);
  svg.append(...(chart.kind === "heat" ? [...shapes, axes(chart, at)] : [axes(chart, at), ...shapes]));
  follow(svg, chart, rows, at, readout);
  if (chart.yTitle) figure.append(made("p", { class: "note" }, chart.yTitle));
  figure.append(svg, legend(chart, rows), readout);
  if (chart.caption) figure.append(made("figcaption", {}, chart.caption));
  figure.append(numbers(chart, rows, at));
}
