"""Small float networks in the styles of torchvision's and timm's model zoos, none touched for qdeploy.

Each is written as its original is: the same layers in the same order, the same functional calls,
few channels and images of 32 pixels.
"""

import math
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn

CLASSES = 5


def conv_bn_act(inputs, outputs, kernel=3, stride=1, groups=1, act=nn.ReLU, dilation=1):
    """torchvision's Conv2dNormActivation."""
    padding = (kernel - 1) // 2 * dilation
    layers = [
        nn.Conv2d(
            inputs, outputs, kernel, stride, padding, dilation=dilation, groups=groups, bias=False
        ),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*layers, *([act(inplace=True)] if act else []))


class InvertedResidual(nn.Module):
    """MobileNetV2: expand, depthwise, linear bottleneck."""

    def __init__(self, inputs, outputs, stride, expand):
        super().__init__()
        self.use_res_connect = stride == 1 and inputs == outputs
        hidden = inputs * expand
        layers = [] if expand == 1 else [conv_bn_act(inputs, hidden, 1, act=nn.ReLU6)]
        layers += [
            conv_bn_act(hidden, hidden, stride=stride, groups=hidden, act=nn.ReLU6),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        ]
        self.conv = nn.Sequential(*layers)

    def forward(self, x):
        if self.use_res_connect:
            return x + self.conv(x)
        return self.conv(x)


class MobileNetV2(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            conv_bn_act(3, 8, stride=2, act=nn.ReLU6),
            InvertedResidual(8, 12, 2, 1),
            InvertedResidual(12, 12, 1, 6),
            conv_bn_act(12, 32, 1, act=nn.ReLU6),
        )
        self.classifier = nn.Sequential(nn.Dropout(p=0.2), nn.Linear(32, CLASSES))

    def forward(self, x):
        return self._forward_impl(x)

    def _forward_impl(self, x):
        x = self.features(x)
        x = nn.functional.adaptive_avg_pool2d(x, (1, 1))
        x = torch.flatten(x, 1)
        return self.classifier(x)


class SqueezeExcitation(nn.Module):
    """torchvision.ops.SqueezeExcitation."""

    def __init__(self, channels, squeezed, activation, scale_activation):
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)
        self.activation = activation()
        self.scale_activation = scale_activation()

    def _scale(self, x):
        scale = self.avgpool(x)
        scale = self.fc1(scale)
        scale = self.activation(scale)
        scale = self.fc2(scale)
        return self.scale_activation(scale)

    def forward(self, x):
        scale = self._scale(x)
        return scale * x


class MobileNetV3Block(nn.Module):
    def __init__(self, inputs, hidden, outputs, stride, act, squeeze):
        super().__init__()
        self.use_res_connect = stride == 1 and inputs == outputs
        layers = [
            conv_bn_act(inputs, hidden, 1, act=act),
            conv_bn_act(hidden, hidden, 5, stride, hidden, act),
        ]
        if squeeze:
            layers.append(SqueezeExcitation(hidden, 8, nn.ReLU, nn.Hardsigmoid))
        layers.append(conv_bn_act(hidden, outputs, 1, act=None))
        self.block = nn.Sequential(*layers)

    def forward(self, x):
        result = self.block(x)
        if self.use_res_connect:
            result += x
        return result


class MobileNetV3(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            conv_bn_act(3, 8, stride=2, act=nn.Hardswish),
            MobileNetV3Block(8, 16, 12, 2, nn.ReLU, True),
            MobileNetV3Block(12, 24, 12, 1, nn.Hardswish, True),
            conv_bn_act(12, 24, 1, act=nn.Hardswish),
        )
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(
            nn.Linear(24, 32),
            nn.Hardswish(inplace=True),
            nn.Dropout(p=0.2, inplace=True),
            nn.Linear(32, CLASSES),
        )

    def forward(self, x):
        x = self.features(x)
        x = self.avgpool(x)
        x = torch.flatten(x, 1)
        return self.classifier(x)


class StochasticDepth(nn.Module):
    """torchvision.ops.StochasticDepth, mode "row"."""

    def __init__(self, p):
        super().__init__()
        self.p = p

    def forward(self, x):
        if not self.training or self.p == 0.0:
            return x
        survival = 1.0 - self.p
        size = [x.shape[0]] + [1] * (x.ndim - 1)
        noise = torch.empty(size, dtype=x.dtype, device=x.device).bernoulli_(survival)
        return x * noise.div_(survival)


