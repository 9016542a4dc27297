"""Requests per second of the compiled engine, next to the same model in C and in SimPy.

Two models, each run by all programs in turn, round after round, on one core:
  service  100 users, 3 replicas, dynamic batching, one GPU in time slices at 70 % utilisation, every request recorded
  M/M/3    the textbook queue at rho = 0.7: one pod with three instances and no host phase, a GPU of capacity 3
Times are CPU times of the running thread; ratios are taken within a round, and their median is reported.
Arrivals of M/M/3 are drawn before the clock starts, the same for all; every program draws its service times itself.
C and engine draw the same random numbers, and the benchmark stops unless their latency histograms are the same.

    python benchmarks/engine.py [--rounds 9] [--requests 1000000] [--out outputs/bench/engine.json]
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import math
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import simpy
from machine import ROOT, describe, median, profile, service, write
from numpy.typing import NDArray

from gpusched.core.load import LoadPlan
from gpusched.core.ports import Episode
from gpusched.sim.batch import BatchSim, Clocks
from gpusched.sim.records import EXPONENTIAL, INF

USERS, REPLICAS, UTILISATION = 100, 3, 0.70
GPU_ALPHA_S = 0.0138
"""Fixed GPU time of a batch that brings 100 users and 3 replicas to 70 % GPU utilisation; the profile's is 0.0305 s."""
SERVERS, RHO, SERVICE_S = 3, 0.7, 0.01
SIMPY_CUSTOMERS = 50_000
GOALS = {
    "service": {"engine_cpu_requests_per_s": 5_000_000, "engine_per_c": 0.9},
    "M/M/3": {"engine_per_c": 0.8, "engine_per_simpy": 60},
}
CFLAGS = ["-O3", "-march=native", "-ffp-contract=off"]
"""Contraction would round differently from the engine; without it C is not measurably slower."""
F8, I8, U8 = ctypes.c_double, ctypes.c_int64, ctypes.c_uint64


class Params(ctypes.Structure):
    """Params of twin.c."""

    reals = (
        "think_min_s", "think_span_s", "half_client_s", "tail_median_s", "tail_sigma", "slo_s", "gpu_alpha_s",
        "gpu_beta_s", "gpu_sigma", "host_alpha_s", "host_beta_s", "cpu_limit", "cfs_period_s", "gpu_capacity",
        "gpu_shared_loss",
    )  # fmt: skip
    counts = ("gpu_dist", "users", "pods", "instances", "max_batch", "queue_size", "is_open", "record")
    _fields_: ClassVar[Any] = (
        [(name, F8) for name in reals] + [(name, I8) for name in counts]
        + [("user_key", U8), ("arrivals", I8), ("arrival_s", ctypes.c_void_p), ("user_rng", ctypes.c_void_p),
           ("pod_rng", ctypes.c_void_p)]
    )  # fmt: skip


class Result(ctypes.Structure):
    """Result of twin.c."""

    _fields_: ClassVar[Any] = (
        [(name, F8) for name in ("latency_sum_s", "queue_sum_s", "gpu_busy_s", "cpu_used_s")]
        + [(name, I8) for name in ("completed", "failed", "slow", "batches", "in_flight", "rows")]
        + [("histogram", ctypes.POINTER(I8)), ("start_s", ctypes.POINTER(F8)), ("latency_s", ctypes.POINTER(F8)),
           ("status", ctypes.POINTER(ctypes.c_int8))]
    )  # fmt: skip


def compile_twin(folder: str) -> ctypes.CDLL:
    """Compile twin.c and load it."""
    if shutil.which("gcc") is None:
        raise SystemExit(
            "gcc is missing: this benchmark compiles benchmarks/twin.c. Try: apt install gcc libc6-dev"
        )
    target = Path(folder) / "twin.so"
    source = Path(__file__).with_name("twin.c")
    subprocess.run(["gcc", *CFLAGS, "-shared", "-fPIC", "-o", target, source, "-lm"], check=True)
    twin = ctypes.CDLL(str(target))
    twin.twin_new.restype = ctypes.c_void_p
    twin.twin_run.argtypes = [ctypes.c_void_p, F8]
    twin.twin_result.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    twin.twin_free.argtypes = [ctypes.c_void_p]
    return twin


