// The page about a model in production: photos to review first, then how it does.

import { ask, askPhoto, explained, useKey } from "./ask.js";
import { $, make, svg } from "./build.js";
import { wireKeyDialog } from "./key.js";
import { percent, whole } from "./words.js";

const REFRESH_MS = 15000, AHEAD = 3;
const WHY = {
  disagreement: "The champion and the challenger do not agree: only such photos tell which one is better.",
  unknown: "It looks like none of the known classes.",
  "not sure": "The model is not sure.",
  other: "",
};

// Links that a terminal prints bring the key behind the #, which no server ever sees.
const given = new URLSearchParams(location.hash.slice(1)).get("key");
if (given) {
  useKey(given);
  history.replaceState(null, "", location.pathname + location.search);
}
const model = new URLSearchParams(location.search).get("model");
const about = (path, more = "") => `${path}?${new URLSearchParams({ ...(model && { model }), ...more })}`;

let classes = [], waiting = [], done = [], skipped = new Set(), photos = new Map(), busy = false, again = false, ended = false;

function trouble(error) {
  const [title, sentence] = explained(error);
  $("trouble").textContent = `${title}. ${sentence}`;
  $("trouble").hidden = false;
}

// Review -----------------------------------------------------------------------------------------------------------

async function fill() {
  if (ended) return;
  // What is being asked knows nothing of a photo that was skipped since: ask once more after it.
  if (busy) { again = true; return; }
  busy = true;
  again = false;
  try {
    const answer = await ask(about("operations/review", { count: Math.min(100, 30 + skipped.size) }));
    if (classes.join("\n") !== answer.classes.join("\n")) drawClasses((classes = answer.classes));
    const known = new Set([...waiting.map((one) => one.id), ...done.map((one) => one.question.id), ...skipped]);
    waiting.push(...answer.questions.filter((one) => !known.has(one.id)));
    $("trouble").hidden = true;
  } catch (error) {
    ended = ["gone", "key"].includes(error.kind);
    trouble(error);
  }
  busy = false;
  show();
  if (again) fill();
}

/** The photo of a question as an address of this page; it is asked for once. */
function photoOf(question) {
  if (!photos.has(question.id)) {
    photos.set(question.id, askPhoto(about(`operations/photos/${encodeURIComponent(question.id)}`)).then(URL.createObjectURL));
  }
  return photos.get(question.id);
}

async function show() {
  const question = waiting[0];
  $("asked").hidden = !question;
  $("undo").disabled = done.length === 0;
  const count = done.filter((one) => one.verdict !== "skipped").length;
  $("review-state").textContent = question ? `${count} labelled here.` : ended ? "" : `${count} labelled here. No photo waits for a label.`;
  $("review-title").textContent = question ? "What is this?" : "Review";
  if (!question) return;
  $("predicted").hidden = question.label === null;
  $("predicted").replaceChildren(`${question.label}, as predicted `, make("kbd", {}, "Enter"));
  const said = question.other !== null && question.other !== question.label ? ` The challenger says ${question.other}.` : "";
  const sure = question.probability === null ? "" : ` Predicted: ${question.label}, ${percent(question.probability)}.`;
  $("about").textContent = `${WHY[question.why]}${said}${sure}`.trim();
  for (const next of waiting.slice(1, 1 + AHEAD)) photoOf(next).catch(() => {});
  try {
    const address = await photoOf(question);
    if (waiting[0] === question) $("photo").src = address;
  } catch (error) {
    photos.delete(question.id);
    if (waiting[0] !== question) return;
    if (error.kind === "gone") settle(); // it was deleted meanwhile
    else trouble(error);
  }
}

function drawClasses(names) {
  $("filter").hidden = names.length <= 12;
  const sought = $("filter").value.trim().toLowerCase();
  const shown = names.filter((name) => name.toLowerCase().includes(sought));
  $("classes").replaceChildren(...shown.map((name) => {
    const number = names.indexOf(name) + 1;
    const button = make("button", { type: "button" }, name);
    if (number <= 9) button.append(make("kbd", {}, String(number)));
    button.onclick = () => choose(name);
    return make("li", {}, button);
  }));
}

