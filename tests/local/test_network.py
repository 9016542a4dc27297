"""The network that `make local` builds is MobileNetV4-conv-small, but for its weights."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from local_setup import ROOT

pytestmark = pytest.mark.local

NETWORK = ROOT / "gpusched" / "cluster" / "local" / "network.py"
PARAMETERS = 3_774_024
"""Of the published model with 1000 classes, as timm's mobilenetv4_conv_small counts them."""
LOOK = """
import json, sys
sys.path.insert(0, sys.argv[1])
import network, numpy, onnxruntime
made = network.build()
session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
answers = {}
for size in (96, 224):
    image = numpy.random.default_rng(0).random((2, 3, size, size), dtype=numpy.float32)
    answer = session.run(None, {"input": image})[0]
    alone = session.run(None, {"input": image[1:]})[0]
    answers[size] = [list(answer.shape), float(answer.std()), float(abs(answer[1] - alone[0]).max() / answer.std())]
convolutions = [node for node in made.graph.node if node.op_type == "Conv"]
same = network.build().SerializeToString() == made.SerializeToString()
print(json.dumps([network.parameters(made), len(convolutions), same, answers]))
"""


def test_it_has_the_published_size_and_answers(installed: Path) -> None:
    done = subprocess.run(
        [installed / "bin" / "python", "-c", LOOK, NETWORK.parent], capture_output=True, text=True, check=True
    )
    parameters, convolutions, same, answers = json.loads(done.stdout)
    assert parameters == PARAMETERS
    # 5 plain ones, 12 bottlenecks with two pointwise each, 15 depthwise in them, the last one and the head's
    assert convolutions == 5 + 12 * 2 + 15 + 2
    assert same, "the same weights each time"
    for shape, spread, difference in answers.values():
        assert shape == [2, 1000]
        assert spread > 0
        assert difference < 1e-3, "an answer depends on its own image only"