class MBConv(nn.Module):
    """EfficientNet's block."""

    def __init__(self, inputs, hidden, outputs, stride, drop):
        super().__init__()
        self.use_res_connect = stride == 1 and inputs == outputs
        self.block = nn.Sequential(
            conv_bn_act(inputs, hidden, 1, act=nn.SiLU),
            conv_bn_act(hidden, hidden, 3, stride, hidden, nn.SiLU),
            SqueezeExcitation(hidden, 4, lambda: nn.SiLU(inplace=True), nn.Sigmoid),
            conv_bn_act(hidden, outputs, 1, act=None),
        )
        self.stochastic_depth = StochasticDepth(drop)

    def forward(self, x):
        result = self.block(x)
        if self.use_res_connect:
            result = self.stochastic_depth(result)
            result += x
        return result


class EfficientNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            conv_bn_act(3, 8, stride=2, act=nn.SiLU),
            MBConv(8, 16, 12, 2, 0.0),
            MBConv(12, 24, 12, 1, 0.2),
            conv_bn_act(12, 24, 1, act=nn.SiLU),
        )
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(p=0.2, inplace=True), nn.Linear(24, CLASSES))

    def forward(self, x):
        x = self.features(x)
        x = self.avgpool(x)
        x = torch.flatten(x, 1)
        return self.classifier(x)


def channel_shuffle(x, groups):
    batchsize, num_channels, height, width = x.size()
    channels_per_group = num_channels // groups
    x = x.view(batchsize, groups, channels_per_group, height, width)
    x = torch.transpose(x, 1, 2).contiguous()
    return x.view(batchsize, num_channels, height, width)


class ShuffleBlock(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.stride = stride
        features = outputs // 2
        if stride > 1:
            self.branch1 = nn.Sequential(
                *conv_bn_act(inputs, inputs, 3, stride, inputs, None),
                *conv_bn_act(inputs, features, 1),
            )
        else:
            self.branch1 = nn.Sequential()
        self.branch2 = nn.Sequential(
            *conv_bn_act(inputs if stride > 1 else features, features, 1),
            *conv_bn_act(features, features, 3, stride, features, None),
            *conv_bn_act(features, features, 1),
        )

    def forward(self, x):
        if self.stride == 1:
            x1, x2 = x.chunk(2, dim=1)
            out = torch.cat((x1, self.branch2(x2)), dim=1)
        else:
            out = torch.cat((self.branch1(x), self.branch2(x)), dim=1)
        return channel_shuffle(out, 2)


class ShuffleNetV2(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = conv_bn_act(3, 8, stride=2)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.stage2 = nn.Sequential(ShuffleBlock(8, 16, 2), ShuffleBlock(16, 16, 1))
        self.conv5 = conv_bn_act(16, 32, 1)
        self.fc = nn.Linear(32, CLASSES)

    def forward(self, x):
        x = self.conv1(x)
        x = self.maxpool(x)
        x = self.stage2(x)
        x = self.conv5(x)
        x = x.mean([2, 3])
        return self.fc(x)


class DenseLayer(nn.Module):
    def __init__(self, inputs, growth):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(inputs, 2 * growth, kernel_size=1, stride=1, bias=False)
        self.norm2 = nn.BatchNorm2d(2 * growth)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(2 * growth, growth, kernel_size=3, stride=1, padding=1, bias=False)

    def forward(self, inputs):
        features = torch.cat(inputs, 1)
        bottleneck = self.conv1(self.relu1(self.norm1(features)))
        return self.conv2(self.relu2(self.norm2(bottleneck)))


class DenseBlock(nn.ModuleDict):
    def __init__(self, inputs, layers, growth):
        super().__init__()
        for i in range(layers):
            self.add_module(f"denselayer{i + 1}", DenseLayer(inputs + i * growth, growth))

    def forward(self, init_features):
        features = [init_features]
        for _, layer in self.items():
            features.append(layer(features))
        return torch.cat(features, 1)


class DenseNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            OrderedDict(
                conv0=nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
                norm0=nn.BatchNorm2d(8),
                relu0=nn.ReLU(inplace=True),
                pool0=nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
                denseblock1=DenseBlock(8, 2, 4),
                transition1=nn.Sequential(
                    OrderedDict(
                        norm=nn.BatchNorm2d(16),
                        relu=nn.ReLU(inplace=True),
                        conv=nn.Conv2d(16, 8, 1, bias=False),
                        pool=nn.AvgPool2d(2, 2),
                    )
                ),
                denseblock2=DenseBlock(8, 2, 4),
                norm5=nn.BatchNorm2d(16),
            )
        )
        self.classifier = nn.Linear(16, CLASSES)

    def forward(self, x):
        features = self.features(x)
        out = F.relu(features, inplace=True)
        out = F.adaptive_avg_pool2d(out, (1, 1))
        out = torch.flatten(out, 1)
        return self.classifier(out)


class BasicConv(nn.Module):
    """torchvision's BasicConv2d: functional ReLU."""

    def __init__(self, inputs, outputs, **options):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, bias=False, **options)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x):
        x = self.conv(x)
        x = self.bn(x)
        return F.relu(x, inplace=True)


