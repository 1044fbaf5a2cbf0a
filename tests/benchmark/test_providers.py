"""What onnxruntime claims to have is not what there is."""

import onnxruntime as ort
import pytest
from graphs import IMAGES, float_network

from qdeploy.benchmark import open_session
from qdeploy.benchmark.providers import CPU, CUDA, PROVIDERS, why_not, works
from qdeploy.errors import QdeployError

without_cuda = pytest.mark.skipif(works("cuda"), reason="this machine runs CUDA")
MODEL = float_network().SerializeToString()


def test_an_unknown_provider_is_told_the_known_ones():
    with pytest.raises(QdeployError, match=r"'npu'.*auto, cpu, cuda, tensorrt"):
        open_session(MODEL, "npu")


@without_cuda
@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_provider_that_is_not_there_is_an_error_and_no_silent_fallback(provider, capfd):
    why_not.cache_clear()
    with pytest.raises(
        QdeployError, match=rf"'{provider}' does not work.*cpu\. The reason: .*qdeploy\[gpu\]"
    ):
        open_session(MODEL, provider)
    assert capfd.readouterr() == ("", "")


@without_cuda
def test_auto_is_the_cpu_where_no_gpu_works():
    assert open_session(MODEL, "auto").providers == (CPU,)


@pytest.mark.gpu
@pytest.mark.skipif(not works("cuda"), reason="needs a CUDA device")
@pytest.mark.parametrize("provider", ["auto", "cuda"])
def test_cuda_runs_and_agrees_with_the_cpu(provider):
    session = open_session(MODEL, provider)
    assert session.providers[0] == CUDA
    assert session.run(IMAGES) == pytest.approx(open_session(MODEL, "cpu").run(IMAGES), abs=1e-2)


def test_a_provider_that_drops_out_of_one_session_is_an_error(monkeypatch):
    """A GPU may answer the probe and still not be registered for a network."""
    monkeypatch.setattr("qdeploy.benchmark.providers.works", lambda name: True)
    monkeypatch.setattr(
        "qdeploy.benchmark.runtime.create",
        lambda source, *how: ort.InferenceSession(source, providers=[CPU]),
    )
    with pytest.raises(QdeployError, match="'cuda' does not work"):
        open_session(MODEL, "cuda")


def test_each_choice_prefers_its_own_provider_and_ends_on_the_cpu():
    for choice, providers in PROVIDERS.items():
        assert providers[0].lower().startswith(choice)
        assert providers[-1] == CPU
