// One plot: axes, series (lines, steps, areas, marks with whiskers), labels that give way to each other, and a pointer
// that says what lies under it. With `names`, each line ends in its name, to the right of the plot. Margins `left` and
// `right` are as wide as it takes, unless told. A series: {name, look, x, y, xlo, xhi, ylo, yhi, step, area, line, mark, label}.
"use strict";

function panel(holder, spec, hidden, tip) {
  holder.textContent = "";
  const width = Math.max(220, holder.clientWidth || 560), height = spec.height || 260;
  const svg = make("svg", {viewBox: `0 0 ${width} ${height}`, width: "100%", role: "img",
    "aria-label": `${spec.title || ""} ${spec.y.label} against ${spec.x.label}`.trim()}, holder);
  const shown = spec.series.filter(s => !hidden.has(s.name));
  const pick = keys => shown.flatMap(s => keys.flatMap(k => s[k] || []));
  const top = spec.title ? 24 : 10, bottom = height - 40;
  const y = scale(spec.y, pick(["y", "ylo", "yhi"]), bottom, top);
  const measure = make("g", {class: "tick"}, svg);
  const widest = Math.max(...y.ticks.map(t => make("text", {}, measure, y.text(t)).getComputedTextLength()), 8);
  measure.remove();
  const left = spec.left ?? Math.ceil(widest) + 26;
  const right = width - (spec.right ?? 12 + (spec.names ? endRoom(svg, shown, width) : 0));
  const x = scale(spec.x, pick(["x", "xlo", "xhi"]), left, right);
  axes(svg, spec, x, y, left, right, top, bottom);
  const plot = make("g", {}, svg), taken = [];
  for (const s of shown) drawSeries(plot, s, x, y, bottom, taken);
  for (const line of spec.lines || []) {
    const points = line.x.map((v, i) => [x.at(v), y.at(line.y[i])]);
    make("polyline", {points: points.map(([a, b]) => `${a.toFixed(1)},${b.toFixed(1)}`).join(" "), class: "front"}, plot);
    // Names keep off the level and upright parts.
    points.slice(1).forEach(([a, b], i) => {
      const [c, d] = points[i];
      if (a === c || b === d) taken.push([Math.min(a, c), Math.min(b, d) - 1, Math.max(a, c), Math.max(b, d) + 1]);
    });
  }
  labels(svg, shown, x, y, {left, right, top, bottom}, taken);
  if (spec.names) ends(svg, shown, x, y, {right, top, bottom, width});
  pointer(svg, spec, shown, x, y, tip, width);
  return svg;
}

function axes(svg, spec, x, y, left, right, top, bottom) {
  const grid = make("g", {class: "grid"}, svg), words = make("g", {class: "tick"}, svg);
  for (const tick of y.ticks) {
    const at = y.at(tick);
    make("line", {x1: left, x2: right, y1: at, y2: at}, grid);
    make("text", {x: left - 5, y: at + 3.5, "text-anchor": "end"}, words, y.text(tick));
  }
  let end = -1e9;
  for (const tick of x.ticks) {
    const at = x.at(tick), text = make("text", {x: at, y: bottom + 15, "text-anchor": "middle"}, words, x.text(tick));
    let half = text.getComputedTextLength() / 2;
    // A long name of a category is cut to its place; figures that would run into each other are left out.
    const room = spec.x.cats ? (right - left) / spec.x.cats.length - 6 : 1e9;
    for (let full = text.textContent, n = full.length; 2 * half > room && n > 3; half = text.getComputedTextLength() / 2)
      text.textContent = full.slice(0, --n) + "…";
    if (at - half < end + 6) { text.remove(); continue; }
    if (at + half > right + 12) text.setAttribute("x", right + 12 - half);
    end = at + half;
    if (!spec.x.cats) make("line", {x1: at, x2: at, y1: top, y2: bottom}, grid);
  }
  make("line", {x1: left, x2: right, y1: bottom, y2: bottom, class: "axis"}, svg);
  fitted(svg, {x: (left + right) / 2, y: bottom + 33, "text-anchor": "middle", class: "name"}, spec.x.label, right - left);
  fitted(svg, {transform: `translate(11,${(top + bottom) / 2}) rotate(-90)`, "text-anchor": "middle", class: "name"},
    spec.y.label, bottom - top + 20);
  if (spec.title) fitted(svg, {x: left, y: 14, class: "title"}, spec.title, right - left);
}

