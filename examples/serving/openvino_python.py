"""The class of a picture, by OpenVINO.

python openvino_python.py model.onnx picture.png
"""

import sys

import openvino
from picture import batch_of, in_words


def main(model: str, picture: str) -> None:
    network = openvino.Core().read_model(model)
    metadata = {key: value.astype(str) for key, value in network.rt_info["framework"].items()}
    (image,) = network.inputs
    size = [axis.get_length() for axis in list(image.partial_shape)[1:]]
    batch = batch_of(picture, size, image.element_type.to_dtype().name, metadata)
    compiled = openvino.compile_model(network, "CPU")
    logits = compiled(batch)[0]
    print(in_words(logits[0], metadata))


if __name__ == "__main__":
    main(*sys.argv[1:])
