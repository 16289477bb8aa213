// Draws the page from its data (agents/runs/report/data.py says what is in them); on a live page asks for newer ones.
// Texts of the run become text nodes and nothing else: nothing here writes HTML.
"use strict";
(() => {
const at = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const POLL = 1000; // milliseconds between two questions of a live page
const DASHES = ["", "7 4", "2 3", "9 3 2 3", "12 5", "4 2"]; // of the runs
const MISSING = "–";

/** An element with attributes and children; a child that is no element becomes text. */
function make(tag, attributes = {}, ...children) {
  const svg = ["svg", "path", "line", "text", "circle", "g"].includes(tag);
  const node = svg ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children.filter((child) => child !== null));
  return node;
}

/** A number for people: 4 digits, large ones in full. */
function shown(value) {
  if (value === null || value === undefined) return MISSING;
  if (typeof value !== "number") return String(value);
  if (Number.isInteger(value) || Math.abs(value) >= 10000) return Math.round(value).toLocaleString("en").replace("-", "−");
  const text = value !== 0 && Math.abs(value) < 1e-3 ? value.toExponential(1) : Number(value.toPrecision(4)).toString();
  return text.replaceAll("-", "−");
}

/** A tick: 20000 as 20k. */
function short(value) {
  const [unit, size] = Math.abs(value) >= 1e6 ? ["M", 1e6] : Math.abs(value) >= 1e4 ? ["k", 1e3] : ["", 1];
  return Number((value / size).toPrecision(6)).toString().replace("-", "−") + unit;
}

/** Round numbers from low to high, three to six of them. */
function ticks(low, high) {
  const raw = (high - low) / 6, power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 5, 10].find((times) => times * power >= raw * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(i * step);
  return found;
}

// A line that is `alone` is left out where runs stand beside each other.
const PANELS = [
  { title: "Score", lines: [
    { column: "rollout/rm_score", label: "reward model", spread: "rollout/rm_score_std" },
    { column: "rollout/gold_score", label: "gold", dashed: true, alone: true },
    { column: "eval/rm_score", label: "held-out prompts", dots: true, alone: true } ] },
  { title: "Gold score, which nobody trains on", beside: true, lines: [{ column: "rollout/gold_score", label: "" }] },
  { title: "KL to the reference, nats per response", lines: [
    { column: "rollout/kl", label: "rollouts" },
    { column: "eval/kl", label: "held-out prompts", dots: true, alone: true } ] },
  { title: "Entropy of the policy, nats per token", lines: [{ column: "train/entropy_loss", label: "", sign: -1 }] },
  { title: "Response length, tokens", lines: [{ column: "rollout/response_length", label: "" }] },
  { title: "Turns of an episode", lines: [{ column: "rollout/turns", label: "" }] },
];
const NUMBERS = [
  ["rollout/rm_score", "score of the rollouts"], ["rollout/gold_score", "gold score, which nobody trains on"],
  ["rollout/kl", "KL to the reference, nats per response"], ["rollout/response_length", "tokens of a response"],
  ["rollout/eos_rate", "ended by themselves, share"], ["rollout/turns", "turns of an episode"],
  ["eval/rm_score", "score on held-out prompts"], ["eval/gold_score", "gold score on held-out prompts"],
  ["eval/kl", "KL on held-out prompts, nats per response"], ["train/alarms", "alarms"],
  ["rollout/tokens", "tokens generated"], ["time/tokens_per_second", "tokens per second"],
];
const COLORS = {
  kl: { label: "KL", unit: "nats", about: "log π − log π_ref. Orange: the policy likes the token more than the reference; blue: less." },
  advantage: { label: "advantage", unit: "score", about: "Orange: better than the critic expected; blue: worse." },
  value: { label: "value", unit: "score", about: "What the critic expects before the token. Orange: above 0; blue: below." },
};

let data = null, version = "";
const isBeside = () => data.runs.length > 1;
/** The column of a run as numbers; null where it has none. */
const column = (run, name) => (run.columns[name] || []).some((v) => v !== null) ? run.columns[name] : null;
const xs = (run) => column(run, "rollout/tokens") || column(run, "time/total_timesteps") || [];

// ---- curves

/** The lines of a panel: points (x, y), of every run. */
function linesOf(panel) {
  const found = [];
  data.runs.forEach((run, number) => {
    panel.lines.forEach((line, place) => {
      const values = column(run, line.column);
      if (values === null || (isBeside() && line.alone)) return;
      const spread = !isBeside() && line.spread ? column(run, line.spread) : null;
      const points = [];
      xs(run).forEach((x, i) => {
        if (x === null || values[i] === null) return;
        points.push({ x, y: (line.sign || 1) * values[i], half: spread ? spread[i] || 0 : 0 });
      });
      const color = isBeside() ? number : place;
      const dash = line.dashed ? "5 4" : isBeside() ? DASHES[number] : "";
      const label = isBeside() ? run.name : line.label;
      found.push({ points, label, color, dash, dots: line.dots || points.length === 1, band: spread !== null, thin: line.dashed });
    });
  });
  return found;
}

/** Line and dot as in a chart, for its key. */
function swatch(line) {
  const mark = line.dots
    ? make("circle", { cx: 13, cy: 5, r: 3.5, class: `f${line.color}` })
    : make("path", { d: "M0 5H26", class: `line s${line.color}`, "stroke-dasharray": line.dash });
  return make("svg", { class: "swatch", viewBox: "0 0 26 10", "aria-hidden": "true" }, mark);
}

/** A panel as a figure with axes, and the numbers under the pointer; null where no run has its columns. */
function chart(panel) {
  const lines = linesOf(panel);
  const points = lines.flatMap((line) => line.points);
  if (!points.length) return null;
  const W = 460, H = 250, left = 52, right = 14, top = 10, bottom = 40;
  const bounds = (values) => {
    const low = Math.min(...values), high = Math.max(...values);
    const pad = high > low ? 0 : Math.max(Math.abs(high) * 0.1, 0.5);
    return [low - pad, high + pad];
  };
  const [x0, x1] = bounds(points.map((p) => p.x));
  const [y0, y1] = bounds(points.flatMap((p) => [p.y - p.half, p.y + p.half]));
  const X = (x) => left + (W - left - right) * (x - x0) / (x1 - x0);
  const Y = (y) => H - bottom - (H - bottom - top) * (y - y0) / (y1 - y0);
  const svg = make("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": panel.title });
  for (const y of ticks(y0, y1)) {
    svg.append(make("line", { x1: left, x2: W - right, y1: Y(y), y2: Y(y), class: "grid" }),
      make("text", { x: left - 6, y: Y(y) + 4, "text-anchor": "end", class: "tick" }, short(y)));
  }
  svg.append(make("line", { x1: left, x2: W - right, y1: H - bottom, y2: H - bottom, class: "axis" }));
  for (const x of ticks(x0, x1)) {
    svg.append(make("line", { x1: X(x), x2: X(x), y1: H - bottom, y2: H - bottom + 4, class: "grid" }),
      make("text", { x: Math.min(X(x), W - 16), y: H - bottom + 16, "text-anchor": "middle", class: "tick" }, short(x)));
  }
  svg.append(make("text", { x: (left + W - right) / 2, y: H - 6, "text-anchor": "middle", class: "tick" }, "tokens generated"));
  const path = (list, y) => list.map((p) => `${X(p.x).toFixed(1)} ${Y(y(p)).toFixed(1)}`).join("L");
  for (const line of lines) {
    if (line.band) {
      const back = [...line.points].reverse();
      const d = `M${path(line.points, (p) => p.y + p.half)}L${path(back, (p) => p.y - p.half)}Z`;
      svg.append(make("path", { d, class: `band f${line.color}` }));
    }
    if (line.dots) {
      for (const p of line.points) svg.append(make("circle", { cx: X(p.x), cy: Y(p.y), r: 3, class: `f${line.color}` }));
    } else {
      const d = `M${path(line.points, (p) => p.y)}`;
      svg.append(make("path", { d, class: `line s${line.color}${line.thin ? " thin" : ""}`, "stroke-dasharray": line.dash }));
    }
  }
  const cursor = make("line", { y1: top, y2: H - bottom, class: "cursor", visibility: "hidden" });
  const read = make("div", { class: "read" }, " ");
  svg.append(cursor);
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const x = x0 + (x1 - x0) * ((event.clientX - box.left) / box.width * W - left) / (W - left - right);
    const near = lines.filter((line) => line.points.length).map((line) => ({ line, p: line.points.reduce((a, b) =>
      Math.abs(b.x - x) < Math.abs(a.x - x) ? b : a) }));
    const place = near.reduce((a, b) => Math.abs(b.p.x - x) < Math.abs(a.p.x - x) ? b : a).p.x;
    for (const name of ["x1", "x2"]) cursor.setAttribute(name, X(place));
    cursor.setAttribute("visibility", "visible");
    read.textContent = `${shown(place)} tokens: ` + near.map(({ line, p }) => `${line.label} ${shown(p.y)}`.trim()).join(" · ");
  });
  const key = lines.filter((line) => line.label).map((line) => make("span", {}, swatch(line), line.label));
  return make("figure", {}, make("figcaption", {}, panel.title), make("div", { class: "key" }, ...key), svg, read);
}

