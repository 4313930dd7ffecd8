// Turns numbers and names into plain words. Knows nothing about the page.

/** 0.9837 → "98.4 %"; never "0 %" or "100 %", which nobody can promise. */
export function percent(share) {
  if (share < 0.001) return "< 0.1\u00a0%";
  if (share > 0.999) return "> 99.9\u00a0%";
  return `${(100 * share).toFixed(1)}\u00a0%`;
}

export const whole = (share) => `${Math.round(100 * share)}\u00a0%`;

/** ["a", "b", "c"] → "a, b or c". */
export function either(names, word = "or") {
  return names.length < 2 ? names.join("") : `${names.slice(0, -1).join(", ")} ${word} ${names.at(-1)}`;
}

const BEYOND = {
  sharpness: "too blurred",
  noise: "too grainy",
  contrast: "too little contrast",
  clipped: "too much of it is pure black or white",
  jpeg_quality: "compressed too strongly",
  short_side_px: "too small",
};

/** In what a photo is beyond what was measured; brightness: mean grey level of the picture, 0 to 255, or null. */
export function beyond(measures, qualityRange, brightness) {
  const [low, high] = qualityRange?.brightness ?? [null, null];
  const light = () => {
    if (brightness === null || (low === null && high === null)) return "too dark or too bright";
    if (low === null || high === null) return low === null ? "too bright" : "too dark";
    return brightness < (low + high) / 2 ? "too dark" : "too bright";
  };
  return measures.map((name) => (name === "brightness" ? light() : BEYOND[name] ?? name));
}
