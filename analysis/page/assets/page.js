// What makes the page move: plots drawn when the page opens, legends that hide series, the choice of metrics, tables
// that sort by a column, light and dark.
"use strict";

function plots() {
  const tip = html("div", {class: "tip", hidden: ""}, document.body);
  const redraws = [];
  for (const figure of document.querySelectorAll("figure.plot")) {
    const spec = JSON.parse(figure.querySelector("script").textContent);
    const body = document.createElement("div");
    figure.insertBefore(body, figure.querySelector("figcaption"));
    redraws.push({pareto, time: timelines, lanes, panels}[spec.kind](body, spec, tip));
  }
  let waiting = 0, before = innerWidth;
  const all = () => redraws.forEach(draw => draw());
  addEventListener("resize", () => {
    if (innerWidth === before) return;
    before = innerWidth;
    cancelAnimationFrame(waiting);
    waiting = requestAnimationFrame(all);
  });
  all();
}

function legend(body, entries, hidden, redraw, marks) {
  if (entries.length < 2) return;
  const list = html("div", {class: "legend"}, body);
  for (const {name, look} of entries) {
    const button = html("button", {type: "button", "aria-pressed": "true", title: "show or hide"}, list);
    const svg = make("svg", {width: 26, height: 12}, button);
    make("line", {x1: 1, x2: 25, y1: 6, y2: 6, stroke: colour(look), "stroke-width": 2, "stroke-dasharray": dash(look)}, svg);
    if (marks) make("path", {d: shape(look, 13, 6, 3.5), fill: colour(look)}, svg);
    html("span", {}, button, name);
    button.addEventListener("click", () => {
      hidden.has(name) ? hidden.delete(name) : hidden.add(name);
      button.setAttribute("aria-pressed", String(!hidden.has(name)));
      redraw();
    });
  }
}

function panels(body, spec, tip) {
  const hidden = new Set(), grid = html("div", {class: "panels", style: `--least:${spec.least || 300}px`});
  const has_marks = one => one.series.some(s => s.mark);
  const draws = spec.panels.map(one => {
    if (!one.legend) { const holder = html("div", {class: "panel"}, grid); return () => panel(holder, one, hidden, tip); }
    const box = html("div", {}, grid), own = new Set(), draw = () => panel(holder, one, own, tip);
    legend(box, one.legend, own, () => draw(), has_marks(one));
    const holder = html("div", {class: "panel"}, box);
    return draw;
  });
  const draw = () => draws.forEach(one => one());
  legend(body, spec.legend || [], hidden, draw, spec.panels.some(has_marks));
  body.appendChild(grid);
  return draw;
}

function pareto(body, spec, tip) {
  const bar = html("div", {class: "choose"}, body);
  const select = (title, chosen) => {
    const label = html("label", {}, bar, `${title} `), box = html("select", {}, label);
    spec.metrics.forEach((metric, i) => html("option", {value: i}, box, metric.label));
    box.value = chosen;
    return box;
  };
  const across = select("Across", spec.x), up = select("Up", spec.y);
  const holder = html("div", {class: "panel"}, body), said = html("p", {class: "note"}, body);
  const draw = () => {
    const mx = spec.metrics[across.value], my = spec.metrics[up.value];
    const rows = spec.points.map((_, i) => i).filter(i => mx.mean[i] !== null && my.mean[i] !== null);
    const sign = metric => metric.up ? 1 : -1;
    const beats = (a, b) => {
      const dx = sign(mx) * (mx.mean[a] - mx.mean[b]), dy = sign(my) * (my.mean[a] - my.mean[b]);
      return dx >= 0 && dy >= 0 && (dx > 0 || dy > 0);
    };
    const front = rows.filter(i => !rows.some(j => beats(j, i))).sort((a, b) => mx.mean[a] - mx.mean[b]);
    const few = rows.length <= 12;
    const series = rows.map(i => {
      // Of many points those that matter have a colour and whiskers; those of them that no other plot shows share one.
      const on = front.includes(i), seen = few || on || spec.base[i];
      const ends = (metric, end) => [seen ? metric[end][i] : null];
      return {name: spec.points[i], look: seen ? Math.max(0, spec.looks[i]) : -1, line: false, mark: true,
        label: seen, x: [mx.mean[i]], y: [my.mean[i]],
        xlo: ends(mx, "low"), xhi: ends(mx, "high"), ylo: ends(my, "low"), yhi: ends(my, "high"), on: seen};
    }).sort((a, b) => a.on - b.on);
    const far = metric => {
      const found = rows.map(i => metric.mean[i]);
      return Math.min(...found) > 0 && Math.max(...found) > 10 * Math.min(...found);
    };
    const line = {x: front.map(i => mx.mean[i]), y: front.map(i => my.mean[i])};
    panel(holder, {height: 380, x: {label: mx.label, log: far(mx)}, y: {label: my.label, log: far(my)}, series,
      lines: front.length > 1 ? [line] : []}, new Set(), tip);
    const better = m => m.up ? "higher" : "lower";
    said.textContent = mx === my ? "Choose two different metrics." :
      `On the frontier, where no other point is better in both (${better(mx)} ${mx.title}, ${better(my)} ${my.title}): `
      + front.map(i => spec.points[i]).join("; ") + ".";
  };
  across.addEventListener("change", draw);
  up.addEventListener("change", draw);
  return draw;
}

function tabs() {
  for (const group of document.querySelectorAll(".tabs")) {
    const buttons = [...group.querySelectorAll("[data-tab]")];
    for (const button of buttons) button.addEventListener("click", () => {
      for (const other of buttons) {
        other.setAttribute("aria-selected", String(other === button));
        document.getElementById(other.dataset.tab).hidden = other !== button;
      }
    });
  }
}

function sorting() {
  for (const table of document.querySelectorAll("table.sortable")) {
    table.querySelectorAll("th").forEach((head, place) => {
      head.tabIndex = 0;
      const sort = () => {
        const down = head.getAttribute("aria-sort") !== "descending", rows = [...table.tBodies[0].rows];
        const key = row => {
          const text = row.cells[place].textContent, figure = parseFloat(text.replace(/,/g, ""));
          return Number.isNaN(figure) ? text : figure;
        };
        rows.sort((a, b) => {
          const [p, q] = [key(a), key(b)];
          const order = typeof p === "number" && typeof q === "number" ? p - q
            : typeof p !== typeof q ? (typeof p === "number" ? 1 : -1) : p.localeCompare(q);
          return down ? -order : order;
        });
        table.querySelectorAll("th").forEach(other => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        table.tBodies[0].append(...rows);
      };
      head.addEventListener("click", sort);
      head.addEventListener("keydown", event => { if (event.key === "Enter") sort(); });
    });
  }
}

function theme() {
  const root = document.documentElement, button = document.getElementById("theme");
  const isDark = () => root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  button.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; });
  // Paper shows what is folded too.
  addEventListener("beforeprint", () => document.querySelectorAll("details:not([open])").forEach(d => { d.open = true; d.dataset.shut = ""; }));
  addEventListener("afterprint", () => document.querySelectorAll("details[data-shut]").forEach(d => { d.open = false; delete d.dataset.shut; }));
}

theme();
tabs();
sorting();
plots();
saving();
document.documentElement.dataset.ready = "";