function fitted(svg, attributes, words, room) {
  const text = make("text", attributes, svg, words);
  for (let n = words.length; n > 4 && text.getComputedTextLength() > room;) text.textContent = words.slice(0, --n) + "…";
  if (text.textContent !== words) make("title", {}, text, words);
}

function drawSeries(plot, s, x, y, bottom, taken) {
  const group = make("g", {class: "series", style: `--ink:${colour(s.look)}`}, plot);
  let path = "", area = "", before = null, first = null, last = null;
  for (let i = 0; i < s.x.length; i++) {
    if (s.x[i] === null || s.y[i] === null) { before = null; continue; }
    const px = x.at(s.x[i]), py = y.at(s.y[i]);
    const to = `${px.toFixed(1)},${py.toFixed(1)}`;
    path += before === null ? `M${to}` : s.step ? `H${px.toFixed(1)}V${py.toFixed(1)}` : `L${to}`;
    area += first === null ? `M${px.toFixed(1)},${bottom}V${py.toFixed(1)}`
      : s.step ? `H${px.toFixed(1)}V${py.toFixed(1)}` : `L${to}`;
    first ??= px; last = px; before = py;
  }
  if (s.area && last !== null) make("path", {d: `${area}V${bottom}Z`, class: "area"}, group);
  if (s.line !== false && path) make("path", {d: path, class: "line", "stroke-dasharray": s.dots ? "1.5 2" : dash(s.look)}, group);
  if (!s.mark) return;
  for (let i = 0; i < s.x.length; i++) {
    if (s.x[i] === null || s.y[i] === null) continue;
    const px = x.at(s.x[i]), py = y.at(s.y[i]);
    if (s.look >= 0) taken.push([px - 7, py - 7, px + 7, py + 7]);
    for (const [lo, hi, at, across] of [[s.xlo, s.xhi, x, true], [s.ylo, s.yhi, y, false]]) {
      if (!lo || lo[i] === null || hi[i] === null) continue;
      const a = at.at(lo[i]), b = at.at(hi[i]), [near, far] = a < b ? [a, b] : [b, a];
      taken.push(across ? [near - 2, py - 3, far + 2, py + 3] : [px - 3, near - 2, px + 3, far + 2]);
      make("line", across ? {x1: a, x2: b, y1: py, y2: py, class: "ends"} : {x1: px, x2: px, y1: a, y2: b, class: "ends"}, group);
    }
    make("path", {d: shape(s.look, px, py, s.look < 0 ? 3 : 4.5), class: "mark"}, group);
  }
}

// Near places first; a label that fits nowhere is left to the pointer and the legend.
function labels(svg, shown, x, y, box, taken) {
  for (const s of shown.filter(one => one.label && one.x.length && one.y[0] !== null && one.x[0] !== null)) {
    const px = x.at(s.x[0]), py = y.at(s.y[0]);
    const text = make("text", {class: "label", style: `--ink:${colour(s.look)}`}, svg, s.name);
    const width = text.getComputedTextLength(), height = 12;
    let found = null;
    for (const reach of [9, 15, 24, 36, 52]) {
      for (const [dx, dy] of [[1, 0], [-1, 0], [.7, -.8], [.7, .8], [-.7, -.8], [-.7, .8], [0, -1], [0, 1]]) {
        const cx = px + dx * reach + (dx > .2 ? width / 2 : dx < -.2 ? -width / 2 : 0), cy = py + dy * reach;
        const spot = [cx - width / 2 - 2, cy - height / 2, cx + width / 2 + 2, cy + height / 2];
        if (spot[0] < box.left || spot[2] > box.right + 8 || spot[1] < box.top - 4 || spot[3] > box.bottom) continue;
        if (!taken.some(t => spot[0] < t[2] && t[0] < spot[2] && spot[1] < t[3] && t[1] < spot[3])) { found = {cx, cy, spot, reach}; break; }
      }
      if (found) break;
    }
    if (!found) { text.remove(); continue; }
    taken.push(found.spot);
    text.setAttribute("x", found.cx); text.setAttribute("y", found.cy + 4); text.setAttribute("text-anchor", "middle");
    if (found.reach > 15) {
      const near = found.spot[0] > px ? found.spot[0] : found.spot[2] < px ? found.spot[2] : found.cx;
      make("line", {x1: px, y1: py, x2: near, y2: found.cy, class: "leader"}, svg);
    }
  }
}

