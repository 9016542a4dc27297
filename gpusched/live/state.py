"""What a real cluster tells of itself: its replicas, and where its service is."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gpusched.core.errors import refuse

DTYPES = ("UINT8", "FP16", "FP32")
"""Triton data types a synthetic image can have."""


@dataclass(kw_only=True)
class ReplicaState:
    """The replicas as the control plane shows them; NaN where it has no such value.

    spec        replicas asked of the Deployment
    ready       replicas in the Service's endpoints
    alive       replicas that hold resources: scheduled, starting, ready or terminating
    hpa_target  target of the HPA in force, NaN without an HPA
    cpu_cores   CPU limit per replica; NaN = the service profile's
    instances   Triton instances per replica; NaN = the service profile's
    gpu_share   MPS active-thread share per replica; NaN = the whole GPU
    """

    spec: int
    ready: int
    alive: int
    hpa_target: float = math.nan
    cpu_cores: float = math.nan
    instances: float = math.nan
    gpu_share: float = math.nan


@dataclass(kw_only=True)
class ModelIO:
    """The model behind Triton's HTTP port: its name, its one input (shape without the batch) and its one output."""

    model: str
    input: str
    shape: list[int]
    dtype: str
    output: str

    def __post_init__(self) -> None:
        for key in ("model", "input", "output"):
            if not getattr(self, key).strip():
                raise refuse(key, getattr(self, key), "must be a name")
        if not self.shape or min(self.shape) < 1:
            raise refuse("shape", self.shape, "must be the input's sizes without the batch, each at least 1")
        if self.dtype not in DTYPES:
            raise refuse("dtype", self.dtype, f"must be one of {', '.join(DTYPES)}")


@dataclass(kw_only=True)
class Endpoint(ModelIO):
    """Where users send: `urls` are "host:port" of Triton's HTTP; of several, each connection takes one at random."""

    urls: list[str]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.urls or any("://" in url or ":" not in url for url in self.urls):
            raise refuse("urls", self.urls, "must be host:port each, at least one")
