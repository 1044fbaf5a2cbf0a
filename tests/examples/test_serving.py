"""Each example of serving names the class that ONNX Runtime's logits do, run as a user runs it.

What is not in the test environment is skipped, unless an environment variable says where it is:

QDEPLOY_NODE_MODULES   a folder node_modules with onnxruntime-node, onnxruntime-web, protobufjs and sharp;
                       the web example runs in the chromium of the PATH
QDEPLOY_CXX_FLAGS      what g++ needs to find ONNX Runtime, stb and nlohmann-json, and to link
QDEPLOY_TRITON_SERVER  a command that starts tritonserver; --model-repository and --http-port are added
"""

import functools
import http.server
import importlib.util
import json
import os
import queue
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn

import qdeploy
from qdeploy.cli import main
from qdeploy.data import Normalisation
from qdeploy.deploy.triton import write_repository
from qdeploy.pictures.fit import CENTRE, Fit
from qdeploy.pipeline.build import build, integers_of
from qdeploy.pipeline.trained_run import load_run
from qdeploy.run import RunFolder

SERVING = Path(__file__).parents[2] / "examples" / "serving"
PICTURES = {
    "digits": "digit.png",
    "photos": "photo.png",
    "pixels": "photo.png",
    "whole": "photo.png",
}
RESIZED = 0.02  # of a share: other resizers round otherwise
MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures and files: digit.png is for digits.onnx, photo.png for the two others."""
    folder = tmp_path_factory.mktemp("serving")
    digit = Image.fromarray((load_digits().images[7] * 255 / 16).astype(np.uint8))
    digit.resize((28, 28), Image.Resampling.BILINEAR).save(folder / "digit.png")
    colours = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    photo = Image.fromarray(colours).resize((90, 70), Image.Resampling.BICUBIC)
    photo.save(folder / "photo.png")
    write_digits(folder)
    write_photos(folder)
    return folder


def write_digits(folder):
    """LeNet-5 as the pipeline exports it: float32, one channel, whole pictures."""
    run = ["lenet5-digits-slb-w1a8", "--epochs", "1", "--set", "train.float_epochs=1"]
    done = CliRunner().invoke(main, ["train", *run, "-o", str(folder / "run")])
    assert done.exit_code == 0, done.output
    trained = load_run(RunFolder(folder / "run"), "last", None, "cpu")
    model = build(trained, integers_of(trained)).model
    (folder / "digits.onnx").write_bytes(model.SerializeToString())


def write_photos(folder):
    """The strongest colour of a picture's centre: float32, and uint8 that is normalised in the file.

    In `whole` it is that of the whole picture, stretched.
    """
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    with torch.no_grad():
        network[0].weight.copy_(3 * torch.eye(3).reshape(3, 3, 1, 1))
    x = 2 * torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    prepared = qdeploy.prepare(network, x[:2], "simqat")
    qdeploy.calibrate(prepared, [x])
    metadata = {
        "qdeploy.classes": json.dumps(["red", "green", "deep blue"]),
        "qdeploy.normalisation": json.dumps({"mean": MEAN, "std": STD}),
    }
    for name, crop, pixels in (
        ("photos", CENTRE, None),
        ("pixels", CENTRE, (MEAN, STD)),
        ("whole", "whole", None),
    ):
        path = folder / f"{name}.onnx"
        noted = {**metadata, "qdeploy.crop": json.dumps(crop)}
        qdeploy.export(prepared, path, x[:2], metadata=noted, uint8_input=pixels)


def expected(folder, name):
    """The class, its share of the softmax and its logit: ONNX Runtime on what qdeploy.data makes of it."""
    session = onnxruntime.InferenceSession(folder / f"{name}.onnx")
    metadata = session.get_modelmeta().custom_metadata_map
    image = Image.open(folder / PICTURES[name])
    image = image if name == "digits" else Fit(None if name == "whole" else CENTRE)(image, 32, 32)
    batch = torch.tensor(np.atleast_3d(image)).permute(2, 0, 1)[None]
    if name != "pixels":
        given = json.loads(metadata["qdeploy.normalisation"])
        batch = Normalisation(given["mean"], given["std"], "cpu")(batch)
    (logits,) = session.run(None, {"input": batch.numpy()})[0]
    share = torch.tensor(logits).softmax(0).max().item()
    return json.loads(metadata["qdeploy.classes"])[logits.argmax()], share, logits.max()


def installed(package):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")


def setting(name, why):
    return os.environ.get(name) or pytest.skip(f"{name} is not set: {why}")


def printed(*command):
    """The class and the number that a command prints."""
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    name, _, number = done.stdout.rstrip().rpartition(" ")
    return name, float(number)


@pytest.mark.parametrize("name", PICTURES)
def test_onnx_runtime_in_python(name, folder):
    found = printed(
        sys.executable,
        SERVING / "onnxruntime_python.py",
        folder / f"{name}.onnx",
        folder / PICTURES[name],
    )
    known, share, _ = expected(folder, name)
    assert found == (known, pytest.approx(share, abs=1e-4))


@pytest.mark.parametrize("name", PICTURES)
def test_openvino_in_python(name, folder):
    installed("openvino")
    script = SERVING / "openvino_python.py"
    found = printed(sys.executable, script, folder / f"{name}.onnx", folder / PICTURES[name])
    known, share, _ = expected(folder, name)
    assert found == (known, pytest.approx(share, abs=0.01))  # OpenVINO rounds otherwise


@pytest.fixture(scope="module")
def classify(tmp_path_factory):
    """The C++ example, built as its first lines say."""
    flags = shlex.split(setting("QDEPLOY_CXX_FLAGS", "where ONNX Runtime, stb and JSON are"))
    program = tmp_path_factory.mktemp("cpp") / "classify"
    source = SERVING / "onnxruntime_cpp.cpp"
    subprocess.run(["g++", "-std=c++17", "-O1", source, *flags, "-o", program], check=True)
    return program


@pytest.mark.parametrize("name", PICTURES)
def test_onnx_runtime_in_cpp(name, folder, classify):
    found = printed(classify, folder / f"{name}.onnx", folder / PICTURES[name])
    known, share, _ = expected(folder, name)
    assert found == (known, pytest.approx(share, abs=RESIZED))


@pytest.fixture(scope="module")
def javascript(folder):
    """A folder with the examples, the files and the packages."""
    modules = setting("QDEPLOY_NODE_MODULES", "a folder with onnxruntime-node and the others")
    for file in SERVING.glob("*.mjs"):
        shutil.copy(file, folder)
    (folder / "node_modules").symlink_to(modules)
    return folder


@pytest.mark.parametrize("name", PICTURES)
def test_onnx_runtime_in_node(name, javascript):
    script, file = javascript / "onnxruntime_node.mjs", javascript / f"{name}.onnx"
    found = printed("node", script, file, javascript / PICTURES[name])
    known, share, _ = expected(javascript, name)
    assert found == (known, pytest.approx(share, abs=RESIZED))


PAGE = """<!doctype html>
<script type="importmap">{"imports": {
  "onnxruntime-web": "./node_modules/onnxruntime-web/dist/ort.wasm.bundle.min.mjs",
  "protobufjs": "data:text/javascript,export default globalThis.protobuf"}}</script>