function drawCurves() {
  const parts = [...new Set(data.runs.flatMap((run) => Object.keys(run.columns)))].filter((c) => c.startsWith("rollout/reward/"));
  const panels = PANELS.filter((panel) => isBeside() || !panel.beside);
  if (parts.length && !isBeside()) {
    const lines = parts.map((c) => ({ column: c, label: c.slice("rollout/reward/".length) }));
    panels.push({ title: "Score of each reward model", lines: lines.slice(0, 6) });
  }
  at("charts").replaceChildren(...panels.map(chart).filter(Boolean));
  const names = [...new Set(data.runs.flatMap((run) => Object.keys(run.columns).filter((c) => column(run, c))))].sort();
  options(at("column"), names.map((name) => [name, name]), "train/approx_kl");
  drawOther();
  at("curves-section").hidden = !names.length;
}

function drawOther() {
  const figure = at("column").value ? chart({ title: at("column").value, lines: [{ column: at("column").value, label: "" }] }) : null;
  at("other").replaceChildren(...(figure ? [figure] : []));
}

/** Gives a select its options, [value, text]; what was chosen stays, where it is still there. */
function options(select, pairs, first) {
  const chosen = select.value || first;
  select.replaceChildren(...pairs.map(([value, text]) => make("option", { value }, text)));
  if (pairs.some(([value]) => value === chosen)) select.value = chosen;
}

