"""Parts of the reference engine: random streams, shared processors, users, batches, pods, percentiles."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from gpusched.sim.records import CLOCK_HZ, FREE, INF, READY, TERMINATING
from gpusched.sim.reference_triton import Batcher

WORD = (1 << 64) - 1
# Peter Acklam's rational approximation of the inverse normal distribution, relative error 1.2e-9
CENTRE_ABOVE = (-3.969683028665376e01, 2.209460984245205e02, -2.759285104469687e02, 1.383577518672690e02,
                -3.066479806614716e01, 2.506628277459239e00)  # fmt: skip
CENTRE_BELOW = (-5.447609879822406e01, 1.615858368580409e02, -1.556989798598866e02, 6.680131188771972e01,
                -1.328068155288572e01)  # fmt: skip
TAIL_ABOVE = (-7.784894002430293e-03, -3.223964580411365e-01, -2.400758277161838e00, -2.549732539343734e00,
              4.374664141464968e00, 2.938163982698783e00)  # fmt: skip
TAIL_BELOW = (7.784695709041462e-03, 3.224671290700398e-01, 2.445134137142996e00, 3.754408661907416e00)


def horner(coefficients: tuple[float, ...], x: float) -> float:
    """Value of a polynomial, the highest power's coefficient first."""
    value = 0.0
    for c in coefficients:
        value = value * x + c
    return value


def mix(z: int) -> int:
    """splitmix64's output function (Steele, Lea, Flood, OOPSLA 2014)."""
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & WORD
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & WORD
    return z ^ (z >> 31)


@dataclass(kw_only=True)
class Stream:
    """One random stream: a 64-bit counter, mixed."""

    state: int

    @classmethod
    def fork(cls, key: int, k: int) -> Stream:
        """Return stream k under a key."""
        return cls(state=mix((key + k * 0xD1342543DE82EF95) & WORD))

    def uniform(self) -> float:
        """Draw from (0, 1)."""
        self.state = (self.state + 0x9E3779B97F4A7C15) & WORD
        return ((mix(self.state) >> 11) + 0.5) * 2.0**-53

    def normal(self) -> float:
        """Draw a standard normal by inversion.

        Acklam's approximation and not the library's: closed loops multiply an error of 1e-9 by ten every few
        simulated seconds, so the streams must agree to the last bits.
        """
        p = self.uniform()
        low = min(p, 1.0 - p)
        if low > 0.02425:
            c = p - 0.5
            return horner(CENTRE_ABOVE, c * c) * c / horner((*CENTRE_BELOW, 1.0), c * c)
        s = math.sqrt(-2.0 * math.log(low))
        z = horner(TAIL_ABOVE, s) / horner((*TAIL_BELOW, 1.0), s)
        return z if p < 0.5 else -z


@dataclass(kw_only=True, eq=False)
class User:
    """A closed-loop user, or one request of an open load. `pod` and `left`: its kept-alive connection."""

    index: int
    stream: Stream
    state: int
    send_s: float = 0.0
    enqueue_s: float = 0.0
    pod: Pod | None = None
    left: int = 0


@dataclass(kw_only=True, eq=False)
class Batch:
    """Requests that one Triton instance executes together: first on the pod's CPU, then on its GPU."""

    pod: Pod
    users: list[User]


