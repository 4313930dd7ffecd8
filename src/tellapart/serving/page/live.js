// Small live numbers of the server, every two seconds while the page is seen.

import { ask } from "./ask.js";
import { $, make, svg } from "./build.js";

const EVERY_MS = 2000;
const KEPT = 60;

const NUMBERS = [
  ["Requests a second", "requests_per_second", (value) => value.toFixed(1), true],
  ["Typical answer", "p50_ms", (value) => `${value.toFixed(1)} ms`, true],
  ["Slowest 1 %", "p99_ms", (value) => `${value.toFixed(1)} ms`, true],
  ["Refused a second", "refused_per_second", (value) => value.toFixed(1), false],
  ["Waiting", "queue", (value) => String(value), false],
];

const shown = NUMBERS.map(([name, field, text, drawn]) => {
  const value = make("dd", { textContent: "–" }), line = svg("polyline"), lines = Array(KEPT).fill(0);
  const picture = svg("svg", { viewBox: "0 0 120 28", preserveAspectRatio: "none", "aria-hidden": "true" }, line);
  return { name, field, text, drawn, value, line, picture, lines };
});

/** Begin; onState(answers: boolean) is called when the server begins or ceases to answer. */
export function watchServer(onState) {
  $("numbers").replaceChildren(...shown.map((each) => make("div", {}, make("dt", { textContent: each.name }), each.value, ...(each.drawn ? [each.picture] : []))));
  let answers = null;
  const tick = async () => {
    if (document.visibilityState !== "visible") return;
    const now = await look();
    if (now !== answers) onState((answers = now));
    $("state").classList.toggle("off", !now);
    $("state-text").textContent = now ? "The server answers" : "The server does not answer";
  };
  setInterval(tick, EVERY_MS);
  document.addEventListener("visibilitychange", tick);
  tick();
}

async function look() {
  let stats;
  try {
    stats = await ask("stats", { quiet: true });
  } catch (error) {
    return error.kind !== "offline";
  }
  for (const each of shown) {
    const value = stats[each.field];
    each.value.textContent = Number.isFinite(value) ? each.text(value) : "–";
    each.lines.push(Number.isFinite(value) ? value : 0);
    each.lines.shift();
    const top = Math.max(...each.lines, 1e-9), step = 120 / (KEPT - 1);
    each.line.setAttribute("points", each.lines.map((y, index) => `${(index * step).toFixed(1)},${(26 - (24 * y) / top).toFixed(1)}`).join(" "));
  }
  return true;
}
