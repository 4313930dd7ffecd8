// Asks whether an answer is right and which class is. Knows nothing about the server: it calls `send`.

import { $, make } from "./build.js";

const NONE = "None of these";

/** Wire the form up once; send(verdict, label or null) → whether the picture is still chosen, or rejects with a sentence. */
export function feedbackForm(send) {
  const input = $("truth"), options = $("options"), thanks = $("thanks");
  let classes = [], named = "", active = -1;

  function tell(text, isThanks) {
    thanks.textContent = text;
    thanks.hidden = !text;
    $("verdicts").hidden = $("question").hidden = isThanks;
  }

  async function give(verdict, label) {
    const controls = [$("right"), $("wrong"), input];
    controls.forEach((control) => (control.disabled = true));
    try {
      if (!(await send(verdict, label))) return;
      closeWhich();
      tell(`Thank you. It is noted as ${verdict === "right" ? "right" : label ?? "none of these"}.`, true);
      thanks.focus(); // what had the focus is gone; a screen reader reads the thanks
    } catch (error) {
      tell(`That was not noted. ${error.message}`, false);
    } finally {
      controls.forEach((control) => (control.disabled = false));
    }
  }

  function closeList() {
    options.hidden = true;
    input.setAttribute("aria-expanded", "false");
    input.removeAttribute("aria-activedescendant");
    active = -1;
  }

  function closeWhich() {
    closeList();
    $("which").hidden = true;
    $("wrong").setAttribute("aria-expanded", "false");
  }

  function openList() {
    const wanted = input.value.trim().toLowerCase();
    const fitting = classes.filter((label) => label !== named && label.toLowerCase().includes(wanted));
    const entries = fitting.map((label, index) => option(label, label, index));
    entries.push(option(NONE, null, entries.length));
    options.replaceChildren(...entries);
    options.hidden = false;
    input.setAttribute("aria-expanded", "true");
    mark(wanted ? 0 : -1);
  }

  function option(text, label, index) {
    const made = make("li", { id: `option-${index}`, role: "option", textContent: text, className: label === null ? "none" : "", "aria-selected": "false" });
    made.addEventListener("mousedown", (event) => event.preventDefault()); // the input keeps the focus
    made.addEventListener("click", () => give("wrong", label));
    return made;
  }

  function mark(index) {
    active = index;
    [...options.children].forEach((each, place) => each.setAttribute("aria-selected", String(place === index)));
    const chosen = options.children[index];
    if (!chosen) return input.removeAttribute("aria-activedescendant");
    input.setAttribute("aria-activedescendant", chosen.id);
    chosen.scrollIntoView({ block: "nearest" });
  }

  function onKey(event) {
    const last = options.children.length - 1;
    const moves = { ArrowDown: Math.min(active + 1, last), ArrowUp: Math.max(active - 1, 0) };
    if (event.key in moves) {
      event.preventDefault();
      if (options.hidden) openList();
      else mark(moves[event.key]);
    } else if (event.key === "Enter") {
      event.preventDefault();
      if (!options.hidden && active >= 0) options.children[active].click();
    } else if (event.key === "Escape") {
      event.stopPropagation();
      if (!options.hidden) return closeList();
      closeWhich();
      $("wrong").focus();
    }
  }

  $("feedback").addEventListener("submit", (event) => event.preventDefault());
  $("right").addEventListener("click", () => give("right", null));
  $("wrong").addEventListener("click", () => {
    if (!$("which").hidden) return closeWhich();
    $("which").hidden = false;
    $("wrong").setAttribute("aria-expanded", "true");
    input.focus();
    openList();
  });
  input.addEventListener("input", openList);
  input.addEventListener("click", openList);
  input.addEventListener("keydown", onKey);
  input.addEventListener("blur", closeList);

  return {
    /** Ask about an answer; given: what was said about it already, or null. */
    show(allClasses, label, given) {
      classes = allClasses;
      named = label;
      $("question").textContent = `Is it ${label}?`;
      input.value = "";
      closeWhich();
      tell(given ? "Feedback saved." : "", Boolean(given));
    },
  };
}