@dataclass(kw_only=True)
class Processor:
    """A pod's CPU under its limit, or a GPU: jobs and the work each still needs.

    With a CFS period every job has a thread (and a core) of its own until the quota of the period,
    capacity·period_s, is spent; then all stop until the period ends. Without one (period_s = 0) the jobs get
    equal shares of the capacity, at most per_job each, after what sharing itself costs; foreign jobs never end.
    `speed` is the clock, 1 = full.
    """

    capacity: float
    now_s: float
    per_job: float = 1.0
    shared_loss: float = 0.0
    loss_per_job: float = 0.0
    period_s: float = 0.0
    period_end_s: float = INF
    quota_s: float = INF
    speed: float = 1.0
    foreign: int = 0
    left_s: dict[Batch, float] = field(default_factory=dict)
    used_s: float = 0.0
    busy_s: float = 0.0

    @classmethod
    def cpu(cls, limit_cores: float, period_s: float, now_s: float) -> Processor:
        """Return the CPU of a container that starts now."""
        if period_s <= 0.0:
            return cls(capacity=limit_cores, now_s=now_s)
        end_s, quota_s = now_s + period_s, limit_cores * period_s
        return cls(capacity=limit_cores, now_s=now_s, period_s=period_s, period_end_s=end_s, quota_s=quota_s)

    def rate(self) -> float:
        """Work per second that each job gets."""
        jobs = len(self.left_s) + self.foreign
        if jobs == 0 or self.quota_s <= 0.0:
            return 0.0
        if self.period_s > 0.0:
            return 1.0
        loss = 1.0 if jobs == 1 else 1.0 + self.shared_loss + self.loss_per_job * (jobs - 1)
        return self.speed * min(self.per_job, self.capacity / (loss * jobs))

    def elapse(self, t: float) -> None:
        """Let time pass until t; nothing may end before."""
        dt, rate = t - self.now_s, self.rate()
        self.now_s = t
        for batch in self.left_s:
            self.left_s[batch] -= dt * rate
        self.used_s += dt * rate * len(self.left_s)
        self.busy_s += dt if self.left_s or self.foreign else 0.0
        if self.period_s > 0.0:
            self.quota_s -= dt * rate * len(self.left_s)
            if t >= self.period_end_s:
                periods = math.floor((t - self.period_end_s) / self.period_s) + 1
                self.period_end_s += periods * self.period_s
                self.quota_s = self.capacity * self.period_s

    def next(self) -> tuple[float, Batch | None]:
        """When something happens here next, and the batch that ends then; None: the quota ends or comes back."""
        if not self.left_s:
            return INF, None
        rate = self.rate()
        quota_end_s = self.period_end_s
        if self.period_s > 0.0 and rate > 0.0:
            quota_end_s = min(quota_end_s, self.now_s + self.quota_s / len(self.left_s))
        batch = min(self.left_s, key=lambda b: self.left_s[b])
        done_s = self.now_s + max(self.left_s[batch], 0.0) / rate if rate > 0.0 else INF
        return (done_s, batch) if done_s <= quota_end_s else (quota_end_s, None)

    def edge(self, t: float) -> None:
        """Live through the end of the quota (or of the period, which `elapse` has dealt with)."""
        if t < self.period_end_s and self.quota_s < 1e-9:
            self.quota_s = 0.0

    def resize(self, limit_cores: float) -> None:
        """Change the limit: the kernel refills the running period's quota, which wakes whoever had spent it."""
        self.capacity = limit_cores
        if self.period_s > 0.0:
            self.quota_s = limit_cores * self.period_s


@dataclass(kw_only=True, eq=False)
class Pod:
    """One pod; times are INF while they lie ahead undecided, -INF while they have not happened."""

    slot: int
    uid: int
    stream: Stream
    revision: int
    instances: int
    share: float
    vram_bytes: float
    created_s: float
    state: int
    place: int = 0  # of its service in the fleet
    gpu: int = -1
    cpu: Processor | None = None
    queue: deque[User] = field(default_factory=deque)
    batcher: Batcher | None = None  # that runs ahead, and has a queue of its own
    idle: int = 0
    running: list[Batch] = field(default_factory=list)
    batch_s: float = INF
    life_s: float = INF
    endpoint_s: float = INF
    advisor_s: float = INF
    sigterm_s: float = INF
    kill_s: float = INF
    admitted_s: float = -INF
    up_s: float = -INF
    ready_s: float = -INF
    turned_s: float = -INF  # when the Ready condition last changed
    restarts: int = 0
    backoff_s: float = 0.0
    backoff_at_s: float = -INF
    # CPU samples (time, cumulative CPU time): all of cAdvisor's, and metrics-server's last two, where it has them
    seen: list[tuple[float, float]] = field(default_factory=list)
    older: tuple[float, float] | None = None
    newer: tuple[float, float] | None = None

    @property
    def in_flight(self) -> int:
        """Requests waiting or executing."""
        ahead = self.batcher.waiting if self.batcher else 0
        return len(self.queue) + ahead + sum(len(batch.users) for batch in self.running)

    @property
    def active(self) -> bool:
        """Whether the ReplicaSet counts it."""
        return FREE < self.state < TERMINATING

    def takes_connection(self, t: float) -> bool:
        """Whether a kept-alive connection to it still works: until its process is told to stop."""
        return self.state == READY or (self.state == TERMINATING and t < self.sigterm_s)


def on_grid(t: float) -> float:
    """Round a user's time to the grid of records.CLOCK_HZ."""
    return math.floor(t * CLOCK_HZ + 0.5) / CLOCK_HZ


def p95(latencies_s: list[float]) -> float:
    """95th percentile as a histogram with 16 linear bins per octave shows it; NaN without a value."""
    counts: dict[tuple[float, float], int] = {}
    for x in latencies_s:
        octave = 2.0 ** min(max(math.floor(math.log2(x)), -10), 5)
        low = octave * (1.0 + min(max(math.floor(16.0 * (x / octave - 1.0)), 0), 15) / 16.0)
        counts[low, low + octave / 16.0] = counts.get((low, low + octave / 16.0), 0) + 1
    rank, below = 0.95 * len(latencies_s), 0
    for (low, high), count in sorted(counts.items()):
        if below + count >= rank:
            return low + (rank - below) / count * (high - low)
        below += count
    return math.nan
