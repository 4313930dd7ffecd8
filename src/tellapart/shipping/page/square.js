// Shrinks and stretches a picture to a square, as `tellapart.data.decode.resize` does. Knows nothing about files.

/** Return px × px × 3 bytes, RGB, of an ImageData: sides that shrink by half or more are averaged, the rest is bilinear. */
export function square({ width, height, data }, px) {
  let picture = { width, height, values: rgb(data) };
  picture = averaged(picture, width >= 2 * px ? px : width, height >= 2 * px ? px : height);
  return bilinear(picture, px);
}

function rgb(rgba) {
  const values = new Uint8ClampedArray((rgba.length / 4) * 3);
  for (let from = 0, to = 0; from < rgba.length; from += 4, to += 3) {
    values[to] = rgba[from];
    values[to + 1] = rgba[from + 1];
    values[to + 2] = rgba[from + 2];
  }
  return values;
}

/** For each of `count` places: the first source place that it covers, and the weights of that one and the next ones. */
function areas(size, count) {
  const scale = size / count;
  return Array.from({ length: count }, (_, place) => {
    const begin = place * scale, end = Math.min((place + 1) * scale, size), first = Math.floor(begin);
    const weights = [];
    for (let at = first; at < Math.min(Math.ceil(end - 1e-9), size); at++) {
      weights.push((Math.min(end, at + 1) - Math.max(begin, at)) / (end - begin));
    }
    return { first, weights };
  });
}

function averaged(picture, width, height) {
  if (width === picture.width && height === picture.height) return picture;
  // Rows first: they are the long way through memory. Sums stay fractions until both directions are done.
  const columns = areas(picture.width, width), rows = areas(picture.height, height);
  const wide = new Float32Array(picture.height * width * 3), values = new Uint8ClampedArray(height * width * 3);
  for (let y = 0; y < picture.height; y++) {
    for (let x = 0; x < width; x++) {
      const { first, weights } = columns[x], to = 3 * (y * width + x);
      let from = 3 * (y * picture.width + first);
      for (const weight of weights) {
        wide[to] += weight * picture.values[from];
        wide[to + 1] += weight * picture.values[from + 1];
        wide[to + 2] += weight * picture.values[from + 2];
        from += 3;
      }
    }
  }
  const line = new Float32Array(3 * width);
  for (let y = 0; y < height; y++) {
    const { first, weights } = rows[y];
    line.fill(0);
    weights.forEach((weight, step) => {
      const from = 3 * (first + step) * width;
      for (let at = 0; at < line.length; at++) line[at] += weight * wide[from + at];
    });
    values.set(line, 3 * y * width); // rounded to the nearest
  }
  return { width, height, values };
}

/** For each of `count` places: the two source places around its middle, and the share of the second. */
function between(size, count) {
  const scale = size / count;
  return Array.from({ length: count }, (_, place) => {
    const middle = Math.max(0, Math.min((place + 0.5) * scale - 0.5, size - 1)), low = Math.floor(middle);
    return { low, high: Math.min(low + 1, size - 1), share: middle - low };
  });
}

function bilinear({ width, height, values }, px) {
  if (width === px && height === px) return new Uint8Array(values);
  const columns = between(width, px), rows = between(height, px), square = new Uint8ClampedArray(px * px * 3);
  let to = 0;
  for (const { low: above, high: below, share: down } of rows) {
    const top = 3 * above * width, bottom = 3 * below * width, up = 1 - down;
    for (const { low: left, high: right, share: across } of columns) {
      const back = 1 - across;
      for (let l = 3 * left, r = 3 * right, end = l + 3; l < end; l++, r++) {
        square[to++] = up * (back * values[top + l] + across * values[top + r]) + down * (back * values[bottom + l] + across * values[bottom + r]);
      }
    }
  }
  return new Uint8Array(square.buffer);
}
