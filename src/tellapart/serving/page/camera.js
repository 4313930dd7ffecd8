// The live camera: names what it sees, and keeps a picture when asked. It starts only when pressed.

import { explained } from "./ask.js";
import { $ } from "./build.js";

const EVERY_MS = 500;

/** Wire it up; name(file, signal) → text for a person; keep(file). */
export function liveCamera(name, keep) {
  const dialog = $("live"), video = $("video"), canvas = document.createElement("canvas");
  let stream = null, stop = null;
  if (!navigator.mediaDevices?.getUserMedia) return;
  $("camera").hidden = false;

  const frame = () => new Promise((resolve) => {
    canvas.width = video.videoWidth;
    canvas.height = video.videoHeight;
    canvas.getContext("2d").drawImage(video, 0, 0);
    canvas.toBlob((blob) => resolve(new File([blob], `camera-${new Date().toTimeString().slice(0, 8).replaceAll(":", "-")}.jpg`, { type: "image/jpeg" })), "image/jpeg", 0.92);
  });

  async function watch(signal) {
    while (!signal.aborted) {
      if (video.videoWidth && document.visibilityState === "visible") {
        try {
          $("seen").textContent = await name(await frame(), signal);
        } catch (error) {
          if (signal.aborted) return;
          $("seen").textContent = explained(error)[0];
        }
      }
      await new Promise((resolve) => setTimeout(resolve, EVERY_MS));
    }
  }

  function end() {
    stop?.abort();
    stream?.getTracks().forEach((track) => track.stop());
    video.srcObject = stream = null;
  }

  $("camera").addEventListener("click", async () => {
    $("take").disabled = true;
    $("seen").textContent = "Waiting for the camera";
    dialog.showModal();
    try {
      stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: { ideal: 1280 } }, audio: false });
    } catch (error) {
      $("seen").textContent = error.name === "NotFoundError" ? "There is no camera here." : "The camera may not be used. Allow it in the browser and try again.";
      return;
    }
    if (!dialog.open) return end();
    video.srcObject = stream;
    await video.play();
    $("take").disabled = false;
    $("take").focus();
    stop = new AbortController();
    watch(stop.signal);
  });
  $("take").addEventListener("click", async () => {
    const file = await frame();
    dialog.close();
    keep(file);
  });
  $("live-close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", end);
}
