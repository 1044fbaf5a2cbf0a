// The class of a picture, by ONNX Runtime in C++, with stb's decoder and resizer and nlohmann's JSON:
//
// g++ -std=c++17 -O2 onnxruntime_cpp.cpp -I ONNXRUNTIME/include -L ONNXRUNTIME/lib -lonnxruntime -o classify
// ./classify model.onnx picture.png

#include <cmath>
#include <iostream>
#include <numeric>

#include <nlohmann/json.hpp>
#include <onnxruntime_cxx_api.h>
#define STB_IMAGE_IMPLEMENTATION
#include <stb_image.h>
#define STB_IMAGE_RESIZE_IMPLEMENTATION
#include <stb_image_resize2.h>

using Pixels = std::vector<uint8_t>;

// The centre of a picture, or all of it, at the network's size, [H, W, C], bilinear with antialiasing.
Pixels pixels(const char* picture, int channels, int height, int width, const nlohmann::json& part) {
  int rows, columns, found;
  uint8_t* whole = stbi_load(picture, &columns, &rows, &found, channels);
  if (!whole) throw std::runtime_error(std::string(picture) + ": " + stbi_failure_reason());
  double x = 0.5, y = 0.5;  // half of what is taken
  if (part != "whole") {
    const double scale = part.get<double>() * std::min(columns / double(width), rows / double(height));
    x = scale * width / columns / 2, y = scale * height / rows / 2;
  }
  Pixels centre(height * width * channels);
  STBIR_RESIZE resize;
  const auto layout = channels == 1 ? STBIR_1CHANNEL : STBIR_RGB;
  stbir_resize_init(&resize, whole, columns, rows, 0, centre.data(), width, height, 0, layout, STBIR_TYPE_UINT8);
  stbir_set_input_subrect(&resize, 0.5 - x, 0.5 - y, 0.5 + x, 0.5 + y);
  stbir_set_filters(&resize, STBIR_FILTER_TRIANGLE, STBIR_FILTER_TRIANGLE);
  stbir_resize_extended(&resize);
  stbi_image_free(whole);
  return centre;
}

int main(int, char** arguments) {
  Ort::Env env;
  Ort::Session session(env, arguments[1], Ort::SessionOptions());
  Ort::AllocatorWithDefaultOptions allocator;
  const auto metadata = session.GetModelMetadata();
  const auto entry = [&](const char* key, const char* absent) {
    const auto value = metadata.LookupCustomMetadataMapAllocated(key, allocator);
    return nlohmann::json::parse(value ? value.get() : absent);
  };
  const auto type = session.GetInputTypeInfo(0);
  auto shape = type.GetTensorTypeAndShapeInfo().GetShape();  // [batch, C, H, W]
  shape[0] = 1;
  const int channels = shape[1], size = shape[2] * shape[3];
  const auto image = pixels(arguments[2], channels, shape[2], shape[3], entry("qdeploy.crop", "1"));

  // A uint8 input takes pixels; a float one takes them normalised.
  const std::vector<float> mean = entry("qdeploy.normalisation", "{}").at("mean");
  const std::vector<float> std = entry("qdeploy.normalisation", "{}").at("std");
  Pixels planes(channels * size);
  std::vector<float> normalised(channels * size);
  for (int i = 0; i < channels * size; ++i) {
    const int c = i / size;
    planes[i] = image[i % size * channels + c];
    normalised[i] = (planes[i] - 255 * mean[c]) / (255 * std[c]);
  }
  const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  const bool as_pixels = type.GetTensorTypeAndShapeInfo().GetElementType() == ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
  const auto batch =
      as_pixels ? Ort::Value::CreateTensor<uint8_t>(memory, planes.data(), planes.size(), shape.data(), 4)
                : Ort::Value::CreateTensor<float>(memory, normalised.data(), normalised.size(), shape.data(), 4);

  const auto input = session.GetInputNameAllocated(0, allocator), output = session.GetOutputNameAllocated(0, allocator);
  const char *input_name = input.get(), *output_name = output.get();
  auto answer = session.Run(Ort::RunOptions(), &input_name, &batch, 1, &output_name, 1);
  const float* logits = answer[0].GetTensorData<float>();
  const float* end = logits + answer[0].GetTensorTypeAndShapeInfo().GetElementCount();
  const float* best = std::max_element(logits, end);
  const double sum = std::accumulate(logits, end, 0.0, [&](double s, float x) { return s + std::exp(x - *best); });
  std::cout << entry("qdeploy.classes", "[]")[best - logits].get<std::string>() << " " << 1 / sum << "\n";
}
