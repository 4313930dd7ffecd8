// The page: pictures come in, answers go out on the screen. The other files know how to ask, paint and say.

import { inWords, now, query, say, showAnswer, showPicture, turnTo } from "./answer.js";
import { ask, explained, onKeyNeeded, Refusal } from "./ask.js";
import { $, make } from "./build.js";
import { liveCamera } from "./camera.js";
import { showCard } from "./card.js";
import { watchServer } from "./live.js";
import { look } from "./picture.js";
import { either, percent } from "./words.js";

const AT_ONCE = 3;
const FEW_BARS = 5;
const MOST_BARS = 100;

const pictures = [], waiting = [];
let models = new Map(), model = null, chosen = { model: "", version: "" };
let current = null, asked = 0, serial = 0, turn = 0, allBars = false;

// ---------------------------------------------------------------- what is said aloud and when something is wrong

function trouble(error) {
  const text = error ? explained(error).filter(Boolean).join(". ") : "";
  $("trouble").hidden = !text;
  if ($("trouble").textContent !== text) $("trouble").textContent = text;
}

// ---------------------------------------------------------------- models

async function loadModels() {
  try {
    const answer = await ask("models");
    models = new Map();
    for (const each of answer.models ?? answer) {
      const versions = models.get(each.name) ?? [];
      for (const version of each.versions ?? [each.version]) versions.push(version.version ?? version);
      models.set(each.name, versions);
    }
    if (!models.has(chosen.model)) chosen = { model: models.size > 1 ? answer.default?.name ?? answer.default ?? [...models.keys()][0] : "", version: "" };
    choosers();
    await loadModel();
    trouble(null);
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    trouble(error);
  }
}

function choosers() {
  const name = chosen.model || [...models.keys()][0], versions = models.get(name) ?? [];
  $("model").replaceChildren(...[...models.keys()].map((each) => new Option(each, each, false, each === name)));
  $("version").replaceChildren(new Option("newest", "", false, chosen.version === ""), ...versions.map((each) => new Option(each, each, false, each === chosen.version)));
  $("model-field").hidden = models.size < 2;
  $("version-field").hidden = versions.length < 2;
}

async function loadModel() {
  const name = chosen.model || [...models.keys()][0];
  model = await ask(`models/${encodeURIComponent(name)}${chosen.version ? `?version=${encodeURIComponent(chosen.version)}` : ""}`);
  document.title = `${model.name} · Tellapart`;
  const few = model.classes.slice(0, 12), more = model.classes.length - few.length;
  $("knows").textContent = `It knows ${model.classes.length} classes: ${more > 0 ? `${few.join(", ")} and ${more} more` : either(few, "and")}.`;
  showCard(model);
}

async function choose(next) {
  chosen = next;
  choosers();
  try {
    await loadModel();
  } catch (error) {
    if (error instanceof Refusal) return trouble(error);
    throw error;
  }
  pictures.forEach(askAgain);
}

// ---------------------------------------------------------------- pictures come in

function add(files) {
  const made = [...files].map((file) => ({
    number: ++serial, file, name: file.name || "pasted picture", url: URL.createObjectURL(file), seen: undefined,
    state: "waiting", answer: null, error: null, heats: new Map(), shown: null, given: null, turn: 0, thumb: null, wait: "",
  }));
  if (!made.length) return;
  for (const picture of made) {
    pictures.push(picture);
    picture.thumb = thumbOf(picture);
    $("thumbs").append(picture.thumb);
    picture.looked = look(picture.file).then((seen) => {
      picture.seen = seen;
      if (seen) picture.thumb.querySelector("span").replaceChildren(seen.thumb);
      if (picture === current) showPicture();
    });
    askAgain(picture);
  }
  arranged();
  select(made[0]);
}

function arranged() {
  document.body.classList.toggle("has-pictures", pictures.length > 0);
  $("strip").hidden = pictures.length < 2;
  $("work").hidden = $("clear").hidden = pictures.length === 0;
}

function remove(picture) {
  const place = pictures.indexOf(picture);
  pictures.splice(place, 1);
  picture.thumb.remove();
  picture.turn = -1;
  URL.revokeObjectURL(picture.url);
  current = null;
  arranged();
  if (pictures.length) select(pictures[Math.min(place, pictures.length - 1)]);
  (pictures.length > 1 ? current.thumb.firstElementChild : $("choose")).focus();
}

function askAgain(picture) {
  Object.assign(picture, { state: "waiting", answer: null, error: null, given: null, shown: null, turn: ++turn, wait: "" });
  picture.heats.clear();
  waiting.push(picture);
  changed(picture);
  pump();
}

function pump() {
  while (asked < AT_ONCE && waiting.length) {
    const picture = waiting.shift();
    if (picture.state !== "waiting") continue;
    asked++;
    nameOf(picture).finally(() => {
      asked--;
      pump();
    });
  }
}

async function nameOf(picture) {
  const mine = picture.turn, stale = () => picture.turn !== mine;
  picture.state = "asking";
  changed(picture);
  const onWait = (seconds) => {
    if (stale()) return;
    picture.wait = `The server is busy. It is asked again in ${Math.ceil(seconds)} s.`;
    changed(picture);
  };
  try {
    const top = Math.min(model?.classes.length ?? FEW_BARS, MOST_BARS);
    const answer = await ask(`predict?${query({ top_k: top })}`, { body: picture.file, onWait });
    await picture.looked;
    if (stale()) return;
    const [found] = answer.predictions;
    if (found.label === null) throw new Refusal("unreadable", answer);
    Object.assign(picture, { state: "done", answer: { ...answer, ...found }, shown: found.label });
    if (model && answer.version !== model.version && !chosen.version) loadModels(); // a newer one has taken over
  } catch (error) {
    if (stale()) return;
    picture.state = "failed";
    picture.error = error instanceof Refusal ? await brokenOrOffline(error) : new Refusal("failed");
  }
  changed(picture);
  told(picture);
}

