"use strict";
// Before the first paint, so that a chosen scheme does not flash the other one.
try {
  const scheme = localStorage.getItem("tellapart-scheme");
  if (scheme === "dark" || scheme === "light") document.documentElement.dataset.scheme = scheme;
} catch {
  // Storage is switched off: the system's scheme holds.
}
