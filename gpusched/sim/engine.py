"""The event loop: users, balancer, Triton batching, host phase, GPU phase, answers.

Each event is decoded into what it asks for (an arrival, a batch to form, jobs to place, answers to give), and each
of these is then done at one place in the loop: a helper with one caller is inlined, which is worth a factor of 1.8.
A fleet's services share one loop, one heap of arrivals and one tree of processors; when the next event is another
service's, its constants are loaded. A service alone never pays for that.
"""

from __future__ import annotations

import math
from typing import Any

from gpusched.core.logs import RequestLog
from gpusched.sim.fleet import accrue
from gpusched.sim.metrics import advisor_event
from gpusched.sim.primitives import (
    at,
    bin_of,
    fork,
    heap_drop,
    heap_push,
    jit,
    normal,
    resource_add,
    resource_done,
    resource_edge,
    resource_pass_edge,
    resource_pop,
    resource_sync,
    share_rate,
    tree_set,
    uniform,
)
from gpusched.sim.records import (
    CLOCK_HZ,
    EXECUTING,
    INACTIVE,
    INF,
    LOG_FULL,
    QUEUED,
    REACHED,
    SLOW_EVENT,
    TERMINATING,
    THINKING,
    Env,
)
from gpusched.sim.triton import batch_size, choose_pod, gpu_work_s, next_batch, wake_batcher

OK, FAILED, UNFINISHED = RequestLog.OK, RequestLog.FAILED, RequestLog.UNFINISHED
DONE, EDGE, BATCH_DUE, READING = range(4)
"""What happens next at a processor: a job ends, the CFS quota ends or is refilled, the queue delay is over, or cAdvisor
reads its counter. Readings are the one metric event here: each pod has its own, and a pass over all pods for each would
make a large service's cost grow with the square of its size.
"""


@jit
def constants(sim: Any) -> Any:
    """What the loop needs of a service at every event, for registers: the compiler cannot know that no write changes it."""
    return (
        sim.half_client_s, sim.tail_median_s, sim.tail_sigma, sim.slo_s, sim.think_min_s, sim.think_span_s, sim.record,
        sim.is_open, sim.queue_timeout_s, sim.host_alpha_s, sim.host_beta_s, sim.queue_size,
        sim.first_user + sim.target_users, sim.prefetching,
    )  # fmt: skip