def timed(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """Return what one call returns, and its CPU and wall seconds."""
    gc.collect()
    cpu_s, wall_s = time.thread_time(), time.perf_counter()
    result = work()
    return result, time.thread_time() - cpu_s, time.perf_counter() - wall_s


class Model:
    """One model, prepared for the engine and for C from the same constants, seeds and arrivals."""

    def __init__(self, name: str, twin: ctypes.CDLL, plan: LoadPlan, constants: dict[str, float], *,
                 replicas: int, record: bool, capacity: float = 1.0) -> None:  # fmt: skip
        self.name, self.twin, self.plan, self.capacity = name, twin, plan, capacity
        self.replicas = replicas
        self.sim = BatchSim(
            service(**constants), envs=1, max_replicas=replicas, clocks=Clocks(), slo_s=0.2,
            start_replicas=replicas, record=record,
        )  # fmt: skip

    def reset(self, seed: int) -> None:
        """Put the engine at t = 0."""
        self.sim.reset([Episode(plan=self.plan, seed=np.random.SeedSequence(seed))], [0])
        if self.plan.is_open:
            env = self.sim.env
            env.sim_E["gpu_dist"] = EXPONENTIAL
            env.sim_E["gpu_capacity"] = env.resources_FR["capacity"][:, self.sim.pod_slots :] = self.capacity
            env.pods_EP["advisor_s"] = (
                INF  # cAdvisor's clock draws from the pod's stream, and C has no cAdvisor
            )

    def params(self) -> tuple[Params, list[Any]]:
        """Copy constants and random states of the engine, just reset, for C; also what must be kept alive."""
        env, sim = self.sim.env, self.sim.env.sim_E[0]
        values = {
            name: sim[name].item() for name in (*Params.reals, *Params.counts) if name in sim.dtype.names
        }
        arrays = [env.arrival_s_EN[0].copy(), env.users_EU["rng"][0].copy(), env.pods_EP["rng"][0].copy()]
        addresses = [a.ctypes.data for a in arrays]
        values |= {"pods": self.replicas, "users": len(arrays[1]), "user_key": int(sim["user_key"])}
        values |= {"arrivals": len(arrays[0]), "arrival_s": addresses[0], "user_rng": addresses[1]}
        return Params(**values, pod_rng=addresses[2]), arrays

    def round(self, seed: int, until_s: float) -> dict[str, float]:
        """Run engine and C once each, the first alternating; stops if they disagree."""
        self.reset(seed)
        params, _alive = self.params()
        handle = self.twin.twin_new(ctypes.byref(params))
        works = {
            "engine": lambda: self.sim.step(np.array([until_s])),
            "c": lambda: self.twin.twin_run(handle, until_s),
        }
        order = list(works) if seed % 2 else list(reversed(works))
        times = {name: timed(works[name]) for name in order}
        result = Result()
        self.twin.twin_result(handle, ctypes.byref(result))
        row = self.compare(result, until_s)
        self.twin.twin_free(handle)
        for name, (_, cpu_s, wall_s) in times.items():
            row |= {f"{name}_cpu_s": cpu_s, f"{name}_wall_s": wall_s}
        return row

    def compare(self, result: Result, until_s: float) -> dict[str, float]:
        """Return what both measured; raises SystemExit where they differ."""
        engine_B = self.sim.env.sim_E["histogram"][0]
        twin_B = np.ctypeslib.as_array(result.histogram, engine_B.shape)
        sim = self.sim.env.sim_E[0]
        moved = int(np.abs(engine_B - twin_B).sum()) // 2
        if moved > 0 or result.completed != sim["completed"] or result.batches != sim["batches"]:
            raise SystemExit(f"{self.name}: C and engine differ, {moved} of {result.completed} requests")
        return {
            "requests": float(result.completed + result.failed),
            "gpu_utilisation": result.gpu_busy_s / until_s,
            "batch": result.completed / result.batches,
            "latency_mean_s": result.latency_sum_s / result.completed,
        }


def simpy_mm3(arrival_s_N: NDArray[np.float64], seed: int) -> float:
    """Run M/M/3 in SimPy over given arrivals; returns the mean response in seconds.

    Idiomatic SimPy: a process per customer and a Resource. Arrivals are plain floats, as in the other programs.
    """
    draw = random.Random(seed).expovariate
    env = simpy.Environment()
    servers = simpy.Resource(env, capacity=SERVERS)
    total_s, rate, count = 0.0, 1.0 / SERVICE_S, 0

    def customer(env: simpy.Environment) -> Any:
        nonlocal total_s, count
        begin_s = env.now
        with servers.request() as turn:
            yield turn
            yield env.timeout(draw(rate))
        total_s += env.now - begin_s
        count += 1

    def source(env: simpy.Environment) -> Any:
        for t in arrival_s_N.tolist():
            yield env.timeout(t - env.now)
            env.process(customer(env))

    env.process(source(env))
    env.run()
    return total_s / count


def mm3_response_s() -> float:
    """Mean response of M/M/c by Erlang's C formula."""
    a = RHO * SERVERS
    busy = a**SERVERS / math.factorial(SERVERS) / (1.0 - RHO)
    waits = busy / (sum(a**k / math.factorial(k) for k in range(SERVERS)) + busy)
    return SERVICE_S * (1.0 + waits / (SERVERS - a))


def bench_service(twin: ctypes.CDLL, rounds: int, requests: int) -> list[dict[str, float]]:
    """Rounds of the closed service model."""
    plan = LoadPlan(from_s_K=np.array([0.0]), users_K=np.array([USERS]))
    model = Model("service", twin, plan, {"gpu_alpha_s": GPU_ALPHA_S}, replicas=REPLICAS, record=True)
    model.round(0, 30.0)  # compiles
    return [model.round(seed, 5.0 * round(requests / 64.2 / 5.0)) for seed in range(1, rounds + 1)]


def bench_mm3(twin: ctypes.CDLL, rounds: int, requests: int) -> list[dict[str, float]]:
    """Rounds of M/M/3; SimPy runs fewer customers in each and is scaled."""
    constants = {
        "client_s": 0.0, "client_tail_median_s": 0.0, "host_alpha_s": 0.0, "host_beta_s": 0.0, "gpu_beta_s": 0.0,
        "gpu_alpha_s": SERVICE_S, "gpu_switch_s": 0.0, "instances": SERVERS, "max_batch": 1, "queue_size": 0,
    }  # fmt: skip
    rows = []
    for seed in range(rounds + 1):
        rng = np.random.default_rng(seed)
        arrival_s_N = np.cumsum(rng.exponential(SERVICE_S / (RHO * SERVERS), requests if seed else 100))
        plan = LoadPlan(from_s_K=np.zeros(1), users_K=np.zeros(1, np.int64), arrivals_s_N=arrival_s_N)
        model = Model("M/M/3", twin, plan, constants, replicas=1, record=False, capacity=float(SERVERS))
        row = model.round(seed, float(arrival_s_N[-1]) + 5.0)
        some_s_N = arrival_s_N[:SIMPY_CUSTOMERS]
        mean_s, cpu_s, wall_s = timed(partial(simpy_mm3, some_s_N, seed))
        scale = row["requests"] / len(some_s_N)
        row |= {"theory_mean_s": mm3_response_s(), "simpy_mean_s": mean_s}
        rows.append(row | {"simpy_cpu_s": cpu_s * scale, "simpy_wall_s": wall_s * scale})
    return rows[1:]


def summary(rows: list[dict[str, float]], programs: list[str]) -> dict[str, float]:
    """Medians over the rounds: speeds, and ratios taken within each round."""
    measured = ("requests", "gpu_utilisation", "batch", "latency_mean_s", "simpy_mean_s", "theory_mean_s")
    out = {name: median(row[name] for row in rows) for name in measured if name in rows[0]}
    for name in programs:
        for clock in ("cpu", "wall"):
            out[f"{name}_{clock}_requests_per_s"] = median(
                row["requests"] / row[f"{name}_{clock}_s"] for row in rows
            )
        if name != "engine":
            ratios = [row[f"{name}_cpu_s"] / row["engine_cpu_s"] for row in rows]
            out |= {f"engine_per_{name}": median(ratios), f"engine_per_{name}_min": min(ratios)}
            out[f"engine_per_{name}_max"] = max(ratios)
    return out


def show(name: str, s: dict[str, float], programs: list[str]) -> None:
    """Print one model's table, and how far it is from what is promised."""
    print(f"\n{name}: {s['requests']:,.0f} requests a round, histograms of C and engine equal")
    if name == "service":
        print(f"  GPU utilisation {s['gpu_utilisation']:.3f}, mean batch {s['batch']:.2f}")
    else:
        theory_s, simpy_s = s["theory_mean_s"] * 1e3, s["simpy_mean_s"] * 1e3
        print(
            f"  mean response {s['latency_mean_s'] * 1e3:.2f} ms, SimPy {simpy_s:.2f}, theory {theory_s:.2f}"
        )
    print(
        f"  {'program':8} {'req/s (CPU)':>12} {'req/s (wall)':>13} {'ns/req':>8} {'engine is':>10}  (range)"
    )
    for p in programs:
        cpu = s[f"{p}_cpu_requests_per_s"]
        line = f"  {p:8} {cpu:12,.0f} {s[f'{p}_wall_requests_per_s']:13,.0f} {1e9 / cpu:8.1f}"
        if p != "engine":
            limits = f"({s[f'engine_per_{p}_min']:.3f}-{s[f'engine_per_{p}_max']:.3f})"
            line += f" {s[f'engine_per_{p}']:9.3f}x  {limits}"
        print(line)
    for key, goal in GOALS[name].items():
        print(f"  goal: {key} >= {goal:,}: {'met' if s[key] >= goal else 'MISSED'} ({s[key]:,.3f})")


def main() -> None:
    """Run both models and write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path, default=ROOT / "outputs/bench/engine.json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        twin = compile_twin(folder)
        models = {
            "service": (bench_service(twin, args.rounds, args.requests), ["engine", "c"]),
            "M/M/3": (bench_mm3(twin, args.rounds, args.requests), ["engine", "c", "simpy"]),
        }
    report: dict[str, Any] = {"machine": describe(), "cflags": CFLAGS, "profile": profile(), "goals": GOALS}
    for name, (rows, programs) in models.items():
        s = summary(rows, programs)
        show(name, s, programs)
        report[name] = {"summary": s, "rounds": rows}
    write(args.out, report)


if __name__ == "__main__":
    main()
