"""Small float networks with everything in them that breaks folding, placement and export."""

import torch
import torch.nn.functional as F
from torch import nn

DEAD_SHIFT = 0.37  # 0 would hide an overflowing bias, 0.5 sits on a rounding tie


def awkward_norms(network, seed=0):
    """Gives each BatchNorm trained-looking statistics, one negative gain and one dead channel."""
    generator = torch.Generator().manual_seed(seed)
    for norm in network.modules():
        if not isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            continue
        count = norm.num_features

        def uniform(low, high, count=count):
            return torch.rand(count, generator=generator) * (high - low) + low

        with torch.no_grad():
            if norm.affine:
                norm.weight.copy_(uniform(0.6, 1.4))
                norm.weight[0] *= -1
                norm.weight[1] = 0
                norm.bias.copy_(uniform(-0.2, 0.4))
                norm.bias[1] = DEAD_SHIFT
            if norm.track_running_stats:
                norm.running_mean.copy_(uniform(-0.3, 0.3))
                norm.running_var.copy_(uniform(0.5, 1.5))
    return network


def conv_norm_relu(inputs, outputs, kernel=3, relu=nn.ReLU, **options):
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), relu())


class Residual(nn.Module):
    """Odd channels, groups, stride, bias, a shortcut with and without a projection, flattened."""

    def __init__(self, classes=5):
        super().__init__()
        self.stem = conv_norm_relu(3, 7, bias=False)
        self.conv1 = nn.Conv2d(7, 14, 3, stride=2, padding=1, groups=7)
        self.bn1 = nn.BatchNorm2d(14)
        self.conv2 = nn.Conv2d(14, 9, 3, padding=2, dilation=2, bias=False)
        self.bn2 = nn.BatchNorm2d(9)
        self.projection = nn.Conv2d(7, 9, 1, stride=2)
        self.same = nn.Sequential(nn.Conv2d(9, 9, 3, padding=1, bias=False), nn.BatchNorm2d(9))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(9, classes)

    def forward(self, x):
        x = self.stem(x)
        y = F.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(y)) + self.projection(x))
        x = (x + self.same(x)).relu()
        return self.fc(torch.flatten(self.pool(x), 1))


class Branches(nn.Module):
    """DenseNet-like: each layer reads everything before it, joined by concat."""

    def __init__(self, classes=5):
        super().__init__()
        self.stem = conv_norm_relu(3, 6, bias=False)
        self.grow1 = conv_norm_relu(6, 5, bias=False)
        self.grow2 = conv_norm_relu(11, 5, bias=False)
        self.narrow = conv_norm_relu(16, 7, kernel=1, bias=False)
        self.fc = nn.Linear(7 * 4 * 4, classes)

    def forward(self, x):
        x = F.max_pool2d(self.stem(x), 2)
        x = torch.cat([x, self.grow1(x)], 1)
        x = torch.cat([x, self.grow2(x)], 1)
        return self.fc(self.narrow(x).flatten(1))


class PreActivation(nn.Module):
    """DenseNet as published: BatchNorm and ReLU stand before the convolution."""

    def __init__(self, classes=5):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.norm1, self.conv1 = nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3, padding=1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(10), nn.Conv2d(10, 4, 3, padding=1, bias=False)
        self.norm3 = nn.BatchNorm2d(14)
        self.fc = nn.Linear(14, classes)

    def forward(self, x):
        x = self.stem(x)
        x = torch.cat([x, self.conv1(F.relu(self.norm1(x)))], 1)
        x = torch.cat([x, self.conv2(F.relu(self.norm2(x)))], 1)
        x = F.adaptive_avg_pool2d(F.relu(self.norm3(x)), 1)
        return self.fc(torch.flatten(x, 1))


class InvertedResidual(nn.Module):
    """MobileNetV2-like: expand, depthwise, linear bottleneck, ReLU6, in-place."""

    def __init__(self, classes=5):
        super().__init__()

        def relu6():
            return nn.ReLU6(inplace=True)

        self.stem = conv_norm_relu(3, 5, relu=relu6, stride=2, bias=False)
        self.expand = conv_norm_relu(5, 15, kernel=1, relu=relu6, bias=False)
        self.depthwise = conv_norm_relu(15, 15, relu=relu6, groups=15, bias=False)
        self.project = nn.Sequential(nn.Conv2d(15, 5, 1, bias=False), nn.BatchNorm2d(5))
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(5, classes))

    def forward(self, x):
        x = self.stem(x)
        x = x + self.project(self.depthwise(self.expand(x)))
        return self.head(x.mean([2, 3]))


class Shuffled(nn.Module):
    """ShuffleNetV2-like: half of the channels pass by, concat, channel shuffle."""

    def __init__(self, classes=5):
        super().__init__()
        self.stem = conv_norm_relu(3, 6, bias=False)
        self.branch1 = conv_norm_relu(3, 3, bias=False)
        self.branch2 = conv_norm_relu(3, 3, bias=False)
        self.fc = nn.Linear(6, classes)

    def forward(self, x):
        x = self.stem(x)
        for branch in (self.branch1, self.branch2):
            left, right = x.chunk(2, dim=1)
            x = shuffled(torch.cat((left, branch(right)), dim=1))
        return self.fc(x.mean((2, 3)))


