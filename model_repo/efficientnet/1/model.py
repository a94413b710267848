"""EfficientNet-Lite0: a convolutional network that sorts pictures into the thousand classes of ImageNet.

Inverted bottlenecks with ReLU6 and without squeeze-and-excitation: the EfficientNet made for plain hardware. Parameters
are named as in the published checkpoint, so that its weights load strictly.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

_CLASSES = 1000
_STEM_WIDTH = 32
_HEAD_WIDTH = 1280
_BATCH_NORM_EPSILON = 1e-3


@dataclass(frozen=True)
class Stage:
    """Blocks of one width, each `expansion` times as wide inside. The first of them strides."""

    blocks: int
    kernel_size: int
    stride: int
    expansion: int
    width: int


_STAGES = (
    Stage(blocks=1, kernel_size=3, stride=1, expansion=1, width=16),
    Stage(blocks=2, kernel_size=3, stride=2, expansion=6, width=24),
    Stage(blocks=2, kernel_size=5, stride=2, expansion=6, width=40),
    Stage(blocks=3, kernel_size=3, stride=2, expansion=6, width=80),
    Stage(blocks=3, kernel_size=5, stride=1, expansion=6, width=112),
    Stage(blocks=4, kernel_size=5, stride=2, expansion=6, width=192),
    Stage(blocks=1, kernel_size=3, stride=1, expansion=6, width=320),
)


def build_model() -> nn.Module:
    """Return the classifier without weights: they are on the meta device until a checkpoint is assigned."""
    with torch.device("meta"):
        return Classifier()


class Classifier(nn.Module):
    """Pictures to one score per class."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = SameConv2d(3, _STEM_WIDTH, kernel_size=3, stride=2)
        self._bn0 = _batch_norm(_STEM_WIDTH)
        self._blocks = nn.Sequential(*_blocks())
        self._conv_head = nn.Conv2d(_STAGES[-1].width, _HEAD_WIDTH, kernel_size=1, bias=False)
        self._bn1 = _batch_norm(_HEAD_WIDTH)
        self._fc = nn.Linear(_HEAD_WIDTH, _CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """Score pictures.

        Args:
            image: float [batch, 3, 224, 224]: red, green and blue from 0 to 255, less 127, by 128.

        Returns:
            float [batch, 1000], the logit of each class.
        """
        hidden = functional.relu6(self._bn0(self._conv_stem(image)))
        hidden = self._blocks(hidden)
        hidden = functional.relu6(self._bn1(self._conv_head(hidden)))
        return self._fc(hidden.mean(dim=(2, 3)))


def _blocks() -> Iterator["Block"]:
    width = _STEM_WIDTH
    for stage in _STAGES:
        for index in range(stage.blocks):
            yield Block(width, stage, stride=1 if index else stage.stride)
            width = stage.width


class Block(nn.Module):
    """Widen, convolve each channel by itself, narrow; added to its input where that has the same shape."""

    def __init__(self, width: int, stage: Stage, *, stride: int) -> None:
        super().__init__()
        inner = width * stage.expansion
        self._widens = stage.expansion > 1
        if self._widens:
            self._expand_conv = nn.Conv2d(width, inner, kernel_size=1, bias=False)
            self._bn0 = _batch_norm(inner)
        self._depthwise_conv = SameConv2d(inner, inner, kernel_size=stage.kernel_size, stride=stride, groups=inner)
        self._bn1 = _batch_norm(inner)
        self._project_conv = nn.Conv2d(inner, stage.width, kernel_size=1, bias=False)
        self._bn2 = _batch_norm(stage.width)
        self._adds = stride == 1 and width == stage.width

    def forward(self, hidden: Tensor) -> Tensor:
        """Map [batch, width, height, width of the picture] to the stage's width, and by the stride smaller."""
        inner = functional.relu6(self._bn0(self._expand_conv(hidden))) if self._widens else hidden
        inner = functional.relu6(self._bn1(self._depthwise_conv(inner)))
        narrow = self._bn2(self._project_conv(inner))
        return narrow + hidden if self._adds else narrow


class SameConv2d(nn.Conv2d):
    """A convolution without bias, padded as TensorFlow pads, where the network was trained.

    What a stride of 2 lacks on pictures of even height and width is odd, and the bottom and the right get one more: so
    it cannot be the convolution's own padding, which is the same on all sides.
    """

    def __init__(self, width: int, out_width: int, *, kernel_size: int, stride: int, groups: int = 1) -> None:
        lacks = kernel_size - stride
        even = lacks % 2 == 0
        super().__init__(
            width, out_width, kernel_size, stride, padding=lacks // 2 if even else 0, groups=groups, bias=False
        )
        before, after = lacks // 2, lacks - lacks // 2
        self._uneven = None if even else (before, after, before, after)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map [batch, width, height, width of the picture] to the output's width, and by the stride smaller."""
        return super().forward(hidden if self._uneven is None else functional.pad(hidden, self._uneven))


def _batch_norm(width: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width, eps=_BATCH_NORM_EPSILON)
