"""The class of a picture, by ONNX Runtime.

python onnxruntime_python.py model.onnx picture.png
"""

import sys

import onnxruntime
from picture import batch_of, in_words


def main(model: str, picture: str) -> None:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    (image,) = session.get_inputs()
    dtype = {"tensor(float)": "float32", "tensor(uint8)": "uint8"}[image.type]
    batch = batch_of(picture, image.shape[1:], dtype, metadata)
    (logits,) = session.run(None, {image.name: batch})
    print(in_words(logits[0], metadata))


if __name__ == "__main__":
    main(*sys.argv[1:])