// ---- tables

function table(head, rows, numbers) {
  const kind = (i) => i === 0 ? {} : { class: numbers ? "n" : "value" };
  const row = (tag, cells) => make("tr", {}, ...cells.map((cell, i) => make(tag, kind(i), cell)));
  return make("table", {}, make("thead", {}, row("th", head)), make("tbody", {}, ...rows.map((cells) => row("td", cells))));
}

/** A column's first or last number that is there. */
function end(run, name, last) {
  const values = (column(run, name) || []).filter((v) => v !== null);
  return values.length ? values[last ? values.length - 1 : 0] : null;
}

function drawNumbers() {
  const there = NUMBERS.filter(([name]) => data.runs.some((run) => column(run, name)));
  const rows = there.map(([name, label]) => isBeside()
    ? [label, ...data.runs.map((run) => shown(end(run, name, true)))]
    : [label, shown(end(data.runs[0], name, false)), shown(end(data.runs[0], name, true))]);
  const head = isBeside() ? ["last", ...data.runs.map((run) => run.name)] : ["", "first", "last"];
  at("numbers").replaceChildren(table(head, rows, true));
  at("numbers-section").hidden = !rows.length;
}

function drawSettings() {
  const text = (value) => value === undefined || value === null ? MISSING : typeof value === "string" ? value : JSON.stringify(value);
  const names = [...new Set(data.runs.flatMap((run) => Object.keys(run.settings)))].sort();
  const rows = (chosen) => chosen.map((name) => [name, ...data.runs.map((run) => text(run.settings[name]))]);
  const head = ["setting", ...(isBeside() ? data.runs.map((run) => run.name) : ["value"])];
  const differ = isBeside()
    ? names.filter((name) => new Set(data.runs.map((run) => text(run.settings[name]))).size > 1)
    : data.runs[0].changed;
  const about = isBeside() ? "Settings that differ:" : "Settings that differ from the defaults:";
  const none = isBeside() ? "All settings are the same." : "All settings are the defaults.";
  const open = at("all-settings") ? at("all-settings").open : false;
  const all = make("details", { id: "all-settings" }, make("summary", {}, "All settings"), table(head, rows(names), false));
  all.open = open;
  at("settings").replaceChildren(make("p", {}, differ.length ? about : none), ...(differ.length ? [table(head, rows(differ), false)] : []), all);
}

