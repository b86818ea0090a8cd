"use strict";
const DATA = JSON.parse(document.getElementById("data").textContent);
const tip = document.getElementById("tip");
const said = document.getElementById("said");
const maps = [...document.querySelectorAll("svg[data-view]")];
const rows = Object.keys(DATA.spots).map(Number);
let shown = null;

const tiny = (v) => (v === 0 ? "0" : Math.abs(v) >= 0.001 && Math.abs(v) < 1000 ? String(+v.toPrecision(3)) : v.toExponential(1));
const name = (row) => DATA.names[row] || "token " + row;
const place = (values, row) => 1 + values.reduce((n, v) => n + (v !== null && v > values[row]), 0);
const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

function describe(view, row) {
  const v = DATA.views[view], scores = DATA.cases[v.case], role = v.role[row];
  const rank = v.order[row], lines = [];
  const mine = rows.filter((r) => v.role[r] === role && v.order[r] !== undefined);
  const step = 1 + mine.reduce((n, r) => n + (v.order[r] < rank), 0);
  const what = {
    f: `Focus, ${step} of ${mine.length}`, s: `Scan, step ${step} of ${mine.length}`, m: `Kept, made of others (${step} of ${mine.length})`,
    w: "Kept: nothing was pruned", a: "Absorbed by " + name(v.into[row]), d: "Dropped",
  }[role];
  for (const [title, values] of [["saliency", scores.saliency], ["relevance", scores.relevance], ["priority", v.priority]])
    if (values && values[row] !== null) lines.push([title, `${tiny(values[row])} · rank ${place(values, row)}`]);
  if (v.nearest && role !== "w" && rank === undefined)
    lines.push(["nearest kept", `${name(v.nearest[row])} · cos ${v.likeness[row].toFixed(2)}`]);
  const eaten = Object.keys(v.into).filter((r) => v.into[r] === row).map(Number);
  if (eaten.length) lines.push(["absorbed", eaten.length > 4 ? `${eaten.length} tokens` : eaten.map(name).join("; ")]);
  return { title: `${capital(name(row))} · token ${row}`, what: `${v.name}, K = ${v.keep}: ${what}`, lines };
}

function show(svg, row, aloud) {
  const view = Number(svg.dataset.view), told = describe(view, row), s = DATA.spots[row];
  shown = { svg, row };
  tip.replaceChildren();
  const add = (parent, kind, text, cls) => {
    const e = document.createElement(kind);
    e.textContent = text;
    if (cls) e.className = cls;
    parent.append(e);
    return e;
  };
  add(tip, "strong", told.title);
  add(tip, "div", told.what, "what");
  const list = add(tip, "dl", "");
  for (const [t, d] of told.lines) { add(list, "dt", t); add(list, "dd", d); }
  tip.classList.add("on");
  for (const m of maps) {
    const c = m.querySelector(".cursor");
    for (const [k, value] of [["x", s[0]], ["y", s[1]], ["width", s[2]], ["height", s[3]]]) c.setAttribute(k, value);
    c.classList.add("on");
  }
  const box = svg.querySelector(".cursor").getBoundingClientRect(), size = tip.getBoundingClientRect();
  let x = box.right + 12, y = box.top;
  if (x + size.width > innerWidth - 8) x = box.left - size.width - 12;
  if (x < 8) { x = Math.max(8, Math.min(box.left, innerWidth - size.width - 8)); y = box.bottom + 10; }
  if (y + size.height > innerHeight - 8) y = Math.max(8, (x > box.right || x + size.width < box.left ? innerHeight - 8 : box.top - 10) - size.height);
  tip.style.transform = `translate(${Math.round(x)}px, ${Math.round(y)}px)`;
  if (aloud) said.textContent = [told.title, told.what, ...told.lines.map((l) => l.join(" "))].join(". ");
}

function hide() {
  shown = null;
  tip.classList.remove("on");
  for (const m of maps) m.querySelector(".cursor").classList.remove("on");
}

function under(svg, event) {
  const p = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
  return rows.find((r) => { const [x, y, w, h] = DATA.spots[r]; return p.x >= x && p.x < x + w && p.y >= y && p.y < y + h; });
}

function neighbour(row, dx, dy) {
  const [x, y, w, h] = DATA.spots[row], cx = x + w / 2, cy = y + h / 2;
  let best = row, least = Infinity;
  for (const r of rows) {
    const [a, b, c, d] = DATA.spots[r], along = (a + c / 2 - cx) * dx + (b + d / 2 - cy) * dy, across = Math.abs((a + c / 2 - cx) * dy) + Math.abs((b + d / 2 - cy) * dx);
    if (along > 0.5 && along + 4 * across < least) { least = along + 4 * across; best = r; }
  }
  return best;
}

const first = (svg) => {
  const v = DATA.views[svg.dataset.view];
  return rows.find((r) => v.order[r] === 0) ?? rows[0];
};
for (const svg of maps) {
  const point = (e) => { const r = under(svg, e); r === undefined ? hide() : show(svg, r, false); };
  svg.addEventListener("pointermove", point);
  svg.addEventListener("pointerdown", point);
  svg.addEventListener("pointerleave", (e) => { if (e.pointerType !== "touch") hide(); });
  svg.addEventListener("focus", () => { if (svg.matches(":focus-visible")) show(svg, shown ? shown.row : first(svg), true); });
  svg.addEventListener("blur", hide);
  svg.addEventListener("keydown", (e) => {
    const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[e.key];
    if (e.key === "Escape") hide();
    if (!move) return;
    e.preventDefault();
    show(svg, shown ? neighbour(shown.row, ...move) : first(svg), true);
  });
}
addEventListener("scroll", () => {
  if (shown) document.activeElement === shown.svg ? show(shown.svg, shown.row, false) : hide();
}, { passive: true });
document.addEventListener("pointerdown", (e) => { if (!e.target.closest("svg[data-view]")) hide(); });

function choose(value) {
  for (const p of document.querySelectorAll(".panel")) p.hidden = p.dataset.for !== value;
  for (const m of document.querySelectorAll("svg[data-follow]")) m.dataset.view = value;
}
for (const input of document.querySelectorAll("input[name=budget]")) {
  input.addEventListener("change", () => choose(input.value));
  if (input.checked) choose(input.value);
}
