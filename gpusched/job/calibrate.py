"""Calibration: a service profile measured on a real cluster, in the form the simulator reads.

The profile is written to FOLDER/service/NAME.yaml. `python run.py hydra.searchpath=[file://FOLDER] service=NAME` runs
on it; with job.folder=conf it becomes one of the shipped profiles.
"""

from __future__ import annotations

import logging
import math
import os
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime

import numpy as np
import psutil

from gpusched.cluster.local import LocalCluster
from gpusched.core.errors import GateError, refuse
from gpusched.core.seeds import child, stream
from gpusched.core.service import Constant, Service
from gpusched.core.trial import TrialSpec
from gpusched.job import fit, measure
from gpusched.job.fit import Estimate
from gpusched.job.measure import Stretch
from gpusched.job.profile import machine, plain, renewed, said, write
from gpusched.job.setup import Chore, Result, Setup
from gpusched.tracking.provenance import provenance

log = logging.getLogger(__name__)

PURPOSE = "tune"
"""Random streams that no trial and no fidelity run draws from."""
IN_FORCE = (
    "max_batch", "queue_delay_s", "queue_size", "queue_timeout_s", "instances", "cpu_request_cores", "probe_delay_s",
    "probe_period_s", "prestop_s", "grace_s", "connection_requests",
)  # fmt: skip
"""Constants that are not measured but set."""
NO_GPU = {
    "gpus": 1.0, "gpu_vram_bytes": 64.0, "gpu_reserved_bytes": 0.0, "pod_vram_bytes": 1.0, "instance_vram_bytes": 0.0,
    "gpu_slice_s": 0.002, "gpu_switch_s": 0.0, "mps_interference": 0.0,
}  # fmt: skip
"""Values that bound and cost nothing."""
LEAST_SHARE = 0.95
"""A network on one thread computes as long as its batch lasts; less means that it was kept waiting."""
QUICK_PROBE_S = 0.1


@dataclass(kw_only=True)
class Measured:
    """Everything a calibration saw."""

    stretches: list[Stretch]
    starts_s: list[float]
    server: str


class CalibrateJob(Chore):
    """Measures a profile; takes a few minutes of a machine that does nothing else."""

    @dataclass(kw_only=True)
    class Config:
        """What is measured, and where the profile goes.

        name     the profile's name
        folder   its file is FOLDER/service/NAME.yaml
        users    numbers of users without think time, one after the other; the first is the lone user
        repeats  stretches of each
        step_s   length of a stretch, and of settling before the first one
        starts   replicas started one after the other
        """

        name: str
        folder: str
        users: list[int]
        repeats: int
        step_s: float
        starts: int

        def __post_init__(self) -> None:
            if not self.name.strip() or "/" in self.name:
                raise refuse("name", self.name, "must be a name")
            if len(self.users) < 2 or self.users[0] != 1 or sorted(set(self.users)) != self.users:
                raise refuse("users", self.users, "must begin with 1 and grow")
            for key, least in (("repeats", 2), ("starts", 2)):
                if getattr(self, key) < least:
                    raise refuse(key, getattr(self, key), f"must be at least {least}")
            if not self.step_s >= 1.0:
                raise refuse("step_s", self.step_s, "must be at least 1 s")

    config: Config

    def do(self, setup: Setup) -> Result:
        seen = observe(setup, self.config)
        warn_of_company(setup, seen)
        profile = constants(setup, seen, f"calibrated {datetime.now(UTC):%Y-%m-%d}")
        made = renewed(setup.service, profile, name=self.config.name)
        log.info("written: %s", write(made, header(setup, self.config, seen), self.config.folder))
        values = {
            name: constant.value
            for name, constant in made.constants().items()
            if constant.status == "measured"
        }
        return Result(status="finished", names=setup.names, seed=setup.seed, values=values)


def observe(setup: Setup, config: CalibrateJob.Config) -> Measured:
    """Live through the ladder of users, then start replicas one after the other."""
    if setup.service.queue_size.value or setup.service.queue_timeout_s.value:
        log.warning(
            "service.queue_size or queue_timeout_s is set: under a queue policy Triton may not notice a request for up "
            "to 0.5 s, and what is measured is that (docs/fidelity.md). Set both to 0."
        )
    seed = stream(f"{setup.study}/calibrate", setup.load_name, setup.seed, PURPOSE)
    spec = measure.times(config.users, config.repeats, config.step_s)
    cluster = measure.real(setup, setup.service, spec)
    stretches = measure.ladder(cluster, config.users, config.repeats, child(seed, 0))
    if not any(len(s.latency_s_N) for s in stretches if s.users == 1):
        raise GateError(
            "The lone user got no answer, so there is nothing to calibrate. See the warnings above."
        )
    quick = replace(setup.service, probe_period_s=replace(setup.service.probe_period_s, value=QUICK_PROBE_S))
    two = TrialSpec(duration_s=1.0, warmup_s=0.0, control_s=1.0, tick_s=1.0, start_replicas=1, max_replicas=2)
    starter = measure.real(setup, quick, two)
    return Measured(stretches=stretches, starts_s=measure.starts(starter, config.starts), server=machine())