def shuffled(x):
    batch, channels, height, width = x.size()
    x = x.view(batch, 2, channels // 2, height, width)
    return torch.transpose(x, 1, 2).contiguous().view(batch, -1, height, width)


class SqueezeExcite(nn.Module):
    def __init__(self, classes=5):
        super().__init__()
        self.stem = conv_norm_relu(3, 8, relu=nn.SiLU, bias=False)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.down, self.up = nn.Conv2d(8, 3, 1), nn.Conv2d(3, 8, 1)
        self.last = conv_norm_relu(8, 8, kernel=1, bias=False)
        self.fc = nn.Linear(8, classes)

    def forward(self, x):
        x = self.stem(x)
        gate = torch.sigmoid(self.up(F.relu(self.down(self.pool(x)))))
        x = self.last(x * gate)
        return self.fc(self.pool(x).flatten(1))


def average_pooled():
    return nn.Sequential(
        *conv_norm_relu(3, 6, bias=False),
        nn.AvgPool2d(2),
        *conv_norm_relu(6, 5),
        nn.AvgPool2d(3, stride=2, padding=1),
        nn.Flatten(),
        nn.Linear(20, 5),
    )


def hard_swish():
    return nn.Sequential(
        *conv_norm_relu(3, 6, relu=nn.Hardswish, bias=False),
        *conv_norm_relu(6, 6, relu=nn.Hardswish, groups=6, bias=False),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 5),
    )


class UpAndDown(nn.Module):
    """A transposed convolution, which stays float, and an output that is a reshaped convolution."""

    def __init__(self):
        super().__init__()
        self.down = conv_norm_relu(3, 6, stride=2, bias=False)
        self.up = nn.ConvTranspose2d(6, 5, 2, stride=2)
        self.norm = nn.BatchNorm2d(5)
        self.last = nn.Conv2d(5, 2, 1)

    def forward(self, x):
        x = F.relu(self.norm(self.up(self.down(x))))
        return self.last(x).reshape(x.shape[0], -1)


def plain():
    """Only nn.Sequential, no BatchNorm, pooling before ReLU."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.MaxPool2d(2),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(54, 7),
        nn.ReLU(),
        nn.Linear(7, 5),
    )


def vector_network():
    """Linear + BatchNorm1d on the flattened image."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(192, 9, bias=False),
        nn.BatchNorm1d(9),
        nn.ReLU(),
        nn.Linear(9, 5),
    )


class Signal(nn.Module):
    """Conv1d over the rows of the image."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(24, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm1d(6)
        self.fc = nn.Linear(24, 5)

    def forward(self, x):
        x = F.max_pool1d(F.relu(self.norm(self.conv(x.flatten(1, 2)))), 2)
        return self.fc(x.flatten(1))


class CalledTwice(nn.Module):
    """One convolution at two places, whose inputs have different ranges."""

    def __init__(self):
        super().__init__()
        self.stem = conv_norm_relu(3, 6, bias=False)
        self.shared = nn.Conv2d(6, 6, 3, padding=1)
        self.fc = nn.Linear(6, 5)

    def forward(self, x):
        x = F.relu(self.shared(self.stem(x)))
        x = F.relu(self.shared(x))
        return self.fc(x.mean((2, 3)))


class Volumes(nn.Module):
    """Convolutions over the channels, rows and columns of the image as one volume [N, 1, 3, 8, 8]."""

    def __init__(self, classes=5):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv3d(1, 7, 3, padding=1, bias=False), nn.BatchNorm3d(7), nn.ReLU(),
            nn.MaxPool3d((1, 2, 2)),
        )  # fmt: skip
        self.grouped = nn.Sequential(
            nn.Conv3d(7, 14, (1, 3, 3), stride=(1, 2, 1), padding=(0, 1, 1), groups=7),
            nn.BatchNorm3d(14), nn.ReLU(),
        )  # fmt: skip
        self.dilated = nn.Conv3d(14, 5, 3, padding=(2, 1, 2), dilation=(2, 1, 2), bias=False)
        self.norm = nn.BatchNorm3d(5)
        self.up = nn.ConvTranspose3d(5, 6, (1, 2, 2), stride=(1, 2, 2))
        self.last = nn.Sequential(nn.BatchNorm3d(6), nn.ReLU(), nn.Conv3d(6, 5, 1), nn.ReLU())
        self.average, self.pool = nn.AvgPool3d((1, 2, 2)), nn.AdaptiveAvgPool3d(1)
        self.fc = nn.Linear(125, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
                nn.init.kaiming_normal_(module.weight)  # else hardly anything of the image arrives

    def forward(self, x):
        x = self.grouped(self.stem(x.unsqueeze(1)))
        x = self.up(F.relu(self.norm(self.dilated(x))))
        x = self.last(x)
        return self.fc(torch.cat([self.average(x).flatten(1), self.pool(x).flatten(1)], 1))


NETWORKS = {
    "residual": Residual,
    "branches": Branches,
    "pre_activation": PreActivation,
    "inverted_residual": InvertedResidual,
    "shuffled": Shuffled,
    "squeeze_excite": SqueezeExcite,
    "average_pooled": average_pooled,
    "hard_swish": hard_swish,
    "up_and_down": UpAndDown,
    "volumes": Volumes,
    "plain": plain,
    "vector": vector_network,
    "signal": Signal,
    "called_twice": CalledTwice,
}


def build(name, seed=0):
    """A float network on images [N, 3, 8, 8], in training mode."""
    torch.manual_seed(seed)
    return awkward_norms(NETWORKS[name](), seed)


def images(count=16, seed=1):
    """[count, 3, 8, 8], each of another contrast."""
    noise = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return noise * torch.linspace(0.3, 2, count).reshape(-1, 1, 1, 1)


class Network(nn.Module):
    """A network written as a function of itself and x, with the named parts."""

    def __init__(self, function, **parts):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.function(self, x)


def conv(inputs=3, outputs=6, kernel=3, **options):
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options)
