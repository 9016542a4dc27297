"""The reference engine's dynamic batcher, in the words of Triton's own source.

triton-inference-server/core: dynamic_batch_scheduler.cc (Enqueue, BatcherThread, GetDynamicBatch), rate_limiter.cc
(PayloadSlotAvailable), instance_queue.cc (Dequeue). A payload is a batch on its way to an instance. Of two threads that
could go first, the instance does. Left out: a batcher that found an empty queue also looks again after 500 ms.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gpusched.sim.records import INF

if TYPE_CHECKING:
    from gpusched.sim.reference_parts import User


def on_demand(queued: int, due: bool, delay_s: float, largest: int, preferred: list[int]) -> int:
    """How many requests go to an idle instance now, 0 to wait, with a queue policy: nothing happens ahead of time.

    `due`: the oldest request has waited for the delay. Without preferred sizes the largest batch is the preferred one.
    """
    sizes, pending = preferred or [largest], min(queued, largest)
    fitting = [b for b in sizes if b <= pending]
    if fitting and (delay_s == 0.0 or not due):
        return max(fitting)
    if queued > largest or pending >= max(sizes):
        return pending
    return pending if due else 0


@dataclass(kw_only=True, eq=False)
class Payload:
    """Requests on their way to an instance; once it is stale (executing, or about to), nothing is added."""

    users: list[User] = field(default_factory=list)
    stale: bool = False


@dataclass(kw_only=True)
class Batcher:
    """The batcher thread of one server and the queue of payloads between it and the instances."""

    instances: int
    max_batch: int
    delay_s: float
    preferred: list[int]
    queue: deque[User] = field(default_factory=deque)
    payloads: deque[Payload] = field(default_factory=deque)
    current: Payload = field(default_factory=Payload)
    saturated: bool = False
    next_preferred: int = 0
    notified: bool = False
    look_s: float = INF

    @property
    def waiting(self) -> int:
        """Requests that no instance has taken yet."""
        return len(self.queue) + sum(len(payload.users) for payload in self.payloads)

    def clear(self) -> list[User]:
        """The server has died: return who was waiting, and begin anew."""
        broken = [user for payload in self.payloads for user in payload.users] + list(self.queue)
        self.queue.clear()
        self.payloads.clear()
        self.current, self.saturated, self.next_preferred = Payload(), False, 0
        self.notified, self.look_s = False, INF
        return broken

    def slot_available(self) -> bool:
        return len(self.payloads) < 2 * self.instances

    def enqueue(self, user: User) -> None:
        """A request arrives."""
        self.queue.append(user)
        useful = self.saturated or self.current.stale or len(self.queue) >= self.next_preferred
        if self.slot_available() and useful:
            self.notified = True

    def look(self, t: float) -> bool:
        """Let the batcher thread go through its loop once; return whether it has come to rest."""
        if self.saturated or self.current.stale:
            self.current, self.saturated, self.next_preferred = Payload(), False, 0
        if not self.queue or not self.slot_available():
            self.notified, self.look_s = False, INF
            return True
        count, look_s = self.dynamic_batch(t)
        if look_s > t:
            self.notified, self.look_s = False, look_s
            return True
        new = not self.current.users
        self.current.users += [self.queue.popleft() for _ in range(count)]
        if new and self.current.users:
            self.payloads.append(self.current)
        return False

    def dynamic_batch(self, t: float) -> tuple[int, float]:
        """How many requests to add to the current payload, and when: now, or look again when the delay is over."""
        held, pending, best, send_now = len(self.current.users), 0, 0, False
        most = max(self.preferred)
        for _ in self.queue:
            if held + pending > 0:
                if held + pending + 1 > most and best == 0:
                    best, self.saturated = pending, True
                if held + pending + 1 > self.max_batch:
                    send_now = True
                    break
            pending += 1
            if held + pending in self.preferred:
                best = pending
        due_s = self.queue[0].enqueue_s + self.delay_s
        exceeded = self.delay_s > 0.0 and t >= due_s
        if best > 0 and not exceeded:
            self.saturated = self.saturated or self.delay_s == 0.0
            return best, t
        if pending == 0:
            return 0, t
        if send_now or held + pending >= most:
            self.saturated = True
            return pending, t
        if exceeded or self.delay_s == 0.0:
            return pending, t
        self.next_preferred = min(b for b in self.preferred if b > held + pending) - held
        if not self.saturated and held > 0 and held not in self.preferred:
            return pending, t
        return 0, due_s

    def dequeue(self, t: float) -> list[User]:
        """An idle instance takes the first payload and merges overdue ones into it; wakes the batcher."""
        payload = self.payloads.popleft()
        payload.stale = True
        while self.delay_s > 0.0 and self.payloads:
            front = self.payloads[0]
            if t < front.users[0].enqueue_s + self.delay_s:
                break
            front.stale = True
            if len(payload.users) + len(front.users) > self.max_batch:
                break
            payload.users += self.payloads.popleft().users
        self.notified = True
        return payload.users