class Inception(nn.Module):
    def __init__(self, inputs):
        super().__init__()
        self.branch1 = BasicConv(inputs, 4, kernel_size=1)
        self.branch2 = nn.Sequential(
            BasicConv(inputs, 4, kernel_size=1), BasicConv(4, 6, kernel_size=3, padding=1)
        )
        self.branch3 = nn.Sequential(
            BasicConv(inputs, 4, kernel_size=1), BasicConv(4, 4, kernel_size=3, padding=1)
        )
        self.branch4 = nn.Sequential(
            nn.MaxPool2d(kernel_size=3, stride=1, padding=1, ceil_mode=True),
            BasicConv(inputs, 4, kernel_size=1),
        )

    def _forward(self, x):
        return [self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)]

    def forward(self, x):
        outputs = self._forward(x)
        return torch.cat(outputs, 1)


class InceptionAux(nn.Module):
    def __init__(self, inputs):
        super().__init__()
        self.conv = BasicConv(inputs, 8, kernel_size=1)
        self.fc = nn.Linear(8 * 16, CLASSES)

    def forward(self, x):
        x = F.adaptive_avg_pool2d(x, (4, 4))
        x = self.conv(x)
        return self.fc(torch.flatten(x, 1))


class GoogLeNet(nn.Module):
    """With the auxiliary classifier that only training runs, and the input transformed."""

    def __init__(self):
        super().__init__()
        self.aux_logits = True
        self.transform_input = True
        self.conv1 = BasicConv(3, 8, kernel_size=7, stride=2, padding=3)
        self.maxpool1 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.inception3a = Inception(8)
        self.inception3b = Inception(18)
        self.aux1 = InceptionAux(18)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.dropout = nn.Dropout(p=0.2)
        self.fc = nn.Linear(18, CLASSES)

    def _transform_input(self, x):
        if self.transform_input:
            x_ch0 = torch.unsqueeze(x[:, 0], 1) * (0.229 / 0.5) + (0.485 - 0.5) / 0.5
            x_ch1 = torch.unsqueeze(x[:, 1], 1) * (0.224 / 0.5) + (0.456 - 0.5) / 0.5
            x_ch2 = torch.unsqueeze(x[:, 2], 1) * (0.225 / 0.5) + (0.406 - 0.5) / 0.5
            x = torch.cat((x_ch0, x_ch1, x_ch2), 1)
        return x

    def forward(self, x):
        x = self._transform_input(x)
        x = self.conv1(x)
        x = self.maxpool1(x)
        x = self.inception3a(x)
        aux1 = None
        if self.aux1 is not None and self.training:
            aux1 = self.aux1(x)
        x = self.inception3b(x)
        x = self.avgpool(x)
        x = torch.flatten(x, 1)
        x = self.dropout(x)
        x = self.fc(x)
        if self.training and self.aux_logits:
            return x, aux1
        return x


