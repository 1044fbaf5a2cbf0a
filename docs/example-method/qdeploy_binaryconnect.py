"""BinaryConnect: the sign of the weight (Courbariaux et al., NeurIPS 2015, arXiv 1511.00363)."""

from torch import Tensor, nn

from qdeploy.grid import Grid, QTensor
from qdeploy.layers.activation import MovingRange
from qdeploy.layers.fake_quantize import straight_through
from qdeploy.layers.weight import WeightQuantizer, signs
from qdeploy.methods import ActivationSite, Method, Options, WeightSite


class BinaryConnectOptions(Options):
    """clip: the gradient passes where |w| is at most this (section 2.4)."""

    clip: float = 1.0


class BinaryConnectWeight(WeightQuantizer):
    """latent: the float weight [out, ...]. Ships its sign, times its mean size at the start."""

    def __init__(self, site: WeightSite, bits: int, options: BinaryConnectOptions) -> None:
        super().__init__()
        weight = site.weight.detach()
        self.latent = nn.Parameter(weight.clone())
        self.grid = Grid((-1, 1))
        self.clip = options.clip
        self.register_buffer("scale", weight.abs().mean().clamp(min=1e-6))

    def relax(self, latent: Tensor) -> Tensor:
        passed = latent.clamp(-self.clip, self.clip)
        return straight_through(self.collapse(latent).dequantize(), passed)

    def collapse(self, latent: Tensor) -> QTensor:
        return QTensor.symmetric(signs(latent), self.scale, self.grid)


def activation(site: ActivationSite, bits: int, options: BinaryConnectOptions) -> MovingRange:
    return MovingRange(bits)


METHOD = Method(
    summary="the sign of the weight, straight-through gradient",
    paper="Courbariaux et al., NeurIPS 2015, arXiv 1511.00363",
    weight=BinaryConnectWeight,
    activation=activation,
    weight_bits=(1,),
    act_bits=(8,),
    options=BinaryConnectOptions,
)