/** Go on to the next photo. */
function settle(entry = null) {
  const question = waiting.shift();
  if (entry) done.push({ question, ...entry });
  const old = done.at(-4);
  if (old && photos.has(old.question.id)) {
    photos.get(old.question.id).then(URL.revokeObjectURL, () => {});
    photos.delete(old.question.id);
  }
  show();
  if (waiting.length < 10) fill();
}

function say(verdict, label = null) {
  const question = waiting[0];
  if (!question) return;
  settle({ verdict });
  ask(about("operations/review"), { body: [{ id: question.id, verdict, label }] }).catch((error) => {
    // Not stored: it comes again.
    done = done.filter((one) => one.question !== question);
    waiting.unshift(question);
    trouble(error);
    show();
  });
}

function choose(name) {
  const question = waiting[0];
  if (!question) return;
  if (name === question.label) say("right");
  else say("wrong", name);
}

function skip() {
  if (!waiting[0]) return;
  skipped.add(waiting[0].id);
  settle({ verdict: "skipped" });
}

function undo() {
  const last = done.pop();
  if (!last) return;
  waiting.unshift(last.question);
  skipped.delete(last.question.id);
  show();
  if (last.verdict !== "skipped") {
    ask(about("operations/review"), { body: [{ id: last.question.id, verdict: "withdrawn" }] }).catch(trouble);
  }
}

$("predicted").onclick = () => choose(waiting[0]?.label);
$("none").onclick = () => say("wrong");
$("bad").onclick = () => say("unusable");
$("skip").onclick = skip;
$("undo").onclick = undo;
$("filter").oninput = () => drawClasses(classes);
addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || $("key").open || event.target instanceof HTMLInputElement || !waiting[0]) return;
  const number = Number(event.key);
  if (number >= 1 && number <= Math.min(9, classes.length)) choose(classes[number - 1]);
  else if (event.key === "Enter" && !(event.target instanceof HTMLButtonElement) && waiting[0].label !== null) choose(waiting[0].label);
  else if (event.key === "n") say("wrong");
  else if (event.key === "b") say("unusable");
  else if (event.key === "ArrowRight") skip();
  else if (event.key === "ArrowLeft") undo();
  else return;
  event.preventDefault();
});

// How it does ------------------------------------------------------------------------------------------------------

const signed = (value) => `${value < 0 ? "\u2212" : "+"}${Math.abs(100 * value).toFixed(1)}`;
const when = (seconds) => new Date(1000 * seconds).toLocaleString();

async function refresh() {
  const began = performance.now();
  try {
    draw(await ask(about("operations")));
  } catch (error) {
    if (error.kind === "gone") ended = true;
    trouble(error);
  }
  // The server goes through all photos of a test for it: a page that stays open must not keep it busy with that.
  if (!ended) setTimeout(refresh, Math.max(REFRESH_MS, 20 * (performance.now() - began)));
}

function draw(state) {
  $("title").textContent = `${state.model} in production`;
  $("versions").replaceChildren(...state.versions.map((version) => make("tr", {},
    make("td", {}, String(version.number)),
    make("td", {}, ...version.aliases.map((alias) => make("span", { className: "role" }, alias)), version.rolled_back ? `rolled back: ${version.rolled_back}` : ""),
    make("td", {}, version.accuracy === null || version.accuracy === undefined ? "" : percent(version.accuracy)),
    make("td", {}, version.created.slice(0, 16).replace("T", " ")),
    make("td", {}, version.digest))));
  drawTest(state.test);
  drawWatch(state);
  const retrainings = state.retrainings.map((one, place) => make("details", { open: place === 0 },
    make("summary", {}, `${when(one.began)}: ${one.outcome ?? "goes on"}`),
    make("ol", { className: "steps" }, ...one.steps.map((step) => make("li", {}, make("b", {}, step.name), step.reason)))));
  $("retrainings").replaceChildren(...(retrainings.length ? retrainings : [make("p", { className: "soft" }, "There was none yet.")]));
}