<script src="./node_modules/protobufjs/dist/protobuf.min.js"></script>
<script type="module">
  const get = async (name) => (await fetch(name)).blob();
  const answer = async () => {
    const { load } = await import("./onnxruntime_web.mjs");
    const classify = await load(new Uint8Array(await (await get("FILE")).arrayBuffer()));
    return classify(await get("PICTURE"));
  };
  const body = await answer().catch((error) => `failed: ${error.stack}`);
  await fetch("answer", { method: "POST", body });
</script>"""


@pytest.mark.parametrize("name", PICTURES)
def test_onnx_runtime_in_a_browser(name, javascript, tmp_path):
    if not shutil.which("chromium"):
        pytest.skip("chromium is not installed")
    page = PAGE.replace("FILE", f"{name}.onnx").replace("PICTURE", PICTURES[name])
    (javascript / "page.html").write_text(page)
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}"]
    with Site(javascript) as site:
        address = f"http://127.0.0.1:{site.server_port}/page.html"
        browser = subprocess.Popen(["chromium", *flags, address], stderr=subprocess.DEVNULL)
        try:
            answer = site.answers.get(timeout=300)
        finally:
            browser.terminate()
            browser.wait()
    found, _, number = answer.rpartition(" ")
    known, share, _ = expected(javascript, name)
    assert (found, float(number)) == (known, pytest.approx(share, abs=RESIZED)), answer


class Site(http.server.ThreadingHTTPServer):
    """Serves a folder; `answers` are what pages post."""

    def __init__(self, folder):
        self.answers = queue.Queue()
        super().__init__(("127.0.0.1", 0), functools.partial(Visit, directory=str(folder)))

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.shutdown()
        self.server_close()


class Visit(http.server.SimpleHTTPRequestHandler):
    def do_POST(self):
        self.server.answers.put(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self.send_response(204)
        self.end_headers()

    def log_message(self, format, *arguments):  # noqa: A002
        pass


@pytest.fixture(scope="module")
def triton(folder, tmp_path_factory):
    """The address of a Triton server with all files."""
    installed("tritonclient")
    command = shlex.split(setting("QDEPLOY_TRITON_SERVER", "a command that starts tritonserver"))
    models = tmp_path_factory.mktemp("triton") / "models"
    for name in PICTURES:
        write_repository(folder / f"{name}.onnx", models, name)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen([*command, "--model-repository", models, "--http-port", str(port)])
    try:
        address = f"127.0.0.1:{port}"
        wait_until_ready(address)
        yield address
    finally:
        server.terminate()
        server.wait()


def wait_until_ready(address, seconds=120):
    until = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(f"http://{address}/v2/health/ready").close()
            return
        except OSError:
            assert time.monotonic() < until, "Triton does not get ready"
            time.sleep(0.5)


@pytest.mark.parametrize("name", PICTURES)
def test_triton(name, folder, triton):
    script = SERVING / "triton_client.py"
    found = printed(sys.executable, script, triton, name, folder / PICTURES[name])
    known, _, logit = expected(folder, name)
    assert found == (known, pytest.approx(logit, abs=1e-4))
