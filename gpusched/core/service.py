"""The service under test: every physical constant with its unit, its source and how far it can be trusted."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from gpusched.core.errors import InputError, refuse

STATUSES = ("measured", "reported", "assumed")
SHARINGS = ("time_slicing", "mps")


@dataclass(kw_only=True)
class Constant:
    """One constant: `value` in `unit`, where it comes from, and whether it was measured, reported or assumed."""

    value: float
    unit: str
    status: str
    source: str

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise refuse("status", self.status, f"must be one of {', '.join(STATUSES)}")
        if not self.source:
            raise refuse("source", self.source, "must say where the value comes from")


def constant(unit: str, low: float = 0.0, high: float = float("inf"), whole: bool = False) -> Constant:
    """Declare a Service field: its unit, its range, and whether it counts something."""
    return field(metadata={"unit": unit, "low": low, "high": high, "whole": whole})  # type: ignore[no-any-return]


@dataclass(kw_only=True)
class Service:
    """A model on a GPU behind Triton, as pods of one Deployment on one node.

    A batch of b requests holds a Triton instance for a host phase of host_alpha + host_beta·b seconds of CPU
    and then a GPU phase of gpu_alpha + gpu_beta·b seconds of GPU; client and network add client_s plus a
    lognormal tail to every request.
    """

    name: str
    sharing: str = "time_slicing"
    preferred_batches: list[int] = field(default_factory=list)
    gpu_alpha_s: Constant = constant("s")
    gpu_beta_s: Constant = constant("s")
    gpu_cv: Constant = constant("1")
    host_alpha_s: Constant = constant("s")
    host_beta_s: Constant = constant("s")
    client_s: Constant = constant("s")
    client_tail_median_s: Constant = constant("s")
    client_tail_sigma: Constant = constant("1")
    gpus: Constant = constant("1", 1, 64, whole=True)
    gpu_vram_bytes: Constant = constant("B", 1)
    gpu_reserved_bytes: Constant = constant("B")
    gpu_slice_s: Constant = constant("s", 1e-6)
    gpu_switch_s: Constant = constant("s")
    mps_interference: Constant = constant("1", 0.0, 10.0)
    pod_vram_bytes: Constant = constant("B", 1)
    instance_vram_bytes: Constant = constant("B")
    pod_memory_bytes: Constant = constant("B", 1)
    cpu_request_cores: Constant = constant("cores", 1e-3)
    cpu_limit_cores: Constant = constant("cores", 1e-2)
    cfs_period_s: Constant = constant("s")
    node_cpu_cores: Constant = constant("cores", 1e-2)
    node_memory_bytes: Constant = constant("B", 1)
    instances: Constant = constant("1", 1, 16, whole=True)
    max_batch: Constant = constant("1", 1, 64, whole=True)
    queue_delay_s: Constant = constant("s")
    queue_size: Constant = constant("1", whole=True)
    queue_timeout_s: Constant = constant("s")
    schedule_min_s: Constant = constant("s")
    schedule_max_s: Constant = constant("s")
    start_s: Constant = constant("s")
    start_cv: Constant = constant("1", 0.0, 2.0)
    probe_delay_s: Constant = constant("s")
    probe_period_s: Constant = constant("s", 1e-3)
    endpoint_min_s: Constant = constant("s")
    endpoint_max_s: Constant = constant("s")
    prestop_s: Constant = constant("s")
    grace_s: Constant = constant("s")
    resize_s: Constant = constant("s")
    connection_requests: Constant = constant("1", whole=True)

    def __post_init__(self) -> None:
        if self.sharing not in SHARINGS:
            raise refuse("sharing", self.sharing, f"must be one of {', '.join(SHARINGS)}")
        for f in fields(self):
            if "unit" in f.metadata:
                self._check(f.name, f.metadata["unit"], f.metadata["low"], f.metadata["high"])
        self._check_relations()

    def _check(self, name: str, unit: str, low: float, high: float) -> None:
        one: Constant = getattr(self, name)
        if one.unit != unit:
            raise refuse(f"{name}.unit", one.unit, f"must be {unit!r}")
        if not low <= one.value <= high:
            raise refuse(f"{name}.value", one.value, f"must lie in {low:g}..{high:g} {unit}")
        if name in WHOLE and one.value != round(one.value):
            raise refuse(f"{name}.value", one.value, "must be a whole number")

    def _check_relations(self) -> None:
        if self.schedule_max_s.value < self.schedule_min_s.value:
            raise refuse("schedule_max_s.value", self.schedule_max_s.value, "must be at least schedule_min_s")
        if self.endpoint_max_s.value < self.endpoint_min_s.value:
            raise refuse("endpoint_max_s.value", self.endpoint_max_s.value, "must be at least endpoint_min_s")
        if self.replicas_bound < 1:
            raise InputError(
                f"pod_vram_bytes.value = {self.pod_vram_bytes.value:g} B: more VRAM than the GPU has "
                f"({self.usable_vram_bytes:g} B usable). One replica must fit."
            )
        if any(not 1 <= b <= self.max_batch.value for b in self.preferred_batches):
            raise refuse(
                "preferred_batches",
                self.preferred_batches,
                f"must lie in 1..max_batch ({self.max_batch.value:g})",
            )

    @property
    def usable_vram_bytes(self) -> float:
        """VRAM of one GPU that replicas can hold."""
        return self.gpu_vram_bytes.value - self.gpu_reserved_bytes.value

    def vram_per_pod_bytes(self, instances: int | None = None) -> float:
        """VRAM one replica holds with that many Triton instances (default: the profile's)."""
        count = self.instances.value if instances is None else instances
        return self.pod_vram_bytes.value + (count - 1) * self.instance_vram_bytes.value

    @property
    def replicas_bound(self) -> int:
        """Most replicas the GPUs' memory holds."""
        return int(self.gpus.value) * int(self.usable_vram_bytes // self.vram_per_pod_bytes())

    def constants(self) -> dict[str, Constant]:
        """Return every constant by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if "unit" in f.metadata}


WHOLE = frozenset(f.name for f in fields(Service) if f.metadata.get("whole"))
"""The constants that count something."""