/** A server that refuses a large body may close the connection, which looks as if it were away. */
async function brokenOrOffline(error) {
  if (error.kind !== "offline") return error;
  try {
    await ask("stats", { quiet: true });
  } catch (second) {
    if (second.kind === "offline") return error;
  }
  return new Refusal("broken");
}

function told(picture) {
  const open = pictures.filter((each) => each.state === "waiting" || each.state === "asking").length;
  if (picture === current || pictures.length === 1) say(`${picture.name}: ${inWords(picture)}`);
  else if (!open) say(`All ${pictures.length} pictures have their answer.`);
}

// ---------------------------------------------------------------- what a picture's answer is

function changed(picture) {
  if (picture.turn < 0) return;
  const button = picture.thumb.firstElementChild, note = picture.thumb.querySelector("b");
  const done = picture.state === "done";
  note.textContent = done ? (picture.answer.abstains ? "not sure" : picture.answer.label) : picture.state === "failed" ? "no answer" : "…";
  button.classList.toggle("unsure", done && (picture.answer.abstains || picture.answer.outside.length > 0));
  button.classList.toggle("failed", picture.state === "failed");
  button.setAttribute("aria-label", `${picture.name}: ${inWords(picture)}`);
  button.title = button.getAttribute("aria-label");
  if (picture === current) showAnswer();
}

function thumbOf(picture) {
  const button = make("button", { type: "button" }, make("span", { "aria-hidden": "true" }), make("b"));
  button.addEventListener("click", () => select(picture));
  return make("li", {}, button);
}

function select(picture) {
  current = picture;
  allBars = false;
  for (const each of pictures) {
    if (each === picture) each.thumb.firstElementChild.setAttribute("aria-current", "true");
    else each.thumb.firstElementChild.removeAttribute("aria-current");
  }
  const strip = $("thumbs"), thumb = picture.thumb;
  strip.scrollLeft = thumb.offsetLeft - (strip.clientWidth - thumb.offsetWidth) / 2;
  showPicture();
  showAnswer();
  if (picture.state === "done") say(`${picture.name}: ${inWords(picture)}`);
}

// ---------------------------------------------------------------- a person's hands

function filesOf(data) {
  return [...(data?.files ?? [])];
}

function wirePictures() {
  for (const [button, input] of [["choose", "files"], ["photograph", "shot"]]) {
    $(button).addEventListener("click", () => $(input).click());
    $(input).addEventListener("change", () => {
      add($(input).files);
      $(input).value = ""; // the same file may be chosen again
    });
  }
  $("clear").addEventListener("click", () => [...pictures].reverse().forEach(remove));
  $("remove").addEventListener("click", () => remove(current));
  $("again").addEventListener("click", () => askAgain(current));
  document.addEventListener("paste", (event) => {
    const files = filesOf(event.clipboardData);
    if (files.length) event.preventDefault();
    add(files);
  });
  let depth = 0;
  const dragging = (change) => (event) => {
    if (![...event.dataTransfer.types].includes("Files")) return;
    event.preventDefault();
    depth = change === 0 ? depth : change === null ? 0 : Math.max(0, depth + change);
    document.body.classList.toggle("dragging", depth > 0);
    if (change === null) add(filesOf(event.dataTransfer));
  };
  for (const [name, change] of [["dragenter", 1], ["dragleave", -1], ["dragover", 0], ["drop", null]]) document.addEventListener(name, dragging(change));
  liveCamera(async (file, signal) => {
    try {
      const { predictions: [found] } = await ask(`predict?${query({ top_k: 1, outside: "false" })}`, { body: file, signal });
      return found.abstains ? `Not sure: ${either(found.set) || found.label}` : `${found.label}, ${percent(found.probability)}`;
    } catch (error) {
      throw error instanceof Refusal ? new Error(explained(error)[0]) : error;
    }
  }, (file) => add([file]));
}

function wireKeys() {
  $("thumbs").addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key], next = pictures[pictures.indexOf(current) + step];
    if (!step || !next) return;
    event.preventDefault();
    select(next);
    next.thumb.firstElementChild.focus();
  });
}

function wireKeyDialog() {
  const dialog = $("key"), input = $("key-value");
  onKeyNeeded((refused) => new Promise((resolve) => {
    let key = null;
    $("key-title").textContent = refused ? "That key was not accepted" : "This server needs a key";
    input.value = "";
    dialog.showModal();
    $("key-form").onsubmit = (event) => {
      event.preventDefault();
      key = input.value.trim() || null;
      dialog.close();
    };
    $("key-cancel").onclick = () => dialog.close();
    dialog.onclose = () => resolve(key);
  }));
}

wirePictures();
wireKeys();
wireKeyDialog();
$("model").addEventListener("change", () => choose({ model: $("model").value, version: "" }));
$("version").addEventListener("change", () => choose({ model: $("model").value, version: $("version").value }));
watchServer((answers) => {
  if (!answers) return;
  if (!model) loadModels();
  pictures.filter((picture) => picture.error?.kind === "offline").forEach(askAgain);
});
