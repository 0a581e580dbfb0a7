// Maps that are walked with the arrow keys, and the maps of heads among them, which open a head's charts.

// Makes a table of cells one stop of the Tab key. `visited(cell)` hears where the focus comes to.
function walk(table, readout, told, visited) {
  const cells = Array.from(table.tBodies[0].rows, (row) => Array.from(row.cells).slice(1));
  const place = (cell) => [cell.parentElement.sectionRowIndex, cell.cellIndex - 1];
  let current = cells[0][0];
  current.tabIndex = 0;
  table.addEventListener("focusin", (event) => {
    const cell = event.target.closest("td");
    if (!cell) return;
    current.tabIndex = -1;
    current = cell;
    current.tabIndex = 0;
    readout.textContent = told(...place(cell), cell);
    visited?.(...place(cell));
  });
  table.addEventListener("pointerover", (event) => {
    const cell = event.target.closest("td");
    if (cell) readout.textContent = told(...place(cell), cell);
  });
  table.addEventListener("pointerleave", () => {
    readout.textContent = current === document.activeElement ? told(...place(current), current) : "";
  });
  table.addEventListener("keydown", (event) => {
    const [row, column] = place(current);
    const lastRow = cells.length - 1;
    const lastColumn = cells[0].length - 1;
    const to = {
      ArrowUp: [row - 1, column],
      ArrowDown: [row + 1, column],
      ArrowLeft: [row, column - 1],
      ArrowRight: [row, column + 1],
      Home: [event.ctrlKey ? 0 : row, 0],
      End: [event.ctrlKey ? lastRow : row, lastColumn],
      PageUp: [0, column],
      PageDown: [lastRow, column],
    }[event.key];
    if (!to) return;
    event.preventDefault();
    cells[Math.max(0, Math.min(lastRow, to[0]))][Math.max(0, Math.min(lastColumn, to[1]))].focus();
  });
  return cells;
}

function plainMaps(figure) {
  const readout = figure.querySelector(".readout");
  for (const table of figure.querySelectorAll(".map")) {
    const name = figure.querySelectorAll(".map").length > 1 ? table.getAttribute("aria-label") + ": " : "";
    const columns = table.tHead.rows[1].cells;
    const { row: rowTitle, column: columnTitle } = table.dataset;
    walk(table, readout, (row, column, cell) => {
      const across = cell.parentElement.cells[0].textContent;
      return `${name}${rowTitle} ${across}, ${columnTitle} ${columns[column].textContent}: ${cell.textContent}`;
    });
  }
}

// One head's rows of a chart, from its share of the base64 text.
function valuesOf(chart, text, head) {
  const isHeat = chart.kind === "heat";
  const count = chart.rows * chart.n;
  const length = 4 * Math.ceil((count * (isHeat ? 1 : 2)) / 3);
  const bytes = Uint8Array.from(atob(text.slice(head * length, (head + 1) * length)), (c) => c.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  const scaled = (i) => (bytes[i] === 255 ? NaN : chart.low[head] + ((chart.high[head] - chart.low[head]) * bytes[i]) / 254);
  const value = isHeat ? scaled : (i) => chart.unit * half(view.getUint16(2 * i, true));
  const all = Array.from({ length: count }, (_, i) => value(i));
  return Array.from({ length: chart.rows }, (_, row) => all.slice(row * chart.n, (row + 1) * chart.n));
}

// A number in half precision from its bits.
function half(bits) {
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  const sign = bits & 0x8000 ? -1 : 1;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent ? (1 + fraction / 1024) * 2 ** (exponent - 15) : fraction * 2 ** -24);
}

function headMap(figure) {
  const data = JSON.parse(figure.querySelector(".data").textContent);
  const texts = Array.from(figure.querySelectorAll(".numbers"), (script) => script.textContent);
  const panel = figure.querySelector(".opened");
  const select = figure.querySelector("select");
  let score = data.scores[0];
  let open = null;

  const text = (of, head) => (of.values[head] === null ? "–" : fixed(of.values[head], of.decimals));
  const rank = (of, head) => {
    if (of.values[head] === null) return "–";
    const known = of.values.filter((value) => value !== null);
    return `${1 + known.filter((value) => value < of.values[head]).length} of ${known.length}`;
  };
  const named = (row, column) => `layer ${data.layers[row]}, head ${column}`;
  const told = (row, column) => {
    const head = row * data.heads + column;
    return `${named(row, column)}: ${text(score, head)}, rank ${rank(score, head)} from the lowest`;
  };
  const cells = walk(figure.querySelector(".map"), figure.querySelector(".readout"), told, (row, column) => {
    if (open) show(row, column);
  });

  function recolour() {
    const [low, high] = range(score.values.filter((value) => value !== null));
    cells.flat().forEach((cell, head) => {
      const value = score.values[head];
      const colour = value === null ? "missing" : `c${colourStep(value, low, high)}`;
      cell.className = cell.classList.contains("marked") ? `${colour} marked` : colour;
      cell.textContent = text(score, head);
    });
    figure.querySelector(".low").textContent = fixed(low, score.decimals);
    figure.querySelector(".high").textContent = fixed(high, score.decimals);
  }

  function show(row, column) {
    const cell = cells[row][column];
    if (cell === open) return;
    open?.removeAttribute("aria-selected");
    open = cell;
    cell.setAttribute("aria-selected", "true");
    const head = row * data.heads + column;
    const name = named(row, column);
    const button = made("button", { type: "button" }, "Close");
    button.addEventListener("click", close);
    const title = made("h4", {}, name[0].toUpperCase() + name.slice(1) + (cell.classList.contains("marked") ? " (marked)" : ""));
    const charts = made("div", { class: "charts" });
    panel.replaceChildren(made("header", {}, title, button), charts);
    panel.hidden = false;
    data.charts.forEach((chart, i) => draw(chart, valuesOf(chart, texts[i], head), charts, name));
    charts.append(scoresOf(head));
  }

  function scoresOf(head) {
    const names = ["score", "value", "rank from the lowest"].map((name) => made("th", { scope: "col" }, name));
    const rows = data.scores.map((of) => {
      const values = [text(of, head), rank(of, head)].map((value) => made("td", { class: "figure" }, value));
      return made("tr", {}, made("th", { scope: "row" }, of.name), ...values);
    });
    const table = made("table", {}, made("thead", {}, made("tr", {}, ...names)), made("tbody", {}, ...rows));
    return made("details", data.charts.length ? {} : { open: "" }, made("summary", {}, "All scores of this head"), table);
  }

  function close() {
    if (!open) return;
    const cell = open;
    open = null;
    cell.removeAttribute("aria-selected");
    panel.hidden = true;
    panel.replaceChildren();
    cell.focus();
  }

  const map = figure.querySelector(".map");
  const opened = (event) => {
    const cell = event.target.closest("td");
    if (!cell || !map.contains(cell)) return;
    event.preventDefault();
    show(cell.parentElement.sectionRowIndex, cell.cellIndex - 1);
    const { top } = panel.getBoundingClientRect();
    if (top > 0.6 * innerHeight) scrollBy({ top: top - 0.4 * innerHeight });
  };
  map.addEventListener("click", opened);
  map.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") opened(event);
  });
  figure.addEventListener("keydown", (event) => {
    if (event.key === "Escape") close();
  });
  if (select) {
    select.disabled = false;
    select.selectedIndex = 0; // some browsers keep an earlier choice when a page is loaded again
    select.addEventListener("change", () => {
      score = data.scores[select.selectedIndex];
      recolour();
    });
  }
}
