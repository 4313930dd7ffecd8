// The page: pictures come in, answers go out on the screen. The other files know how to ask, paint and say.

import { ask, explained, onKeyNeeded, Refusal } from "./ask.js";
import { $, bar, make } from "./build.js";
import { liveCamera } from "./camera.js";
import { showCard } from "./card.js";
import { feedbackForm } from "./feedback.js";
import { watchServer } from "./live.js";
import { clearHeat, look, paintHeat } from "./picture.js";
import { beyond, either, percent, whole } from "./words.js";

const AT_ONCE = 3;
const FEW_BARS = 5;
const MOST_BARS = 100;

const pictures = [], waiting = [];
let models = new Map(), model = null, chosen = { model: "", version: "" };
let current = null, asked = 0, serial = 0, turn = 0, allBars = false;

// ---------------------------------------------------------------- what is said aloud and when something is wrong

function say(text) {
  $("said").textContent = "";
  setTimeout(() => ($("said").textContent = text), 50); // the same words twice are read twice
}

function trouble(error) {
  const text = error ? explained(error).filter(Boolean).join(". ") : "";
  $("trouble").hidden = !text;
  if ($("trouble").textContent !== text) $("trouble").textContent = text;
}

// ---------------------------------------------------------------- models

const query = (values) => new URLSearchParams(Object.entries({ ...chosen, ...values }).filter(([, value]) => value !== "")).toString();

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

function inWords({ state, answer, error }) {
  if (state === "failed") return explained(error)[0];
  if (state !== "done") return "is being looked at";
  return answer.abstains ? `not sure: ${either(answer.set) || "no class is likely enough"}` : `${answer.label}, ${percent(answer.probability)}`;
}

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

function showPicture() {
  const { seen, name, url } = current, image = $("picture"), unknown = seen === null;
  const ratio = seen ? Math.min(Math.max(seen.width / seen.height, 0.2), 5) : 1;
  $("frame").style.setProperty("--ratio", ratio);
  $("unseen").hidden = !unknown;
  image.hidden = unknown;
  if (image.src !== url) image.src = url;
  image.alt = `The picture ${name}`;
  $("file-name").textContent = seen ? `${name}, ${seen.width} × ${seen.height}` : name;
}

// ---------------------------------------------------------------- the answer on the screen

function showAnswer() {
  const { state, answer, error, wait } = current, busy = state === "waiting" || state === "asking";
  $("busy").hidden = !busy;
  $("busy-text").textContent = wait || "Looking";
  $("failed").hidden = state !== "failed";
  $("found").hidden = state !== "done";
  $("frame").classList.toggle("busy", busy);
  $("strength-field").hidden = $("heat-text").hidden = state !== "done";
  if (state === "failed") {
    [$("failed-title").textContent, $("failed-text").textContent] = explained(error);
    $("again").hidden = ["large", "unreadable"].includes(error.kind);
  }
  if (state !== "done") return clearHeat($("heat"));
  headline(answer);
  outside(answer);
  bars(answer);
  feedback.show(model?.classes ?? answer.top.map(({ label }) => label), answer.label, current.given);
  const seconds = answer.seconds;
  $("took").textContent = `${answer.model} ${answer.version}${seconds ? `, ${(1000 * seconds.total).toFixed(1)} ms in the server` : ""}`;
  showHeat(current, current.shown);
}

function headline({ label, probability, abstains, set }) {
  $("eyebrow").textContent = abstains ? "No single answer" : "It is most likely";
  $("headline").textContent = abstains ? "I am not sure" : label;
  const coverage = model?.coverage ? ` For photos like those it was measured on, such a list holds the right one ${whole(model.coverage)} of the time.` : "";
  $("sentence").textContent = !abstains ? `${percent(probability)} sure.`
    : set.length ? `It could be ${either(set)}.${coverage}`
    : `No class is likely enough. The nearest is ${label}, with ${percent(probability)}.`;
}

function outside({ outside: measures }) {
  $("outside").hidden = measures.length === 0;
  const reasons = beyond(measures, model?.envelope, current.seen?.brightness ?? null);
  $("outside").textContent = measures.length
    ? `This photo is unlike those that the model was measured on: ${reasons.join(", ")}. The answer may be wrong.` : "";
}

