// Looks at a picture file, and paints heat maps. Knows nothing about the server.

const THUMB_PX = 192;
// Inferno at eight places: brightness rises with heat, so that it reads without colour.
const INFERNO = [[0, 0, 4], [40, 11, 84], [101, 21, 110], [159, 42, 99], [212, 72, 66], [245, 125, 21], [250, 193, 39], [252, 255, 164]];

function colour(heat) {
  const place = Math.min(heat * 7, 6.999), low = Math.floor(place), part = place - low;
  return INFERNO[low].map((value, channel) => value + part * (INFERNO[low + 1][channel] - value));
}

/** Return {width, height, brightness, thumb: canvas}; null: the browser cannot read it. */
export async function look(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    return null;
  }
  const { width, height } = bitmap, scale = Math.min(1, THUMB_PX / Math.min(width, height));
  const thumb = document.createElement("canvas");
  thumb.width = Math.max(1, Math.round(Math.min(width * scale, 2 * THUMB_PX)));
  thumb.height = Math.max(1, Math.round(Math.min(height * scale, 2 * THUMB_PX)));
  const pen = thumb.getContext("2d", { willReadFrequently: true });
  pen.drawImage(bitmap, 0, 0, thumb.width, thumb.height);
  bitmap.close();
  const { data } = pen.getImageData(0, 0, thumb.width, thumb.height);
  let sum = 0;
  for (let i = 0; i < data.length; i += 4) sum += 0.299 * data[i] + 0.587 * data[i + 1] + 0.114 * data[i + 2];
  return { width, height, brightness: (4 * sum) / data.length, thumb };
}

/** Paint rows of numbers 0..1 on a canvas of their size; hot places are opaque, cold ones clear. */
export function paintHeat(canvas, rows) {
  canvas.width = rows[0].length;
  canvas.height = rows.length;
  const pen = canvas.getContext("2d"), pixels = pen.createImageData(canvas.width, canvas.height);
  rows.flat().forEach((heat, index) => pixels.data.set([...colour(heat), 255 * Math.min(1, 1.15 * heat)], 4 * index));
  pen.putImageData(pixels, 0, 0);
}

export function clearHeat(canvas) {
  canvas.width = canvas.height = 1;
}