function drawTest(standing) {
  $("test").hidden = standing === null;
  if (standing === null) return;
  const { test, interval: [low, high] } = standing;
  const difference = standing.difference === null ? "no label counts yet" : `${signed(standing.difference)} points (${signed(low)} to ${signed(high)})`;
  $("test-text").textContent = `${test.mode === "shadow" ? "In shadow" : "Split"}, ${whole(test.share)}: challenger less champion ${difference}, ${standing.num_labels} labels. What to do: ${standing.action}.`;
  $("test-caption").textContent = `How much better the challenger is, in points of accuracy, after each number of labels, with its 95 % confidence sequence: it may be looked at at any time. ${standing.reason}.`;
  const course = standing.course, box = { left: 52, right: 628, top: 12, bottom: 206 };
  const most = Math.max(0.02, ...course.slice(Math.floor(course.length / 4)).flatMap(([, , a, b]) => [Math.abs(a), Math.abs(b)]));
  const x = (labels) => box.left + ((box.right - box.left) * labels) / Math.max(1, course.at(-1)?.[0] ?? 1);
  const y = (value) => Math.min(box.bottom, Math.max(box.top, (box.top + box.bottom) / 2 - ((box.bottom - box.top) / 2) * (value / most)));
  const line = (points) => points.map(([a, b], place) => `${place ? "L" : "M"}${a.toFixed(1)} ${b.toFixed(1)}`).join("");
  const band = course.length ? `${line([...course.map(([n, , , b]) => [x(n), y(b)]), ...course.toReversed().map(([n, , a]) => [x(n), y(a)])])}Z` : "";
  $("test-curve").replaceChildren(
    svg("path", { class: "band", d: band }),
    ...[-most, 0, most].flatMap((value) => [
      svg("line", { class: value === 0 ? "zero" : "axis", x1: box.left, x2: box.right, y1: y(value), y2: y(value) }),
      svg("text", { x: box.left - 8, y: y(value) + 4, "text-anchor": "end" }, value === 0 ? "0" : signed(value)),
    ]),
    svg("path", { class: "mean", d: line(course.map(([n, mean]) => [x(n), y(mean)])) }),
    svg("text", { x: box.right, y: 228, "text-anchor": "end" }, `${course.at(-1)?.[0] ?? 0} labels`),
  );
}

function drawWatch({ watch, no_watch: why, labelled }) {
  $("watch-text").textContent = watch ? watch.sentence : why;
  $("watch-text").className = watch?.is_drifting ? "loud" : "";
  const fact = (value, name) => make("p", {}, make("b", {}, value), make("span", { className: "soft" }, name));
  const facts = [fact(labelled.toLocaleString(), "predictions that somebody has judged")];
  if (watch) {
    facts.unshift(fact(watch.num_photos.toLocaleString(), `photos since ${when(watch.first)}`));
    if (watch.accuracy) {
      facts.push(fact(`about ${whole(watch.accuracy.value)}`, `right, estimated without labels; ${whole(watch.accuracy_before)} of the validation photos`));
    }
    for (const [name, { now, usual }] of Object.entries(watch.signals)) facts.push(fact(now.toFixed(3), `${name}; usual: at most ${usual.toFixed(3)}`));
    facts.push(fact(watch.evidence.toPrecision(2), `evidence of drift; an alarm is raised at 1, and there were ${watch.alarms.length}`));
  }
  $("facts").replaceChildren(...facts);
  $("class-changes").replaceChildren(...(watch?.classes ?? []).slice(0, 5).map((one) => make("li", {}, `${one.name}: ${whole(one.now.value)} of the photos, ${whole(one.before)} before`)));
}

wireKeyDialog();
fill();
refresh();
setInterval(() => { if (waiting.length === 0) fill(); }, REFRESH_MS);
