// Pictures come in, are asked about and are listed. What an answer looks like, answer.js knows.

import { inWords, now, query, say, showAnswer, showPicture, turnTo } from "./answer.js";
import { ask, explained, hasKey, Refusal } from "./ask.js";
import { $, make } from "./build.js";
import { liveCamera } from "./camera.js";
import { showCard } from "./card.js";
import { wireKeyDialog } from "./key.js";
import { watchServer } from "./live.js";
import { look } from "./picture.js";
import { either, percent } from "./words.js";

const AT_ONCE = 3;
const MOST_CLASSES = 100;

const pictures = [], waiting = [];
let models = new Map(), asked = 0, turns = 0;

// ---------------------------------------------------------------- models

/** Do what may be refused, and say so at the top of the page. */
async function orTrouble(work) {
  let text = "";
  try {
    await work();
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    text = explained(error).filter(Boolean).join(". ");
  }
  $("trouble").hidden = !text;
  $("trouble").textContent = text;
}

const loadModels = () => orTrouble(async () => {
  const answer = await ask("models");
  $("metrics").hidden = hasKey();
  models = new Map();
  for (const { name, version } of answer.models) models.set(name, [...(models.get(name) ?? []), version]);
  const { chosen } = now, known = models.get(chosen.model);
  if (!known) Object.assign(chosen, { model: models.size > 1 ? answer.default : "", version: "" });
  else if (!known.includes(chosen.version)) chosen.version = "";
  await loadModel();
});

async function loadModel() {
  const { chosen } = now, name = chosen.model || models.keys().next().value, versions = models.get(name);
  $("model").replaceChildren(...[...models.keys()].map((each) => new Option(each, each, false, each === name)));
  $("version").replaceChildren(new Option("newest", ""), ...versions.map((each) => new Option(each, each, false, each === chosen.version)));
  $("model-field").hidden = models.size < 2;
  $("version-field").hidden = versions.length < 2;
  now.model = await ask(`models/${encodeURIComponent(name)}${chosen.version && `?version=${chosen.version}`}`);
  const { classes } = now.model, more = classes.length - 12;
  document.title = `${name} · Tellapart`;
  $("knows").textContent = `It knows ${classes.length} classes: ${more > 0 ? `${classes.slice(0, 12).join(", ")} and ${more} more` : either(classes, "and")}.`;
  showCard(now.model);
  if (now.picture) showAnswer();
}

function choose(model, version) {
  Object.assign(now.chosen, { model, version });
  pictures.forEach(askAgain);
  orTrouble(loadModel);
}

// ---------------------------------------------------------------- pictures come in

function add(files) {
  const made = files.map((file) => ({ file, name: file.name || "pasted picture", url: URL.createObjectURL(file), heats: new Map() }));
  for (const picture of made) {
    pictures.push(picture);
    picture.thumb = thumbOf(picture);
    picture.looked = look(picture.file).then((seen) => {
      picture.seen = seen;
      if (seen) picture.thumb.firstElementChild.replaceChildren(seen.thumb);
      if (picture === now.picture) showPicture();
    });
    askAgain(picture);
  }
  arranged();
  if (!made.length) return;
  select(made[0]);
  if ($("work").getBoundingClientRect().top < 0) $("main").scrollIntoView();
}

function arranged() {
  document.body.classList.toggle("has-pictures", pictures.length > 0);
  $("thumbs").replaceChildren(...pictures.map(({ thumb }) => make("li", {}, thumb)));
  $("strip").hidden = pictures.length < 2;
  $("work").hidden = $("clear").hidden = !pictures.length;
}

function remove(gone) {
  const place = pictures.indexOf(gone[0]);
  pictures.splice(place, gone.length);
  for (const picture of gone) {
    picture.turn = -1;
    URL.revokeObjectURL(picture.url);
  }
  now.picture = null;
  arranged();
  if (pictures.length) select(pictures[Math.min(place, pictures.length - 1)]);
  (pictures.length > 1 ? now.picture.thumb : $("choose")).focus();
}

function askAgain(picture) {
  Object.assign(picture, { state: "waiting", answer: null, error: null, given: null, shown: null, wait: "", turn: ++turns });
  picture.heats.clear();
  waiting.push(picture);
  changed(picture);
  pump();
}

function pump() {
  while (asked < AT_ONCE && waiting.length) {
    const picture = waiting.shift();
    if (picture.state !== "waiting" || picture.turn < 0) continue;
    asked++;
    nameOf(picture).finally(() => {
      asked--;
      pump();
    });
  }
}