class Bottleneck(nn.Module):
    """ResNeXt's; with `squeeze` RegNetY's."""

    def __init__(self, inputs, outputs, stride, groups, squeeze):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, stride, 1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.se = SqueezeExcitation(outputs, 4, nn.ReLU, nn.Sigmoid) if squeeze else nn.Identity()
        self.conv3 = nn.Conv2d(outputs, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x):
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.se(self.relu(self.bn2(self.conv2(out))))
        out = self.bn3(self.conv3(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class ResNeXt(nn.Module):
    def __init__(self, squeeze=False):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.layer1 = nn.Sequential(Bottleneck(8, 16, 1, 4, squeeze))
        self.layer2 = nn.Sequential(Bottleneck(16, 24, 2, 4, squeeze))
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(24, CLASSES)

    def forward(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer2(self.layer1(x))
        x = self.avgpool(x)
        x = torch.flatten(x, 1)
        return self.fc(x)


def reg_net():
    return ResNeXt(squeeze=True)


class Fire(nn.Module):
    def __init__(self, inputs, squeeze, expand):
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeeze, kernel_size=1)
        self.squeeze_activation = nn.ReLU(inplace=True)
        self.expand1x1 = nn.Conv2d(squeeze, expand, kernel_size=1)
        self.expand1x1_activation = nn.ReLU(inplace=True)
        self.expand3x3 = nn.Conv2d(squeeze, expand, kernel_size=3, padding=1)
        self.expand3x3_activation = nn.ReLU(inplace=True)

    def forward(self, x):
        x = self.squeeze_activation(self.squeeze(x))
        return torch.cat(
            [
                self.expand1x1_activation(self.expand1x1(x)),
                self.expand3x3_activation(self.expand3x3(x)),
            ],
            1,
        )


class SqueezeNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, kernel_size=3, stride=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=True),
            Fire(8, 4, 8),
            Fire(16, 4, 8),
        )
        final_conv = nn.Conv2d(16, CLASSES, kernel_size=1)
        self.classifier = nn.Sequential(
            nn.Dropout(p=0.5), final_conv, nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d((1, 1))
        )
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_uniform_(m.weight)
                nn.init.constant_(m.bias, 0)

    def forward(self, x):
        x = self.features(x)
        x = self.classifier(x)
        return torch.flatten(x, 1)


class VGG(nn.Module):
    def __init__(self):
        super().__init__()
        layers, inputs = [], 3
        for outputs in (8, "M", 12, 12, "M", 16, "M"):
            if outputs == "M":
                layers += [nn.MaxPool2d(kernel_size=2, stride=2)]
            else:
                conv2d = nn.Conv2d(inputs, outputs, kernel_size=3, padding=1)
                layers += [conv2d, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
                inputs = outputs
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d((2, 2))
        self.classifier = nn.Sequential(
            nn.Linear(64, 24),
            nn.ReLU(True),
            nn.Dropout(p=0.5),
            nn.Linear(24, 24),
            nn.ReLU(True),
            nn.Dropout(p=0.5),
            nn.Linear(24, CLASSES),
        )

    def forward(self, x):
        x = self.features(x)
        x = self.avgpool(x)
        x = torch.flatten(x, 1)
        return self.classifier(x)


class Permute(nn.Module):
    def __init__(self, dims):
        super().__init__()
        self.dims = dims

    def forward(self, x):
        return torch.permute(x, self.dims)


class LayerNorm2d(nn.LayerNorm):
    def forward(self, x):
        x = x.permute(0, 2, 3, 1)
        x = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class CNBlock(nn.Module):
    """ConvNeXt's block."""

    def __init__(self, dim, drop):
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(dim, dim, kernel_size=7, padding=3, groups=dim, bias=True),
            Permute([0, 2, 3, 1]),
            nn.LayerNorm(dim, eps=1e-6),
            nn.Linear(in_features=dim, out_features=4 * dim, bias=True),
            nn.GELU(),
            nn.Linear(in_features=4 * dim, out_features=dim, bias=True),
            Permute([0, 3, 1, 2]),
        )
        self.layer_scale = nn.Parameter(torch.ones(dim, 1, 1) * 0.5)
        self.stochastic_depth = StochasticDepth(drop)

    def forward(self, x):
        result = self.layer_scale * self.block(x)
        result = self.stochastic_depth(result)
        result += x
        return result


