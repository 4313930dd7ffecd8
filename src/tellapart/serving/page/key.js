// The dialog that asks a person for the key; its elements stand in each page.

import { onKeyNeeded } from "./ask.js";
import { $ } from "./build.js";

/** Ask with the dialog whenever the server wants a key. */
export function wireKeyDialog() {
  const dialog = $("key"), input = $("key-value");
  onKeyNeeded((refused) => new Promise((resolve) => {
    let key = null;
    $("key-title").textContent = refused ? "That key was not accepted" : "This server needs a key";
    input.value = "";
    dialog.showModal();
    $("key-form").onsubmit = (event) => {
      event.preventDefault();
      key = input.value;
      dialog.close();
    };
    $("key-cancel").onclick = () => dialog.close();
    dialog.onclose = () => resolve(key);
  }));
}
