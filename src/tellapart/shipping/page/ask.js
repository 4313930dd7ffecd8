// Answers on this device what the page would ask a server: the network runs here, and nothing is sent.
// It has the exports of the server page's ask.js, which the other modules import.

import { loadAndCompile, loadLiteRt, supportsFeature, Tensor } from "@litertjs/core";
import { headOf, heatOf } from "./heat.js";
import { square } from "./square.js";

const MOST_THREADS = 4;
const MOST_PIXELS = 40e6; // 160 MB in the browser's canvas

/** What cannot be done: kind is one of unreadable, large, gone, failed. */
export class Refusal extends Error {
  constructor(kind, message = "") {
    super(message);
    this.kind = kind;
    this.requestId = null;
  }
}

// There is no key: these are for the other modules alone.
export const useKey = () => {};
export const hasKey = () => false;
export const onKeyNeeded = () => {};
export const askPhoto = async () => { throw new Refusal("gone"); };

/** What runs the network here: {about, threads, …}; resolved once the first picture went through. */
export const ready = kept().then(start);

/** Return what the server page's endpoints return. body: a File. */
export async function ask(path, { body, signal } = {}) {
  const [endpoint, text] = path.split("?"), query = new URLSearchParams(text);
  const { about } = await ready;
  signal?.throwIfAborted();
  if (endpoint === "models") return { models: [{ name: about.name, version: about.version }], default: about.name };
  if (endpoint.startsWith("models/")) return about;
  if (endpoint === "predict") return predicted(body, Number(query.get("top_k")) || 3);
  if (endpoint === "explain") return heatMap(body, query.get("label"));
  throw new Refusal("gone");
}

export function explained(error) {
  return {
    large: ["This picture is too large", error.message],
    unreadable: ["This is no picture that can be read", error.message],
    gone: ["That is not part of this page", error.message],
    failed: ["The network does not run in this browser", error.message],
  }[error.kind] ?? ["Something went wrong", error.message];
}

// ---------------------------------------------------------------- the network

/**
 * Let the service worker keep the page for when there is no network. It sets the headers that threads need, and with them
 * the page has to be loaded once more: before anything else, for a photo that was chosen would be lost.
 */
async function kept() {
  try {
    await navigator.serviceWorker.register("sw.js");
    await navigator.serviceWorker.ready;
    if (self.crossOriginIsolated || sessionStorage.getItem("tellapart-reloaded")) return;
    sessionStorage.setItem("tellapart-reloaded", "yes");
  } catch {
    return; // an address that is not secure, or storage that is switched off: it works while there is a network
  }
  location.reload();
  await new Promise(() => {}); // never: the page is on its way out
}

/** Load the runtime, and let it ask for no GPU: what runs there would have to be proved on each device. */
async function runtime(name) {
  const warn = console.warn;
  Object.defineProperty(navigator, "gpu", { value: { requestAdapter: async () => null }, configurable: true });
  // It writes what it does to the console, as errors.
  self.Module = { wasmBinary: await unpacked(`litert/${name}.bin`), print: () => {}, printErr: (text) => /^(INFO|WARNING)/.test(text) || console.error(text) };
  console.warn = (...words) => /WebGPU/.test(words[0]) || warn(...words);
  try {
    await loadLiteRt(new URL(`litert/${name}.js`, location.href).href);
  } finally {
    console.warn = warn;
  }
}

async function start() {
  const about = await (await fetched("model.json")).json();
  const bytes = await unpacked("model.bin");
  const unknown = about.unknown && (await unpacked("unknown.bin"));
  const head = about.heat && headOf(about.heat.layers, await unpacked("heat.bin"));
  try {
    const relaxed = await supportsFeature("relaxedSimd");
    // Memory that threads share is there only where the service worker has set the headers for it.
    const threads = relaxed && self.crossOriginIsolated ? Math.min(MOST_THREADS, navigator.hardwareConcurrency || 1) : 1;
    const name = `litert_wasm_${relaxed ? (threads > 1 ? "threaded_" : "") : "compat_"}internal`;
    await runtime(name);
    const network = await loadAndCompile(new Uint8Array(bytes), { accelerator: "wasm", cpuOptions: { numThreads: threads } });
    const { image_px: px } = about;
    await outputs(network, new Uint8Array(px * px * 3), px); // the first call makes room in memory
    return { about, network, threads, head, references: unknown && new Int8Array(unknown) };
  } catch (error) {
    throw new Refusal("failed", `${error?.message ?? error}`);
  }
}