class ConvNeXt(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Sequential(nn.Conv2d(3, 8, kernel_size=4, stride=4), LayerNorm2d(8, eps=1e-6)),
            nn.Sequential(CNBlock(8, 0.0)),
            nn.Sequential(LayerNorm2d(8, eps=1e-6), nn.Conv2d(8, 16, kernel_size=2, stride=2)),
            nn.Sequential(CNBlock(16, 0.1)),
        )
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(
            LayerNorm2d(16, eps=1e-6), nn.Flatten(1), nn.Linear(16, CLASSES)
        )

    def forward(self, x):
        x = self.features(x)
        x = self.avgpool(x)
        return self.classifier(x)


class MLPBlock(nn.Sequential):
    def __init__(self, dim, hidden):
        super().__init__(
            nn.Linear(dim, hidden),
            nn.GELU(),
            nn.Dropout(0.0),
            nn.Linear(hidden, dim),
            nn.Dropout(0.0),
        )


class EncoderBlock(nn.Module):
    """torchvision's, with nn.MultiheadAttention."""

    def __init__(self, dim, heads):
        super().__init__()
        self.ln_1 = nn.LayerNorm(dim, eps=1e-6)
        self.self_attention = nn.MultiheadAttention(dim, heads, dropout=0.0, batch_first=True)
        self.dropout = nn.Dropout(0.0)
        self.ln_2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = MLPBlock(dim, 2 * dim)

    def forward(self, input):  # noqa: A002
        torch._assert(
            input.dim() == 3, f"Expected (batch_size, seq_length, hidden_dim) got {input.shape}"
        )
        x = self.ln_1(input)
        x, _ = self.self_attention(x, x, x, need_weights=False)
        x = self.dropout(x)
        x = x + input
        y = self.ln_2(x)
        y = self.mlp(y)
        return x + y


class VisionTransformer(nn.Module):
    """torchvision's ViT."""

    def __init__(self, dim=16, heads=2, patch=8):
        super().__init__()
        self.image_size, self.patch_size, self.hidden_dim = 32, patch, dim
        self.conv_proj = nn.Conv2d(3, dim, kernel_size=patch, stride=patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embedding = nn.Parameter(torch.empty(1, 17, dim).normal_(std=0.02))
        self.layers = nn.Sequential(OrderedDict(encoder_layer_0=EncoderBlock(dim, heads)))
        self.ln = nn.LayerNorm(dim, eps=1e-6)
        self.heads = nn.Sequential(OrderedDict(head=nn.Linear(dim, CLASSES)))

    def _process_input(self, x):
        n, _, h, w = x.shape
        p = self.patch_size
        torch._assert(h == self.image_size, f"Wrong image height! Expected {self.image_size}")
        n_h, n_w = h // p, w // p
        x = self.conv_proj(x)
        x = x.reshape(n, self.hidden_dim, n_h * n_w)
        return x.permute(0, 2, 1)

    def forward(self, x):
        x = self._process_input(x)
        n = x.shape[0]
        batch_class_token = self.class_token.expand(n, -1, -1)
        x = torch.cat([batch_class_token, x], dim=1)
        x = x + self.pos_embedding
        x = self.ln(self.layers(x))
        x = x[:, 0]
        return self.heads(x)


class Attention(nn.Module):
    """timm's: one Linear for query, key and value."""

    def __init__(self, dim, num_heads, fused):
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.scale = self.head_dim**-0.5
        self.fused_attn = fused
        self.qkv = nn.Linear(dim, dim * 3, bias=True)
        self.q_norm, self.k_norm = nn.Identity(), nn.Identity()
        self.attn_drop = nn.Dropout(0.0)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(0.0)

    def forward(self, x):
        B, N, C = x.shape  # noqa: N806
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        if self.fused_attn:
            x = F.scaled_dot_product_attention(
                q, k, v, dropout_p=self.attn_drop.p if self.training else 0.0
            )
        else:
            q = q * self.scale
            attn = q @ k.transpose(-2, -1)
            attn = attn.softmax(dim=-1)
            attn = self.attn_drop(attn)
            x = attn @ v
        x = x.transpose(1, 2).reshape(B, N, C)
        x = self.proj(x)
        return self.proj_drop(x)


def drop_path(x, drop_prob: float = 0.0, training: bool = False, scale_by_keep: bool = True):
    if drop_prob == 0.0 or not training:
        return x
    keep_prob = 1 - drop_prob
    shape = (x.shape[0],) + (1,) * (x.ndim - 1)
    random_tensor = x.new_empty(shape).bernoulli_(keep_prob)
    if keep_prob > 0.0 and scale_by_keep:
        random_tensor.div_(keep_prob)
    return x * random_tensor


class DropPath(nn.Module):
    """timm's."""

    def __init__(self, drop_prob: float = 0.0, scale_by_keep: bool = True):
        super().__init__()
        self.drop_prob = drop_prob
        self.scale_by_keep = scale_by_keep

    def forward(self, x):
        return drop_path(x, self.drop_prob, self.training, self.scale_by_keep)


class LayerScale(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.gamma = nn.Parameter(0.5 * torch.ones(dim))

    def forward(self, x):
        return x * self.gamma


class TimmBlock(nn.Module):
    def __init__(self, dim, heads, drop, fused):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, heads, fused)
        self.ls1 = LayerScale(dim)
        self.drop_path1 = DropPath(drop) if drop > 0.0 else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = MLPBlock(dim, 2 * dim)
        self.ls2 = nn.Identity()
        self.drop_path2 = DropPath(drop) if drop > 0.0 else nn.Identity()

    def forward(self, x):
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x))))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


