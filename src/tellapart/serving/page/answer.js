// The picture that is chosen and its answer, on the screen: words, bars, heat map, feedback.

import { ask, explained, Refusal } from "./ask.js";
import { $, bar, make } from "./build.js";
import { feedbackForm } from "./feedback.js";
import { clearHeat, paintHeat } from "./picture.js";
import { beyond, either, percent, whole } from "./words.js";

const FEW_BARS = 5;

/** What the page is about now. chosen: model and version, "" where the server may choose. */
export const now = { model: null, chosen: { model: "", version: "" }, picture: null };

let allBars = false;

export const query = (values) => new URLSearchParams(Object.entries({ ...now.chosen, ...values }).filter(([, value]) => value !== "")).toString();

export function say(text) {
  $("said").textContent = "";
  setTimeout(() => ($("said").textContent = text), 50); // the same words twice are read twice
}

/** Turn to another picture. */
export function turnTo(picture) {
  now.picture = picture;
  allBars = false;
  showPicture();
  showAnswer();
}

export function inWords({ state, answer, error }) {
  if (state === "failed") return explained(error)[0];
  if (state !== "done") return "is being looked at";
  if (answer.unknown) return `none of the known classes, nearest ${answer.label}`;
  return answer.abstains ? `not sure: ${either(answer.prediction_set) || "no class is likely enough"}` : `${answer.label}, ${percent(answer.probability)}${answer.quality_warnings.length ? ", unusual photo" : ""}`;
}

export function showPicture() {
  const { seen, name, url } = now.picture, image = $("picture"), unknown = seen === null;
  const ratio = seen ? Math.min(Math.max(seen.width / seen.height, 0.2), 5) : unknown ? 2 : 1;
  $("frame").style.setProperty("--ratio", ratio);
  $("unseen").hidden = !unknown;
  image.hidden = unknown;
  if (image.src !== url) image.src = url;
  image.alt = `The picture ${name}`;
  $("file-name").textContent = seen ? `${name}, ${seen.width} × ${seen.height}` : name;
}

export function showAnswer() {
  const { state, answer, error, wait } = now.picture, busy = state === "waiting" || state === "asking";
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
  if (state !== "done") {
    clearHeat($("heat"));
    return strength();
  }
  headline(answer);
  qualityNote(answer);
  bars(answer);
  feedback.show(now.model?.classes ?? answer.top.map(({ label }) => label), answer.label, now.picture.given);
  $("took").textContent = `${answer.model} ${answer.version}, ${(1000 * answer.seconds.total).toFixed(1)} ms in the server`;
  showHeat(now.picture, now.picture.shown);
}

function headline({ label, probability, abstains, unknown, prediction_set: set }) {
  if (unknown) {
    const refused = now.model?.unknown?.refused;
    $("eyebrow").textContent = "Unlike what the model knows";
    $("headline").textContent = "None of the known classes";
    $("sentence").textContent = `The nearest is ${label}.${refused ? ` Of photos that do show a known class, ${whole(refused)} at most are refused like this.` : ""}`;
    return;
  }
  $("eyebrow").textContent = abstains ? "No single answer" : "It is most likely";
  $("headline").textContent = abstains ? "I am not sure" : label;
  const coverage = now.model?.coverage ? ` For photos like those it was measured on, such a list holds the right one ${whole(now.model.coverage)} of the time.` : "";
  $("sentence").textContent = !abstains ? `${percent(probability)} sure.`
    : set.length ? `It could be ${either(set)}.${coverage}`
    : `No class is likely enough. The nearest is ${label}, with ${percent(probability)}.`;
}

function qualityNote({ quality_warnings: measures }) {
  $("quality").hidden = measures.length === 0;
  const reasons = beyond(measures, now.model?.quality_range, now.picture.seen?.brightness ?? null);
  $("quality").textContent = measures.length
    ? `This photo is unlike those that the model was measured on: ${reasons.join(", ")}. The answer may be wrong.` : "";
}

function bars({ top, prediction_set: set, abstains, unknown }) {
  const listed = allBars ? top : top.slice(0, FEW_BARS);
  $("bars").replaceChildren(...listed.map(({ label, probability }) => {
    const button = make("button", { type: "button", "aria-pressed": String(label === now.picture.shown) },
      make("span", { className: "name", textContent: label }), make("span", { className: "share", textContent: percent(probability) }), bar(probability));
    button.classList.toggle("in-set", !unknown && (abstains ? set.includes(label) : label === top[0].label));
    button.addEventListener("click", () => showHeat(now.picture, label));
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
  const here = () => now.picture === picture && picture.turn === mine && picture.shown === label;
  if (!picture.heats.has(label)) {
    canvas.classList.add("old");
    $("heat-text").textContent = `Asking what speaks for ${label}`;
    try {
      const found = await ask(`explain?${query({ label, format: "json" })}`, { body: picture.file });
      if (picture.turn !== mine) return; // another model is asked now
      picture.heats.set(label, found);
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
  $("heat-text").textContent = error.kind === "gone" ? error.message : `There is no heat map. ${explained(error)[0]}.`;
}

/** The picture loses its colours as the heat gains its own, so that both can be told apart. */
function strength() {
  const value = Number($("strength").value), drawn = $("heat").width > 1;
  $("strength-text").textContent = `${value} %`;
  $("heat").style.opacity = value / 100;
  $("picture").style.filter = drawn ? `grayscale(${Math.min(1, value / 60)})` : "";
}

const feedback = feedbackForm(async (verdict, label) => {
  const picture = now.picture, { request_id, model, version } = picture.answer;
  try {
    await ask("feedback", { body: { request_id, verdict, model, version, ...(label === null ? {} : { label }) }, quiet: true });
  } catch (error) {
    if (picture === now.picture) throw new Error(explained(error).filter(Boolean).join(". "));
    return false;
  }
  picture.given = verdict;
  return picture === now.picture;
});

$("strength").addEventListener("input", strength);
$("more").addEventListener("click", () => {
  allBars = !allBars;
  bars(now.picture.answer);
});
document.addEventListener("keydown", ({ key }) => {
  if (key === "Escape" && !document.querySelector("dialog[open]") && now.picture?.state === "done") showHeat(now.picture, now.picture.answer.label);
});
