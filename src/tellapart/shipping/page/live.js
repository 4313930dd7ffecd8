// Says what runs the network on this device, in place of the server's numbers.

import { explained, ready } from "./ask.js";
import { $, make } from "./build.js";

/** Begin; onState(answers: boolean) is called when the network runs. */
export function watchServer(onState) {
  $("state-text").textContent = "Loading the network";
  ready.then(({ threads, about }) => {
    $("state-text").textContent = navigator.serviceWorker?.controller ? "On this device, also without a network" : "On this device";
    const rows = [["Threads", String(threads)], ["Picture size", `${about.image_px} px`]];
    $("numbers").replaceChildren(...rows.map(([name, value]) => make("div", {}, make("dt", { textContent: name }), make("dd", { textContent: value }))));
    onState(true);
  }, (error) => {
    $("state").classList.add("off");
    $("state-text").textContent = explained(error)[0];
    $("trouble").hidden = false;
    $("trouble").textContent = explained(error).filter(Boolean).join(". ");
  });
}
