"""The load program: Locust users that call Triton, in a process of its own.

    python -m gpusched.live.users PLAN.json --records FILE                  under gpusched.live.load
    python -m gpusched.live.users PLAN.json --master --expect-workers N --records FILE
    python -m gpusched.live.users PLAN.json --worker --master-host HOST --expect-workers N

Under a parent it says "ready", waits for the line "begin T0" (CLOCK_MONOTONIC seconds) and ends when its standard
input does, so it cannot outlive the parent. Importing locust patches the whole process: nothing else imports this.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import gevent.event
import locust
import numpy as np
import tritonclient.http as triton
from gevent import monkey
from gevent.pool import Pool
from locust.env import Environment
from locust.runners import MasterRunner, Runner, WorkerRunner

from gpusched.core.errors import GpuschedError
from gpusched.core.logs import RequestLog
from gpusched.live.plan import ARRIVALS_STREAM, IMAGES, IMAGES_STREAM, Sender, UsersPlan
from gpusched.live.records import NO_ANSWER, NOT_REAL, REAL, Buffer, Writer

log = logging.getLogger("gpusched.users")

OPEN_SLOTS = 4096
"""Requests of an open load under way at once; more are refused at the client, as in the simulator."""
BEAT_S = 1.0
AHEAD_S = 2.0
"""Users are spawned this long before they are wanted: Locust asks the shape once a second."""
LAST_S = 2.0
"""Time for the last answers, after the end of a plan."""
DIFFERENT_ERRORS = 20
"""Kinds of errors the log tells of, each once."""


class Caller:
    """One connection at a time to one of the replicas' addresses; drops it after as many requests as planned."""

    def __init__(self, plan: UsersPlan) -> None:
        self.plan = plan
        self.client: Any = None
        self.url = ""
        self.left = 0
        self.outputs = [triton.InferRequestedOutput(plan.output, binary_data=True)]

    def infer(self, image: Any, draw: float) -> int:
        """Send one image and return what came back; `draw` in 0..1 chooses the address of a new connection."""
        last = self._connect(draw)
        headers = {"Connection": "close"} if last else {}
        try:
            with gevent.Timeout(self.plan.timeout_s, TimeoutError(f"no answer in {self.plan.timeout_s:g} s")):
                result = self.client.infer(self.plan.model, [image], outputs=self.outputs, headers=headers)
        except BaseException:
            self.drop()
            raise
        if last:
            self.drop()  # a server may not heed the header
        return REAL if is_real(result, self.plan.output) else NOT_REAL

    def _connect(self, draw: float) -> bool:
        """Have a client; True where its connection ends with this request."""
        if self.left == 0:
            url = self.plan.urls[min(int(draw * len(self.plan.urls)), len(self.plan.urls) - 1)]
            if self.client is None or url != self.url:
                self.drop()
                timeout_s, self.url = self.plan.timeout_s, url
                self.client = triton.InferenceServerClient(
                    url, concurrency=1, connection_timeout=timeout_s, network_timeout=timeout_s
                )
            self.left = self.plan.connection_requests or sys.maxsize
        self.left -= 1
        return self.left == 0

    def drop(self) -> None:
        if self.client is not None:
            self.client.close()
        self.client, self.left = None, 0


def is_real(result: Any, output: str) -> bool:
    """True where the answer is an inference: one row, not empty, finite. A broken model may answer 200 and nothing."""
    try:
        y = result.as_numpy(output)
    except Exception:  # whatever a malformed answer makes of the client's parser
        return False
    return y is not None and y.ndim > 0 and y.shape[0] == 1 and y.size > 0 and bool(np.isfinite(y).all())


