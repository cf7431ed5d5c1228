
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const sheets = [...document.querySelectorAll(".sheet")];
  const SVG = "http://www.w3.org/2000/svg";
  const WIDTHS = { 1: 1, 2: 2, 3: 3, 4: 4, 8: 8, g: 16 };
  const SHADES = ["w1", "w2", "w3", "w4", "w8", "w16"];

  // An element with attributes and children; text is never read as HTML.
  function make(name, attributes = {}, ...children) {
    const inSvg = ["svg", "g", "path", "line", "text", "title", "circle", "polyline"].includes(name);
    const node = inSvg ? document.createElementNS(SVG, name) : document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) if (value !== null) node.setAttribute(key, value);
    node.append(...children);
    return node;
  }

  const number = (text) => (text === undefined ? null : Number(text));
  const value = (row, column) => number(row.cells[column]?.dataset.v);
  const error = (row, column) => number(row.cells[column]?.dataset.e);
  const shown = (row, column) => row.cells[column].textContent;
  const methodOf = (row) => row.cells[0].textContent;
  const bitsColumn = (sheet) => Number(sheet.dataset.bits);
  const rowsOf = (table) => [...table.tBodies[0].rows];
  const scoresOf = (sheet) => sheet.querySelector("table.scores");
  const many = (n, one) => `${n} ${one}${n === 1 ? "" : "s"}`;

  // ---- sorting

  function sort(table, column) {
    const heads = [...table.tHead.rows[0].cells];
    const order = heads[column].getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
    const sign = order === "ascending" ? 1 : -1;
    const key = column === 0 ? methodOf : (row) => value(row, column);
    const rows = rowsOf(table).map((row) => [key(row), row]);
    rows.sort(([one], [other]) => {
      if (one === null || other === null) return (one === null) - (other === null); // blank comes last, either way
      return sign * (typeof one === "string" ? one.localeCompare(other, "en", { numeric: true }) : one - other);
    });
    table.tBodies[0].append(...rows.map(([, row]) => row));
    for (const head of heads) head.removeAttribute("aria-sort");
    heads[column].setAttribute("aria-sort", order);
  }

  for (const table of document.querySelectorAll(".sheet table")) {
    for (const head of table.tHead.rows[0].cells) {
      head.firstElementChild.addEventListener("click", () => sort(table, head.cellIndex));
    }
  }

  // ---- filtering

  const filters = { model: byId("by-model"), method: byId("by-method"), from: byId("from-bits"), to: byId("to-bits") };

  function filter() {
    const words = filters.method.value.toLowerCase().split(/\s+/).filter(Boolean);
    const from = filters.from.value === "" ? -Infinity : Number(filters.from.value);
    const to = filters.to.value === "" ? Infinity : Number(filters.to.value);
    const kind = byId("show").value;
    let seen = 0, all = 0;
    for (const sheet of sheets) {
      sheet.hidden = filters.model.value !== "" && sheet.dataset.model !== filters.model.value;
      for (const table of sheet.querySelectorAll("table")) {
        // a table without differences keeps its scores
        const here = sheet.querySelector(`table.${kind}`) ? table.classList.contains(kind) : true;
        table.parentElement.hidden = !here;
        for (const row of rowsOf(table)) {
          const method = methodOf(row).toLowerCase(), bits = value(row, bitsColumn(sheet));
          row.hidden = !(words.every((word) => method.includes(word)) && bits >= from && bits <= to);
          if (table.classList.contains("scores")) {
            all += 1;
            seen += !row.hidden && !sheet.hidden;
          }
        }
      }
    }
    byId("count").textContent = `${seen} of ${many(all, "run")}${seen ? "" : ": no run fits these filters"}`;
    drawPlot();
  }

  for (const control of Object.values(filters)) control.addEventListener("input", filter);
  byId("show").addEventListener("input", filter);
  byId("reset").addEventListener("click", () => {
    for (const control of Object.values(filters)) control.value = "";
    byId("show").value = "scores";
    filter();
  });

  // ---- scores against bits

  const LIMIT = { left: 64, right: 18, top: 14, bottom: 46 };
  const MARKERS = [
    (r) => `M${-r} 0A${r} ${r} 0 1 0 ${r} 0A${r} ${r} 0 1 0 ${-r} 0Z`,
    (r) => `M${-r * .9} ${-r * .9}H${r * .9}V${r * .9}H${-r * .9}Z`,
    (r) => `M0 ${-r * 1.15}L${r * 1.1} ${r * .85}H${-r * 1.1}Z`,
    (r) => `M0 ${-r * 1.25}L${r * 1.25} 0L0 ${r * 1.25}L${-r * 1.25} 0Z`,
    (r) => `M0 ${r * 1.15}L${r * 1.1} ${-r * .85}H${-r * 1.1}Z`,
    (r) => `M${-r} ${-r}L${r} ${r}M${-r} ${r}L${r} ${-r}`,
    (r) => `M${-r * 1.2} 0H${r * 1.2}M0 ${-r * 1.2}V${r * 1.2}`,
    (r) => `M${-r * .55} ${-r}H${r * .55}L${r * 1.1} 0L${r * .55} ${r}H${-r * .55}L${-r * 1.1} 0Z`,
  ];

  // Colour and shape change together; from the ninth series on markers are hollow, from the seventeenth shapes shift.
  function marker(at, x, y, r = 5) {
    const hollow = Math.floor(at / 8) % 2 === 1;
    const path = MARKERS[(at + Math.floor(at / 16)) % 8](r);
    return make("path", { d: path, transform: `translate(${x} ${y})`, class: `marker c${at % 8} ${hollow ? "hollow" : `f${at % 8}`}` });
  }

  // The points that no other beats: none has as few bits and as good a score, and one of the two better.
  function paretoFront(points, better) {
    const sorted = [...points].sort((a, b) => a.bits - b.bits || (better(a.value, b.value) ? -1 : 1));
    const front = [];
    for (const point of sorted) {
      const last = front.at(-1);
      const equal = last && last.bits === point.bits && last.value === point.value;
      if (!last || equal || better(point.value, last.value)) front.push(point);
    }
    return front;
  }

  function ticks(low, high, log) {
    const step = (span, n) => {
      const power = 10 ** Math.floor(Math.log10(span / n));
      return [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => span / s <= n);
    };
    if (log) {
      const found = [];
      for (let power = 10 ** Math.floor(Math.log10(low)); power <= high; power *= 10) {
        for (const m of high / low > 30 ? [1, 3] : [1, 1.5, 2, 3, 4, 5, 6, 8]) {
          if (m * power >= low && m * power <= high) found.push(Number((m * power).toPrecision(3)));
        }
      }
      if (found.length > 2) return found;
    }
    const s = step(high - low || 1, 6), found = [];
    for (let at = Math.ceil(low / s - 1e-9); at * s <= high + s * 1e-9; at += 1) found.push(Number((at * s).toPrecision(10)));
    return found;
  }

  const current = () => sheets[Number(byId("table").value)];

  function drawPlot() {
    const sheet = current(), table = scoresOf(sheet), column = Number(byId("metric").value);
    const place = byId("plot"), status = byId("plot-status"), bits = bitsColumn(sheet);
    byId("plot-point").textContent = "";
    const listed = rowsOf(table).filter((row) => value(row, column) !== null);
    const names = [...new Set(listed.filter((row) => !("u" in row.dataset)).map((row) => row.dataset.s))].sort();
    const points = listed.filter((row) => !("u" in row.dataset) && !row.hidden).map((row) => ({
      row, bits: value(row, bits), value: value(row, column), error: error(row, column) ?? 0,
      series: names.indexOf(row.dataset.s), text: shown(row, column),
    }));
    const whole = listed.find((row) => "u" in row.dataset);
    const head = table.tHead.rows[0].cells[column];
    const higher = head.dataset.plot === "1";
    const title = headText(head);
    place.replaceChildren();
    byId("legend").replaceChildren();
    byId("plot-table").replaceChildren();
    if (!points.length) {
      status.textContent = "No run of this table has this score within the filters.";
      return;
    }
    points.sort((a, b) => a.bits - b.bits || a.value - b.value);
    const front = paretoFront(points, (one, other) => (higher ? one > other : one < other));

    // what the axes span
    const ends = points.flatMap((p) => [p.value - p.error, p.value + p.error]);
    if (whole) ends.push(value(whole, column));
    let [low, high] = [Math.min(...ends), Math.max(...ends)];
    const log = !higher && low > 0 && high / low > 2;
    const onto = log ? Math.log : (v) => v;
    const gap = (onto(high) - onto(low)) * .05 || Math.abs(onto(high)) * .05 || 1;
    let [left, right] = [points[0].bits, points.at(-1).bits];
    const aside = (right - left) * .04 || .5;
    [left, right] = [left - aside, right + aside];
    const width = Math.max(280, Math.min(place.clientWidth || 900, 1100)), height = Math.min(460, Math.max(300, width * .55));
    const x = (b) => LIMIT.left + (b - left) / (right - left) * (width - LIMIT.left - LIMIT.right);
    const [bottom, top] = [onto(low) - gap, onto(high) + gap];
    const y = (v) => height - LIMIT.bottom - (onto(v) - bottom) / (top - bottom) * (height - LIMIT.top - LIMIT.bottom);
    [low, high] = log ? [Math.exp(bottom), Math.exp(top)] : [bottom, top];

    const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "group", "aria-roledescription": "plot",
      "aria-label": `${title} against stored bits, ${many(points.length, "point")}; arrow keys go from point to point` });
    for (const tick of ticks(low, high, log)) {
      svg.append(make("line", { class: "grid", x1: LIMIT.left, x2: width - LIMIT.right, y1: y(tick), y2: y(tick) }));
      svg.append(make("text", { x: LIMIT.left - 8, y: y(tick) + 4, "text-anchor": "end" }, String(tick)));
    }
    for (const tick of ticks(left, right, false)) {
      svg.append(make("line", { class: "axis", x1: x(tick), x2: x(tick), y1: height - LIMIT.bottom, y2: height - LIMIT.bottom + 5 }));
      svg.append(make("text", { x: x(tick), y: height - LIMIT.bottom + 20, "text-anchor": "middle" }, String(tick)));
    }
    svg.append(make("line", { class: "axis", x1: LIMIT.left, x2: width - LIMIT.right, y1: height - LIMIT.bottom, y2: height - LIMIT.bottom }));
    svg.append(make("text", { x: (LIMIT.left + width - LIMIT.right) / 2, y: height - 8, "text-anchor": "middle" }, "stored bits per weight"));
    svg.append(make("text", { transform: `translate(14 ${(height - LIMIT.bottom + LIMIT.top) / 2}) rotate(-90)`, "text-anchor": "middle" },
      `${head.dataset.short}${log ? ", log scale" : ""}`));
    if (whole) {
      const at = y(value(whole, column));
      svg.append(make("line", { class: "reference", x1: LIMIT.left, x2: width - LIMIT.right, y1: at, y2: at }));
      svg.append(make("text", { x: LIMIT.left + 4, y: at - 5 }, `16 bits: ${shown(whole, column)}`));
    }
    for (let at = 0; at < names.length; at += 1) {
      const mine = points.filter((point) => point.series === at);
      const distinct = new Set(mine.map((point) => shown(point.row, 1))).size === mine.length;
      if (mine.length > 1 && distinct) { // several seeds of one budget are a cloud, not a curve
        svg.append(make("polyline", { class: `curve c${at % 8}`, points: mine.map((p) => `${x(p.bits)},${y(p.value)}`).join(" ") }));
      }
    }
    // what can be had for so many bits: the best of all that need no more
    const stairs = front.map((p, at) => `${at ? `H${x(p.bits)}V${y(p.value)}` : `M${x(p.bits)} ${y(p.value)}`}`);
    svg.append(make("path", { class: "front", d: `${stairs.join("")}H${width - LIMIT.right}` }));
    const groups = points.map((point) => {
      const on = front.includes(point);
      const label = `${methodOf(point.row)}: ${point.text} at ${shown(point.row, bits)} stored bits${on ? ", on the Pareto front" : ""}`;
      const group = make("g", { class: "point", role: "img", tabindex: "-1", "aria-label": label });
      const [px, py] = [x(point.bits), y(point.value)];
      if (point.error) {
        const [up, down] = [y(point.value + point.error), y(Math.max(point.value - point.error, log ? low : -Infinity))];
        group.append(make("path", { class: `bar c${point.series % 8}`, d: `M${px} ${up}V${down}M${px - 3} ${up}h6M${px - 3} ${down}h6`, fill: "none" }));
      }
      if (on) group.append(make("circle", { class: "ring", cx: px, cy: py, r: 9 }));
      group.append(marker(point.series, px, py), make("circle", { class: "halo", cx: px, cy: py, r: 12 }));
      const tell = () => { byId("plot-point").textContent = label; };
      group.addEventListener("focus", tell);
      group.addEventListener("pointerenter", tell);
      group.addEventListener("click", () => group.focus());
      return group;
    });
    groups[0].setAttribute("tabindex", "0");
    svg.append(...groups);
    svg.addEventListener("keydown", (event) => {
      const at = groups.indexOf(document.activeElement);
      const to = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: groups.length - 1 }[event.key];
      if (at < 0 || to === undefined) return;
      event.preventDefault();
      groups[at].setAttribute("tabindex", "-1");
      const next = groups[Math.max(0, Math.min(groups.length - 1, to))];
      next.setAttribute("tabindex", "0");
      next.focus();
    });
    place.append(svg);

    status.textContent = `${title}: ${many(points.length, "run")}, ${front.length} on the Pareto front (ringed, dashed line). `
      + `Bars are one standard error.${whole ? " Dotted: the uncompressed model." : ""}`
      + ` ${higher ? "Higher" : "Lower"} is better.`;
    const used = new Set(points.map((point) => point.series));
    byId("legend").append(...names.flatMap((name, at) => (used.has(at)
      ? [make("li", {}, make("svg", { width: 20, height: 20, viewBox: "0 0 20 20", "aria-hidden": "true" }, marker(at, 10, 10)), name)] : [])));
    byId("plot-table").append(plain(["method", "stored bits", title, "on the front"], points.map((p) =>
      [methodOf(p.row), shown(p.row, bits), p.text, front.includes(p) ? "yes" : ""]), `${title} against stored bits, by rising bits`));
  }

  // The text of a heading, its unit in brackets.
  function headText(head) {
    const button = head.firstElementChild, detail = button.querySelector("small");
    const name = button.firstChild.textContent.trim();
    head.dataset.short = detail ? `${name}, ${detail.textContent.split(",")[0]}` : name;
    return detail ? `${name} (${detail.textContent})` : name;
  }

  function plain(heads, rows, caption) {
    const line = (texts) => make("tr", {}, make("th", { scope: "row" }, texts[0]), ...texts.slice(1).map((text) => make("td", {}, text)));
    return make("table", {}, make("caption", {}, caption),
      make("thead", {}, make("tr", {}, ...heads.map((head) => make("th", { scope: "col", class: "plain" }, head)))),
      make("tbody", {}, ...rows.map(line)));
  }

  // ---- widths and statistics of experts

  // A table of layers by experts; `shade` gives 0 (little) to 5 (much), `text` what stands in a cell.
  function heat(matrix, caption, shade, text) {
    const experts = Math.max(...matrix.map((layer) => layer.length));
    const heads = [...Array(experts).keys()].map((expert) => make("th", { scope: "col" }, String(expert)));
    const rows = matrix.map((layer, at) => make("tr", {}, make("th", { scope: "row" }, `layer ${at}`),
      ...layer.map((cell, expert) => make("td", { class: SHADES[shade(cell, at, expert)] }, text(cell)))));
    const table = make("table", { class: `heat${experts > 16 ? " many" : ""}` }, make("caption", {}, caption),
      make("thead", {}, make("tr", {}, make("td", {}, ""), ...heads)), make("tbody", {}, ...rows));
    return make("div", { class: "wide", role: "region", tabindex: "0", "aria-label": caption }, table);
  }

  function drawWidths() {
    const place = byId("allocation"), record = data.records[byId("record").value];
    const widths = (record?.widths ?? []).map((layer) => [...layer].map((code) => WIDTHS[code]));
    if (!widths.length) {
      place.replaceChildren(make("p", {}, "This run has no routed experts."));
      return;
    }
    const counts = {};
    for (const width of widths.flat()) counts[width] = (counts[width] ?? 0) + 1;
    const [attention, shared, router] = record.other;
    const sums = Object.entries(counts).map(([width, n]) => `${n} at ${many(Number(width), "bit")}`).join(", ");
    place.replaceChildren(
      make("p", { class: "hint" }, `Experts: ${sums}. Attention ${attention}, shared experts ${shared}, router ${router} bits.`),
      heat(widths, "Bits of every routed expert, layers by experts", (width) => SHADES.indexOf(`w${width}`), String));
  }

  const short = (v) => (v >= 100 ? v.toFixed(0) : v >= 10 ? v.toFixed(1) : v.toFixed(2));

  function drawSignificance() {
    const place = byId("significance"), row = rowsOf(scoresOf(current()))[0];
    const model = data.records[row.dataset.r].model;
    const found = data.significance.filter((one) => one.model === model);
    if (!found.length) {
      place.replaceChildren(make("p", {}, "The statistics of this model's experts do not stand beside its records, so there is nothing to draw."));
      return;
    }
    place.replaceChildren(...found.flatMap((one) => [
      make("p", { class: "hint" }, `${one.name}, ${one.source}. Of errors only ratios within a layer mean something: they are shaded by the ratio to the layer's median.`),
      ...Object.entries(one.measures).map(([name, measure]) => {
        const flat = measure.values.flat(), mean = flat.reduce((a, b) => a + b, 0) / flat.length;
        const most = Math.max(...flat, 2 * mean) || 1;
        const median = measure.values.map((layer) => {
          const sorted = [...layer].sort((a, b) => a - b), half = sorted.length >> 1;
          return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
        });
        const part = measure.relative ? (v, layer) => (Math.log2(v / median[layer]) + 2) / 4 : (v) => v / most;
        const shade = (v, layer) => { const at = part(v, layer); return Number.isNaN(at) ? 0 : Math.max(0, Math.min(5, Math.floor(at * 6))); };
        return heat(measure.values, name, shade, short);
      }),
    ]));
  }

  // ---- item by item

  const unpacked = new Map();
  function outcomes(record, protocol) {
    const key = `${record} ${protocol}`, stored = data.records[record].items[protocol];
    if (stored === undefined) return null;
    if (!unpacked.has(key)) {
      if (typeof stored[1] === "string") {
        const bytes = atob(stored[1]);
        unpacked.set(key, Array.from({ length: stored[0] }, (_, at) => (bytes.charCodeAt(at >> 3) >> (7 - (at & 7))) & 1));
      } else unpacked.set(key, stored);
    }
    return unpacked.get(key);
  }

  function drawPairs() {
    const [a, b] = [byId("run-a").value, byId("run-b").value], place = byId("pairs");
    if (!a || !b) {
      place.replaceChildren(make("p", {}, "Fewer than two runs of this table hold the scores of single items; records have them from schema 3 on."));
      return;
    }
    const sheet = current(), rows = [], lists = [];
    for (const head of scoresOf(sheet).tHead.rows[0].cells) {
      const protocol = head.dataset.protocol, task = data.tasks[protocol];
      if (!task) continue;
      const [one, other] = [outcomes(a, protocol), outcomes(b, protocol)];
      if (!one || !other || one.length !== other.length) continue;
      const sharp = [...one, ...other].every((v) => v === 0 || v === 1);
      const known = [...one.keys()].filter((at) => one[at] !== null && other[at] !== null);
      const gain = (at) => (task.share ? 1 : -1) * (other[at] - one[at]);
      const onlyA = known.filter((at) => gain(at) < 0), onlyB = known.filter((at) => gain(at) > 0);
      const same = known.length - onlyA.length - onlyB.length;
      const both = sharp ? String(known.filter((at) => one[at] === 1 && other[at] === 1).length) : "";
      const mean = known.reduce((sum, at) => sum + other[at] - one[at], 0) / known.length;
      const scaled = task.share ? 100 * mean : mean;
      const change = `${scaled > 0 ? "+" : ""}${scaled.toFixed(task.share ? 1 : 3)}`;
      rows.push([task.task, String(known.length), String(onlyA.length), String(onlyB.length), String(same), both, change]);
      const name = (at) => (task.ids ? `${at + 1}: ${task.ids[at]}` : `item ${at + 1}`);
      const entry = (at) => make("li", {}, sharp ? name(at) : `${name(at)}, A ${one[at]}, B ${other[at]}`);
      const listed = (items, text) => {
        if (!sharp) items.sort((p, q) => Math.abs(gain(q)) - Math.abs(gain(p)) || p - q);
        return [make("h4", {}, `${text} (${items.length})`), make("ul", { class: "items" }, ...items.map(entry))];
      };
      const details = make("details", { "data-task": task.task }, make("summary", {}, `${task.task}: items on which A and B differ`));
      details.addEventListener("toggle", () => { // long lists are made when they are looked at
        if (details.open && details.children.length === 1) {
          details.append(...listed(onlyA, sharp ? "Only A is right" : "A is better, most first"),
            ...listed(onlyB, sharp ? "Only B is right" : "B is better, most first"));
        }
      });
      lists.push(details);
    }
    if (!rows.length) {
      place.replaceChildren(make("p", {}, "These two runs share no task of which both hold the scores of single items."));
      return;
    }
    const heads = ["task", "items", "A better", "B better", "equal", "both right", "B − A"];
    const caption = "Better: the only one of the two that is right, or the better score of the item. "
      + "B − A: points, or nats in a window of text; `mcbench compare` says how sure it is.";
    place.replaceChildren(make("div", { class: "wide", role: "region", tabindex: "0", "aria-label": "Items by task" }, plain(heads, rows, caption)), ...lists);
  }

  // ---- what can be chosen

  const options = (select, pairs) => select.replaceChildren(...pairs.map(([key, text]) => make("option", { value: key }, text)));

  function choose() {
    const sheet = current(), table = scoresOf(sheet), heads = [...table.tHead.rows[0].cells];
    options(byId("metric"), heads.filter((head) => "plot" in head.dataset).map((head) => [head.cellIndex, headText(head)]));
    const runs = rowsOf(table).map((row) => [row.dataset.r, `${methodOf(row)}, ${shown(row, bitsColumn(sheet))} stored bits`]);
    options(byId("record"), runs);
    const compressed = runs.findIndex(([key]) => data.records[key].widths.some((layer) => /[^g]/.test(layer)));
    byId("record").selectedIndex = Math.max(0, compressed);
    const withItems = runs.filter(([key]) => Object.keys(data.records[key].items).length);
    for (const select of [byId("run-a"), byId("run-b")]) options(select, withItems.length > 1 ? withItems : []);
    byId("pair").hidden = withItems.length < 2;
    byId("run-b").selectedIndex = withItems.length > 1 ? 1 : -1;
    drawPlot();
    drawWidths();
    drawSignificance();
    drawPairs();
  }

  options(byId("table"), sheets.map((sheet, at) => [at, sheets.length > 1 ? `${at + 1}: ${sheet.querySelector("h3").textContent}` : sheet.querySelector("h3").textContent]));
  byId("table").addEventListener("input", choose);
  byId("metric").addEventListener("input", drawPlot);
  byId("record").addEventListener("input", drawWidths);
  for (const select of [byId("run-a"), byId("run-b")]) select.addEventListener("input", drawPairs);
  let width = 0;
  window.addEventListener("resize", () => {
    if (byId("plot").clientWidth !== width) drawPlot();
    width = byId("plot").clientWidth;
  });
  choose();
  filter();
})();
