// What the JavaScript examples share: the metadata of a file, its picture, its class in words.

import protobuf from "protobufjs";

// ONNX Runtime does not show metadata to JavaScript. These are the fields of ONNX's ModelProto that hold it.
const { root } = protobuf.parse(`
  syntax = "proto3";
  message Entry { string key = 1; string value = 2; }
  message Model { repeated Entry metadata_props = 14; }`);

// The metadata of an ONNX file, given as Uint8Array.
export function metadataOf(file) {
  const { metadataProps } = root.lookupType("Model").decode(file);
  return Object.fromEntries(metadataProps.map(({ key, value }) => [key, value]));
}

// The part of a picture that the network was tested with: a centre of its input's proportions, or all of it.
export function cropOf(width, height, [, , rows, columns], metadata) {
  const part = JSON.parse(metadata["qdeploy.crop"] ?? "1");
  if (part === "whole") return { left: 0, top: 0, width, height };
  const scale = part * Math.min(width / columns, height / rows);
  const [cropWidth, cropHeight] = [scale * columns, scale * rows];
  return { left: (width - cropWidth) / 2, top: (height - cropHeight) / 2, width: cropWidth, height: cropHeight };
}

// Pixels RGBA [H, W, 4] as the tensor [1, C, H, W] of an input: its pixels if it is uint8, else normalised.
export function tensorOf(ort, rgba, { type, shape: [, channels, height, width] }, metadata) {
  const { mean, std } = JSON.parse(metadata["qdeploy.normalisation"]);
  const size = height * width;
  const values = type === "uint8" ? new Uint8Array(channels * size) : new Float32Array(channels * size);
  for (let channel = 0; channel < channels; channel++)
    for (let i = 0; i < size; i++) {
      const [red, green, blue] = rgba.subarray(4 * i);
      const grey = Math.round(0.299 * red + 0.587 * green + 0.114 * blue);
      const pixel = channels === 1 ? grey : rgba[4 * i + channel];
      values[channel * size + i] = type === "uint8" ? pixel : (pixel / 255 - mean[channel]) / std[channel];
    }
  return new ort.Tensor(type, values, [1, channels, height, width]);
}

// The class of the largest of the logits, and its share of their softmax.
export function inWords(logits, metadata) {
  const largest = Math.max(...logits);
  const sum = logits.reduce((total, logit) => total + Math.exp(logit - largest), 0);
  return `${JSON.parse(metadata["qdeploy.classes"])[logits.indexOf(largest)]} ${(1 / sum).toFixed(4)}`;
}
