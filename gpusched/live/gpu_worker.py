"""One process on the GPU: runs a network batch after batch, as told line by line. `python gpu_worker.py --help`.

Runs in an environment of its own, which has the library to be measured, and knows nothing of gpusched. Lines are JSON.
Said at the beginning: {"ready": "what runs"}. Asked: {"batch": b}, answered {"prepared": b} once batches of b run at full
speed. Asked: {"begin_s": t, "end_s": u} on the machine's monotonic clock, answered with the batches that ended in between
and the sums of their times and of the squares of these. At the end of its input it ends.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

WARM_UPS = 5
"""Batches of a new size before it counts: libraries choose kernels when they first see it."""
PROVIDERS = {
    "cuda": ["CUDAExecutionProvider"],
    "tensorrt": ["TensorrtExecutionProvider", "CUDAExecutionProvider"],
    "cpu": ["CPUExecutionProvider"],
}
"""ONNX Runtime's names of where a network runs; it falls back silently, which is refused here."""


def onnx_runner(device: str, path: str) -> tuple[Callable[[Any], Any], Any]:
    """Return what runs a batch, and the type of its input, for ONNX Runtime."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(path, options, providers=PROVIDERS[device])
    got, wanted = session.get_providers(), PROVIDERS[device][0]
    if wanted not in got:
        sys.exit(f"ONNX Runtime has {', '.join(got)}, not {wanted}: install onnxruntime-gpu.")
    given, answer = session.get_inputs()[0], session.get_outputs()[0].name
    dtype = np.uint8 if given.type == "tensor(uint8)" else np.float32
    return lambda batch: session.run([answer], {given.name: batch}), dtype


def torch_runner(device: str, path: str) -> tuple[Callable[[Any], Any], Any]:
    """Return the same for PyTorch and timm's MobileNetV4-conv-small; there is no file, the weights are random."""
    import timm
    import torch

    torch.set_num_threads(1)
    network = timm.create_model("mobilenetv4_conv_small", pretrained=False).eval().to(device)

    def run(batch: Any) -> Any:
        with torch.inference_mode():
            return network(torch.from_numpy(batch).to(device)).cpu()  # copying the answer waits for the GPU

    return run, np.float32


RUNNERS = {"onnx": onnx_runner, "torch": torch_runner}


def work(run: Callable[[Any], Any], batch: Any, begin_s: float, end_s: float) -> dict[str, float]:
    """Run batches until the end; count those that ended after the beginning."""
    count, sum_s, squares = 0, 0.0, 0.0
    before_s = time.monotonic()
    while before_s < end_s:
        run(batch)
        now_s = time.monotonic()
        if begin_s < now_s <= end_s:
            count, sum_s, squares = (
                count + 1,
                sum_s + now_s - before_s,
                squares + (now_s - before_s) ** 2,
            )
        before_s = now_s
    return {"batches": count, "sum_s": sum_s, "squares": squares}


def main() -> None:
    """Answer every line of standard input."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--library", choices=sorted(RUNNERS), required=True)
    parser.add_argument("--device", choices=sorted(PROVIDERS), required=True)
    parser.add_argument("--shape", default="3,224,224", help="of one image")
    parser.add_argument("--model", default="", help="ONNX file")
    args = parser.parse_args()
    run, dtype = RUNNERS[args.library](args.device, args.model)
    shape = tuple(int(size) for size in args.shape.split(","))
    print(json.dumps({"ready": f"{args.library} on {args.device}"}), flush=True)
    batch = np.zeros((1, *shape), dtype=dtype)
    for line in sys.stdin:
        asked = json.loads(line)
        if "batch" in asked:
            batch = np.zeros((asked["batch"], *shape), dtype=dtype)
            for _ in range(WARM_UPS):
                run(batch)
            told: dict[str, float] = {"prepared": asked["batch"]}
        else:
            told = work(run, batch, asked["begin_s"], asked["end_s"])
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
