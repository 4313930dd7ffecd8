// What in a picture speaks for a class: Grad-CAM from feature maps and the dense layers after their average. Knows nothing
// about networks. The same as `tellapart.shipping.web_heat.grad_cam`, and `tellapart.explain.overlay.to_heat` after it.

/** Return the layers of heat.bin: rows of int8, with a scale for each row. sizes: [{outputs, inputs, scales, bias, lowest, highest}] */
export function headOf(sizes, buffer) {
  let at = 0;
  return sizes.map(({ outputs, inputs, ...rest }) => {
    const kernel = new Int8Array(buffer, at, outputs * inputs);
    at += outputs * inputs;
    return { outputs, inputs, kernel, ...rest };
  });
}

/** Return px rows of px numbers from 0 to 1: how much each place speaks for class number `target`. */
export function heatOf(features, { height, width, offsets }, layers, target, px) {
  const channels = layers[0].inputs, places = height * width;
  const mean = new Float32Array(channels), map = new Float32Array(places);
  features.forEach((value, at) => (mean[at % channels] += value / places));
  const gradient = gradientOf(mean, layers, target);
  features.forEach((value, at) => (map[Math.floor(at / channels)] += (value + (offsets?.[at % channels] ?? 0)) * gradient[at % channels]));
  return scaled(enlarged(map, height, width, px));
}

/** The gradient of a class's score with respect to the average. */
function gradientOf(mean, layers, target) {
  let inputs = mean;
  const passed = layers.slice(0, -1).map((layer) => {
    const outputs = Float32Array.from({ length: layer.outputs }, (_, row) => {
      let sum = 0;
      for (let at = 0; at < layer.inputs; at++) sum += layer.kernel[row * layer.inputs + at] * inputs[at];
      return sum * layer.scales[row] + layer.bias[row];
    });
    const lowest = layer.lowest ?? -Infinity, highest = layer.highest ?? Infinity;
    inputs = outputs.map((output) => Math.min(Math.max(output, lowest), highest));
    return outputs.map((output) => Number(output > lowest && output < highest));
  });
  const last = layers.at(-1);
  let gradient = Float32Array.from({ length: last.inputs }, (_, at) => last.kernel[target * last.inputs + at] * last.scales[target]);
  for (let number = layers.length - 2; number >= 0; number--) {
    const { kernel, scales, outputs, inputs: size } = layers[number], back = new Float32Array(size);
    for (let row = 0; row < outputs; row++) {
      const weight = gradient[row] * passed[number][row] * scales[row];
      if (weight) for (let at = 0; at < size; at++) back[at] += weight * kernel[row * size + at];
    }
    gradient = back;
  }
  return gradient;
}

/** Straight lines between the middles of places, as OpenCV's INTER_LINEAR has it. */
function enlarged(map, height, width, px) {
  const between = (size) => Array.from({ length: px }, (_, at) => {
    const middle = Math.max(0, Math.min(((at + 0.5) * size) / px - 0.5, size - 1)), low = Math.floor(middle);
    return [low, Math.min(low + 1, size - 1), middle - low];
  });
  const columns = between(width);
  return between(height).map(([above, below, down]) => columns.map(([left, right, across]) => {
    const row = (y) => map[y * width + left] * (1 - across) + map[y * width + right] * across;
    return row(above) * (1 - down) + row(below) * down;
  }));
}

function scaled(rows) {
  const largest = Math.max(...rows.map((row) => Math.max(...row)));
  return rows.map((row) => row.map((value) => (largest > 0 ? Math.max(value, 0) / largest : 0)));
}
