"""The model as Triton's Python backend runs it: ONNX Runtime on one thread; copied into the model repository.

Runs in Triton's own environment. Parameters of config.pbtxt: `onnx` (file), `threads` (per instance), `alpha_s` and
`beta_s`: unless both are 0, nothing is inferred, a batch of b sleeps alpha_s + beta_s·b and the answers are zeros.
Images of bytes are scaled to 0..1 here, floats are taken as they are.
"""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb

PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")


class TritonPythonModel:
    """One instance; Triton hands it a whole batch of requests at a time."""

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        own = {name: given["string_value"] for name, given in config["parameters"].items()}
        self.input, self.output = config["input"][0]["name"], config["output"][0]["name"]
        self.alpha_s, self.beta_s = float(own["alpha_s"]), float(own["beta_s"])
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = int(own["threads"]), 1
        # A thread that spins between two requests would look like load to the autoscaler.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        there = [name for name in PROVIDERS if name in ort.get_available_providers()]
        self.session = ort.InferenceSession(own["onnx"], options, providers=there)
        self.names = self.session.get_inputs()[0].name, self.session.get_outputs()[0].name
        # Every batch size once before the server is ready: one that is ready answers at full speed.
        for size in range(1, config["max_batch_size"] + 1):
            self.infer(np.zeros((size, *map(int, config["input"][0]["dims"])), dtype=np.float32))

    def execute(self, requests: list[Any]) -> list[Any]:
        images = [pb.get_input_tensor_by_name(request, self.input).as_numpy() for request in requests]
        batch = images[0] if len(images) == 1 else np.concatenate(images)
        if batch.dtype == np.uint8:
            batch = batch.astype(np.float32) * np.float32(1 / 255)
        answer = self.infer(batch)
        ends = np.cumsum([len(image) for image in images])[:-1]
        return [pb.InferenceResponse([pb.Tensor(self.output, part)]) for part in np.split(answer, ends)]

    def infer(self, batch: Any) -> Any:
        """Return the network's answers [N, classes], or pass the time it would take."""
        if self.alpha_s or self.beta_s:
            time.sleep(self.alpha_s + self.beta_s * len(batch))
            return np.zeros((len(batch), 1000), dtype=np.float32)
        return self.session.run([self.names[1]], {self.names[0]: batch})[0]
