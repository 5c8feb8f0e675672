// Elements, numbers as people write them, scales and their ticks.
"use strict";
const NS = "http://www.w3.org/2000/svg";
const COLOURS = 8, MARKS = ["circle", "square", "triangle", "diamond", "down", "plus", "cross"];
const DASHES = ["", "6 2.5", "1.5 2", "7 2 1.5 2"];

function make(name, attributes, parent, text) {
  const made = document.createElementNS(NS, name);
  for (const key in attributes) made.setAttribute(key, attributes[key]);
  if (text !== undefined) made.textContent = text;
  if (parent) parent.appendChild(made);
  return made;
}

function html(name, attributes, parent, text) {
  const made = document.createElement(name);
  for (const key in attributes) made.setAttribute(key, attributes[key]);
  if (text !== undefined) made.textContent = text;
  if (parent) parent.appendChild(made);
  return made;
}

// A look is a number: colours first, then other dashes and marks, as in the pictures; -1 is grey.
const colour = look => look < 0 ? "var(--faint)" : `var(--c${look % COLOURS})`;
const dash = look => look < 0 ? "" : DASHES[Math.floor(look / COLOURS) % DASHES.length];

function shape(look, x, y, r) {
  const kind = look < 0 ? "circle" : MARKS[look % MARKS.length];
  const path = points => "M" + points.map(([a, b]) => `${(x + a * r).toFixed(1)},${(y + b * r).toFixed(1)}`).join("L");
  switch (kind) {
    case "square": return path([[-.9, -.9], [.9, -.9], [.9, .9], [-.9, .9]]) + "Z";
    case "triangle": return path([[0, -1.2], [1.1, .8], [-1.1, .8]]) + "Z";
    case "diamond": return path([[0, -1.3], [1.1, 0], [0, 1.3], [-1.1, 0]]) + "Z";
    case "down": return path([[0, 1.2], [1.1, -.8], [-1.1, -.8]]) + "Z";
    case "plus": return path([[-.4, -1.2], [.4, -1.2], [.4, -.4], [1.2, -.4], [1.2, .4], [.4, .4], [.4, 1.2],
      [-.4, 1.2], [-.4, .4], [-1.2, .4], [-1.2, -.4], [-.4, -.4]]) + "Z";
    case "cross": return path([[-1.2, -.7], [-.7, -1.2], [0, -.5], [.7, -1.2], [1.2, -.7], [.5, 0], [1.2, .7],
      [.7, 1.2], [0, .5], [-.7, 1.2], [-1.2, .7], [-.5, 0]]) + "Z";
  }
  return `M${x - r},${y}a${r},${r} 0 1,0 ${2 * r},0a${r},${r} 0 1,0 ${-2 * r},0Z`;
}

function number(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  const size = Math.abs(value);
  if (size >= 1e6) return +(value / 1e6).toPrecision(3) + " M";
  if (size >= 1e4) return Math.round(value).toLocaleString("en-US");
  if (size >= 1000) return (+value.toPrecision(4)).toLocaleString("en-US");
  if (size > 0 && size < 1e-3) return value.toExponential(1);
  return String(+value.toPrecision(3));
}

// As many digits as it takes to tell ticks apart, three at least.
function telling(ticks) {
  if (new Set(ticks.map(number)).size === ticks.length) return number;
  const digits = [4, 5, 6, 7].find(n => new Set(ticks.map(t => t.toPrecision(n))).size === ticks.length) || 8;
  return value => String(+value.toPrecision(digits));
}

function linearTicks(low, high, count) {
  const raw = (high - low) / Math.max(1, count), power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].find(s => s * power >= raw * 0.999) * power;
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(+(i * step).toPrecision(12));
  return found;
}

function logTicks(low, high) {
  const decades = Math.log10(high / low);
  if (decades < 0.8) return linearTicks(low, high, 5);
  const steps = decades > 3.5 ? [1] : decades > 2 ? [1, 3] : [1, 2, 5];
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++)
    for (const step of steps) {
      const value = step * 10 ** power;
      if (value >= low * 0.999 && value <= high * 1.001) found.push(+value.toPrecision(6));
    }
  return found;
}

// From data to pixels. An axis: {label, log, min, max, cats, digits}.
function scale(axis, values, from, to) {
  if (axis.cats) {
    const count = axis.cats.length, at = i => from + (to - from) * (i + 0.5) / count;
    return {at, ticks: axis.cats.map((_, i) => i), text: i => axis.cats[i]};
  }
  const found = values.filter(v => v !== null && Number.isFinite(v) && (!axis.log || v > 0));
  let low = axis.min ?? Math.min(...found), high = axis.max ?? Math.max(...found);
  if (!found.length && axis.min === undefined) { low = 0; high = 1; }
  if (axis.log && low > 0) {
    if (high <= low) { low /= 1.2; high *= 1.2; }
    const room = axis.tight ? 1 : (high / low) ** 0.05, a = Math.log(low / room), b = Math.log(high * room);
    const ticks = logTicks(low / room, high * room);
    return {at: v => from + (to - from) * (Math.log(Math.max(v, low / room)) - a) / (b - a), ticks, text: telling(ticks)};
  }
  if (high <= low) { const half = Math.abs(low) * 0.1 || 1; low -= half; high += half; }
  const room = axis.tight ? 0 : (high - low) * 0.06;
  if (axis.min === undefined) low = low >= 0 && low - room < 0 ? 0 : low - room;
  if (axis.max === undefined) high += room;
  const ticks = linearTicks(low, high, Math.abs(to - from) / (from < to ? 80 : 42));
  return {at: v => from + (to - from) * (v - low) / (high - low), ticks, text: telling(ticks)};
}