// ---- samples

/** All moments at which some run has samples, in timesteps. */
const times = () => [...new Set(data.runs.flatMap((run) => run.samples.map((s) => s.timestep)))].sort((a, b) => a - b);

/** A run's samples at a moment: the latest until then, or its first. */
function samplesAt(run, time) {
  const until = run.samples.filter((s) => s.timestep <= time);
  return until.length ? until[until.length - 1] : run.samples[0];
}

/** Samples by prompt and columns: [key, record]; the second of the same prompt is another. */
function keyed(samples) {
  const seen = new Map();
  return (samples ? samples.records : []).map((record) => {
    const own = JSON.stringify([record.prompt, record.columns || null]), count = seen.get(own) || 0;
    seen.set(own, count + 1);
    return [`${count} ${own}`, record];
  });
}

/** The number at which a color is strongest: all but one in twenty tokens are below. The same for all iterations and runs. */
function scaleOf(name) {
  const all = data.runs.flatMap((run) => run.samples.flatMap((s) => s.records.flatMap((r) =>
    ((r.tokens || {})[name] || []).filter((v) => v !== null).map(Math.abs)))).sort((a, b) => a - b);
  const found = all.length ? all[Math.floor(0.95 * (all.length - 1))] : 0;
  return found > 0 ? Number(found.toPrecision(2)) : 1;
}

function background(value, scale) {
  const strength = Math.min(Math.abs(value) / scale, 1) * 0.75;
  return `rgba(var(--${value < 0 ? "below" : "above"}), ${strength.toFixed(3)})`;
}

/** The response in pieces, each token on its color; what a world wrote stands in italics, without one. */
function response(record, color, scale) {
  const tokens = record.tokens;
  if (!tokens) return make("div", { class: "response" }, record.response);
  const world = new Set(tokens.world || []);
  const pieces = tokens.text.map((text, i) => {
    if (world.has(i)) return make("span", { class: "world", title: "written by the world" }, text);
    const node = make("span", { class: text === "■" ? "token end" : "token" }, text);
    const known = Object.keys(COLORS).filter((name) => tokens[name] && tokens[name][i] !== null);
    node.title = known.map((name) => `${COLORS[name].label} ${shown(tokens[name][i])} ${COLORS[name].unit}`).join("\n");
    if (known.includes(color)) node.style.background = background(tokens[color][i], scale);
    return node;
  });
  return make("div", { class: "response" }, ...pieces);
}

function side(title, record, color, scale) {
  const head = title ? make("h3", {}, title) : null;
  if (!record) return make("div", { class: "side" }, head, make("div", { class: "foot" }, "No sample of this prompt."));
  const turns = record.turns ? `, ${record.turns.length} turns (${record.end})` : "";
  const kl = record.kl === null || record.kl === undefined ? "" : `, KL ${shown(record.kl)} nats`;
  return make("div", { class: "side" }, head, response(record, color, scale),
    make("div", { class: "foot" }, `score ${shown(record.rm_score)}${kl}${turns}`));
}

function drawLegend(color, scale) {
  const hasWorld = data.runs.some((run) => run.samples.some((s) => s.records.some((r) => r.tokens && r.tokens.world)));
  const world = hasWorld ? make("p", {}, make("span", { class: "world" }, "In italics"), ": what the world wrote, which nobody is trained on.") : null;
  const nodes = [];
  if (COLORS[color]) {
    const bar = make("div", { class: "scale" }, ...[-1, -0.5, 0, 0.5, 1].map((share) => {
      const node = make("span", {}, shown(share * scale));
      node.style.background = background(share * scale, scale);
      return node;
    }));
    const unit = COLORS[color].unit;
    nodes.push(`${COLORS[color].about} In ${unit}; full color at ±${shown(scale)}, which 95 % of the tokens are within.`, bar);
  }
  if (world) nodes.push(world);
  at("legend").replaceChildren(...nodes);
}

