"""Measure the GPU of this machine into a service profile: batches of 1 to 64, alone and with other processes.

The physics of the simulator (a batch's host phase, then alpha + beta·b of GPU time, which processes share) gets measured
constants instead of assumed ones. What is measured is the network in a process of its own, without Triton: a batch's GPU
time is its time times the share of time at which nvidia-smi saw a kernel run, and the rest is its host phase. What sharing
costs is read off processes that keep the GPU busy all the time: they end X batches per second, and without a loss it
would be 1/(alpha + beta·b).
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gpusched.core.errors import GateError, InputError, refuse
from gpusched.core.service import Constant, Service
from gpusched.job.fit import DRAWS, LEVEL, Estimate, line
from gpusched.job.profile import machine, plain, renewed, said, write
from gpusched.job.setup import Chore, Result, Setup
from gpusched.live.gpu import GPU, WORKER, Stretch, Workers, held_bytes, look, mps
from gpusched.live.machine import foreign_gpu_processes, throttled
from gpusched.tracking.provenance import provenance

log = logging.getLogger(__name__)

SATURATED = 0.95
"""Share of the time at which a kernel runs from which on the GPU, and nothing else, limits the throughput."""
QUIET = 0.05
TIME_SLICING, MPS = "time_slicing", "mps"
BACKEND = re.compile(r"onnx-(cuda|tensorrt|cpu)|torch-(cuda|cpu)")


@dataclass(kw_only=True)
class Seen:
    """Everything that was measured: a lone process by batch size, and several by how they share."""

    gpu: GPU
    runs: str
    held_bytes: float
    alone: list[Stretch] = field(default_factory=list)
    shared: dict[str, list[Stretch]] = field(default_factory=dict)


class GPUJob(Chore):
    """Measures the GPU; takes some minutes of a machine that does nothing else."""

    @dataclass(kw_only=True)
    class Config:
        """What runs, and how long.

        gpu          its number on this machine
        python       interpreter of an environment that has the library
        backend      LIBRARY-DEVICE: onnx-cuda, onnx-tensorrt, torch-cuda; onnx-cpu and torch-cpu for trying it out
        model        ONNX file; not asked for PyTorch
        shape        of one image: channels, height, width
        batches      sizes for a lone process; the constants are fitted to those the profile's max_batch allows
        processes    numbers of processes that share the GPU
        sharing      how they share it: time_slicing, mps
        repeats      stretches of each
        stretch_s    length of one, and settle_s before it
        name         of the profile, "" = mobilenetv4-GPU
        folder       its file is FOLDER/service/NAME.yaml
        """

        gpu: int
        python: str
        backend: str
        model: str
        shape: list[int]
        batches: list[int]
        processes: list[int]
        sharing: list[str]
        repeats: int
        stretch_s: float
        settle_s: float
        name: str
        folder: str

        def __post_init__(self) -> None:
            if self.gpu < 0:
                raise refuse("gpu", self.gpu, "must be at least 0")
            if not BACKEND.fullmatch(self.backend):
                raise refuse(
                    "backend",
                    self.backend,
                    "must be one of onnx-cuda, onnx-tensorrt, onnx-cpu, torch-cuda, torch-cpu",
                )
            if not self.shape or min(self.shape) < 1:
                raise refuse("shape", self.shape, "must be whole numbers of at least 1")
            if len(self.batches) < 2 or min(self.batches) < 1 or sorted(set(self.batches)) != self.batches:
                raise refuse("batches", self.batches, "must be two or more sizes that grow")
            if any(n < 2 for n in self.processes):
                raise refuse("processes", self.processes, "must each be at least 2: one is measured anyway")
            if not set(self.sharing) <= {TIME_SLICING, MPS}:
                raise refuse("sharing", self.sharing, f"must list {TIME_SLICING}, {MPS}, both or none")
            if self.repeats < 2:
                raise refuse("repeats", self.repeats, "must be at least 2, for an interval")
            if not (self.stretch_s > 0 and self.settle_s >= 0):
                raise refuse(
                    "stretch_s", self.stretch_s, "must be greater than 0 s, and settle_s at least 0 s"
                )
            if "/" in self.name:
                raise refuse("name", self.name, "must be a name")

    config: Config

    def do(self, setup: Setup) -> Result:
        seen = self.observe(setup)
        when = f"measured {datetime.now(UTC):%Y-%m-%d}"
        found = constants(setup.service, seen, when)
        name = self.config.name or f"mobilenetv4-{slug(seen.gpu.name)}"
        made = renewed(setup.service, found, name=name)
        log.info("written: %s", write(made, header(self.config, setup.service, seen), self.config.folder))
        values = {key: constant.value for key, constant in found.items()}
        return Result(status="finished", names=setup.names, seed=setup.seed, values=values)

    # --- measuring ---

    def observe(self, setup: Setup) -> Seen:
        """Run a lone process through all batch sizes, then several processes on the largest the profile allows."""
        c, gpu = self.config, look(self.config.gpu)
        if not Path(c.python).exists():
            raise InputError(
                f"python = {c.python!r}: no such interpreter. `make gpu` makes it, with its libraries."
            )
        if (others := foreign_gpu_processes()) or gpu.busy > QUIET:
            who = ", ".join(f"{one.name} ({one.pid})" for one in others) or f"it is {gpu.busy:.0%} busy"
            raise GateError(
                f"GPU {c.gpu} is in use: {who}. Stop that first, or what is measured is both together."
            )
        fitted = [b for b in c.batches if b <= setup.service.max_batch.value]
        if len(fitted) < 2:
            raise InputError(
                f"batches = {c.batches}: two or more must be at most service.max_batch ({setup.service.max_batch.value:.0f})."
            )
        with closing(self._workers(1, {})) as lone:
            seen = Seen(gpu=gpu, runs=lone.said[0], held_bytes=0.0)
            for size in c.batches:
                seen.alone += self._stretches(lone, size)
            seen.held_bytes = held_bytes(lone.pids[0])
        for how in c.sharing:
            seen.shared[how] = self._shared(how, fitted[-1])
        if reasons := throttled():
            log.warning("the GPU has lowered its clocks (%s): its times are too long", ", ".join(reasons))
        return seen

    def _workers(self, count: int, environment: dict[str, str]) -> Workers:
        library, _, device = self.config.backend.partition("-")
        command = [self.config.python, str(WORKER), "--library", library, "--device", device]
        command += ["--shape", ",".join(map(str, self.config.shape))]
        return Workers(count, [*command, "--model", self.config.model], self.config.gpu, environment)

    def _stretches(self, workers: Workers, size: int) -> list[Stretch]:
        c = self.config
        workers.prepare(size)
        found = [workers.stretch(size, c.settle_s, c.stretch_s) for _ in range(c.repeats)]
        if any(math.isnan(one.busy) for one in found):
            raise GateError(
                f"nvidia-smi told no utilisation of GPU {c.gpu} within {c.stretch_s:g} s, so GPU and host time cannot be told apart. "
                "Choose a longer job.stretch_s."
            )
        log.info("%d process(es), batches of %d: %s", found[0].processes, size, row(found))
        return found

    def _shared(self, how: str, size: int) -> list[Stretch]:
        if how == TIME_SLICING:
            return self._several({}, size)
        with mps() as environment:
            if environment is None:
                log.warning(
                    "MPS cannot be started on this machine: what it costs stays as it is in the profile"
                )
                return []
            return self._several(environment, size)

    def _several(self, environment: dict[str, str], size: int) -> list[Stretch]:
        found: list[Stretch] = []
        for count in self.config.processes:
            with closing(self._workers(count, environment)) as workers:
                found += self._stretches(workers, size)
        return found


# --- from stretches to constants ---


def constants(service: Service, seen: Seen, when: str) -> dict[str, Constant]:
    """Return the constants that were measured, by name."""
    rng = np.random.default_rng(0)
    fitted = [s for s in seen.alone if s.size <= service.max_batch.value]
    lines = bootstrap(lambda some: np.concatenate([by_size(some, gpu_s), by_size(some, host_s)]), fitted, rng)
    what = f"{seen.runs} in a process of its own, batches of at most {max(s.size for s in fitted)}"
    largest = [s for s in fitted if s.size == max(t.size for t in fitted)]
    (cv,) = bootstrap(lambda some: np.array([scatter(some)]), largest, rng)
    found = {
        "gpu_alpha_s": said(lines[0], "s", when, f"fixed part of a batch's GPU time; {what}"),
        "gpu_beta_s": said(lines[1], "s", when, f"GPU time per request in a batch; {what}"),
        "host_alpha_s": said(lines[2], "s", when, f"fixed part of a batch's time without a kernel; {what}"),
        "host_beta_s": said(lines[3], "s", when, f"the same per request in a batch; {what}"),
        "gpu_cv": said(cv, "1", when, "scatter of a batch's time, as a share of its GPU time"),
        "gpu_vram_bytes": plain(seen.gpu.memory_bytes, "B", when, "nvidia-smi"),
        "gpu_reserved_bytes": plain(
            seen.gpu.used_bytes, "B", when, "nvidia-smi, before anything was started"
        ),
    }
    if seen.held_bytes:
        found["pod_vram_bytes"] = plain(
            seen.held_bytes, "B", when, "of the lone process after its largest batch"
        )
    return found | sharing(service, seen, when, rng)


def sharing(service: Service, seen: Seen, when: str, rng: np.random.Generator) -> dict[str, Constant]:
    """Return what sharing costs, where processes have kept the GPU busy all the time."""
    found: dict[str, Constant] = {}
    for how, stretches in seen.shared.items():
        full = [s for s in stretches if s.busy >= SATURATED]
        if not full:
            log.warning("%s: the GPU was never busy all the time, so what sharing costs cannot be told", how)
            continue
        alone = [s for s in seen.alone if s.size == full[0].size]
        (loss,) = bootstrap(partial(loss_of, how=how), [*alone, *full], rng)
        what = f"{sorted({s.processes for s in full})} processes of batches of {full[0].size}"
        if how == MPS:
            found["mps_interference"] = said(loss, "1", when, f"slow-down per further process; {what}")
        else:
            slice_s = service.gpu_slice_s.value
            switch = Estimate(
                value=loss.value * slice_s, low=loss.low * slice_s, high=loss.high * slice_s, n=loss.n
            )
            found["gpu_switch_s"] = said(switch, "s", when, f"with gpu_slice_s as it is; {what}")
    return found


def gpu_s(s: Stretch) -> float:
    """GPU time of one batch of a lone process."""
    return s.mean_s * min(s.busy, 1.0)


def host_s(s: Stretch) -> float:
    """Time of one batch of a lone process at which no kernel ran."""
    return s.mean_s - gpu_s(s)


def by_size(stretches: Sequence[Stretch], of: Callable[[Stretch], float]) -> NDArray[np.float64]:
    """Return alpha and beta of a time that goes as alpha + beta·size."""
    sizes, times = np.array([s.size for s in stretches], dtype=float), np.array([of(s) for s in stretches])
    return line(sizes, times, np.ones(len(stretches)))


def scatter(stretches: Sequence[Stretch]) -> float:
    """Return the standard deviation of a batch's time as a share of its GPU time."""
    mean_s = float(np.mean([gpu_s(s) for s in stretches]))
    return math.sqrt(float(np.mean([s.var_s2 for s in stretches]))) / mean_s if mean_s else 0.0