// Names of lines take a third of the width at most.
function endRoom(svg, shown, width) {
  const measure = make("g", {}, svg);
  const widest = Math.max(0, ...shown.map(s => make("text", {class: "label"}, measure, s.name).getComputedTextLength()));
  measure.remove();
  return Math.min(Math.ceil(widest) + 14, width / 3);
}

// Each name as near to the end of its line as the others let it be, in the order of the ends.
function ends(svg, shown, x, y, {right, top, bottom, width}) {
  const found = [];
  for (const s of shown) {
    const i = s.x.findLastIndex((v, i) => v !== null && s.y[i] !== null);
    if (i >= 0) found.push({s, px: x.at(s.x[i]), py: Math.max(top, Math.min(bottom, y.at(s.y[i])))});
  }
  found.sort((a, b) => a.py - b.py);
  const gap = Math.min(13, (bottom - top + 10) / Math.max(1, found.length - 1));
  found.forEach((one, i) => { one.at = i ? Math.max(one.py, found[i - 1].at + gap) : one.py; });
  for (let i = found.length - 1, most = bottom + 5; i >= 0; i--, most = found[i + 1].at - gap)
    found[i].at = Math.min(found[i].at, most);
  for (const {s, px, py, at} of found) {
    const ink = `--ink:${colour(s.look)}`;
    make("path", {d: `M${(px + 5).toFixed(1)},${py.toFixed(1)}L${right + 2},${py.toFixed(1)}L${right + 10},${at.toFixed(1)}`,
      class: "leader", fill: "none"}, svg);
    fitted(svg, {x: right + 12, y: at + 3.5, class: "label", style: ink}, s.name, width - right - 12);
  }
}

function pointer(svg, spec, shown, x, y, tip, width) {
  const dot = make("circle", {r: 4, class: "hit", visibility: "hidden"}, svg);
  const hide = () => { tip.hidden = true; dot.setAttribute("visibility", "hidden"); };
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("pointermove", event => {
    const frame = svg.getBoundingClientRect(), zoom = width / frame.width;
    const mx = (event.clientX - frame.left) * zoom, my = (event.clientY - frame.top) * zoom;
    let best = null;
    for (const s of shown) for (let i = 0; i < s.x.length; i++) {
      if (s.x[i] === null || s.y[i] === null) continue;
      const px = x.at(s.x[i]), py = y.at(s.y[i]), far = Math.hypot(px - mx, py - my);
      if (best === null || far < best.far) best = {far, s, i, px, py};
    }
    if (!best || best.far > 60) return hide();
    const {s, i} = best;
    dot.setAttribute("cx", best.px); dot.setAttribute("cy", best.py); dot.setAttribute("visibility", "visible");
    tip.textContent = "";
    html("b", {}, tip, s.name);
    for (const [axis, v, lo, hi] of [[spec.x, s.x[i], s.xlo, s.xhi], [spec.y, s.y[i], s.ylo, s.yhi]]) {
      const say = value => axis.digits ? String(+value.toPrecision(axis.digits)) : number(value);
      const ends = lo && lo[i] !== null && lo[i] !== hi[i] ? ` (${say(lo[i])} to ${say(hi[i])})` : "";
      html("div", {}, tip, `${axis.label}: ${axis.cats ? axis.cats[Math.round(v)] : say(v)}${ends}`);
    }
    tip.hidden = false;
    const wide = tip.offsetWidth, over = event.clientX + wide + 24 > innerWidth;
    tip.style.left = `${event.clientX + scrollX + (over ? -wide - 12 : 14)}px`;
    tip.style.top = `${event.clientY + scrollY + 14}px`;
  });
}
