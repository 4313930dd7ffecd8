// Shows what the model is, how good it is and where it ends.

import { $, bar, make } from "./build.js";
import { limits, percent, whole } from "./words.js";

export function showCard(model) {
  $("about").hidden = false;
  $("facts").replaceChildren(
    make("div", { className: "tiles" }, ...[accuracyTile(model), surenessTile(model), limitsTile(model)].filter(Boolean), makeTile(model)),
    ...[byClass(model), wholeCard(model)].filter(Boolean),
  );
}

const tile = (title, ...children) => make("section", { className: "tile" }, make("h3", { textContent: title }), ...children);

/** The test side where there is one: [side, its metrics]. */
function measured(model) {
  const side = ["test", "validation"].find((name) => Number.isFinite(model.metrics?.[name]?.accuracy));
  return side ? [side, model.metrics[side]] : [null, null];
}

function accuracyTile(model) {
  const [side, metrics] = measured(model);
  if (!side) return tile("How good it is", make("p", { className: "soft", textContent: "No accuracy was measured." }));
  const parts = [make("p", { className: "big", textContent: percent(metrics.accuracy) })];
  const ends = metrics.intervals?.accuracy;
  const told = ends ? `${percent(ends[0])} to ${percent(ends[1])} with 95 % confidence, ` : "";
  parts.push(make("p", { className: "soft", textContent: `of photos named rightly: ${told}on ${metrics.num_images} ${side} photos that it did not learn from.` }));
  if (ends) parts.push(rangeBar(metrics.accuracy, ends));
  return tile("How good it is", ...parts);
}

/** Where between 0 and 1 the accuracy is, and how far it may be off. */
function rangeBar(value, [low, high]) {
  const range = make("i"), mark = make("b");
  range.style.left = `${100 * low}%`;
  range.style.width = `${100 * (high - low)}%`;
  mark.style.left = `${100 * value}%`;
  return make("div", { className: "range", "aria-hidden": "true" }, range, mark);
}

function surenessTile(model) {
  const text = model.threshold === null || model.threshold === undefined
    ? "It always names one class, also where it is in doubt."
    : `It names one class only where exactly one has a probability of at least ${percent(model.threshold)}. Elsewhere it says that it is not sure. The classes that it then lists hold the right one for ${whole(model.coverage)} of photos like those it was measured on.`;
  return tile("How sure it is", make("p", { textContent: text }),
    make("p", { className: "soft", textContent: "A picture of anything else gets the class that it resembles most." }));
}

function limitsTile(model) {
  const rows = limits(model.envelope);
  if (!rows.length) return null;
  return tile("Where it ends", make("p", { className: "soft", textContent: "Measured on photos within these limits. Beyond them nothing is known." }), list(rows));
}

function makeTile(model) {
  const rows = [
    ["Name", model.name],
    ["Version", model.version],
    ["Classes", String(model.classes.length)],
    ["Picture size", `${model.image_px} px`],
    ["Runs on", model.runtime],
  ];
  return tile("What it is", list(rows.filter(([, value]) => value)), make("p", { className: "soft classes", textContent: model.classes.join(" · ") }));
}

const list = (rows) => make("dl", {}, ...rows.map(([name, value]) => make("div", {}, make("dt", { textContent: name }), make("dd", { textContent: value }))));

function byClass(model) {
  const [side, metrics] = measured(model);
  const rows = Object.entries(metrics?.per_class ?? {});
  if (!rows.length) return null;
  rows.sort((a, b) => a[1].recall - b[1].recall);
  const head = ["Class", "Found", "Right when named", "Photos"].map((text) => make("th", { textContent: text, scope: "col" }));
  const body = rows.map(([label, values]) => make("tr", {},
    make("th", { textContent: label, scope: "row" }),
    make("td", {}, bar(values.recall), whole(values.recall)),
    make("td", {}, bar(values.precision), whole(values.precision)),
    make("td", { textContent: values.num_images })));
  return make("details", {}, make("summary", { textContent: "Class by class" }),
    make("p", { className: "soft", textContent: `On the ${side} photos, weakest first.` }),
    scroll("Class by class", make("table", {}, make("tr", {}, ...head), ...body)));
}

function wholeCard(model) {
  if (!model.card) return null;
  return make("details", {}, make("summary", { textContent: "The whole model card" }), make("div", { className: "card-text" }, ...markdown(model.card)));
}

/** The few things that a card uses: headings, tables, lists of two levels and paragraphs. */
function markdown(text) {
  const blocks = [];
  const last = (tag, wrapped) => {
    const block = blocks.at(-1);
    if (block?.dataset.tag === tag) return block.querySelector(tag);
    const made = make(tag), outer = wrapped ? scroll("Table", made) : make("div", {}, made);
    outer.dataset.tag = tag;
    blocks.push(outer);
    return made;
  };
  for (const line of text.replaceAll("`", "").split("\n")) {
    const item = /^( *)- (.*)/.exec(line), heading = /^#(#*) (.*)/.exec(line);
    if (heading) blocks.push(...(heading[1] ? [make("h4", { textContent: heading[2] })] : []));
    else if (item) last("ul").append(make("li", { className: item[1] && "sub", textContent: item[2] }));
    else if (line.startsWith("|")) last("table", true).append(...row(line.split("|").slice(1, -1)));
    else if (line.trim()) blocks.push(make("p", { textContent: line }));
  }
  return blocks;
}

function row(cells) {
  if (cells.every((cell) => /^[ :-]+$/.test(cell) && cell.includes("-"))) return [];
  return [make("tr", {}, ...cells.map((cell, index) => make(index ? "td" : "th", { textContent: cell.trim() })))];
}

const scroll = (name, table) => make("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": name }, table);