def cpu_share(seen: Measured) -> float:
    """Return the CPU seconds the replica used per second of its instances' work."""
    held_s = sum(sum(s.stats.held_s.values()) for s in seen.stretches)
    return sum(s.cpu_s for s in seen.stretches if math.isfinite(s.cpu_s)) / held_s if held_s else math.nan


def warn_of_company(setup: Setup, seen: Measured) -> None:
    """Say so where batches have waited for cores: their times then tell of the machine and not of the service."""
    share = cpu_share(seen)
    if issubclass(setup.cluster_type, LocalCluster) and not emulated(setup) and share < LEAST_SHARE:
        log.warning(
            "the replica got %.2f s of CPU per second of its work: other programs had the rest, and every time in this "
            "profile is too long. Calibrate again on a quiet machine.", share
        )  # fmt: skip


def constants(setup: Setup, seen: Measured, when: str) -> dict[str, Constant]:
    """Return what has been measured, and what a measurement made meaningless, by name."""
    rng = np.random.default_rng(0)
    return {
        **{name: _set(getattr(setup.service, name), when) for name in IN_FORCE},
        **_times(setup, seen, when, rng),
        **_start(setup, seen, when, rng),
        **_host(setup, seen, when, rng),
    }


def _times(setup: Setup, seen: Measured, when: str, rng: np.random.Generator) -> dict[str, Constant]:
    instances = int(setup.service.instances.value)
    working = [s for s in seen.stretches if s.users > instances]
    lone = [s for s in seen.stretches if s.users == 1 and len(s.latency_s_N)]
    gap_alpha_s, gap_beta_s = fit.between(working, instances)
    alpha, beta = fit.bootstrap(fit.affine, seen.stretches, rng)
    gpu_alpha, gpu_beta = fit.bootstrap(
        lambda some: fit.gpu_line(some, int(setup.service.gpus.value)), seen.stretches, rng
    )
    host_alpha = _moved(alpha, gap_alpha_s - gpu_alpha.value)
    host_beta = _moved(beta, gap_beta_s - gpu_beta.value)
    one_s = alpha.value + gap_alpha_s + beta.value + gap_beta_s
    client_s, median_s, sigma = fit.bootstrap(lambda some: fit.client(some, one_s), lone, rng)
    on_gpu = (
        "busy time of the GPU per batch"
        if gpu_alpha.value
        else "no GPU was seen: the whole batch is host time"
    )
    return {
        "host_alpha_s": said(host_alpha, "s", when, "fixed part of a batch's time in an instance, CPU phase"),
        "host_beta_s": said(host_beta, "s", when, "time per request of a batch in an instance, CPU phase"),
        "gpu_alpha_s": said(gpu_alpha, "s", when, on_gpu),
        "gpu_beta_s": said(gpu_beta, "s", when, on_gpu),
        "gpu_cv": plain(0.0, "1", when, "part of the lone user's scatter, which client_tail_* holds"),
        "client_s": said(client_s, "s", when, "a lone user's median less a batch of one"),
        "client_tail_median_s": said(median_s, "s", when, "with sigma: the lone user's p95 and p99"),
        "client_tail_sigma": said(sigma, "1", when, "see client_tail_median_s"),
    }


def _start(setup: Setup, seen: Measured, when: str, rng: np.random.Generator) -> dict[str, Constant]:
    # Without the probes' delay and the mean wait for the next one.
    waits_s = setup.service.probe_delay_s.value + 0.5 * QUICK_PROBE_S
    starts_s = [max(t - waits_s, 0.0) for t in seen.starts_s]
    start = fit.mean(starts_s, rng)
    cv = float(np.std(starts_s, ddof=1) / start.value) if start.value else 0.0
    within = "contained in start_s"
    return {
        "start_s": said(
            start, "s", when, "from the order until the server is ready, without load, probes' wait left out"
        ),
        "start_cv": plain(min(cv, 2.0), "1", when, f"of {len(starts_s)} starts"),
        "schedule_min_s": plain(0.0, "s", when, within),
        "schedule_max_s": plain(0.0, "s", when, within),
        "endpoint_min_s": plain(0.0, "s", when, within),
        "endpoint_max_s": plain(0.0, "s", when, within),
    }


