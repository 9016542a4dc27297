"""MobileNetV4-conv-small as an ONNX graph with random weights: `python network.py FILE`.

Runs in Triton's own environment, which has onnx; nothing is downloaded. Trained weights cost the same time per
request, so the network is good for measuring time and nothing else: its answers mean nothing.
Source: Qin et al., MobileNetV4 (2024), table of MNv4-Conv-S; batch normalisation is folded into the convolutions.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

INPUT, OUTPUT, CLASSES = "input", "logits", 1000
STEM = 32
LAYERS = (
    # stage 1 and 2: two plain convolutions each: (channels, kernel, stride)
    (32, 3, 2), (32, 1, 1),
    (96, 3, 2), (64, 1, 1),
    # stage 3 to 5: universal inverted bottlenecks: (channels, first kernel, middle kernel, stride, expansion)
    (96, 5, 5, 2, 3), (96, 0, 3, 1, 2), (96, 0, 3, 1, 2), (96, 0, 3, 1, 2), (96, 0, 3, 1, 2), (96, 3, 0, 1, 4),
    (128, 3, 3, 2, 6), (128, 5, 5, 1, 4), (128, 0, 5, 1, 4), (128, 0, 5, 1, 3), (128, 0, 3, 1, 4), (128, 0, 3, 1, 4),
    (960, 1, 1),
)  # fmt: skip
HEAD = 1280


@dataclass
class Graph:
    """Nodes and weights as they are added; `value` names what the last node gave, `channels` its channels."""

    rng: np.random.Generator
    value: str = INPUT
    channels: int = 3
    nodes: list[Any] = field(default_factory=list)
    weights: list[Any] = field(default_factory=list)

    def add(self, kind: str, *more: str, **attributes: Any) -> None:
        """Append a node that works on the last value."""
        name = f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, [self.value, *more], [name], name=name, **attributes))
        self.value = name

    def weight(self, array: NDArray[Any]) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(array.astype(np.float32), name))
        return name

    def conv(
        self, channels: int, kernel: int, stride: int = 1, *, deep: bool = False, relu: bool = True
    ) -> None:
        """Append a convolution (`deep`: one filter per channel), its bias, and a ReLU."""
        per_group = 1 if deep else self.channels
        shape = (channels, per_group, kernel, kernel)
        scale = np.sqrt(2.0 / (per_group * kernel * kernel))  # He: the signal neither dies nor explodes
        weights = self.weight(self.rng.normal(0.0, scale, shape)), self.weight(np.zeros(channels))
        self.add(
            "Conv", *weights, kernel_shape=[kernel, kernel], strides=[stride, stride],
            pads=[kernel // 2] * 4, group=channels if deep else 1,
        )  # fmt: skip
        self.channels = channels
        if relu:
            self.add("Relu")

    def bottleneck(self, channels: int, first: int, middle: int, stride: int, expansion: int) -> None:
        """Append a universal inverted bottleneck; kernel 0 leaves that depthwise convolution out."""
        before, came_in = self.value, self.channels
        if first:
            self.conv(came_in, first, 1 if middle else stride, deep=True, relu=False)
        self.conv(8 * round(came_in * expansion / 8), 1)
        if middle:
            self.conv(self.channels, middle, stride, deep=True)
        self.conv(channels, 1, relu=False)
        if stride == 1 and came_in == channels:
            self.add("Add", before)


def build(seed: int = 0) -> Any:
    """Return the model: images [N, 3, H, W] of any size in, logits [N, 1000] out."""
    g = Graph(np.random.default_rng(seed))
    g.conv(STEM, 3, 2)
    for layer in LAYERS:
        if len(layer) == 3:
            g.conv(*layer)
        else:
            g.bottleneck(*layer)
    g.add("GlobalAveragePool")
    g.conv(HEAD, 1)
    g.add("Flatten")
    scale = np.sqrt(1.0 / HEAD)
    g.add("Gemm", g.weight(g.rng.normal(0.0, scale, (HEAD, CLASSES))), g.weight(np.zeros(CLASSES)))
    g.nodes[-1].output[0] = OUTPUT
    inside = helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["N", 3, "H", "W"])
    outside = helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["N", CLASSES])
    graph = helper.make_graph(g.nodes, "mobilenetv4_conv_small_random", [inside], [outside], g.weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return model


def parameters(model: Any) -> int:
    """Return the trainable parameters of the trained network: a bias here stands for the two of a batch norm."""
    sizes = [int(np.prod(w.dims)) for w in model.graph.initializer]
    biases = [int(np.prod(w.dims)) for w in model.graph.initializer if len(w.dims) == 1]
    return sum(sizes) + sum(biases) - CLASSES


if __name__ == "__main__":
    target = Path(sys.argv[1])
    made = target.with_suffix(".part")
    onnx.save(build(), str(made))
    made.rename(target)
