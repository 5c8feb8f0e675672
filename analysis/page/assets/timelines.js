// Over a run: a row of panels a point, and a list of the points to draw. Paper has those drawn at first, whatever is
// chosen, so they stay in the page when the reader takes them away.
"use strict";

function timelines(body, spec, tip) {
  const hidden = new Set(), rows = new Map(), all = document.createElement("div");
  const chosen = new Set(spec.points.filter(point => point.on).map(point => point.name));
  const row = point => {
    const own = html("div", {class: point.on ? "run paper" : "run"});
    const head = html("h3", {}, own, point.name);
    if (point.note) html("small", {}, head, point.note);
    const grid = html("div", {class: "panels", style: `--least:${spec.least}px`}, own);
    return {own, holders: point.panels.map(() => html("div", {class: "panel"}, grid))};
  };
  const redraw = () => {
    for (const point of spec.points) {
      const is_chosen = chosen.has(point.name);
      if (!is_chosen && !point.on) { rows.get(point.name)?.own.remove(); rows.delete(point.name); continue; }
      if (!rows.has(point.name)) rows.set(point.name, row(point));
      const {own, holders} = rows.get(point.name);
      // In the order of the list; and seen while it is drawn, since words that are not cannot be measured.
      all.append(own);
      own.classList.remove("off");
      holders.forEach((holder, i) => panel(holder, {height: 160, y: {label: point.panels[i].label, min: 0},
        x: {label: "time since the first step (s)", min: 0, tight: true},
        series: point.panels[i].series.map(one => ({...one, x: point.x, step: true}))}, hidden, tip));
      own.classList.toggle("off", !is_chosen);
    }
  };
  if (spec.points.length > 1) chooser(body, spec.points, chosen, redraw);
  legend(body, spec.legend, hidden, redraw, false);
  body.appendChild(all);
  return redraw;
}

// Check boxes, so that keyboards and readers of screens know them; of many, those that fit what is typed.
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
    head.textContent = `Choose points: ${chosen.size} of ${points.length} drawn`;
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
  find.hidden = points.length <= 12;
  find.addEventListener("input", () => {
    const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const {point, label} of boxes) {
      const text = `${point.name} ${point.note}`.toLowerCase();
      label.hidden = !words.every(word => text.includes(word));
    }
  });
  update();
}
