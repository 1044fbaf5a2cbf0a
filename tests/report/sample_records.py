"""Records for the tests of the report: a small one with everything in it, and a bare one."""

from dataclasses import replace

import numpy as np

from qdeploy.record import (
    Accuracies,
    Agreement,
    BitsWork,
    Complexity,
    Coverage,
    Dataset,
    Exactness,
    Gate,
    Kernel,
    Latency,
    LayerWork,
    Machine,
    Placement,
    ProductRun,
    Record,
    ShippedLayer,
    Sizes,
    TensorDifference,
)

SHAPES = {
    "conv1": ("Conv2d", 150, 1),
    "conv2": ("Conv2d", 2400, 1),
    "fc1": ("Linear", 48000, 1),
    "fc2": ("Linear", 10080, 4),
    "fc3": ("Linear", 840, 8),
}


def layer(name: str, kind: str, weights: int, bits: int, seed: int = 0) -> ShippedLayer:
    """A layer whose codes are drawn as trained codes fall: two signs, or a bell."""
    rng = np.random.default_rng(seed)
    reach = 2 ** (bits - 1)
    if bits == 1:
        codes = rng.choice((-1, 1), weights, p=(0.45, 0.55))
    else:
        codes = np.clip(rng.normal(0, reach / 3, weights).round(), 1 - reach, reach - 1)
    values, counts = np.unique(codes.astype(int), return_counts=True)
    return ShippedLayer(
        name=name,
        kind=kind,
        weight_bits=bits,
        act_bits=8,
        weights=weights,
        levels=dict(zip(values.tolist(), counts.tolist(), strict=True)),
        weight_bytes=weights * bits // 8,
        bound_bytes=weights * bits // 8 + 32,
    )


def epochs(count: int) -> tuple[dict[str, float | None], ...]:
    """Lines as metrics.csv has them."""
    return tuple(
        {
            "epoch": epoch,
            "steps": 45 * epoch,
            "lr": 0.001,
            "train_loss": 2.2 * 0.85**epoch + 0.02,
            "train_top1": 1 - 0.8 * 0.8**epoch,
            "test_loss": 2.1 * 0.86**epoch + 0.06,
            "test_top1": 0.98 - 0.8 * 0.8**epoch,
            "test_top5": 1 - 0.3 * 0.7**epoch,
            "seconds": 1.2,
        }
        for epoch in range(1, count + 1)
    )


def latency(file: str, batch: int, p50_ms: float, speedup: float, file_bytes: int) -> Latency:
    return Latency(
        file=file,
        batch=batch,
        provider="CPUExecutionProvider",
        threads=1,
        file_bytes=file_bytes,
        load_ms=3.456,
        p50_ms=p50_ms,
        p90_ms=1.1 * p50_ms,
        p99_ms=1.3 * p50_ms,
        images_per_second=batch * 1e3 / p50_ms,
        speedup=speedup,
        rounds=200,
    )


CPU = "CPUExecutionProvider"
IN_FLOAT = "its output goes to Sigmoid before it is quantized"
KERNELS = (
    Kernel("QuantizeLinear 1", "QuantizeLinear", CPU, "float", "uint8", 0.004, 0.04),
    Kernel(None, "Transpose", CPU, "uint8", "uint8", 0.001, 0.01),
    Kernel("conv1", "QLinearConv", CPU, "uint8", "uint8", 0.08, 0.8),
    Kernel("head", "FusedGemm", CPU, "float", "float", 0.015, 0.15),
)
PRODUCTS = (
    ProductRun("conv1", "Conv", True, "QLinearConv", True, None),
    ProductRun("head", "Gemm", True, "FusedGemm", False, IN_FLOAT),
    ProductRun("aside", "Gemm", False, "Gemm", False, None),
)

MACHINE = Machine(
    cpu="Intel(R) Xeon(R) Processor @ 2.70GHz",
    cores=2,
    gpu=None,
    system="Linux-6.1-x86_64-with-glibc2.36",
    python="3.11.7",
    onnxruntime="1.31.1",
)

COMPLEXITY = Complexity(
    parameters=61_006,
    macs=416_520,
    bit_operations=14_426_880,
    by_bits=(BitsWork(1, 8, 1, 405_600, 3_244_800), BitsWork(None, None, 1, 10_920, 11_182_080)),
    layers=(
        LayerWork("conv1", "Conv2d", 1, 8, 60_156, 405_600, 3_244_800),
        LayerWork("head", "Linear", None, None, 850, 10_920, 11_182_080),
    ),
)

FULL = Record(
    name="lenet5-digits-slb-w1a8",
    file="model.onnx",
    version="0.1.0",
    created="2026-11-21T09:00:00+00:00",
    machine=MACHINE,
    recipe={"name": "lenet5-digits-slb-w1a8", "train": {"epochs": 20, "lr": 0.001}},
    method="slb",
    settings="conv1  slb, 1 bit (-1, 1), per channel\nconv2  slb, 1 bit (-1, 1), per channel",
    dataset=Dataset("scikit-learn's digits", 360),
    accuracy=Accuracies(
        float={"top1": 0.9861, "top5": 1.0},
        trained={"top1": 0.9833, "top5": 0.9972},
        onnx={"top1": 0.9831, "top5": 0.9971},
        prepared={"top1": 0.9834, "top5": 0.9972},
    ),
    agreement=Agreement(360, 359 / 360, 0.01234, 0.00131, 54.2, "image", 360),
    size=Sizes(onnx=16_480, float=467_800, int8=123_456, bound=14_700),
    complexity=COMPLEXITY,
    layers=tuple(layer(name, *shape) for name, shape in SHAPES.items()),
    latency=(
        latency("float.onnx", 1, 0.333, 1.0, 467_800),
        latency("model.onnx", 1, 0.128, 2.6015625, 16_480),
        latency("float.onnx", 64, 5.55, 1.0, 467_800),
        latency("model.onnx", 64, 3.49, 1.590257, 16_480),
    ),
    placements=(
        Placement(
            "float.onnx",
            {"FusedConv": 2, "FusedGemm": 3, "MaxPool": 2},
            {"CPUExecutionProvider": {"Conv": 2, "Gemm": 3, "MaxPool": 2}},
        ),
        Placement(
            "model.onnx",
            {"com.microsoft::QLinearConv": 2, "com.microsoft::QGemm": 3, "MaxPool": 2},
            {"CPUExecutionProvider": {"Conv": 2, "Gemm": 3, "MaxPool": 2}},
            KERNELS,
            PRODUCTS,
            Coverage(integer=1, quantized=2),
        ),
    ),
    gates=(Gate("max-drop", 0.5, 0.3, True), Gate("max-size", 16_000, 16_480, False)),
    training=epochs(20),
    exactness=Exactness(
        360,
        CPU,
        (
            TensorDifference("conv1, relu", 1_693_440, 0, 0, True),
            TensorDifference("gelu", 43_200, 2, 1, False),
        ),
    ),
)

BARE = replace(
    FULL,
    accuracy=Accuracies(None, None, None),
    agreement=None,
    size=Sizes(onnx=16_480, float=None, int8=None, bound=None),
    complexity=Complexity(0, 0, 0, (), ()),
    layers=(),
    latency=(),
    placements=(),
    gates=(),
    training=(),
    exactness=None,
)

DEEP = replace(
    FULL,
    name="mobilenetv2-imagenet-simqat-w4a8",
    layers=tuple(
        layer(f"features.{i}.conv.{i % 3}.0", "Conv2d", 9 * 64 * (i + 1), (8, 4, 2, 1)[i % 4], i)
        for i in range(60)
    ),
)
