// Runs detector.onnx with ONNX Runtime's WebAssembly, in this page.

import * as ort from "./ort/ort.wasm.min.mjs";

// WebAssembly and one thread: threads need a page that is isolated from others' origins.
ort.env.wasm.wasmPaths = new URL("./ort/", import.meta.url).href;
ort.env.wasm.numThreads = 1;

const status = document.getElementById("status");
const session = await ort.InferenceSession.create("./detector.onnx", {
  executionProviders: ["wasm"],
  logSeverityLevel: 3,
});
const [, channels, height, width] = session.inputMetadata.find((input) => input.name === "image").shape;

/**
 * Find anomalies in one image.
 *
 * @param {Float32Array} pixels in [0, 1], channel after channel, row after row
 * @param {bigint} id says which noise the image draws
 * @param {bigint} seed of the run
 * @returns {Promise<{map: Float32Array, score: number}>}
 */
export async function detect(pixels, id = 1n, seed = 0n) {
  const found = await session.run({
    image: new ort.Tensor("float32", pixels, [1, channels, height, width]),
    image_id: new ort.Tensor("uint64", BigUint64Array.of(id), [1]),
    seed: new ort.Tensor("uint64", BigUint64Array.of(seed), []),
  });
  return { map: found.anomaly_map.data, score: found.score.data[0] };
}

/** Grey values of a picture, drawn at the detector's size, background black, brought to [0, 1]. */
function prepare(picture) {
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const zoom = Math.min(width / picture.width, height / picture.height);
  const size = [picture.width * zoom, picture.height * zoom];
  context.fillRect(0, 0, width, height);
  context.drawImage(picture, (width - size[0]) / 2, (height - size[1]) / 2, ...size);
  const rgba = context.getImageData(0, 0, width, height).data;
  const grey = Float32Array.from({ length: width * height }, (_, i) => rgba[4 * i]);
  // "foreground-median" of the file's preprocessing; another model may want another.
  const positive = grey.filter((value) => value > 0).sort();
  const middle = positive.length / 2;
  const median = (positive[Math.ceil(middle) - 1] + positive[Math.floor(middle)]) / 2;
  return grey.map((value) => Math.min(1, (0.35 / median) * value));
}

function show(canvas, values, limit) {
  canvas.width = width;
  canvas.height = height;
  const shades = new ImageData(width, height);
  values.forEach((value, i) => {
    const grey = Math.min(255, Math.round((255 * value) / limit));
    shades.data.set([grey, grey, grey, 255], 4 * i);
  });
  canvas.getContext("2d").putImageData(shades, 0, 0);
}

async function examine(picture) {
  status.textContent = "Looking";
  const pixels = prepare(picture);
  const start = performance.now();
  const { map, score } = await detect(pixels);
  show(document.getElementById("image"), pixels, 1);
  show(document.getElementById("map"), map, Math.max(0.2, ...map));
  status.textContent = `Score ${score.toFixed(4)}, ${Math.round(performance.now() - start)} ms`;
}

document.getElementById("file").addEventListener("change", async (event) => {
  const [file] = event.target.files;
  if (!file) return;
  try {
    await examine(await createImageBitmap(file));
  } catch (error) {
    status.textContent = `This image cannot be examined: ${error.message}`;
  }
});

window.detect = detect; // for the console
status.textContent = `Ready for an image: the detector takes ${channels} x ${height} x ${width}`;
