// Over a run: a row of panels a point, and a list of the points to draw. Paper has those drawn at first, whatever is
// chosen, so they stay in the page when the reader takes them away.
"use strict";

function timelines(body, spec, tip) {
  const hidden = new Set(), rows = new Map(), grid = html("div", {class: "panels", style: `--least:${spec.least}px`});
  const chosen = new Set(spec.points.filter(point => point.on).map(point => point.name));
  const redraw = () => {
    for (const point of spec.points) {
      if (!chosen.has(point.name) && !point.on) { for (const holder of rows.get(point.name) || []) holder.remove(); rows.delete(point.name); continue; }
      if (!rows.has(point.name)) rows.set(point.name, point.panels.map(() => html("div", {class: point.on ? "panel paper" : "panel"})));
      const own = rows.get(point.name);
      // In the order of the list, and wide enough to measure words while it is drawn.
      grid.append(...own);
      own.forEach(holder => holder.classList.remove("off"));
      own.forEach((holder, i) => panel(holder, {title: point.name, height: 170, y: {label: point.panels[i].label, min: 0},
        x: {label: "time since the first step (s)", min: 0, tight: true},
        series: point.panels[i].series.map(one => ({...one, x: point.x, step: true}))}, hidden, tip));
      own.forEach(holder => holder.classList.toggle("off", !chosen.has(point.name)));
    }
  };
  if (spec.points.some(point => !point.on)) chooser(body, spec.points, chosen, redraw);
  legend(body, spec.legend, hidden, redraw, false);
  body.appendChild(grid);
  return redraw;
}

// Check boxes, so that a keyboard and a reader of screens know them; of many, only those that fit what is typed.
function chooser(body, points, chosen, redraw) {
  const box = html("details", {class: "chooser"}, body), head = html("summary", {}, box);
  const tools = html("div", {class: "tools"}, box);
  const find = html("input", {type: "search", placeholder: "find points", "aria-label": "find points"}, tools);
  const list = html("div", {class: "choices", role: "group", "aria-label": "points drawn over a run"}, box);
  const boxes = points.map(point => {
    const label = html("label", {}, list), tick = html("input", {type: "checkbox"}, label);
    html("span", {}, label, point.name);
    if (point.note) html("small", {}, label, point.note);
    tick.addEventListener("change", () => {
      tick.checked ? chosen.add(point.name) : chosen.delete(point.name);
      update();
      redraw();
    });
    return {point, label, tick};
  });
  const update = () => {
    head.textContent = `Points drawn: ${chosen.size} of ${points.length}`;
    for (const {point, tick} of boxes) tick.checked = chosen.has(point.name);
  };
  const button = (words, choose) => html("button", {type: "button"}, tools, words).addEventListener("click", () => {
    chosen.clear();
    points.filter(choose).forEach(point => chosen.add(point.name));
    update();
    redraw();
  });
  button("as at first", point => point.on);
  button("none", () => false);
  if (points.length <= 12) find.hidden = true;
  find.addEventListener("input", () => {
    const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const {point, label} of boxes) {
      const text = `${point.name} ${point.note}`.toLowerCase();
      label.hidden = !words.every(word => text.includes(word));
    }
  });
  update();
}
