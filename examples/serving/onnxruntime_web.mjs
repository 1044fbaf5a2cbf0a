// The class of a picture, by ONNX Runtime in a browser:
//
// npm install onnxruntime-web protobufjs
//
// const response = await fetch("model.onnx");
// const classify = await load(new Uint8Array(await response.arrayBuffer()));
// input.onchange = async () => { text.textContent = await classify(input.files[0]); };

import * as ort from "onnxruntime-web";
import { cropOf, inWords, metadataOf, tensorOf } from "./model.mjs";

// A function from a picture (a File or Blob) to its class in words.
export async function load(file) {
  const metadata = metadataOf(file);
  const session = await ort.InferenceSession.create(file);
  const [input] = session.inputMetadata;
  return async (picture) => {
    const rgba = pixels(await createImageBitmap(picture), input.shape, metadata);
    const answer = await session.run({ [input.name]: tensorOf(ort, rgba, input, metadata) });
    return inWords(answer[session.outputNames[0]].data, metadata);
  };
}

function pixels(image, shape, metadata) {
  const [, , rows, columns] = shape;
  const context = new OffscreenCanvas(columns, rows).getContext("2d");
  context.imageSmoothingQuality = "high";
  const { left, top, width, height } = cropOf(image.width, image.height, shape, metadata);
  context.drawImage(image, left, top, width, height, 0, 0, columns, rows);
  return context.getImageData(0, 0, columns, rows).data;
}