function bars({ top, set, abstains }) {
  const listed = allBars ? top : top.slice(0, FEW_BARS);
  $("bars").replaceChildren(...listed.map(({ label, probability }) => {
    const button = make("button", { type: "button", "aria-pressed": String(label === current.shown) },
      make("span", { className: "name", textContent: label }), make("span", { className: "share", textContent: percent(probability) }), bar(probability));
    button.classList.toggle("in-set", abstains ? set.includes(label) : label === top[0].label);
    button.addEventListener("click", () => showHeat(current, label));
    return make("li", {}, button);
  }));
  const rest = top.length - FEW_BARS;
  $("more").hidden = rest <= 0;
  $("more").textContent = allBars ? "Show fewer" : `Show ${rest} more`;
}

async function showHeat(picture, label) {
  const mine = picture.turn, canvas = $("heat");
  picture.shown = label;
  for (const button of $("bars").querySelectorAll("button")) {
    button.setAttribute("aria-pressed", String(button.querySelector(".name").textContent === label));
  }
  const here = () => current === picture && picture.turn === mine && picture.shown === label;
  if (!picture.heats.has(label)) {
    canvas.classList.add("old");
    $("heat-text").textContent = `Asking what speaks for ${label}`;
    try {
      picture.heats.set(label, await ask(`explain?${query({ label, format: "json" })}`, { body: picture.file }));
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      if (here()) noHeat(error);
      return;
    }
  }
  if (!here()) return;
  const { heat } = picture.heats.get(label);
  canvas.classList.remove("old");
  paintHeat(canvas, heat);
  canvas.setAttribute("aria-label", `Heat map: what in the picture speaks for ${label}`);
  $("strength-field").hidden = false;
  $("heat-text").textContent = `Bright places speak most for ${label}.`;
  strength();
}

function noHeat(error) {
  clearHeat($("heat"));
  $("heat").setAttribute("aria-label", "No heat map");
  $("strength-field").hidden = true;
  strength();
  $("heat-text").textContent = error.kind === "gone" ? "This model has no heat maps." : `No heat map: ${explained(error)[0].toLowerCase()}.`;
}

/** The picture loses its colours as the heat gains its own, so that both can be told apart. */
function strength() {
  const value = Number($("strength").value), drawn = $("heat").width > 1;
  $("strength-text").textContent = `${value} %`;
  $("heat").style.opacity = value / 100;
  $("picture").style.filter = drawn ? `grayscale(${Math.min(1, value / 60)})` : "";
}

const feedback = feedbackForm(async (verdict, label) => {
  const picture = current, { request_id, model: name, version } = picture.answer;
  try {
    await ask("feedback", { body: { request_id, verdict, model: name, version, ...(label === null ? {} : { label }) } });
  } catch (error) {
    if (error instanceof Refusal) throw new Error(explained(error).filter(Boolean).join(". "));
    throw error;
  }
  picture.given = verdict;
  say("Thank you.");
});

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
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || document.querySelector("dialog[open]") || current?.state !== "done") return;
    showHeat(current, current.answer.label);
  });
}

function wireScheme() {
  const button = $("scheme"), dark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (document.documentElement.dataset.scheme ?? (dark.matches ? "dark" : "light")) === "dark";
  const shown = () => button.setAttribute("aria-pressed", String(isDark()));
  button.addEventListener("click", () => {
    const next = isDark() ? "light" : "dark";
    document.documentElement.dataset.scheme = next;
    try {
      localStorage.setItem("tellapart-scheme", next);
    } catch {
      // it holds until the page is left
    }
    shown();
  });
  dark.addEventListener("change", shown);
  shown();
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
wireScheme();
wireKeyDialog();
$("strength").addEventListener("input", strength);
$("more").addEventListener("click", () => {
  allBars = !allBars;
  bars(current.answer);
});
$("model").addEventListener("change", () => choose({ model: $("model").value, version: "" }));
$("version").addEventListener("change", () => choose({ model: $("model").value, version: $("version").value }));
watchServer((answers) => {
  if (!answers) return;
  if (!model) loadModels();
  pictures.filter((picture) => picture.error?.kind === "offline").forEach(askAgain);
});
