"""How well PPO's `roughness` tells open loops from users who wait: area under the ROC curve, on development episodes.

    python benchmarks/gusts.py [--episodes 64]

Episodes of `load=assorted`, all open or all closed, and of the conversations where GPUSCHED_TRACES has them, with one and two
constant replicas; control steps with more than 20 requests/s. Beside it the spread of the change of the users' estimate.
"""

from __future__ import annotations

import argparse
import os

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from scipy.stats import mannwhitneyu
from static_table import made

from gpusched.core.seeds import stream
from gpusched.policy.encoder import CALM, roughness
from gpusched.rl.episodes import Episodes

Floats = NDArray[np.float64]
THINK_S, BUSY_RPS = 1.5, 20.0
WINDOWS = (4, 8, 16)


def lived(replicas: int, episodes: int, *overrides: str) -> tuple[Floats, Floats]:
    """Return rate and estimated users of every episode at every control step, shape [P, T]."""
    one = made("policy=static", f"policy.replicas={replicas}", "study=gusts", *overrides)
    cluster = one.simulator(episodes)
    seen = cluster.reset(
        Episodes(one.load, one.spec.end_s, stream("gusts", overrides[0], 0, "tune")).draw(episodes)
    )
    one.policy.reset(one.limits, stream("gusts", overrides[0], 0, "tune"), episodes)
    rows = [seen]
    for _ in range(one.spec.steps):
        rows.append(cluster.step(one.policy.act(rows[-1])))
    cluster.close()
    rate_PT = np.stack([row.rate_rps_E for row in rows], axis=1)
    return rate_PT, rate_PT * THINK_S + np.stack([row.in_flight_E for row in rows], axis=1)


def measures(rate_PT: Floats, users_PT: Floats, window: int) -> dict[str, Floats]:
    """Return both measures where the service was busy, one number per step."""
    rate_NH, users_NH = (
        sliding_window_view(x_PT, window + 1, axis=1).reshape(-1, window + 1) for x_PT in (rate_PT, users_PT)
    )
    known = np.isfinite(rate_NH).all(axis=1) & np.isfinite(users_NH).all(axis=1)
    busy = known & (np.nan_to_num(rate_NH).mean(axis=1) > BUSY_RPS)
    spread_N = np.diff(users_NH[busy], axis=1).std(axis=1) / users_NH[busy].mean(axis=1)
    return {
        "median change of the rate": roughness(np.log1p(rate_NH[busy])),
        "spread of the change of the users": np.log(CALM + spread_N),
    }


def main() -> None:
    """Print a line per measure and window."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--episodes", type=int, default=64)
    episodes = parser.parse_args().episodes
    loads = {"closed": ["load=assorted", "load.open_share=0"], "open": ["load=assorted", "load.open_share=1"]}
    if "GPUSCHED_TRACES" in os.environ:
        loads["conversations"] = ["load=azure_conv"]
    seen = {
        name: [lived(replicas, episodes, *overrides) for replicas in (1, 2)]
        for name, overrides in loads.items()
    }
    for window in WINDOWS:
        found = {name: [measures(*one, window) for one in two] for name, two in seen.items()}
        for measure in found["closed"][0]:
            values = {
                name: np.concatenate([one[measure] for one in two]).astype(float)
                for name, two in found.items()
            }
            told = "; ".join(
                f"{name} {mannwhitneyu(x_N, values['closed']).statistic / len(x_N) / len(values['closed']):.3f}"
                for name, x_N in values.items() if name != "closed"
            )  # fmt: skip
            print(f"{window:2d} steps, {measure}: {told}")


if __name__ == "__main__":
    main()
