"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const at = new Map(data.positions.map((position, index) => [position, index]));
const source = (index) => "data:image/jpeg;base64," + data.images[index];
const element = (tag, values = {}, ...children) => {
  const made = Object.assign(document.createElement(tag), values);
  made.append(...children);
  return made;
};
// Inferno at eight places: brightness rises with heat, so that it reads without colour.
const INFERNO = [[0, 0, 4], [40, 11, 84], [101, 21, 110], [159, 42, 99], [212, 72, 66], [245, 125, 21], [250, 193, 39], [252, 255, 164]];
const colour = (heat) => {
  const place = Math.min(heat * 7, 6.999), low = Math.floor(place), part = place - low;
  return INFERNO[low].map((value, channel) => value + part * (INFERNO[low + 1][channel] - value));
};

function heatCanvas(photo) {
  const canvas = element("canvas"), image = new Image();
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", "The photo with its heat map");
  image.onload = () => {
    const scale = 280 / Math.max(image.width, image.height);
    canvas.width = Math.round(image.width * scale);
    canvas.height = Math.round(image.height * scale);
    const brush = canvas.getContext("2d");
    brush.filter = "grayscale(1)";
    brush.drawImage(image, 0, 0, canvas.width, canvas.height);
    brush.filter = "none";
    const bytes = Uint8Array.from(atob(photo.h), (letter) => letter.charCodeAt(0));
    const side = Math.round(Math.sqrt(bytes.length));
    const small = element("canvas", { width: side, height: side }), pen = small.getContext("2d");
    const pixels = pen.createImageData(side, side);
    bytes.forEach((heat, index) => {
      pixels.data.set([...colour(heat / 255), 0.62 * heat], 4 * index);
    });
    pen.putImageData(pixels, 0, 0);
    brush.imageSmoothingEnabled = true;
    brush.imageSmoothingQuality = "high";
    brush.drawImage(small, 0, 0, canvas.width, canvas.height);
  };
  image.src = source(photo.i);
  return canvas;
}

function card(photo) {
  const said = data.classes[photo.p[0][0]], truth = data.classes[photo.t];
  const text = photo.p[0][0] === photo.t
    ? `${truth} ${photo.p[0][1].toFixed(2)}`
    : `${truth}, confused with ${said} ${photo.p[0][1].toFixed(2)}`;
  const button = element("button", { className: "card", type: "button" },
    element("img", { src: source(photo.i), alt: data.paths[photo.i], loading: "lazy" }),
    element("span", { className: "text", textContent: text }));
  button.addEventListener("click", () => open(photo));
  return button;
}

function open(photo) {
  const bars = photo.p.map(([number, probability]) => {
    const bar = element("i");
    bar.style.width = `${100 * probability}%`;
    return element("div", { className: "bar" }, data.classes[number], element("div", {}, bar), probability.toFixed(3));
  });
  const pair = element("div", { className: "pair" }, element("img", { src: source(photo.i), alt: data.paths[photo.i] }));
  if (photo.h) pair.append(heatCanvas(photo));
  const near = photo.n.map((index) => element("figure", {},
    element("img", { src: source(index), alt: data.paths[index] }),
    element("figcaption", { textContent: data.classes[data.labels[index]] })));
  const parts = [element("p", { className: "path", textContent: data.paths[photo.i] }),
    element("p", {}, "True class: ", element("b", { textContent: data.classes[photo.t] })), pair, ...bars];
  if (near.length) parts.push(element("h3", { textContent: "Most like it among the training photos" }), element("div", { className: "near" }, ...near));
  const dialog = document.getElementById("photo");
  dialog.querySelector("div").replaceChildren(...parts);
  dialog.showModal();
}

document.querySelectorAll(".confusion button").forEach((button) => button.addEventListener("click", () => {
  const truth = Number(button.dataset.true), said = Number(button.dataset.said), count = Number(button.dataset.count);
  const photos = data.photos.filter((photo) => photo.t === truth && photo.p[0][0] === said);
  const more = count - photos.length;
  const place = document.getElementById("cell");
  place.replaceChildren(
    element("h3", { textContent: `${data.classes[truth]} confused with ${data.classes[said]}: ${count} photo${count === 1 ? "" : "s"}` }),
    element("div", { className: "grid" }, ...photos.map(card)));
  if (more > 0) place.append(element("p", { className: "hint", textContent: `and ${more} more that the model is surer of` }));
  place.focus();
}));

document.getElementById("normalised").addEventListener("change", (event) => {
  document.querySelectorAll(".confusion button").forEach((button) => {
    const count = Number(button.dataset.count);
    button.textContent = !count ? "" : event.target.checked ? `${button.dataset.share}%` : String(count);
  });
});

const surest = data.photos.filter((photo) => photo.t !== photo.p[0][0]).sort((a, b) => b.p[0][1] - a.p[0][1]).slice(0, 60);
document.getElementById("surest").append(...(surest.length ? surest.map(card) : [element("p", { textContent: "There are none." })]));
document.querySelectorAll("img[data-position]").forEach((image) => {
  const index = at.get(Number(image.dataset.position));
  if (index !== undefined) image.src = source(index);
});
