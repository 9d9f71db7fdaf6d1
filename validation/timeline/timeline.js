// Draws what is visible of the traces, and nothing else: any number of kernels costs what fits on the screen.
// Numbers come from the page's JSON; text is set as text.
"use strict";
(() => {
  const DATA = JSON.parse(document.getElementById("data").textContent);
  const UNIT = 4; // pixels a microsecond at 1x
  const LANE = 24, HEAD = 26, AXIS = 22, SPACE = 10;
  const WIDEST = 8e6; // pixels; browsers lay out no more than about 33 million
  const KINDS = ["first", "overlap", "dispatch", "fence", "stall"]; // by number, as in the data
  const STALL = DATA.stall;
  const CLOSE = 3; // pixels from a kernel that still count as on it
  const SVG = "http://www.w3.org/2000/svg";
  const byId = id => document.getElementById(id);
  const [chart, drawing, shapes, spacer, labels, tip, detail] =
    ["chart", "drawing", "shapes", "spacer", "labels", "tip", "detail"].map(byId);

  const traces = DATA.traces.map(trace => ({ ...trace, rows: rowsOf(trace) }));
  const first = Math.min(...traces.map(t => t.start.length ? t.start[0] : 0));
  const last = Math.max(first + 1, ...traces.map(t => Math.max(0, ...t.rows.map(r => r.reach.at(-1) ?? 0))));
  const pad = (last - first) * 0.01;
  const range = [first - pad, last + pad];

  let scale = UNIT; // pixels a microsecond
  let left = 0; // microseconds at the left edge
  let gaps = "across";
  let quiet = false; // whether streams idle in the layer pass are drawn
  let chosen = null; // { trace, kernel }
  let layout = [];
  let asked = false;

  // ---- data ----

  // The kernels of each lane in order of start, and how far the kernels up to each reach.
  function rowsOf(trace) {
    const rows = trace.lanes.map(() => ({ kernels: [], reach: [] }));
    trace.lane.forEach((lane, kernel) => {
      const { kernels, reach } = rows[lane];
      const end = trace.start[kernel] + trace.duration[kernel];
      kernels.push(kernel);
      reach.push(reach.length ? Math.max(reach.at(-1), end) : end);
    });
    return rows;
  }

  // The first index at which `values` (ascending) is above `bound`.
  function above(length, value, bound) {
    let low = 0, high = length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (value(middle) > bound) high = middle; else low = middle + 1;
    }
    return low;
  }

  const after = (trace, row, moment) => above(row.kernels.length, i => trace.start[row.kernels[i]], moment);

  function kernelAt(trace, row, moment, slack) {
    let best = null, nearest = slack;
    for (let i = after(trace, row, moment + slack) - 1, seen = 0; i >= 0 && seen < 64; i--, seen++) {
      const kernel = row.kernels[i], start = trace.start[kernel], end = start + trace.duration[kernel];
      if (start <= moment && moment <= end) return kernel;
      const away = moment < start ? start - moment : moment - end;
      if (away <= nearest) { nearest = away; best = kernel; }
      if (row.reach[i] < moment - slack) break;
    }
    return best;
  }

  // The gap that the pointer is in: the kernel that ends it.
  function gapAt(trace, lane, moment) {
    const column = trace[gaps];
    const inside = k => column.us[k] > 0 && trace.start[k] - column.us[k] <= moment && moment < trace.start[k];
    if (gaps === "on_lane") {
      const row = trace.rows[lane], kernel = row.kernels[after(trace, row, moment)];
      return kernel !== undefined && inside(kernel) ? kernel : null;
    }
    const next = above(trace.start.length, k => trace.start[k], moment);
    for (let k = next; k < Math.min(next + 64, trace.start.length); k++) if (inside(k)) return k;
    return null;
  }

  // ---- layout and drawing ----

  function arrange() {
    layout = [];
    labels.replaceChildren();
    let y = AXIS;
    const label = (text, top, kind) => {
      const line = document.createElement("div");
      line.textContent = text;
      line.title = text;
      line.className = kind;
      line.style.top = `${top}px`;
      labels.append(line);
    };
    traces.forEach((trace, index) => {
      label(trace.name, y + 4, "trace");
      y += HEAD;
      const top = y;
      const lanes = trace.lanes.map((_, lane) => lane).filter(lane => quiet || trace.shown[lane]);
      lanes.forEach(lane => {
        label(`stream ${trace.lanes[lane]}`, y + 4, "stream");
        layout.push({ trace: index, lane, y, top, bottom: top + lanes.length * LANE });
        y += LANE;
      });
      y += SPACE;
    });
    drawing.setAttribute("height", y);
    drawing.style.height = `${y}px`;
    chart.style.height = `${y + chart.offsetHeight - chart.clientHeight}px`;
    labels.style.height = `${y}px`;
  }

  const make = (name, attributes, text) => {
    const element = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (text !== undefined) element.textContent = text;
    return element;
  };

  function ask() {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => { asked = false; draw(); });
  }

  function draw() {
    const began = performance.now();
    const width = chart.clientWidth, right = left + width / scale;
    drawing.setAttribute("width", width);
    drawing.style.width = `${width}px`;
    const out = document.createDocumentFragment();
    for (const row of layout) out.append(make("rect", { class: "lane", x: 0, y: row.y + 1, width, height: LANE - 2 }));
    drawAxis(out, width, right);
    traces.forEach((trace, index) => {
      const rows = layout.filter(row => row.trace === index);
      if (!rows.length) return;
      if (gaps === "across") drawGaps(out, trace, null, rows[0].top, rows[0].bottom - rows[0].top, right);
      else for (const row of rows) drawGaps(out, trace, row.lane, row.y + 2, LANE - 4, right);
      for (const row of rows) drawLane(out, trace, row, right);
      if (trace.window) {
        const [from, to] = trace.window.map(moment => (moment - left) * scale);
        if (to > 0 && from < width)
          out.append(make("rect", { class: "window", x: Math.max(from, -10), y: rows[0].top - 2,
            width: Math.min(to, width + 10) - Math.max(from, -10), height: rows[0].bottom - rows[0].top + 4 }));
      }
    });
    drawChosen(out);
    shapes.replaceChildren(out);
    byId("scale").textContent = `${scale >= 0.1 ? scale.toFixed(2) : scale.toPrecision(2)} px/us, ${time(width / scale)} in view`;
    drawing.dataset.shapes = shapes.childElementCount;
    drawing.dataset.drawMs = (performance.now() - began).toFixed(1);
  }

  function drawAxis(out, width, right) {
    const rough = 110 / scale, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map(f => f * power).find(s => s >= rough);
    const digits = Math.max(0, -Math.floor(Math.log10(step)));
    for (let at = Math.ceil(left / step) * step; at <= right; at += step) {
      const x = (at - left) * scale;
      out.append(make("line", { class: "grid", x1: x, x2: x, y1: AXIS - 5, y2: drawing.getAttribute("height") }));
      const milli = step >= 1000;
      out.append(make("text", { class: "tick", x: x + 3, y: 13 },
        milli ? `${+(at / 1000).toFixed(1)} ms` : `${(Math.abs(at) < step / 2 ? 0 : at).toFixed(digits)} us`));
    }
  }

  function drawLane(out, trace, { lane, y }, right) {
    const row = trace.rows[lane], many = [];
    let painted = -1;
    for (let i = above(row.reach.length, n => row.reach[n], left); i < row.kernels.length; i++) {
      const kernel = row.kernels[i], start = trace.start[kernel];
      if (start > right) break;
      const x = (start - left) * scale, wide = trace.duration[kernel] * scale;
      if (wide < 2) { // too small to tell apart: one mark a pixel
        const pixel = Math.floor(x);
        if (pixel > painted) { painted = pixel; many.push(`M${pixel} ${y + 4}h1.2v${LANE - 8}h-1.2z`); }
        continue;
      }
      const from = Math.max(x, -4), shown = Math.min(x + wide, chart.clientWidth + 4) - from;
      const number = trace.kernel[kernel];
      out.append(make("rect", { class: `k k${number % DATA.colours}`, x: from.toFixed(2), y: y + 3, width: shown.toFixed(2), height: LANE - 6 }));
      const letters = Math.floor((shown - 8) / 6.4);
      if (letters >= 3) {
        const name = DATA.short[number];
        const text = name.length > letters ? `${name.slice(0, letters - 1)}\u2026` : name;
        out.append(make("text", { class: "name", x: (Math.max(from, 0) + 4).toFixed(2), y: y + 16 }, text));
      }
    }
    if (many.length) out.append(make("path", { class: "many", d: many.join("") }));
  }

  function drawGaps(out, trace, lane, y, height, right) {
    const column = trace[gaps], small = [];
    const kernels = lane === null ? null : trace.rows[lane].kernels;
    const length = kernels ? kernels.length : trace.start.length;
    const at = i => kernels ? kernels[i] : i;
    let painted = -1;
    for (let i = above(length, n => trace.start[at(n)], left); i < length; i++) {
      const kernel = at(i), kind = column.kind.charCodeAt(kernel) - 48, us = column.us[kernel];
      const begin = trace.start[kernel] - us;
      if (Math.min(begin, trace.start[kernel]) > right) break;
      if (us <= 0) continue;
      const wide = us * scale, x = (begin - left) * scale;
      if (wide < 1.5) { // of those too small to see, only stalls
        const pixel = Math.floor(x);
        if (kind === STALL && pixel > painted) { painted = pixel; small.push(`M${pixel} ${y}h1.2v${height}h-1.2z`); }
        continue;
      }
      const from = Math.max(x, -10), shown = Math.min(x + wide, chart.clientWidth + 10) - from;
      out.append(make("rect", { class: `gap ${KINDS[kind]}${lane === null ? "" : " alone"}`, fill: `url(#${KINDS[kind]})`, x: from.toFixed(2), y, width: shown.toFixed(2), height }));
    }
    if (small.length) out.append(make("path", { class: "stalls-seen", d: small.join("") }));
  }

  function drawChosen(out) {
    if (!chosen) return;
    const trace = traces[chosen.trace];
    const row = layout.find(r => r.trace === chosen.trace && r.lane === trace.lane[chosen.kernel]);
    if (!row) return;
    const x = (trace.start[chosen.kernel] - left) * scale, wide = Math.max(trace.duration[chosen.kernel] * scale, 3);
    if (x > chart.clientWidth + 4 || x + wide < -4) return;
    const from = Math.max(x, -10);
    out.append(make("rect", { class: "chosen", x: from, y: row.y + 1.5, width: Math.min(x + wide, chart.clientWidth + 10) - from, height: LANE - 3 }));
  }

  // ---- moving ----

  const span = () => Math.max((range[1] - range[0]) * scale, chart.clientWidth);
  const wide = () => Math.min(span(), WIDEST);
  let expected = null; // where we scrolled to ourselves, rounded as the browser does

  function moveTo(moment) {
    const most = Math.max(range[0], range[1] - chart.clientWidth / scale);
    left = Math.min(Math.max(moment, range[0]), most);
    spacer.style.width = `${wide()}px`;
    const way = wide() - chart.clientWidth, whole = span() - chart.clientWidth;
    chart.scrollLeft = whole > 0 ? (left - range[0]) * scale / whole * way : 0;
    expected = chart.scrollLeft;
    ask();
  }

  chart.addEventListener("scroll", () => {
    hide();
    if (expected !== null && Math.abs(chart.scrollLeft - expected) < 1) return;
    expected = null;
    const way = wide() - chart.clientWidth, whole = span() - chart.clientWidth;
    left = range[0] + (way > 0 ? chart.scrollLeft / way * whole / scale : 0);
    ask();
  });

  function zoomTo(next, around) {
    const pivot = around ?? chart.clientWidth / 2;
    const moment = left + pivot / scale;
    scale = Math.min(Math.max(next, chart.clientWidth / (range[1] - range[0])), 2000);
    moveTo(moment - pivot / scale);
  }

  function show(from, to) {
    const room = (to - from) * 0.03;
    scale = chart.clientWidth / (to - from + 2 * room || 1);
    scale = Math.min(scale, 2000);
    moveTo(from - room);
  }

  function fit() {
    const windows = traces.map(t => t.window).filter(Boolean);
    if (windows.length) show(Math.min(...windows.map(w => w[0])), Math.max(...windows.map(w => w[1])));
    else show(first, last);
  }

  function zoom(how) {
    if (how === "fit") fit();
    else if (how === "all") show(first, last);
    else if (how === "in") zoomTo(scale * 1.5);
    else if (how === "out") zoomTo(scale / 1.5);
    else {
      scale = UNIT * Number(how);
      const windows = traces.map(t => t.window).filter(Boolean);
      moveTo(chosen ? traces[chosen.trace].start[chosen.kernel] - chart.clientWidth / scale / 3
        : (windows.length ? Math.min(...windows.map(w => w[0])) : first) - 8 / scale);
    }
  }

  // ---- telling ----

  const time = us => us >= 10000 ? `${(us / 1000).toFixed(2)} ms` : `${us.toFixed(2)} us`;
  const paragraph = (text, kind) => {
    const line = document.createElement("p");
    line.textContent = text;
    if (kind) line.className = kind;
    return line;
  };

  function gapText(trace, column, kernel) {
    const kind = Number(trace[column].kind[kernel]);
    if (kind === 0) return "none, it is the first";
    const us = trace[column].us[kernel];
    return kind === 1 ? `overlaps by ${(-us).toFixed(2)} us` : `${us.toFixed(2)} us (${KINDS[kind]})`;
  }

  function aboutKernel(trace, kernel) {
    const place = trace.step[kernel] < 0 ? "in no decode step"
      : `step ${trace.step[kernel]}, ${trace.layer[kernel] < 0 ? "outside the layers" : `layer ${trace.layer[kernel]}`}`;
    return [
      paragraph(DATA.names[trace.kernel[kernel]], "title"),
      paragraph(`duration ${trace.duration[kernel].toFixed(3)} us, start ${trace.start[kernel].toFixed(3)} us; ` +
        `${trace.name}, stream ${trace.lanes[trace.lane[kernel]]}, ${place}`),
      paragraph(`gap before it: across streams ${gapText(trace, "across", kernel)}; on its stream ${gapText(trace, "on_lane", kernel)}`),
    ];
  }

  function aboutGap(trace, kernel) {
    const where = gaps === "across" ? "nothing runs on any stream" : `stream ${trace.lanes[trace.lane[kernel]]} is idle`;
    const column = trace[gaps];
    return [
      paragraph(`${KINDS[Number(column.kind[kernel])]} of ${column.us[kernel].toFixed(2)} us: ${where}`),
      paragraph(`${trace.name}, from ${(trace.start[kernel] - column.us[kernel]).toFixed(3)} us; ends with`),
      paragraph(DATA.names[trace.kernel[kernel]], "title"),
    ];
  }

  function choose(trace, kernel, told = true) {
    chosen = { trace, kernel };
    if (!layout.some(r => r.trace === trace && r.lane === traces[trace].lane[kernel])) {
      quiet = byId("quiet").checked = true;
      arrange();
    }
    if (told) detail.replaceChildren(...aboutKernel(traces[trace], kernel));
    const start = traces[trace].start[kernel], seen = chart.clientWidth / scale;
    const end = start + traces[trace].duration[kernel];
    if (start < left || end > left + seen) moveTo(start - Math.max(0.3 * seen, 0.5 * (seen - (end - start)) * (end - start < seen)));
    ask();
  }

  function hide() { tip.hidden = true; }

  chart.addEventListener("pointermove", event => {
    const box = drawing.getBoundingClientRect();
    const x = event.clientX - box.left, y = event.clientY - box.top;
    const row = layout.find(r => y >= r.y && y < r.y + LANE);
    if (!row) return hide();
    const trace = traces[row.trace], moment = left + x / scale;
    const kernel = kernelAt(trace, trace.rows[row.lane], moment, CLOSE / scale);
    const gap = kernel === null ? gapAt(trace, row.lane, moment) : null;
    if (kernel === null && gap === null) return hide();
    tip.replaceChildren(...(kernel !== null ? aboutKernel(trace, kernel) : aboutGap(trace, gap)));
    tip.hidden = false;
    const frame = byId("frame").getBoundingClientRect();
    const across = event.clientX - frame.left, room = frame.width - tip.offsetWidth - 8;
    tip.style.left = `${Math.max(4, Math.min(across + 14, room))}px`;
    tip.style.top = `${event.clientY - frame.top + 18}px`;
  });
  chart.addEventListener("pointerleave", hide);

  chart.addEventListener("click", event => {
    const box = drawing.getBoundingClientRect();
    const row = layout.find(r => event.clientY - box.top >= r.y && event.clientY - box.top < r.y + LANE);
    if (!row) return;
    const trace = traces[row.trace];
    const kernel = kernelAt(trace, trace.rows[row.lane], left + (event.clientX - box.left) / scale, CLOSE / scale);
    if (kernel !== null) choose(row.trace, kernel);
  });

  chart.addEventListener("wheel", event => {
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    zoomTo(scale * Math.exp(-event.deltaY / 300), event.clientX - drawing.getBoundingClientRect().left);
  }, { passive: false });

  // ---- keys and buttons ----

  function along(way) {
    const trace = traces[chosen.trace], row = trace.rows[trace.lane[chosen.kernel]];
    const next = row.kernels[row.kernels.indexOf(chosen.kernel) + way];
    if (next !== undefined) choose(chosen.trace, next);
  }

  function toLane(way) {
    const trace = traces[chosen.trace];
    const here = layout.findIndex(r => r.trace === chosen.trace && r.lane === trace.lane[chosen.kernel]);
    const target = layout[here + way];
    if (!target) return;
    const other = traces[target.trace], row = other.rows[target.lane], moment = trace.start[chosen.kernel];
    const next = Math.min(after(other, row, moment), row.kernels.length - 1);
    const near = [next - 1, next].filter(i => i >= 0)
      .sort((a, b) => Math.abs(other.start[row.kernels[a]] - moment) - Math.abs(other.start[row.kernels[b]] - moment));
    choose(target.trace, row.kernels[near[0]]);
  }

  function firstOfPass(index, wantLast) {
    const trace = traces[index], window = trace.window ?? [first, last];
    let found = null;
    for (let k = above(trace.start.length, n => trace.start[n], window[0] - 0.01); k < trace.start.length; k++) {
      if (trace.start[k] > window[1]) break;
      found = k;
      if (!wantLast) break;
    }
    if (found !== null) choose(index, found);
  }

  function toStall(way) {
    const index = chosen?.trace ?? 0, trace = traces[index];
    let kernel = chosen?.kernel ?? above(trace.start.length, k => trace.start[k], left) - (way > 0 ? 1 : 0);
    for (kernel += way; kernel >= 0 && kernel < trace.start.length; kernel += way)
      if (trace.across.kind.charCodeAt(kernel) - 48 === STALL) return showStall(index, kernel);
    detail.replaceChildren(paragraph(`no ${way > 0 ? "later" : "earlier"} stall in ${trace.name}`));
  }

  function showStall(index, kernel) {
    const gap = traces[index].across.us[kernel];
    if (gap * scale < 40 || gap * scale > chart.clientWidth / 2) scale = Math.min(120 / gap, 2000);
    choose(index, kernel);
    moveTo(traces[index].start[kernel] - gap / 2 - chart.clientWidth / scale / 2);
  }

  const KEYS = {
    ArrowRight: () => along(1), ArrowLeft: () => along(-1), ArrowDown: () => toLane(1), ArrowUp: () => toLane(-1),
    Home: () => firstOfPass(chosen.trace, false), End: () => firstOfPass(chosen.trace, true),
  };
  chart.addEventListener("keydown", event => {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const free = { n: () => toStall(1), p: () => toStall(-1), "+": () => zoomTo(scale * 1.5), "=": () => zoomTo(scale * 1.5),
      "-": () => zoomTo(scale / 1.5), f: fit, Escape: () => { chosen = null; hide(); ask(); } }[event.key];
    const moving = KEYS[event.key];
    if (!free && !moving) return;
    event.preventDefault();
    if (free) return free();
    if (chosen) moving(); else firstOfPass(0, event.key === "End");
  });
  chart.addEventListener("focus", () => {
    if (!chosen && chart.matches(":focus-visible") && traces[0].start.length) firstOfPass(0, false);
  });

  for (const button of document.querySelectorAll("[data-zoom]")) button.addEventListener("click", () => zoom(button.dataset.zoom));
  for (const button of document.querySelectorAll("[data-stall]"))
    button.addEventListener("click", () => toStall(button.dataset.stall === "next" ? 1 : -1));
  for (const button of document.querySelectorAll("[data-gaps]")) button.addEventListener("click", () => {
    gaps = button.dataset.gaps;
    for (const other of document.querySelectorAll("[data-gaps]")) other.setAttribute("aria-pressed", String(other === button));
    ask();
  });
  for (const button of document.querySelectorAll("[data-at]")) button.addEventListener("click", () => {
    const index = Number(button.dataset.trace), trace = traces[index], at = Number(button.dataset.at);
    const next = Math.max(0, above(trace.start.length, k => trace.start[k], at - 0.01));
    let best = null; // several kernels may start at one moment: the one that ends the gap
    for (let k = next; k < trace.start.length && trace.start[k] < at + 0.01; k++)
      if (trace.across.kind.charCodeAt(k) - 48 === STALL) { best = k; break; }
    if (best === null) return detail.replaceChildren(paragraph("this stall is too far from the layer pass to be drawn"));
    showStall(index, best);
    chart.scrollIntoView({ block: "center" });
    chart.focus({ preventScroll: true });
  });
  byId("quiet").addEventListener("change", event => { quiet = event.target.checked; arrange(); ask(); });
  if (!traces.some(t => t.shown.includes(false))) byId("quiet").parentElement.hidden = true;

  new ResizeObserver(() => moveTo(left)).observe(chart);
  arrange();
  fit();
  draw();
})();