class TimmViT(nn.Module):
    def __init__(self, dim=16, fused=True):
        super().__init__()
        self.proj = nn.Conv2d(3, dim, kernel_size=8, stride=8)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.randn(1, 17, dim) * 0.02)
        self.blocks = nn.Sequential(
            TimmBlock(dim, 2, 0.0, fused), TimmBlock(dim, 2, 0.1, not fused)
        )
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, CLASSES)

    def forward(self, x):
        x = self.proj(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1)
        x = self.norm(self.blocks(x + self.pos_embed))
        return self.head(x[:, 0])


class DoubleConv(nn.Sequential):
    def __init__(self, inputs, outputs):
        super().__init__(*conv_bn_act(inputs, outputs), *conv_bn_act(outputs, outputs))


class UNet(nn.Module):
    """One transposed convolution and one upsampling on the way up, skips padded to fit."""

    def __init__(self):
        super().__init__()
        self.inc = DoubleConv(3, 8)
        self.down1 = nn.Sequential(nn.MaxPool2d(2), DoubleConv(8, 16))
        self.down2 = nn.Sequential(nn.MaxPool2d(2), DoubleConv(16, 16))
        self.up1 = nn.ConvTranspose2d(16, 8, kernel_size=2, stride=2)
        self.conv1 = DoubleConv(24, 8)
        self.up2 = nn.Upsample(scale_factor=2, mode="nearest")
        self.conv2 = DoubleConv(16, 8)
        self.outc = nn.Conv2d(8, 2, kernel_size=1)

    def forward(self, x):
        x1 = self.inc(x)
        x2 = self.down1(x1)
        x3 = self.down2(x2)
        x = self.conv1(self._joined(self.up1(x3), x2))
        x = self.conv2(self._joined(self.up2(x), x1))
        return self.outc(x)

    @staticmethod
    def _joined(x1, x2):
        diff_y = x2.size()[2] - x1.size()[2]
        diff_x = x2.size()[3] - x1.size()[3]
        x1 = F.pad(x1, [diff_x // 2, diff_x - diff_x // 2, diff_y // 2, diff_y - diff_y // 2])
        return torch.cat([x2, x1], dim=1)


class BilinearUNet(nn.Module):
    """Bilinear upsampling by functional call to the size of the skip; a ReLU after the joint."""

    def __init__(self):
        super().__init__()
        self.inc = DoubleConv(3, 8)
        self.down = nn.Sequential(nn.MaxPool2d(2), DoubleConv(8, 8))
        self.up = nn.Sequential(
            nn.ConvTranspose2d(8, 8, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
        )
        self.fuse = conv_bn_act(24, 8)
        self.outc = nn.Conv2d(8, 2, 1)

    def forward(self, x):
        x1 = self.inc(x)
        x2 = self.down(x1)
        wide = F.interpolate(x2, scale_factor=2, mode="bilinear", align_corners=False)
        x = self.fuse(torch.cat([x1, wide, self.up(x2)], dim=1))
        return torch.sigmoid(self.outc(x))


class SignalBlock(nn.Module):
    def __init__(self, inputs, outputs, dilation):
        super().__init__()
        self.conv = nn.Conv1d(inputs, outputs, 3, padding=dilation, dilation=dilation, bias=False)
        self.norm = nn.BatchNorm1d(outputs)
        self.shortcut = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x):
        return F.relu(self.norm(self.conv(x)) + self.shortcut(x))


class Signal(nn.Module):
    """A 1-D convolutional network on [N, 3, 128]."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv1d(3, 8, 7, stride=2, padding=3, bias=False),
            nn.BatchNorm1d(8),
            nn.ReLU(inplace=True),
            nn.MaxPool1d(2),
        )
        self.blocks = nn.ModuleList([SignalBlock(8, 8, 1), SignalBlock(8, 12, 2)])
        self.pool = nn.AdaptiveAvgPool1d(1)
        self.fc = nn.Linear(12, CLASSES)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.fc(self.pool(x).squeeze(-1))


class SeveralInputsOutputs(nn.Module):
    """An image and a vector in; a dictionary of classes and a box out."""

    def __init__(self):
        super().__init__()
        self.image = nn.Sequential(
            conv_bn_act(3, 8, stride=2), conv_bn_act(8, 8, stride=2), nn.AdaptiveAvgPool2d(1)
        )
        self.vector = nn.Sequential(nn.Linear(6, 8), nn.ReLU())
        self.joint = nn.Linear(16, 16)
        self.classes = nn.Linear(16, CLASSES)
        self.box = nn.Linear(16, 4)

    def forward(self, image, vector):
        features = torch.cat([self.image(image).flatten(1), self.vector(vector)], dim=1)
        features = F.relu(self.joint(features))
        return {"classes": self.classes(features), "box": self.box(features)}


class Functional(nn.Module):
    """torch.add, x += y, means by keyword, a layer called twice, F.adaptive_avg_pool2d."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.twice = nn.Conv2d(8, 8, 3, padding=1)
        self.left, self.right = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)
        self.mix = nn.Conv2d(8, 8, 1)
        self.gate = nn.Linear(8, 8)
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x):
        x = F.relu6(self.norm(self.stem(x)))
        x = F.avg_pool2d(x, kernel_size=2)
        x = torch.relu_(self.twice(x))
        y = F.leaky_relu(self.twice(x), 0.1)
        x = torch.add(x, y)
        y = torch.cat((self.left(x), self.right(x)), dim=1)
        y = F.hardswish(self.mix(y))
        x += y
        gate = torch.sigmoid(self.gate(x.mean(dim=(2, 3))))
        x = x * gate[:, :, None, None]
        x = F.adaptive_avg_pool2d(x, output_size=1)
        return F.log_softmax(self.fc(x.flatten(start_dim=1)), dim=1)