async function fetched(path) {
  const response = await fetch(path);
  if (!response.ok) throw new Refusal("failed", `${path} is missing (${response.status}).`);
  return response;
}

/** Return the bytes of a file that may be packed: some servers unpack it on the way. */
async function unpacked(path) {
  const bytes = await (await fetched(path)).arrayBuffer(), [first, second] = new Uint8Array(bytes, 0, 2);
  if (first !== 0x1f || second !== 0x8b) return bytes;
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
}

/** One picture at a time: the network holds the tensors of the call that is under way. */
let last = Promise.resolve();

function outputs(network, pixels, px) {
  const mine = last.then(async () => {
    const image = new Tensor(pixels, [1, px, px, 3]);
    const found = await network.run({ image });
    const values = Object.fromEntries(Object.entries(found).map(([name, tensor]) => [name, Float32Array.from(tensor.toTypedArray())]));
    for (const tensor of [image, ...Object.values(found)]) tensor.delete();
    return values;
  });
  last = mine.catch(() => {});
  return mine;
}

// ---------------------------------------------------------------- an answer

async function predicted(file, topK) {
  const { about, network, references } = await ready, began = performance.now();
  const pixels = square(await picture(file), about.image_px);
  const { probabilities, embedding } = await outputs(network, pixels, about.image_px);
  const ranked = about.classes.map((label, at) => ({ label, probability: probabilities[at] })).sort((a, b) => b.probability - a.probability);
  const set = about.threshold === null ? [ranked[0].label] : ranked.filter(({ probability }) => probability >= about.threshold).map(({ label }) => label);
  const similarity = references && nearest(embedding, references);
  const answer = {
    ...ranked[0], top: ranked.slice(0, topK), prediction_set: set, abstains: about.threshold !== null && set.length !== 1,
    unknown: similarity !== null && similarity < about.unknown.threshold, similarity, quality_warnings: [],
  };
  const seconds = { total: (performance.now() - began) / 1000 };
  return { request_id: null, model: about.name, version: about.version, seconds, predictions: [answer] };
}

/** Return what speaks for a class in a picture, as the server's page has it from the server. */
async function heatMap(file, label) {
  const { about, network, head } = await ready, { image_px: px, heat, classes } = about;
  if (!head) throw new Refusal("gone", "This page draws no heat maps.");
  const { features, probabilities } = await outputs(network, square(await picture(file), px), px);
  const target = label === null ? probabilities.indexOf(Math.max(...probabilities)) : classes.indexOf(label);
  return { label: classes[target], probability: probabilities[target], heat: heatOf(features, heat, head, target, px), method: "grad-cam" };
}

/** Return the largest cosine of an embedding with a row of the references. */
function nearest(embedding, references) {
  const size = embedding.length, length = Math.hypot(...embedding);
  let best = -1;
  for (let start = 0; start < references.length; start += size) {
    let product = 0, square = 0;
    for (let at = 0; at < size; at++) {
      const value = references[start + at];
      product += value * embedding[at];
      square += value * value;
    }
    best = Math.max(best, product / Math.max(length * Math.sqrt(square), 1e-12));
  }
  return best;
}

/** Decode a file as the model's preprocessing says: upright, transparent pixels on white, no colour profile. */
async function picture(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { imageOrientation: "from-image", colorSpaceConversion: "none" });
  } catch {
    throw new Refusal("unreadable", "The browser cannot decode it.");
  }
  const { width, height } = bitmap;
  if (width * height > MOST_PIXELS) {
    bitmap.close();
    throw new Refusal("large", `It has ${width} × ${height} pixels; at most ${MOST_PIXELS / 1e6} million are decoded here.`);
  }
  const canvas = new OffscreenCanvas(width, height), pen = canvas.getContext("2d", { willReadFrequently: true });
  pen.fillStyle = "white";
  pen.fillRect(0, 0, width, height);
  pen.drawImage(bitmap, 0, 0);
  bitmap.close();
  return pen.getImageData(0, 0, width, height);
}
