// One run, request by request: a lane each, painted by what it was doing, over lines of the same time. The reader chooses
// the run; the first one is drawn at first, and on paper.
"use strict";

function lanes(body, spec, tip) {
  const bar = html("div", {class: "choose"}, body), hidden = new Set();
  const box = html("select", {"aria-label": "run"});
  spec.runs.forEach((run, i) => html("option", {value: i}, box, run.name));
  if (spec.runs.length > 1) { const label = html("label", {}, bar, "Run "); label.appendChild(box); }
  box.value = 0;
  const said = html("p", {class: "note"}, body), key = html("div", {class: "legend"}, body);
  for (const {name, look} of spec.runs[0].kinds) {
    const entry = html("span", {class: "entry"}, key), svg = make("svg", {width: 18, height: 12}, entry);
    make("rect", {x: 1, y: 1, width: 16, height: 10, fill: colour(look)}, svg);
    html("span", {}, entry, ` ${name}`);
  }
  const holder = html("div", {class: "panel lanes"}, body);
  const below = html("div", {}, body);
  const draw = () => {
    const run = spec.runs[box.value || 0];
    said.textContent = run.note;
    // One margin on the left for all, so that times stand under each other.
    lane_plot(holder, run, tip);
    below.textContent = "";
    for (const one of run.panels) panel(html("div", {class: "panel"}, below), {height: 120, left: LANES_LEFT,
      right: LANES_RIGHT, names: true, y: {label: one.label, min: 0},
      x: {label: "time (s)", min: run.from, max: run.until, tight: true}, series: one.series}, hidden, tip);
  };
  box.addEventListener("change", draw);
  return draw;
}

const LANES_LEFT = 58, LANES_RIGHT = 60;

function lane_plot(holder, run, tip) {
  holder.textContent = "";
  const width = Math.max(220, holder.clientWidth || 560), count = run.lanes.length;
  const each = Math.max(2.5, Math.min(16, 520 / count)), top = 6, bottom = top + each * count, height = bottom + 22;
  const svg = make("svg", {viewBox: `0 0 ${width} ${height}`, width: "100%", role: "img", "aria-label": "requests over time"}, holder);
  const left = LANES_LEFT, right = width - LANES_RIGHT;
  const x = scale({min: run.from, max: run.until, tight: true}, [], left, right);
  const grid = make("g", {class: "grid"}, svg), words = make("g", {class: "tick"}, svg);
  let end = -1e9;
  for (const tick of x.ticks) {
    make("line", {x1: x.at(tick), x2: x.at(tick), y1: top, y2: bottom}, grid);
    const text = make("text", {x: x.at(tick), y: bottom + 14, "text-anchor": "middle"}, words, x.text(tick));
    const half = text.getComputedTextLength() / 2;
    if (x.at(tick) - half < end + 6) text.remove(); else end = x.at(tick) + half;
  }
  // A path a kind: hundreds of lanes are four elements.
  const paths = run.kinds.map(() => "");
  run.lanes.forEach((lane, i) => {
    const y = top + each * i + each * .1, high = each * .8;
    for (const [kind, from, until] of lane.parts) {
      const a = x.at(from), wide = Math.max(.6, x.at(until) - a), thin = kind === 0 || kind === 3 ? .3 : 0;
      paths[kind] += `M${a.toFixed(1)},${(y + high * thin / 2).toFixed(1)}h${wide.toFixed(1)}v${(high * (1 - thin)).toFixed(1)}h${(-wide).toFixed(1)}Z`;
    }
  });
  const group = make("g", {class: "series"}, svg);
  run.kinds.forEach(({look}, kind) => { if (paths[kind]) make("path", {d: paths[kind], fill: colour(look)}, group); });
  const worst = top + each * (run.worst + .5);
  make("text", {x: right + 6, y: Math.min(bottom, worst + 3.5), class: "label", style: "--ink:var(--ink0)"}, svg, "◂ worst");
  fitted(svg, {transform: `translate(11,${(top + bottom) / 2}) rotate(-90)`, "text-anchor": "middle", class: "name"},
    "requests, by arrival", bottom - top + 20);
  const step = [1, 2, 5, 10, 20, 50, 100].find(n => n * each >= 14) || 100;
  run.lanes.forEach((lane, i) => {
    if (i % step === 0) fitted(svg, {x: left - 4, y: top + each * (i + .5) + 3.5, "text-anchor": "end", class: "lane"}, lane.id, 34);
  });
  svg.addEventListener("pointerleave", () => { tip.hidden = true; });
  svg.addEventListener("pointermove", event => {
    const frame = svg.getBoundingClientRect(), zoom = width / frame.width;
    const lane = run.lanes[Math.floor(((event.clientY - frame.top) * zoom - top) / each)];
    tip.hidden = !lane;
    if (!lane) return;
    tip.textContent = "";
    html("b", {}, tip, `request ${lane.id}`);
    const sums = run.kinds.map(() => 0);
    for (const [kind, from, until] of lane.parts) sums[kind] += until - from;
    run.kinds.forEach(({name}, kind) => { if (sums[kind]) html("div", {}, tip, `${name}: ${number(sums[kind])} s`); });
    tip.style.left = `${event.clientX + scrollX + 14}px`;
    tip.style.top = `${event.clientY + scrollY + 14}px`;
  });
}