def _host(setup: Setup, seen: Measured, when: str, rng: np.random.Generator) -> dict[str, Constant]:
    busiest = [s.memory_bytes for s in seen.stretches if math.isfinite(s.memory_bytes)]
    made: dict[str, Constant] = {}
    if busiest:
        made["pod_memory_bytes"] = said(
            fit.mean(busiest, rng), "B", when, "resident memory of one replica under load"
        )
    if not any(math.isfinite(s.gpu_busy) for s in seen.stretches):
        made |= _without_gpu(when)
    if issubclass(setup.cluster_type, LocalCluster):
        made |= _processes(setup, when)
    return made


def _without_gpu(when: str) -> dict[str, Constant]:
    what = "no GPU was seen: a placeholder that bounds and costs nothing"
    units = {f.name: f.metadata["unit"] for f in fields(Service) if "unit" in f.metadata}
    return {name: plain(value, units[name], when, what) for name, value in NO_GPU.items()}


def _processes(setup: Setup, when: str) -> dict[str, Constant]:
    cores = setup.service.instances.value * setup.cluster_config.threads
    memory_bytes = float(psutil.virtual_memory().total)
    return {
        "cpu_limit_cores": plain(
            cores, "cores", when, "threads of all instances; nothing else limits a process"
        ),
        "cfs_period_s": plain(0.0, "s", when, "no CFS quota on processes"),
        "resize_s": plain(0.0, "s", when, "processes have no CPU limit that could be changed"),
        "node_cpu_cores": plain(float(os.cpu_count() or 1), "cores", when, "this host"),
        "node_memory_bytes": plain(memory_bytes, "B", when, "this host"),
    }


def _moved(given: Estimate, by: float) -> Estimate:
    return replace(
        given, value=max(given.value + by, 0.0), low=max(given.low + by, 0.0), high=max(given.high + by, 0.0)
    )


def _set(constant: Constant, when: str) -> Constant:
    return replace(constant, status="reported", source=f"not measured but set when {when}")


def header(setup: Setup, config: CalibrateJob.Config, seen: Measured) -> list[str]:
    """Return what stands above the constants: when, where, how, and what the fit leaves over."""
    came = provenance()
    commit = came["git_commit"][:12] + (" with changes" if came["git_dirty"] == "true" else "")
    io = getattr(setup.cluster_config, "endpoint", None)
    return [
        f"Measured {datetime.now(UTC):%Y-%m-%d %H:%M} UTC by `python run.py job=calibrate cluster={setup.names['cluster']}` at commit {commit}.",
        f"Machine: {seen.server}; load average afterwards {os.getloadavg()[0]:.1f}.",
        f"Model: {getattr(setup.cluster_config, 'onnx', '') or 'as deployed (local: MobileNetV4-conv-small, random weights)'}, "
        f"input {io.dtype + ' ' + str(io.shape) if io else '?'}.",
        *(["EMULATED: batches slept, nothing was inferred."] if emulated(setup) else []),
        f"Users without think time: {config.users}, {config.repeats} stretches of {config.step_s:g} s each.",
        *_leftovers(setup, seen),
        "measured: here; reported: configured or documented; assumed: taken over from the profile it was made from.",
    ]


def emulated(setup: Setup) -> bool:
    """Whether the cluster only passes the time that inference would take."""
    return any(getattr(setup.cluster_config, key, 0.0) > 0 for key in ("emulate_alpha_s", "emulate_beta_s"))


def _leftovers(setup: Setup, seen: Measured) -> list[str]:
    """Return how the fitted line agrees with what was seen, and what the simulator has no constant for."""
    alpha, beta = fit.affine(seen.stretches)
    sizes: dict[int, list[float]] = {}
    for one in seen.stretches:
        for b, n in one.stats.executions.items():
            if n:
                sizes.setdefault(b, [0.0, 0.0])
                sizes[b][0] += n
                sizes[b][1] += one.stats.held_s[b]
    rows = [
        f"{b}: {1e3 * t / n:.2f}/{1e3 * (alpha + beta * b):.2f} ({n:.0f})"
        for b, (n, t) in sorted(sizes.items())
    ]
    done = sum(len(s.latency_s_N) for s in seen.stretches)
    failed = sum(s.failed for s in seen.stretches)
    return [
        f"Batch size: measured/fitted ms (executions): {', '.join(rows)}.",
        f"CPU used per second of an instance's work: {cpu_share(seen):.2f} (1 in the simulator; below {LEAST_SHARE} other programs were in the way); "
        f"{done} requests answered, {failed} failed.",
    ]
