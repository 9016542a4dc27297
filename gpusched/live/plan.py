"""What a load process is told, and when each of its users sends: no clock and no network in here."""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from gpusched.core.errors import InputError
from gpusched.core.load import LoadPlan
from gpusched.core.seeds import child
from gpusched.live.state import Endpoint

IMAGES = 8
"""Different synthetic images the users send."""
USERS_STREAM, IMAGES_STREAM, ARRIVALS_STREAM = 0, 1, 2


@dataclass(kw_only=True)
class UsersPlan(Endpoint):
    """The load plan and the endpoint in plain values: PLAN.json.

    from_s, users        users from each second on (closed loop)
    arrivals_s           times of the requests (open loop), None for a closed one
    entropy, spawn_key   the seed sequence all streams of the load come from
    connection_requests  requests per connection: 1 = a new one each, 0 = kept alive for ever
    timeout_s            a request without an answer for this long has failed
    end_s                end of the load; None = until the process is stopped
    part, parts          which share of users or arrivals is this process' own
    """

    from_s: list[float] = field(default_factory=lambda: [0.0])
    users: list[int] = field(default_factory=lambda: [1])
    think_min_s: float = 1.0
    think_max_s: float = 2.0
    arrivals_s: list[float] | None = None
    entropy: int | list[int] = 0
    spawn_key: list[int] = field(default_factory=list)
    connection_requests: int = 1
    timeout_s: float = 10.0
    end_s: float | None = None
    part: int = 0
    parts: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.arrivals_s is not None:
            self.connection_requests = 1  # nobody sends a second one

    @classmethod
    def made(
        cls,
        plan: LoadPlan,
        seed: np.random.SeedSequence,
        endpoint: Endpoint,
        *,
        connection_requests: int,
        timeout_s: float,
    ) -> UsersPlan:
        """Return a drawn load plan against an endpoint."""
        entropy = seed.entropy or 0
        arrivals = None if plan.arrivals_s_N is None else plan.arrivals_s_N.tolist()
        return cls(
            **asdict(endpoint),
            from_s=plan.from_s_K.tolist(),
            users=plan.users_K.tolist(),
            think_min_s=plan.think_min_s,
            think_max_s=plan.think_max_s,
            arrivals_s=arrivals,
            entropy=entropy if isinstance(entropy, int) else [int(word) for word in entropy],
            spawn_key=list(seed.spawn_key),
            connection_requests=connection_requests,
            timeout_s=timeout_s,
        )

    @classmethod
    def read(cls, path: Path) -> UsersPlan:
        """Read PLAN.json; InputError where it is not one."""
        try:
            return cls(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"{path}: is no plan of a load ({error}).") from None

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))

    @property
    def seed(self) -> np.random.SeedSequence:
        return np.random.SeedSequence(self.entropy, spawn_key=tuple(self.spawn_key))

    def stream(self, purpose: int, k: int) -> np.random.Generator:
        """Return the k-th random stream of a purpose."""
        return np.random.default_rng(child(child(self.seed, purpose), k))

    def users_at(self, t_s: float) -> int:
        """Return the users wanted at a time."""
        k = bisect_right(self.from_s, t_s) - 1
        return self.users[k] if k >= 0 else 0

    def most_users(self, until_s: float) -> int:
        """Return the most users wanted at any time up to `until_s`."""
        return max(self.users[: bisect_right(self.from_s, until_s)], default=0)

    def wanted_from_s(self, k: int, t_s: float) -> float:
        """Return the first time from `t_s` on at which user k is wanted, inf if never again."""
        if self.users_at(t_s) > k:
            return t_s
        later = bisect_right(self.from_s, t_s)
        return next((self.from_s[i] for i in range(later, len(self.users)) if self.users[i] > k), math.inf)

    def own_arrivals(self) -> list[tuple[int, float]]:
        """Return number and time of this process' arrivals."""
        every = self.arrivals_s or []
        end_s = math.inf if self.end_s is None else self.end_s
        return [(n, every[n]) for n in range(self.part, len(every), self.parts) if every[n] < end_s]


class Sender:
    """User k: thinks, sends, thinks again; rests while the plan wants k users or fewer.

    A user that is no longer wanted notices when it would send, and one that is wanted again thinks first, as in
    the simulator. Every send draws the same numbers, whatever the answers, so all policies meet the same users.
    """

    def __init__(self, plan: UsersPlan, k: int) -> None:
        self.plan, self.k = plan, k
        self.rng = plan.stream(USERS_STREAM, k)
        self.free_s = plan.wanted_from_s(k, 0.0)

    def due_s(self) -> float:
        """Return when the next request is to be sent, inf if never."""
        due_s = self.free_s + self._think_s()
        while (wanted_s := self.plan.wanted_from_s(self.k, due_s)) > due_s:
            if wanted_s == math.inf:
                return math.inf
            due_s = wanted_s + self._think_s()
        over = self.plan.end_s is not None and due_s >= self.plan.end_s
        return math.inf if over else due_s

    def _think_s(self) -> float:
        return float(self.rng.uniform(self.plan.think_min_s, self.plan.think_max_s))
