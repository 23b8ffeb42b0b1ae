"""The three networks of the digits task in PyTorch: image float32 [N, 1, 32, 32] to logits float32 [N, 10].

They are wider than the task needs, since they are there to be compressed, and written the way that
architectures of their kind usually are, so that their exports hold what users' files hold.
"""

from collections.abc import Callable

import torch  # type: ignore  # optional: only training needs it
from torch import nn  # type: ignore

CLASSES = 10


def conv_bn(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Conv without bias and BatchNorm, "same" padding."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class Residual(nn.Module):
    """ResNet's basic block (He et al. 2015, arXiv:1512.03385), with a projection where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv_bn(inputs, outputs, 3, stride), nn.ReLU(), conv_bn(outputs, outputs, 3))
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else conv_bn(inputs, outputs, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


def resnet() -> nn.Module:
    """Six basic blocks of 16, 32 and 64 channels."""
    blocks = [
        Residual(16, 16, 1),
        Residual(16, 16, 1),
        Residual(16, 32, 2),
        Residual(32, 32, 1),
        Residual(32, 64, 2),
        Residual(64, 64, 1),
    ]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, CLASSES)]
    return nn.Sequential(conv_bn(1, 16, 3), nn.ReLU(), *blocks, *head)


class InvertedResidual(nn.Module):
    """MobileNetV2's block (Sandler et al. 2018, arXiv:1801.04381): expand, depthwise, project."""

    def __init__(self, inputs: int, outputs: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = inputs * expand
        self.body = nn.Sequential(
            conv_bn(inputs, hidden, 1),
            nn.ReLU6(),
            conv_bn(hidden, hidden, 3, stride, groups=hidden),
            nn.ReLU6(),
            conv_bn(hidden, outputs, 1),
        )
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x) if self.residual else self.body(x)


def mobilenet() -> nn.Module:
    """Eight inverted residuals of 16 to 64 channels, expanded four times."""
    plan = [(16, 16, 1), (16, 24, 2), (24, 24, 1), (24, 40, 2), (40, 40, 1), (40, 40, 1), (40, 64, 1), (64, 64, 1)]
    blocks = [InvertedResidual(inputs, outputs, stride, 4) for inputs, outputs, stride in plan]
    head = [conv_bn(64, 256, 1), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, CLASSES)]
    return nn.Sequential(conv_bn(1, 16, 3), nn.ReLU6(), *blocks, *head)


class Attention(nn.Module):
    """Multi-head self-attention spelled out: one projection for q, k, v, two matrix products, a softmax."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each [N, heads, tokens, width / heads]
        weights = torch.softmax(q @ k.transpose(-2, -1) * self.scale, -1)
        return self.out((weights @ v).transpose(1, 2).reshape(batch, tokens, width))


class Encoder(nn.Module):
    """A transformer block, normalised first (Dosovitskiy et al. 2020, arXiv:2010.11929)."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """64 patches of 4x4 pixels and a class token through a stack of encoder blocks."""

    def __init__(self, width: int, depth: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 4, 4)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(0.02 * torch.randn(1, 65, width))
        self.blocks = nn.Sequential(*(Encoder(width, heads, hidden) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        return self.head(self.norm(self.blocks(x))[:, 0])


def vit() -> nn.Module:
    """Five blocks of width 64 with four heads."""
    return VisionTransformer(width=64, depth=5, heads=4, hidden=160)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "digits_resnet": resnet,
    "digits_mobilenet": mobilenet,
    "digits_vit": vit,
}