class Program:
    """What all users of a process share: plan, clock, images, record."""

    def __init__(self, plan: UsersPlan, writer: Writer, *, report: bool) -> None:
        self.plan, self.writer, self.report = plan, writer, report
        self.t0_s = math.nan
        self.begun = gevent.event.Event()
        self.images = list(self._images())
        self.requests = self.joined = 0
        self.errors: set[str] = set()

    def _images(self) -> Iterator[Any]:
        """Noise, as bytes or as numbers in 0..1; built once, because a load must not spend its time on them."""
        shape = [1, *self.plan.shape]
        for k in range(IMAGES):
            noise = self.plan.stream(IMAGES_STREAM, k).integers(0, 256, shape, dtype=np.uint8)
            kind = triton_dtype(self.plan.dtype)
            image = triton.InferInput(self.plan.input, shape, self.plan.dtype)
            image.set_data_from_numpy(noise if kind == np.uint8 else (noise / 255.0).astype(kind))
            yield image

    def begin(self, t0_s: float) -> None:
        if not self.begun.is_set():
            self.t0_s = t0_s
            self.begun.set()

    def now_s(self) -> float:
        return time.monotonic() - self.t0_s

    def wait_until(self, t_s: float) -> None:
        gevent.sleep(max(t_s - self.now_s(), 0.0))

    def request(self, environment: Environment, caller: Caller, due_s: float, draws: Any) -> None:
        """Send one request now and write down that it was sent and how it ended."""
        self.requests += 1
        number, begin_s = self.requests, time.monotonic()
        self.writer.sent(number, begin_s, begin_s - self.t0_s - due_s)
        answer, failure = NO_ANSWER, None
        try:
            answer = caller.infer(self.images[int(draws[0] * IMAGES)], float(draws[1]))
        except (
            Exception
        ) as error:  # an overloaded or dying server fails in many ways; all are a failed request
            failure = error
        latency_s = time.monotonic() - begin_s
        status = RequestLog.OK if answer == REAL else RequestLog.FAILED
        self.writer.done(number, begin_s, latency_s, status, answer)
        if answer != REAL:
            self.tell(failure or "the answer is no inference: empty, not finite or of the wrong shape")
        if self.report:
            environment.events.request.fire(  # type: ignore[no-untyped-call]
                request_type="infer",
                name=self.plan.model,
                response_time=latency_s * 1e3,
                response_length=0,
                exception=None if answer == REAL else failure or ValueError("no inference"),
                context={},
            )

    def refuse(self, due_s: float) -> None:
        """Write down a request for which no slot was free."""
        self.requests += 1
        now_s = time.monotonic()
        self.writer.sent(self.requests, now_s, now_s - self.t0_s - due_s)
        self.writer.done(self.requests, now_s, 0.0, RequestLog.FAILED, NO_ANSWER)

    def tell(self, problem: object) -> None:
        """Log a kind of error once."""
        text = f"{type(problem).__name__}: {problem}" if isinstance(problem, Exception) else str(problem)
        if text not in self.errors and len(self.errors) < DIFFERENT_ERRORS:
            self.errors.add(text)
            log.warning("a request failed: %s", text)

    def beat(self) -> None:
        """Write a sign of life every second."""
        self.begun.wait()
        due_s = time.monotonic()
        while True:
            now_s = time.monotonic()
            self.writer.beat(now_s, time.process_time(), now_s - due_s)
            due_s += BEAT_S
            gevent.sleep(max(due_s - time.monotonic(), 0.0))

    def join(self, environment: Environment) -> int:
        """Return the number of a new user of this process."""
        if isinstance(environment.runner, WorkerRunner):
            self.plan.part = self.writer.process = environment.runner.worker_index
            self.begin(time.monotonic())
        self.joined += 1
        return (self.joined - 1) * self.plan.parts + self.plan.part


def triton_dtype(name: str) -> Any:
    return triton.triton_to_np_dtype(name)


def user_type(program: Program) -> type[locust.User]:
    """Return the Locust user of a plan."""
    return _open(program) if program.plan.arrivals_s is not None else _closed(program)


def _closed(program: Program) -> type[locust.User]:
    class InferUser(locust.User):
        """Thinks, sends, thinks again."""

        @locust.task
        def live(self) -> None:
            k = program.join(self.environment)
            program.begun.wait()
            sender, caller = Sender(program.plan, k), Caller(program.plan)
            while (due_s := sender.due_s()) < math.inf:
                program.wait_until(due_s)
                program.request(self.environment, caller, due_s, sender.rng.random(2))
                sender.free_s = program.now_s()
            gevent.sleep(math.inf)

    return InferUser


def _open(program: Program) -> type[locust.User]:
    class Dispatcher(locust.User):
        """Sends every arrival on time, whatever became of those before; each has a connection of its own."""

        @locust.task
        def live(self) -> None:
            program.join(self.environment)
            program.begun.wait()
            slots, idle = Pool(), [Caller(program.plan)]
            rng = program.plan.stream(ARRIVALS_STREAM, program.plan.part)
            for _, due_s in program.plan.own_arrivals():
                program.wait_until(due_s)
                draws = rng.random(2)
                if len(slots) >= OPEN_SLOTS:
                    program.refuse(due_s)
                else:
                    slots.spawn(self._one, idle, due_s, draws)
            gevent.sleep(math.inf)

        def _one(self, idle: list[Caller], due_s: float, draws: Any) -> None:
            caller = idle.pop() if idle else Caller(program.plan)
            program.request(self.environment, caller, due_s, draws)
            idle.append(caller)

    return Dispatcher