def loss_of(stretches: Sequence[Stretch], how: str) -> NDArray[np.float64]:
    """Return `cost` as an array, at least 0: a gain (kernels of several processes at once) is beyond the simulator's GPU."""
    return np.array([max(cost(stretches, how), 0.0)])


def cost(stretches: Sequence[Stretch], how: str) -> float:
    """Return what sharing costs: the loss for time-slicing, the loss per further process for MPS.

    The simulator's GPU ends 1/(g·(1 + loss)) batches per second once processes keep it busy, g the GPU time of one batch;
    under MPS the loss grows with the number of processes, from 0 for one.
    """
    alone_s = float(np.mean([gpu_s(s) for s in stretches if s.processes == 1]))
    several = [s for s in stretches if s.processes > 1]
    losses = np.array([s.span_s / (s.batches * alone_s) - 1.0 for s in several])
    if how == TIME_SLICING:
        return float(np.median(losses))
    others = np.array([s.processes - 1.0 for s in several])
    return float(losses @ others / (others @ others))


def bootstrap(
    of: Callable[[Sequence[Stretch]], NDArray[np.float64]],
    stretches: Sequence[Stretch],
    rng: np.random.Generator,
) -> list[Estimate]:
    """Return each component of a statistic with its interval; stretches are drawn again among those of their kind."""
    kinds = sorted({(s.processes, s.size) for s in stretches})
    groups = [[s for s in stretches if (s.processes, s.size) == kind] for kind in kinds]
    drawn = [
        of([group[i] for group in groups for i in rng.integers(0, len(group), len(group))])
        for _ in range(DRAWS)
    ]
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return [
        Estimate(value=float(v), low=float(a), high=float(b), n=len(stretches))
        for v, a, b in zip(of(stretches), low, high, strict=True)
    ]


