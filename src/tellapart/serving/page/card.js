// Shows what the model is and how good it is, and the sections of its card.

import { $, bar, make } from "./build.js";
import { percent, whole } from "./words.js";

export function showCard(model) {
  $("about").hidden = false;
  const [first, ...rest] = sections(model.card ?? "");
  $("facts").replaceChildren(accuracy(model), what(model, first), ...rest.map(({ title, blocks }) => tile(title, ...blocks)));
  $("by-class").replaceChildren(...byClass(model));
}

const tile = (title, ...children) => make("section", { className: "tile" }, make("h3", { textContent: title }), ...children);
const soft = (textContent) => make("p", { className: "soft", textContent });

/** The test side where there is one: [side, its metrics]. */
function measured({ metrics }) {
  const side = ["test", "validation"].find((name) => Number.isFinite(metrics?.[name]?.accuracy));
  return side ? [side, metrics[side]] : [];
}

function accuracy(model) {
  const [side, metrics] = measured(model);
  if (!side) return tile("Accuracy", soft("None was measured."));
  const ends = metrics.intervals?.accuracy, range = ends ? `${percent(ends[0])} to ${percent(ends[1])} with 95 % confidence, ` : "";
  return tile("Accuracy", make("p", { className: "big", textContent: percent(metrics.accuracy) }),
    soft(`of photos classified correctly: ${range}on ${metrics.num_images} ${side} photos that it did not learn from.`));
}

function what(model, first) {
  const rows = [["Name", model.name], ["Version", model.version], ["Picture size", `${model.image_px} px`], ["Runs on", model.runtime]];
  const list = rows.map(([name, value]) => make("div", {}, make("dt", { textContent: name }), make("dd", { textContent: value ?? "–" })));
  const about = make("div", { className: "classes", tabIndex: 0, role: "region", "aria-label": "Classes" }, ...(first?.blocks ?? [model.classes.join(", ")]));
  return tile("What it is", make("dl", {}, ...list), about);
}

function byClass(model) {
  const [side, metrics] = measured(model), rows = Object.entries(metrics?.per_class ?? {});
  if (!rows.length) return [];
  rows.sort((a, b) => a[1].recall - b[1].recall);
  const head = ["Class", "Found", "Right when named", "Photos"].map((textContent) => make("th", { textContent, scope: "col" }));
  const share = (value) => make("td", {}, bar(value), whole(value));
  const body = rows.map(([label, { recall, precision, num_images: photos }]) => make("tr", {},
    make("th", { textContent: label, scope: "row" }), share(recall), share(precision), make("td", { textContent: photos })));
  return [make("summary", { textContent: "Class by class" }), soft(`On the ${side} photos, weakest first.`),
    scroll(make("table", { "aria-label": "Class by class" }, make("tr", {}, ...head), ...body))];
}

const scroll = (table) => make("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": "Table" }, table);

/** Read the few things that a card uses: headings, tables, lists of two levels and paragraphs. [{title, blocks}]. */
function sections(text) {
  const all = [];
  for (const line of text.replaceAll("`", "").split("\n")) {
    const heading = /^#+ (.*)/.exec(line), item = /^( *)- (.*)/.exec(line), blocks = all.at(-1)?.blocks, last = blocks?.at(-1);
    if (heading) all.push({ title: heading[1], blocks: [] });
    else if (!blocks || !line.trim()) continue;
    else if (item) {
      const list = last?.tagName === "UL" ? last : blocks[blocks.push(make("ul")) - 1];
      list.append(make("li", { className: item[1] && "sub", textContent: item[2] }));
    } else if (line.startsWith("|")) {
      const place = last?.className === "scroll" ? last : blocks[blocks.push(scroll(make("table"))) - 1];
      place.firstChild.append(...row(line.split("|").slice(1, -1)));
    } else blocks.push(make("p", { textContent: line }));
  }
  return all;
}

function row(cells) {
  if (cells.every((cell) => /^:?-+:?$/.test(cell.trim()))) return [];
  return [make("tr", {}, ...cells.map((cell, index) => make(index ? "td" : "th", { textContent: cell.trim() })))];
}