class PlanShape(locust.LoadTestShape):
    """Grows Locust's population as the plan does, a little ahead of it.

    Users rest on their own while the plan wants fewer: Locust would stop arbitrary ones, look only once a second, and
    hold up the next change until the last of them has its answer.
    """

    def __init__(self, program: Program, dispatchers: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.program, self.dispatchers = program, dispatchers

    def tick(self) -> tuple[int, float] | None:
        plan = self.program.plan
        now_s = 0.0 if math.isnan(self.program.t0_s) else self.program.now_s()
        if plan.end_s is not None and now_s >= plan.end_s + LAST_S:
            return None
        if plan.arrivals_s is not None:
            return self.dispatchers, self.dispatchers
        own = len(range(plan.part, plan.most_users(now_s + AHEAD_S), plan.parts))
        return max(own, 1), max(own, 1)


def command(words: list[str]) -> argparse.Namespace:
    """Return the command line's values."""
    parser = argparse.ArgumentParser(prog="python -m gpusched.live.users")
    parser.add_argument("plan", type=Path)
    parser.add_argument("--records", type=Path, help="file the raw requests are appended to")
    role = parser.add_mutually_exclusive_group()
    role.add_argument("--master", action="store_true", help="steer workers, send nothing")
    role.add_argument("--worker", action="store_true", help="send what a master says")
    parser.add_argument("--master-host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=5557, help="where the master listens for workers")
    parser.add_argument("--expect-workers", type=int, default=1)
    args = parser.parse_args(words)
    if args.records is None and not args.worker:
        parser.error("--records is needed, except by a worker")
    return args


def under_parent(program: Program) -> None:
    """Take orders from standard input; end with it, at once and from a thread of its own."""
    # A native thread: it must also fire while a greenlet holds the loop.
    start_thread: Callable[..., object] = monkey.get_original("_thread", "start_new_thread")
    orders: list[float] = []

    def listen() -> None:
        rest = b""
        while data := os.read(0, 4096):
            *lines, rest = (rest + data).split(b"\n")
            orders.extend(float(line.split()[1]) for line in lines if line.startswith(b"begin "))
        os._exit(0)

    start_thread(listen, ())
    os.write(1, b"ready\n")
    while not orders:
        gevent.sleep(0.005)
    program.begin(orders[0])
    program.wait_until(0.0)


def gather(environment: Environment, program: Program) -> None:
    """Let workers send their rows to the master with Locust's own reports, every few seconds."""
    key = "gpusched_rows"
    if isinstance(program.writer, Buffer):
        buffer = program.writer
        environment.events.report_to_master.add_listener(  # type: ignore[no-untyped-call]
            lambda client_id, data, **_: data.__setitem__(key, buffer.take())
        )
    else:
        environment.events.worker_report.add_listener(  # type: ignore[no-untyped-call]
            lambda client_id, data, **_: program.writer.write(data.get(key) or b"")
        )


def begin_shape(runner: Runner, workers: int) -> None:
    """Start the population, on a master once all workers are there."""
    if isinstance(runner, WorkerRunner):
        return
    if isinstance(runner, MasterRunner):
        while len(runner.clients.ready) < workers:
            gevent.sleep(0.1)
    runner.start_shape()


def serve(args: argparse.Namespace) -> None:
    """Live through the plan."""
    plan = UsersPlan.read(args.plan)
    distributed = args.master or args.worker
    # Hosts have no monotonic clock in common; their wall clocks are one as far as NTP makes them.
    offset_s = time.time() - time.monotonic() if distributed else 0.0
    writer = Buffer(0, offset_s) if args.worker else Writer(args.records, plan.part, offset_s)
    if args.worker:
        plan.parts = args.expect_workers
    program = Program(plan, writer, report=distributed)
    shape = None if args.worker else PlanShape(program, args.expect_workers if args.master else 1)
    environment = Environment(user_classes=[user_type(program)], shape_class=shape, catch_exceptions=False)
    if args.master:
        runner: Runner = environment.create_master_runner("*", args.port)
    elif args.worker:
        runner = environment.create_worker_runner(args.master_host, args.port)
    else:
        runner = environment.create_local_runner()
    if distributed:
        gather(environment, program)
    if not args.master:
        gevent.spawn(program.beat).link_exception(lambda _: os._exit(1))
    if not distributed:
        under_parent(program)
    begin_shape(runner, args.expect_workers)
    if args.master:
        program.begin(time.monotonic())
    finish(runner)


def finish(runner: Runner) -> None:
    """Wait for the end of the plan, and let workers report the rest."""
    if isinstance(runner, WorkerRunner):
        runner.greenlet.join()
        return
    while runner.shape_greenlet is not None:
        gevent.sleep(0.2)
    runner.quit()


def main(words: list[str]) -> int:
    """Run the program; 2 where it is told nonsense."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)-7s %(message)s")
    # A whole population at once is meant here.
    logging.getLogger("locust.runners").setLevel(logging.ERROR)
    args = command(words)
    try:
        serve(args)
    except GpuschedError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