# --- the profile's first lines ---


def header(config: GPUJob.Config, service: Service, seen: Seen) -> list[str]:
    """Return what stands above the constants: when, where, what, and every curve as it was measured."""
    came = provenance()
    commit = came["git_commit"][:12] + (" with changes" if came["git_dirty"] == "true" else "")
    sizes = sorted({s.size for s in seen.alone})
    lone = [f"{b}: {row([s for s in seen.alone if s.size == b])}" for b in sizes]
    several = []
    for how, stretches in seen.shared.items():
        counts = sorted({s.processes for s in stretches})
        told = [f"{n}: {row([s for s in stretches if s.processes == n])}" for n in counts]
        if told:
            kind = f"Sharing by {how}, by number of processes, batches of {stretches[0].size}"
            several.append(f"{kind}: {'; '.join(told)}.")
    return [
        f"Measured {datetime.now(UTC):%Y-%m-%d %H:%M} UTC by `python run.py job=gpu` at commit {commit}, backend {config.backend}.",
        f"GPU: {seen.gpu.name}. Machine: {machine()}.",
        f"A lone process, by batch size: {'; '.join(lone)}.",
        *several,
        f"The line is fitted to batches of at most {service.max_batch.value:.0f}; larger ones are told for comparison.",
        "measured: here, without Triton; reported: configured or documented; assumed: taken over from the profile it was made from.",
    ]


def row(stretches: Sequence[Stretch]) -> str:
    """Return the batch time, the busy share and the throughput of some stretches of one kind."""
    rate = sum(s.batches * s.size for s in stretches) / sum(s.span_s for s in stretches)
    mean_s, busy = (float(np.mean([getattr(s, key) for s in stretches])) for key in ("mean_s", "busy"))
    return f"{1e3 * mean_s:.3g} ms, GPU {busy:.0%}, {rate:.4g} images/s"


def slug(name: str) -> str:
    """Return a GPU's name as a file is called: NVIDIA GeForce RTX 3080 -> rtx-3080."""
    words = re.sub(r"[^a-z0-9]+", " ", name.lower()).split()
    return "-".join(w for w in words if w not in ("nvidia", "geforce", "tesla", "graphics")) or "gpu"
