// The class of a picture, by ONNX Runtime in Node.js:
//
// npm install onnxruntime-node protobufjs sharp
// node onnxruntime_node.mjs model.onnx picture.png

import { readFile } from "node:fs/promises";
import ort from "onnxruntime-node";
import sharp from "sharp";
import { cropOf, inWords, metadataOf, tensorOf } from "./model.mjs";

const [model, picture] = process.argv.slice(2);
const file = await readFile(model);
const metadata = metadataOf(file);
const session = await ort.InferenceSession.create(file);
const [input] = session.inputMetadata;
const rgba = await pixels(picture);
const answer = await session.run({ [input.name]: tensorOf(ort, rgba, input, metadata) });
console.log(inWords(answer[session.outputNames[0]].data, metadata));

async function pixels(picture) {
  const image = sharp(picture);
  const { width, height } = await image.metadata();
  const [, , rows, columns] = input.shape;
  const crop = cropOf(width, height, input.shape, metadata);
  const whole = Object.fromEntries(Object.entries(crop).map(([side, length]) => [side, Math.round(length)]));
  return image
    .extract(whole)
    .resize(columns, rows, { fit: "fill", kernel: "linear", fastShrinkOnLoad: false })
    .toColourspace("srgb")
    .ensureAlpha()
    .raw()
    .toBuffer();
}