async function nameOf(picture) {
  const mine = picture.turn, stale = () => picture.turn !== mine, { model } = now;
  const onWait = (seconds) => {
    if (stale()) return;
    picture.wait = `The server is busy. It is asked again in ${Math.ceil(seconds)} s`;
    changed(picture);
  };
  picture.state = "asking";
  try {
    // One request each: an answer has an id of its own for feedback, and a picture that is refused costs no other.
    const answer = await ask(`predict?${query({ top_k: Math.min(model?.classes.length ?? 5, MOST_CLASSES) })}`, { body: picture.file, onWait });
    await picture.looked;
    if (stale()) return;
    Object.assign(picture, { state: "done", answer: { ...answer, ...answer.predictions[0] } });
    picture.shown = picture.answer.label;
    if (!now.model || (answer.version !== now.model.version && !now.chosen.version)) loadModels(); // a newer one has taken over
  } catch (error) {
    if (stale()) return;
    Object.assign(picture, { state: "failed", error: error instanceof Refusal ? await brokenOrOffline(error) : new Refusal("failed") });
  }
  changed(picture);
  if (picture === now.picture) say(`${picture.name}: ${inWords(picture)}`);
  else if (!waiting.length && asked === 1) say(`All ${pictures.length} pictures have their answer.`);
}

/** A server that refuses a large body may close the connection, which looks as if it were away. */
async function brokenOrOffline(error) {
  if (error.kind !== "offline") return error;
  const second = await ask("stats", { quiet: true }).catch((reason) => reason);
  return second.kind === "offline" ? error : new Refusal("broken");
}

// ---------------------------------------------------------------- the strip of pictures

function thumbOf(picture) {
  const button = make("button", { type: "button" }, make("span", { "aria-hidden": "true" }), make("b"));
  button.addEventListener("click", () => select(picture));
  return button;
}

function changed(picture) {
  const { thumb, state, answer } = picture, words = `${picture.name}: ${inWords(picture)}`;
  thumb.lastElementChild.textContent = { done: answer?.unknown ? "unknown" : answer?.abstains ? "not sure" : answer?.label, failed: "no answer" }[state] ?? "…";
  thumb.classList.toggle("unsure", state === "done" && (answer.unknown || answer.abstains || answer.quality_warnings.length > 0));
  thumb.classList.toggle("failed", state === "failed");
  thumb.setAttribute("aria-label", words);
  thumb.title = words;
  if (picture === now.picture) showAnswer();
}

function select(picture) {
  now.picture?.thumb.removeAttribute("aria-current");
  picture.thumb.setAttribute("aria-current", "true");
  const strip = $("thumbs"), item = picture.thumb.parentElement;
  strip.scrollLeft = item.offsetLeft - (strip.clientWidth - item.offsetWidth) / 2;
  turnTo(picture);
  if (picture.state === "done") say(`${picture.name}: ${inWords(picture)}`);
}

// ---------------------------------------------------------------- a person's hands

function wirePictures() {
  for (const [button, input] of [["choose", "files"], ["photograph", "shot"]]) {
    $(button).addEventListener("click", () => $(input).click());
    $(input).addEventListener("change", () => {
      add([...$(input).files]);
      $(input).value = ""; // the same file may be chosen again
    });
  }
  $("clear").addEventListener("click", () => remove([...pictures]));
  $("remove").addEventListener("click", () => remove([now.picture]));
  $("again").addEventListener("click", () => askAgain(now.picture));
  $("thumbs").addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key], next = pictures[pictures.indexOf(now.picture) + step];
    if (!next) return;
    event.preventDefault();
    select(next);
    next.thumb.focus();
  });
}

function wirePasteAndDrop() {
  document.addEventListener("paste", (event) => {
    const files = [...event.clipboardData.files];
    if (files.length) event.preventDefault(); // text still goes into the search
    add(files);
  });
  const lit = (on) => document.body.classList.toggle("dragging", on);
  document.addEventListener("dragover", (event) => {
    if (!event.dataTransfer.types.includes("Files")) return;
    event.preventDefault();
    lit(true);
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) lit(false); // it left the window
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    lit(false);
    add([...event.dataTransfer.files]);
  });
}

wirePictures();
wirePasteAndDrop();
wireKeyDialog();
liveCamera(async (file, signal) => {
  const { predictions: [found] } = await ask(`predict?${query({ top_k: 1, quality: "false" })}`, { body: file, signal });
  if (found.unknown) return `None of the known classes; nearest ${found.label}`;
  return found.abstains ? `Not sure: ${either(found.prediction_set) || found.label}` : `${found.label}, ${percent(found.probability)}`;
}, (file) => add([file]));
$("model").addEventListener("change", () => choose($("model").value, ""));
$("version").addEventListener("change", () => choose($("model").value, $("version").value));
watchServer((answers) => {
  if (!answers) return;
  if (!now.model) loadModels();
  pictures.filter((picture) => picture.error?.kind === "offline").forEach(askAgain);
});