class FrozenBatchNorm2d(nn.Module):
    """torchvision.ops.FrozenBatchNorm2d."""

    def __init__(self, num_features, eps=1e-5):
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(num_features))
        self.register_buffer("bias", torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))

    def forward(self, x):
        w = self.weight.reshape(1, -1, 1, 1)
        b = self.bias.reshape(1, -1, 1, 1)
        rv = self.running_var.reshape(1, -1, 1, 1)
        rm = self.running_mean.reshape(1, -1, 1, 1)
        scale = w * (rv + self.eps).rsqrt()
        bias = b - rm * scale
        return x * scale + bias


class Detector(nn.Module):
    """A backbone with frozen BatchNorms that gives its features at two scales (FPN)."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.bn1 = FrozenBatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 12, 3, stride=2, padding=1, bias=False)
        self.bn2 = FrozenBatchNorm2d(12)
        self.inner = nn.ModuleList([nn.Conv2d(8, 8, 1), nn.Conv2d(12, 8, 1)])
        self.layer = nn.ModuleList([nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)])
        self.head = nn.Conv2d(8, 6, 1)

    def forward(self, x):
        c1 = F.relu(self.bn1(self.conv1(x)))
        c2 = F.relu(self.bn2(self.conv2(c1)))
        top = self.inner[1](c2)
        lateral = self.inner[0](c1)
        joined = lateral + F.interpolate(top, size=lateral.shape[-2:], mode="nearest")
        features = [self.layer[0](joined), self.layer[1](top)]
        return [self.head(F.relu(f)) for f in features]


class Norms(nn.Module):
    """BatchNorm before any conv and after a pooling, conv followed by GroupNorm, PReLU, ELU."""

    def __init__(self):
        super().__init__()
        self.input_norm = nn.BatchNorm2d(3)
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.norm1 = nn.GroupNorm(2, 8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")
        self.act2 = nn.PReLU(8)
        self.pool = nn.AvgPool2d(2)
        self.norm2 = nn.BatchNorm2d(8)
        self.conv3 = nn.Conv2d(8, 8, 3, padding="same")
        self.act3 = nn.ELU()
        self.identity = nn.Identity()
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x):
        x = self.conv1(self.input_norm(x))
        x = F.relu(self.norm1(x))
        x = self.act2(self.conv2(x))
        x = self.norm2(self.pool(x))
        x = self.identity(self.act3(self.conv3(x)))
        return self.fc(torch.mean(x, dim=[2, 3]))


def pad_same(x, kernel, stride):
    """TensorFlow's padding, which depends on the size of the image."""
    pads = [
        max((math.ceil(size / stride) - 1) * stride + kernel - size, 0) for size in x.shape[-2:]
    ]
    return F.pad(x, [pads[1] // 2, pads[1] - pads[1] // 2, pads[0] // 2, pads[0] - pads[0] // 2])


class Conv2dSame(nn.Conv2d):
    """timm's; torch.fx cannot trace its forward."""

    def forward(self, x):
        x = pad_same(x, self.kernel_size[0], self.stride[0])
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class SamePadded(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv_stem = Conv2dSame(3, 8, 3, stride=2, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = Conv2dSame(8, 8, 3, stride=2, groups=8, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.conv3 = nn.Conv2d(8, 12, 1)
        self.fc = nn.Linear(12, CLASSES)

    def forward(self, x):
        if x.shape[1] != 3:
            raise ValueError("an image has three colours")
        x = self.act1(self.bn1(self.conv_stem(x)))
        x = F.relu(self.conv3(F.relu(self.bn2(self.conv2(x)))))
        return self.fc(x.mean((2, 3)))


class TorchTransformer(nn.Module):
    """torch's own encoder on patches, and an argument that is seldom given."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 8, 8)
        layer = nn.TransformerEncoderLayer(16, 2, 32, 0.1, "gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, nn.LayerNorm(16))
        self.head = nn.Linear(16, CLASSES)

    def forward(self, images, mask=None):
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = self.encoder(x) if mask is None else self.encoder(x, mask)
        return self.head(x.mean(1))


FAMILIES = {
    "mobilenet_v2": MobileNetV2,
    "mobilenet_v3": MobileNetV3,
    "efficientnet": EfficientNet,
    "shufflenet_v2": ShuffleNetV2,
    "densenet": DenseNet,
    "googlenet": GoogLeNet,
    "resnext": ResNeXt,
    "regnet": reg_net,
    "squeezenet": SqueezeNet,
    "vgg": VGG,
    "convnext": ConvNeXt,
    "vit": VisionTransformer,
    "timm_vit": TimmViT,
    "torch_transformer": TorchTransformer,
    "unet": UNet,
    "bilinear_unet": BilinearUNet,
    "signal": Signal,
    "several_inputs_outputs": SeveralInputsOutputs,
    "functional": Functional,
    "detector": Detector,
    "norms": Norms,
    "same_padded": SamePadded,
}


def build(name, seed=0):
    """A float network in training mode, its norms as if it had been trained."""
    torch.manual_seed(seed)
    network = FAMILIES[name]()
    norms = [module for module in network.modules() if hasattr(module, "running_var")]
    with torch.no_grad():
        for norm in norms:
            norm.weight.uniform_(0.6, 1.4)
            norm.bias.uniform_(-0.2, 0.4)
            norm.momentum = None
        network(*inputs(name, 32, seed))
    for norm in norms:
        norm.momentum = 0.1
    return network


def inputs(name, count=16, seed=1):
    """A batch as the family takes it: a tuple of tensors [count, ...]."""
    generator = torch.Generator().manual_seed(seed)
    contrast = torch.linspace(0.5, 1.5, count)

    def noise(*shape):
        values = torch.randn(count, *shape, generator=generator)
        return values * contrast.reshape(-1, *[1] * len(shape))

    if name == "signal":
        return (noise(3, 128),)
    if name == "several_inputs_outputs":
        return noise(3, 32, 32), noise(6)
    return (noise(3, 32, 32),)
