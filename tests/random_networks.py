"""Random networks as people write them, drawn by hypothesis as lines of PyTorch.

A network is a list of lines, each drawn from `LINES`. In a line, x and z stand for tensors that are
there, z of the shape of x, and y for a new name; C is the number of x's channels, O another one.
What stands in <...> is made in __init__ and called in the line. Each line runs as soon as it is
drawn, so that shapes are known; one that does not run is left out.

`source` gives the whole network as text, so that one that fails can be pasted into an issue.
"""

import re

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from networks import awkward_norms, images
from torch import nn

LAYERS = """
    y = <nn.Conv2d(C, O, 3, padding=1)>(x)
    y = <nn.Conv2d(C, O, 1)>(x)
    y = <nn.Conv2d(C, O, 3, stride=2, padding=1, bias=False)>(x)
    y = <nn.Conv2d(C, O, 3, padding=2, dilation=2)>(x)
    y = <nn.Conv2d(C, C, 3, padding=1, groups=C)>(x)
    y = <nn.Conv2d(C, O, 3, padding=1, groups=2, bias=False)>(x)
    y = <nn.Conv2d(C, O, 3, padding="same", padding_mode="reflect")>(x)
    y = <nn.Conv2d(C, O, (1, 3), padding=(0, 1), padding_mode="circular")>(x)
    y = <nn.ConvTranspose2d(C, O, 2, stride=2)>(x)
    y = <nn.ConvTranspose2d(C, O, 2, stride=2, dilation=2)>(x)
    y = <nn.ConvTranspose2d(C, O, 3, padding=1, groups=2)>(x)
    y = <nn.Linear(C, O)>(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    y = F.conv2d(x, <nn.Parameter(torch.randn(O, C, 1, 1))>)
"""
NORMS = """
    y = <nn.BatchNorm2d(C)>(x)
    y = <nn.BatchNorm2d(C)>(<nn.Conv2d(C, C, 3, padding=1, bias=False)>(x))
    y = <nn.Sequential(nn.Conv2d(C, O, 3, padding=1), nn.BatchNorm2d(O), nn.ReLU(inplace=True))>(x)
    y = <nn.Sequential(nn.Conv2d(C, O, 1), nn.BatchNorm2d(O, affine=False), nn.Hardswish())>(x)
    y = <nn.BatchNorm2d(C, track_running_stats=False)>(x)
    y = <nn.GroupNorm(2, C)>(x)
    y = <nn.LayerNorm(C)>(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    y = (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True) + 1e-3).sqrt()
    y = x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-2)
"""
ACTIVATIONS = """
    y = F.relu(x)
    y = x.relu()
    y = <nn.ReLU()>(x)
    y = <nn.ReLU6()>(x)
    y = F.relu6(x)
    y = F.hardtanh(x, -1.0, 2.0)
    y = x.clamp(0, 1)
    y = torch.clamp(x, min=-0.5)
    y = x.clamp(max=<nn.Parameter(torch.tensor(0.7))>)
    y = torch.clamp(x, -<nn.Parameter(torch.rand(C, 1, 1))>.abs(), 0.8)
    y = <nn.LeakyReLU(0.1)>(x)
    y = <nn.PReLU(C)>(x)
    y = F.elu(x)
    y = <nn.GELU()>(x)
    y = <nn.SiLU()>(x)
    y = F.silu(x)
    y = x * torch.sigmoid(x)
    y = <nn.Hardswish()>(x)
    y = F.hardsigmoid(x)
    y = x.tanh()
    y = F.softplus(x)
    y = x.softmax(1)
    y = x.abs()
    y = x**2
"""
IN_PLACE = """
    x.relu_()
    y = F.relu(x, inplace=True)
    y = F.relu_(x)
    <nn.ReLU(inplace=True)>(x)
    y = <nn.SiLU(inplace=True)>(x)
    y = <nn.ReLU6(inplace=True)>(x)
    F.leaky_relu(x, 0.2, True)
    x.clamp_(-1, 1)
    x += z
    x.add_(z)
    x *= 0.5
    y = x.mul_(torch.sigmoid(z))
    x -= 0.25
    x[:, 0] = 0.5
    x[:, :2].relu_()
    x.view(x.size(0), -1).mul_(2)
    x[:, :, 1:] = z[:, :, :-1].clone()
    y = torch.multiply(x, z, out=torch.empty_like(x))
"""
ARITHMETIC = """
    y = x + z
    y = torch.add(x, z)
    y = torch.add(x, z, alpha=-0.5)
    y = x.add(z).relu()
    y = x - z
    y = x * z
    y = torch.multiply(F.relu(x), torch.sigmoid(z))
    y = x * torch.sigmoid(<nn.Conv2d(C, C, 1)>(F.adaptive_avg_pool2d(x, 1)))
    y = x * 0.5
    y = 2 * x
    y = -1.5 * x
    y = x / 3
    y = 1 - x
    y = x + 0.1
    y = torch.maximum(x, z)
    y = x / (1 + x.abs())
    y = x / (z.abs() + 0.1)
    y = x / (x.norm(dim=1, keepdim=True) + 1e-2)
"""
LEARNED = """
    y = x + <nn.Parameter(torch.tensor(0.3))> * <nn.Conv2d(C, C, 3, padding=1)>(x)
    y = x + <nn.Parameter(torch.tensor([-0.4]))> * F.relu(z)
    y = <nn.Conv2d(C, O, 1)>(x) * <nn.Parameter(torch.tensor(0.1))>.exp()
    y = <nn.Conv2d(C, C, 1)>(x) * <nn.Parameter(torch.randn(C))>.reshape(1, -1, 1, 1) + x
    y = x * <nn.Parameter(torch.rand(C, 1, 1))>
    y = x + <nn.Parameter(torch.randn(1, C, 1, 1))>
    y = (<nn.Parameter(torch.rand(2))>.relu() / 2)[0] * x + z * 0.5
    y = <nn.Conv2d(C, C, 1)>(x) - <nn.Parameter(torch.randn(C, 1, 1))>
    y = <nn.Conv2d(C, C, 1)>(x) / (<nn.Parameter(torch.rand(C, 1, 1))> + 0.5)
"""
MOVERS = """
    y = torch.cat([x, z], 1)
    y = torch.cat([F.relu(x), z], dim=1)
    y = torch.cat((x, z), 2)
    y = x.chunk(2, 1)[1]
    y = torch.cat(x.chunk(2, dim=1)[::-1], 1)
    y = x[:, 1:]
    y = x[:, :, ::2]
    y = torch.split(x, 2, 1)[0]
    y = F.pad(x, (1, 1, 1, 1))
    y = F.pad(x, (1, 0, 0, 1), value=-1.0)
    y = F.pad(F.relu(x), (1, 1), "constant", -0.5)
    y = F.pad(x, (1, 1, 1, 1), "reflect")
    y = F.pad(x, (-1, 0, 0, -1))
    y = <nn.ZeroPad2d((0, 1, 0, 1))>(x)
    y = x.permute(0, 1, 3, 2)
    y = F.relu(x.transpose(2, 3))
    y = x.permute(0, 2, 3, 1).clamp(-0.5, 1).permute(0, 3, 1, 2)
    y = x.reshape(x.shape[0], 2, -1, x.shape[2], x.shape[3]).transpose(1, 2).flatten(1, 2)
    y = <nn.ChannelShuffle(2)>(x)
    y = F.pixel_shuffle(x, 2)
    y = <nn.PixelUnshuffle(2)>(x)
    y = x.flip(1)
    y = torch.roll(x, 1, 3)
"""
POOLS = """
    y = F.max_pool2d(x, 2)
    y = <nn.MaxPool2d(3, stride=1, padding=1)>(x)
    y = F.relu(F.max_pool2d(x, 3, 2, 1))
    y = <nn.AvgPool2d(2)>(x)
    y = F.avg_pool2d(x, 3, 1, 1)
    y = F.adaptive_avg_pool2d(x, 2)
    y = F.interpolate(x, scale_factor=2)
    y = F.interpolate(x, scale_factor=2, mode="bilinear")
    y = F.interpolate(F.relu(x), scale_factor=2, mode="bicubic")
    y = <nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)>(x)
    y = x * x.mean((2, 3), keepdim=True)
"""
DROPOUTS = """
    y = <nn.Dropout(0.2)>(<nn.Conv2d(C, O, 1)>(x)) + 0.5
    y = <nn.Dropout(0.2)>(x)
    y = <nn.Dropout2d(0.2, inplace=True)>(x)
    y = F.dropout(x, 0.2, self.training)
    y = F.dropout(x, p=0.1, training=self.training, inplace=True)
"""
GROUPS = [
    LAYERS,
    LAYERS,
    NORMS,
    ACTIVATIONS,
    IN_PLACE,
    ARITHMETIC,
    LEARNED,
    MOVERS,
    POOLS,
    DROPOUTS,
]
LINES = [[line.strip() for line in group.strip().splitlines()] for group in GROUPS]
# What is done to the parameters in the end, and what the network gives.
HEADS = ["y = <nn.Conv2d(C, 4, 3, padding=1)>(x)", "y = <nn.Linear(C, 5)>(x.mean((2, 3)))"]
FROZEN = ["self.{0}.requires_grad_(False)", "self.{0}.weight.requires_grad_(False)"]
SCOPE = {"torch": torch, "F": F, "nn": nn}
LARGEST = 2 * 16 * 16 * 16  # elements of a tensor


