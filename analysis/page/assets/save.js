// A plot as a file of its own: what the page shows of it, laid out as it stands, as an SVG without classes, variables or
// references, light whatever the page is; or that SVG drawn into a PNG.
"use strict";
const FONT = "Helvetica, Arial, sans-serif", PNG_ZOOM = 3;
const KEPT = {fill: "black", stroke: "none", "stroke-width": "1px", "stroke-dasharray": "none", "stroke-linejoin": "miter",
  opacity: "1", "text-anchor": "start", "font-size": "", "font-weight": "400"};

function saving() {
  for (const holder of document.querySelectorAll("figure.plot, table.forest")) {
    const bar = document.createElement("div");
    bar.className = "save";
    // Beside what scrolls, not in it.
    const after = holder.matches("table") ? holder.parentNode : holder;
    after.parentNode.insertBefore(bar, after);
    for (const kind of ["SVG", "PNG"]) {
      const button = html("button", {type: "button", title: `save this plot as ${kind}`, "aria-label": `save ${holder.dataset.name} as ${kind}`}, bar, kind);
      button.addEventListener("click", async () => {
        const text = asSvg(holder);
        download(kind === "SVG" ? new Blob([text], {type: "image/svg+xml"}) : await asPng(text), `${fileName(holder)}.${kind.toLowerCase()}`);
      });
    }
  }
}

function fileName(holder) {
  const title = document.querySelector("h1").textContent;
  return `${title}-${holder.dataset.name}`.replace(/[^\w.-]+/g, "_").slice(0, 120);
}

function download(blob, name) {
  const link = html("a", {href: URL.createObjectURL(blob), download: name}, document.body);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

function asSvg(holder) {
  const root = document.documentElement, theme = root.dataset.theme;
  root.dataset.theme = "light";
  try {
    const box = holder.getBoundingClientRect(), above = holder.querySelector(".choose, .chooser");
    const frame = {left: box.left, top: above ? above.getBoundingClientRect().bottom : box.top};
    const width = Math.ceil(box.width), height = Math.ceil(box.bottom - frame.top);
    const svg = make("svg", {xmlns: NS, viewBox: `0 0 ${width} ${height}`, width, height, "font-family": FONT});
    make("title", {}, svg, fileName(holder));
    make("rect", {width, height, fill: "#ffffff"}, svg);
    place(holder, svg, frame);
    return `<?xml version="1.0" encoding="UTF-8"?>\n${new XMLSerializer().serializeToString(svg)}\n`;
  } finally {
    theme === undefined ? delete root.dataset.theme : root.dataset.theme = theme;
  }
}

function place(node, svg, frame) {
  if (node.nodeType === Node.TEXT_NODE) return words(node, svg, frame);
  if (node.nodeType !== Node.ELEMENT_NODE || node.matches("script, .save, .choose, .chooser") || !node.getClientRects().length) return;
  if (getComputedStyle(node).visibility === "hidden") return;
  if (node instanceof SVGSVGElement) return picture(node, svg, frame);
  if (node.matches("thead")) {
    const box = node.getBoundingClientRect(), y = (box.bottom - frame.top).toFixed(1);
    make("line", {x1: 0, x2: box.width.toFixed(1), y1: y, y2: y, stroke: "#9aa0a6"}, svg);
  }
  for (const child of node.childNodes) place(child, svg, frame);
}

// An inner picture becomes a group; shares of its width become places.
function picture(inner, svg, frame) {
  const box = inner.getBoundingClientRect(), view = inner.viewBox.baseVal;
  const zoom = view && view.width ? box.width / view.width : 1;
  const group = make("g", {transform: `translate(${(box.left - frame.left).toFixed(2)},${(box.top - frame.top).toFixed(2)})`
    + (Math.abs(zoom - 1) > 1e-3 ? ` scale(${zoom.toFixed(4)})` : "")}, svg);
  const copy = (from, to) => {
    for (const child of from.children) {
      const style = getComputedStyle(child);
      if (style.visibility === "hidden" || style.display === "none") continue;
      const made = make(child.localName, {}, to);
      for (const {name, value} of child.attributes) {
        if (name === "class" || name === "style" || name.startsWith("aria-")) continue;
        made.setAttribute(name, value.endsWith("%") ? (parseFloat(value) * box.width / 100).toFixed(2) : value);
      }
      for (const [key, usual] of Object.entries(KEPT)) {
        if (child.localName === "g" || child.localName === "title") break;
        if (!key.startsWith("font") && key !== "text-anchor" || child.localName === "text") {
          let value = style.getPropertyValue(key);
          if (key === "fill" || key === "stroke") value = plain(value);
          if (value === usual) made.removeAttribute(key); else made.setAttribute(key, value);
        }
      }
      if (!child.children.length) made.textContent = child.textContent;
      else if (child.localName === "text") made.textContent = child.firstChild.textContent;
      else copy(child, made);
    }
  };
  copy(inner, group);
}

// Words of the page, line by line, where they stand.
function words(node, svg, frame) {
  const text = node.textContent, style = getComputedStyle(node.parentElement);
  if (!text.trim() || style.visibility === "hidden") return;
  const range = document.createRange(), lines = [];
  for (let i = 0; i < text.length; i++) {
    range.setStart(node, i); range.setEnd(node, i + 1);
    const box = range.getBoundingClientRect();
    if (!box.width && !box.height) continue;
    const last = lines[lines.length - 1];
    if (last && Math.abs(last.top - box.top) < 3) { last.text += text[i]; last.right = box.right; }
    else lines.push({text: text[i], left: box.left, right: box.right, top: box.top, bottom: box.bottom});
  }
  for (const line of lines) if (line.text.trim()) {
    // Another machine's font is as wide as this one's: figures stay in their columns.
    const is_right = style.textAlign === "right" || style.textAlign === "end";
    const x = is_right ? line.right : line.left, size = parseFloat(style.fontSize);
    const made = make("text", {x: (x - frame.left).toFixed(1), y: ((line.top + line.bottom) / 2 - frame.top + 0.35 * size).toFixed(1),
      "font-size": style.fontSize, fill: plain(style.color)}, svg, line.text.trim());
    if (is_right) made.setAttribute("text-anchor", "end");
    if (+style.fontWeight > 450) made.setAttribute("font-weight", "600");
  }
}

// As any program that knows SVG 1.1 reads it, whatever way of naming colours a browser has.
const known = new Map();
function plain(value) {
  if (value === "none" || value === "transparent") return "none";
  if (!known.has(value)) {
    const brush = Object.assign(document.createElement("canvas"), {width: 1, height: 1}).getContext("2d");
    brush.fillStyle = value;
    brush.fillRect(0, 0, 1, 1);
    known.set(value, "#" + [...brush.getImageData(0, 0, 1, 1).data].slice(0, 3).map(v => v.toString(16).padStart(2, "0")).join(""));
  }
  return known.get(value);
}

async function asPng(text) {
  const image = new Image();
  await new Promise((done, failed) => {
    image.onload = done;
    image.onerror = () => failed(new Error("this browser cannot draw the SVG"));
    // Not a blob's address: the page's own rules let pictures come from data alone.
    image.src = "data:image/svg+xml;charset=utf-8," + encodeURIComponent(text);
  });
  const canvas = Object.assign(document.createElement("canvas"), {width: PNG_ZOOM * image.width, height: PNG_ZOOM * image.height});
  const brush = canvas.getContext("2d");
  brush.drawImage(image, 0, 0, canvas.width, canvas.height);
  return new Promise(done => canvas.toBlob(done, "image/png"));
}