def request_loop(several: bool) -> Any:
    """Return the loop for fleets, or for a service alone, compiled without what only a fleet needs."""

    @jit
    def run(env: Env, e: int, until: float, refused: int, fresh: int) -> int:
        """Serve a fleet up to `until`: REACHED there, SLOW_EVENT when a control plane is due, LOG_FULL when a log is.

        `e` is the fleet's first environment, `refused` the chain of users whose requests the last slow event broke. The loop
        begins as if an event had just changed every processor, since whoever called may have: those of the service in
        place `fresh` and all GPUs, or with -1 everything.
        """
        lead = env.sim_E[e]
        S = lead.services if several else 1
        P, G, per_pod, leaves = lead.pods, lead.gpus, lead.instances_max, lead.leaves
        Q, f = S * P, lead.fleet
        users_each = env.users_EU.shape[1]
        users, pods = env.users_EU[e : e + S].reshape(S * users_each), env.pods_EP[e : e + S].reshape(Q)
        heap, instances, resources, tree = (
            env.events_FU[f],
            env.instances_FI[f],
            env.resources_FR[f],
            env.tree_FL[f],
        )
        events = lead.events
        t = lead.t
        slow_s = INF
        for k in range(S):
            slow_s = min(slow_s, env.sim_E[e + k].due_s)
        first_fresh, count_fresh = (0, Q) if fresh < 0 else (fresh * P, P)
        s = users[at(refused)].service if several and refused >= 0 else 0
        loaded = s
        p = -1  # pod whose queue or instances changed
        g = -1  # GPU whose jobs changed
        node = -1  # instance ready for its GPU phase
        answered = -1  # users to answer, chained by `next`
        arrives = False  # an open load's next arrival must be scheduled
        everything = True

        sim, log, arrivals = env.sim_E[e + s], env.log_EK[e + s], env.arrival_s_EN[e + s]
        (
            half_client_s, tail_median_s, tail_sigma, slo_s, think_min_s, think_span_s, record, is_open, queue_timeout_s,
            host_alpha_s, host_beta_s, queue_size, target_user, prefetching,
        ) = constants(sim)  # fmt: skip
        histogram = sim.histogram
        log_limit = len(log) - users_each - sim.max_batch if record else 1 << 60

        while True:
            # 1. Form batches while an instance is idle, and place host and GPU phases.
            while p >= 0:
                pod = pods[at(p)]
                on_gpu = node >= 0
                if node < 0 and prefetching:
                    size = next_batch(sim, pod, users, instances, p * per_pod, t)
                    if size == 0:
                        break
                elif node < 0:
                    if pod.free < 0 or pod.queued == 0:
                        break
                    if queue_timeout_s > 0.0:
                        while pod.queued > 0 and t - users[at(pod.head)].enqueue_s > queue_timeout_s:
                            u = pod.head
                            pod.head = users[at(u)].next
                            pod.queued -= 1
                            pod.in_flight -= 1
                            sim.in_flight -= 1
                            users[at(u)].next = refused
                            refused = u
                        if pod.queued == 0:
                            break
                    due_s = users[at(pod.head)].enqueue_s + sim.queue_delay_s
                    size = batch_size(pod.queued, t >= due_s, sim)
                    if size == 0:
                        pod.batch_s = due_s
                        break
                    pod.batch_s = INF
                if node < 0:
                    node = pod.free
                    instance = instances[at(node)]
                    pod.free = instance.head
                    instance.head = pod.head
                    instance.size = size
                    u = pod.head
                    for _ in range(size):
                        u = pod.head
                        users[at(u)].state = EXECUTING
                        sim.queue_sum_s += t - users[at(u)].enqueue_s
                        pod.head = users[at(u)].next
                    users[at(u)].next = -1
                    pod.queued -= size
                    work_s = host_alpha_s + host_beta_s * size
                    on_gpu = work_s <= 0.0
                if on_gpu:
                    g = pod.gpu
                    instance = instances[at(node)]
                    instance.on_gpu = 1
                    work_s = gpu_work_s(sim, pod, instance.size)
                resource_add(resources[at(Q + g if on_gpu else p)], instances, node, work_s, t)
                node = -1

            # 2. Answer, log, and let users think.
            while True:
                if arrives:
                    arrives = False
                    sim.arrival += 1
                    if sim.arrival >= len(arrivals):
                        continue
                    next_s = arrivals[at(sim.arrival)] + half_client_s
                    u = -1 - s
                else:
                    if answered >= 0:
                        u = answered
                        answered = users[at(u)].next
                        status = OK
                    elif refused >= 0:
                        u = refused
                        refused = users[at(u)].next
                        status = FAILED
                    else:
                        break
                    user = users[at(u)]
                    answer_s = t + half_client_s + tail_median_s * math.exp(tail_sigma * normal(user))
                    latency_s = answer_s - user.send_s
                    if status == OK:
                        sim.completed += 1
                        sim.latency_sum_s += latency_s
                        histogram[at(bin_of(latency_s))] += 1
                        if latency_s > slo_s:
                            sim.slow += 1
                    else:
                        sim.failed += 1
                    if record:
                        row = log[at(sim.log_rows)]
                        row.start_s, row.latency_s, row.status = user.send_s, latency_s, status
                        sim.log_rows += 1
                    user.state = THINKING
                    if is_open:
                        user.next = sim.free_slot
                        sim.free_slot = u
                        continue
                    next_s = answer_s + think_min_s + think_span_s * uniform(user) + half_client_s
                    next_s = math.floor(next_s * CLOCK_HZ + 0.5) / CLOCK_HZ
                heap_push(heap, events, next_s, u)
                events += 1

            # 3. When is the next event of each source that changed?
            for k in range(count_fresh + G if everything else 2):
                changed = first_fresh + k if k < count_fresh else Q + k - count_fresh
                if not everything:
                    changed = p if k == 0 else (Q + g if g >= 0 else -1)
                    if changed < 0:
                        continue
                r = resources[at(changed)]
                r.rate = share_rate(r)
                done_s, edge_s = resource_done(r, instances), resource_edge(r)
                r.next = EDGE if edge_s < done_s else DONE
                next_s = min(done_s, edge_s)
                if changed < Q:
                    if pods[at(changed)].batch_s <= next_s:
                        r.next = BATCH_DUE
                        next_s = pods[at(changed)].batch_s
                    if pods[at(changed)].advisor_s < next_s:
                        r.next = READING
                        next_s = pods[at(changed)].advisor_s
                tree_set(tree, leaves, changed, next_s)
            if p >= 0 and pods[at(p)].state == TERMINATING and pods[at(p)].in_flight == 0:
                pods[at(p)].life_s = min(pods[at(p)].life_s, max(t, pods[at(p)].sigterm_s))
                sim.due_s = min(sim.due_s, pods[at(p)].life_s)
                slow_s = min(slow_s, sim.due_s)

            # 4. What is next? Ties: arrivals first, then processors in their order, then the control plane.
            arrival_s, work_end_s = heap[0].t, tree[1].t
            next_s = min(arrival_s, work_end_s, slow_s)
            if next_s > until:
                status = REACHED
                break
            if sim.log_rows > log_limit:
                status = LOG_FULL
                break
            t = next_s
            if slow_s < arrival_s and slow_s < work_end_s:
                status = SLOW_EVENT
                break
            p, g, node, everything = -1, -1, -1, False
            arrival = arrival_s <= work_end_s
            if arrival:
                u = heap[0].user
                heap_drop(heap, events)
                events -= 1
                if several:
                    s = users[at(u)].service if u >= 0 else -1 - u
            else:
                leaf = tree[1].leaf
                if leaf < Q:
                    p = leaf
                else:
                    g = leaf - Q
                    p = resources[at(leaf)].root // per_pod
                if several:
                    s = pods[at(p)].service
            if several and s != loaded:
                loaded = s
                sim, log, arrivals = env.sim_E[e + s], env.log_EK[e + s], env.arrival_s_EN[e + s]
                (
                    half_client_s, tail_median_s, tail_sigma, slo_s, think_min_s, think_span_s, record, is_open,
                    queue_timeout_s, host_alpha_s, host_beta_s, queue_size, target_user, prefetching,
                ) = constants(sim)  # fmt: skip
                histogram = sim.histogram
                log_limit = len(log) - users_each - sim.max_batch if record else 1 << 60

            # 5. What happens?
            if arrival:
                if is_open:
                    arrives = True
                    u = sim.free_slot
                    if u >= 0:
                        sim.free_slot = users[at(u)].next
                        users[at(u)].rng = fork(sim.user_key, sim.arrival)
                        users[at(u)].left = 0
                if u < 0 or (not is_open and u >= target_user):
                    if u >= 0:
                        users[at(u)].state = INACTIVE
                    else:
                        sim.failed += 1
                        if record:
                            row = log[at(sim.log_rows)]
                            row.start_s, row.latency_s, row.status = t - half_client_s, 0.0, FAILED
                            sim.log_rows += 1
                else:
                    user = users[at(u)]
                    user.send_s = t - half_client_s
                    user.next = -1
                    p = choose_pod(sim, user, pods, t)
                    if p < 0 or (queue_size > 0 and pods[at(p)].queued >= queue_size):
                        refused = u
                        p = -1
                    else:
                        pod = pods[at(p)]
                        user.enqueue_s = t
                        user.state = QUEUED
                        if pod.queued == 0:
                            pod.head = u
                        else:
                            users[at(pod.tail)].next = u
                        pod.tail = u
                        pod.queued += 1
                        pod.in_flight += 1
                        sim.in_flight += 1
                        if prefetching:
                            if pod.queued == pod.ahead + 1:
                                pod.waiting = u
                            wake_batcher(pod)
            else:
                r = resources[at(leaf)]
                if r.next == BATCH_DUE:
                    pods[at(p)].batch_s = INF  # the queue delay is over: the batcher looks again below
                    pods[at(p)].awake = 1
                elif r.next == EDGE:
                    resource_pass_edge(r, t)
                elif r.next == READING:
                    advisor_event(env, e + s, p - sim.first_pod, t)
                else:
                    node = resource_pop(r, instances, t)
                    if leaf >= Q:
                        instance = instances[at(node)]
                        pod = pods[at(p)]
                        answered = instance.head
                        pod.in_flight -= instance.size
                        sim.in_flight -= instance.size
                        sim.batches += 1
                        instance.size = 0
                        instance.on_gpu = 0
                        instance.head = pod.free
                        pod.free = node
                        pod.awake = 1
                        node = -1

        lead.events = events
        for k in range(S):
            env.sim_E[e + k].t = t
        return status

    return run


run_alone, run_fleet = request_loop(False), request_loop(True)


@jit
def settle(env: Env, e: int, until: float) -> None:
    """Bring every account of a fleet to the time its requests were served up to; `e` is its first environment."""
    lead = env.sim_E[e]
    resources = env.resources_FR[lead.fleet]
    for k in range(lead.services * lead.pods + lead.gpus):
        resource_sync(resources[k], until)
    for k in range(e, e + lead.services):
        env.sim_E[k].t = until
        accrue(env, k, until)