function drawSamples() {
  const moments = times(), has = (name) => data.runs.some((run) => run.samples.some((s) => s.records.some((r) => (r.tokens || {})[name])));
  at("samples-section").hidden = !moments.length;
  if (!moments.length) return;
  const slider = at("time"), follows = slider.value === slider.max;
  slider.max = moments.length - 1;
  if (follows) slider.value = slider.max; // who looks at the newest goes on to do so
  options(at("color"), [...Object.keys(COLORS).filter(has).map((name) => [name, COLORS[name].label]), ["none", "none"]], "kl");
  at("first-label").hidden = isBeside() || moments.length < 2;
  showSamples();
}

function showSamples() {
  const moments = times(), time = moments[Number(at("time").value)], color = at("color").value;
  const scale = COLORS[color] ? scaleOf(color) : 1;
  const chosen = data.runs.map((run) => samplesAt(run, time));
  const place = isBeside() ? `timestep ${shown(time)}` : `iteration ${shown(chosen[0].iteration)}, timestep ${shown(time)}`;
  at("time-text").textContent = place + (chosen.every((s) => s && s.timestep === 0) ? ", before training" : "");
  drawLegend(color, scale);
  const columns = chosen.map((samples, i) => [isBeside() ? `${data.runs[i].name}, timestep ${samples ? shown(samples.timestep) : MISSING}` : "", new Map(keyed(samples))]);
  if (!isBeside() && at("first").checked) {
    columns.unshift([`timestep ${shown(data.runs[0].samples[0].timestep)}`, new Map(keyed(data.runs[0].samples[0]))]);
    columns[1][0] = `timestep ${shown(time)}`;
  }
  at("samples").className = columns.length > 1 ? "" : "alone";
  const keys = [...new Set(columns.flatMap(([, records]) => [...records.keys()]))];
  at("samples").replaceChildren(...keys.map((key) => {
    const record = columns.map(([, records]) => records.get(key)).find(Boolean);
    const sides = columns.map(([title, records]) => side(title, records.get(key), color, scale));
    return make("div", { class: "sample" }, make("div", { class: "prompt" }, record.prompt), make("div", { class: "sides" }, ...sides));
  }));
}

// ---- the page

function drawStatus() {
  const of = (run) => {
    const done = run.total ? `${shown(run.timestep)} of ${shown(run.total)} timesteps` : `${shown(run.timestep)} timesteps`;
    const words = { empty: "no iteration has ended yet", unfinished: `not at its end: ${done}`, stopped: `ended by an alarm: ${done}`, ended: `at its end: ${done}` };
    return `${run.algo}, ${words[run.state]}, ${shown(run.iterations)} iterations`;
  };
  at("title").textContent = data.runs.map((run) => run.name).join(" · ");
  const age = data.live && data.live.age !== null ? Math.max(0, Math.round(data.live.age + (Date.now() - data.received) / 1000)) : null;
  const live = age === null ? "" : data.lost ? " The server has ended: this is the last state." : ` Last change ${age} s ago.`;
  at("status").textContent = data.runs.map((run) => (isBeside() ? `${run.name}: ` : "") + of(run)).join("; ") + "." + live;
  at("notes").replaceChildren(...data.runs.flatMap((run) => run.notes.map((note) => make("li", {}, isBeside() ? `${run.name}: ${note}` : note))));
}

function draw() {
  for (const step of [drawStatus, drawNumbers, drawCurves, drawSamples, drawSettings]) step();
}

async function poll() {
  try {
    const answer = await fetch(`data.json?seen=${encodeURIComponent(version)}`);
    if (answer.status === 200) {
      data = { ...await answer.json(), received: Date.now() };
      version = data.live.version;
      draw();
    } else if (answer.status !== 204) throw new Error(`status ${answer.status}`);
    data.lost = false;
  } catch (error) {
    data.lost = true;
  }
  drawStatus();
  setTimeout(poll, POLL);
}

data = { ...JSON.parse(at("data").textContent), received: Date.now() };
at("time").addEventListener("input", showSamples);
at("color").addEventListener("change", showSamples);
at("first").addEventListener("change", showSamples);
at("column").addEventListener("change", drawOther);
draw();
if (data.live) {
  version = data.live.version;
  setTimeout(poll, POLL);
}
})();