class Sketch:
    """A network while it is drawn: its lines, and what they gave on an example."""

    def __init__(self, draw):
        self.draw = draw
        self.module = nn.Module()
        self.parts = {}
        self.lines = []
        self.values = {"x": images(2)}

    def add(self, lines):
        """Draws a line, and takes it in if it runs and gives values of a decent size."""
        line = self.draw(st.sampled_from(lines))
        x = self.draw(st.sampled_from([*self.values][:-4:-1]))
        shape = self.values[x].shape
        others = [name for name, value in self.values.items() if value.shape == shape]
        names = {
            "x": x, "z": self.draw(st.sampled_from(others)), "y": f"y{len(self.lines)}",
            "C": str(shape[1]), "O": str(self.draw(st.sampled_from([4, 6, 8]))),
        }  # fmt: skip
        line = re.sub(r"\b[xyzCO]\b", lambda found: names[found[0]], line)
        made = dict(self.parts)
        line = re.sub("<([^<>]+)>", lambda found: f"self.{self.part(found[1], made)}", line)
        if (values := self.run(line, made)) is not None:
            self.lines, self.parts, self.values = [*self.lines, line], made, values

    def part(self, text, made):
        """The name of a module or parameter; now and then of one that is there, which is then shared."""
        same = [name for name, made_of in made.items() if made_of == text]
        if same and self.draw(st.booleans()):
            return same[0]
        kind = re.match(r"nn\.(\w+)", text)[1].lower()
        made[f"{kind}{len(made)}"] = text
        return [*made][-1]

    def run(self, line, made):
        """The values after the line; None if it does not run."""
        values = {name: value.clone() for name, value in self.values.items()}
        try:
            for name in made.keys() - self.parts.keys():
                setattr(self.module, name, eval(made[name], dict(SCOPE)))
            with torch.no_grad():
                exec(line, SCOPE | {"self": self.module.eval()}, values)
        except Exception:
            return None
        return None if any(map(is_odd, values.values())) else values

    def freeze(self):
        """Draws what is frozen and what is tied."""
        kinds = ("conv2d", "convtranspose2d", "linear")
        layers = [name for name in self.parts if name.startswith(kinds)]
        for first in layers:
            twins = [name for name in layers if self.parts[name] == self.parts[first] != first]
            if len(twins) > 1 and self.draw(st.booleans()):
                yield f"self.{twins[1]}.weight = self.{twins[0]}.weight"
        if layers and self.draw(st.booleans()):
            line = self.draw(st.sampled_from(FROZEN))
            yield line.format(self.draw(st.sampled_from(layers)))

    def unread(self):
        read = " ".join(line.partition(" = ")[2] or line for line in self.lines)
        return [y for y in self.values if y != "x" and not re.search(rf"\b{y}\b", read)]

    def source(self):
        made = [f"self.{name} = {text}" for name, text in self.parts.items()]
        return "\n".join([
            "class Drawn(nn.Module):",
            "    def __init__(self):",
            "        super().__init__()",
            *(f"        {line}" for line in [*made, *self.freeze()]),
            "",
            "    def forward(self, x):",
            *(f"        {line}" for line in self.lines),
            f"        return {', '.join(self.unread())}",
        ])  # fmt: skip


def is_odd(value):
    finite = value.isfinite().all() and value.std() > 1e-3 and value.abs().max() < 1e3
    return not finite or value.ndim != 4 or value.shape[1] < 2 or value.numel() > LARGEST


@st.composite
def sources(draw):
    """The text of a network for images [N, 3, 8, 8], which is called Drawn."""
    torch.manual_seed(0)
    sketch = Sketch(draw)
    sketch.add(LINES[0])
    for _ in range(draw(st.integers(1, 8))):
        sketch.add(draw(st.sampled_from(LINES)))
    sketch.add(HEADS)
    return sketch.source()


def built(source):
    """The network of a text, with statistics and gains as if it were trained."""
    torch.manual_seed(0)
    scope = {}
    exec(source, SCOPE | {"__name__": "drawn"}, scope)
    return awkward_norms(scope["Drawn"]()).eval()
