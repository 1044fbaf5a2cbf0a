"""The ONNX file that ships: how it is stored, sealed, read back and served. Nothing here needs torch."""
