"use strict";
// Before the first paint, so that a chosen scheme does not flash the other one.
{
  const root = document.documentElement, system = matchMedia("(prefers-color-scheme: dark)"), name = "tellapart-scheme";
  const stored = (value) => {
    try {
      if (value) localStorage.setItem(name, value);
      return localStorage.getItem(name);
    } catch {
      return value; // storage is switched off: it holds until the page is left
    }
  };
  const isDark = () => (root.dataset.scheme ? root.dataset.scheme === "dark" : system.matches);
  const before = stored();
  if (before) root.dataset.scheme = before;
  addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("scheme"), show = () => button.setAttribute("aria-pressed", isDark());
    button.addEventListener("click", () => {
      stored((root.dataset.scheme = isDark() ? "light" : "dark"));
      show();
    });
    system.addEventListener("change", show);
    show();
  });
}
