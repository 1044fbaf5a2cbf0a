"""The class of a picture, by a Triton server that serves what `qdeploy export --triton` wrote.

python triton_client.py localhost:8000 lenet5 picture.png
"""

import sys

import tritonclient.http as triton
from picture import batch_of
from tritonclient.utils import np_to_triton_dtype


def main(server: str, model: str, picture: str) -> None:
    client = triton.InferenceServerClient(server)
    config = client.get_model_config(model)
    metadata = {key: value["string_value"] for key, value in config["parameters"].items()}
    (image,), (logits,) = config["input"], config["output"]
    dtype = {"TYPE_FP32": "float32", "TYPE_UINT8": "uint8"}[image["data_type"]]
    batch = batch_of(picture, image["dims"], dtype, metadata)
    request = triton.InferInput(image["name"], batch.shape, np_to_triton_dtype(batch.dtype))
    request.set_data_from_numpy(batch)
    # The server has the class names, and gives "logit:number:name" of the best one.
    best = triton.InferRequestedOutput(logits["name"], class_count=1)
    answer = client.infer(model, [request], outputs=[best]).as_numpy(logits["name"])
    logit, _, name = answer.item().decode().split(":", 2)
    print(name, logit)


if __name__ == "__main__":
    main(*sys.argv[1:])
