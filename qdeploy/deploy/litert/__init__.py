"""The graph between quantizers, as ONNX has it, written as a LiteRT file (.tflite)."""
