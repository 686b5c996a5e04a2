// Find anomalies in an image with Node.
//
//     npm install --ignore-scripts
//     node detect.mjs DETECTOR.onnx IMAGE.f32 MAP.f32 [ID] [SEED]
//
// IMAGE.f32 holds one image as the detector takes it: little-endian 32-bit floats in [0, 1], channel
// after channel, row after row. MAP.f32 gets the anomaly map in the same way.

import { readFile, writeFile } from "node:fs/promises";

// Before the library is loaded: official builds report to their makers unless told otherwise.
process.env.ORT_DISABLE_TELEMETRY = "1";
const { InferenceSession, Tensor } = (await import("onnxruntime-node")).default;

const [detector, imagePath, mapPath, id = "1", seed = "0"] = process.argv.slice(2);
if (!mapPath) {
  console.error("usage: node detect.mjs DETECTOR.onnx IMAGE.f32 MAP.f32 [ID] [SEED]");
  process.exit(2);
}

const session = await InferenceSession.create(detector, { logSeverityLevel: 3 });
const [, channels, height, width] = session.inputMetadata.find((input) => input.name === "image").shape;
const bytes = await readFile(imagePath);
if (bytes.length !== 4 * channels * height * width) {
  console.error(`${imagePath} has ${bytes.length} bytes, expected ${channels} x ${height} x ${width} floats`);
  process.exit(1);
}
const pixels = new Float32Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length));

const found = await session.run({
  image: new Tensor("float32", pixels, [1, channels, height, width]),
  image_id: new Tensor("uint64", BigUint64Array.of(BigInt(id)), [1]),
  seed: new Tensor("uint64", BigUint64Array.of(BigInt(seed)), []),
});

await writeFile(mapPath, Buffer.from(found.anomaly_map.data.buffer));
console.log(`score ${found.score.data[0]}`);
