"""Telemetry against a real Prometheus with known counters, and against one that misbehaves."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler

import pytest
from prometheus_double import SCRAPE_S, RealPrometheus, StubPrometheus, exporter, say, vector

from gpusched.core.errors import ClusterError, InputError
from gpusched.live import queries
from gpusched.live.telemetry import LEVELS, Growth, Round, Telemetry

pytestmark = [pytest.mark.slow, pytest.mark.wall]

NAMES = {"model": "m", "namespace": "lab", "node": "gpu-node"}
WINDOW_S = 2.0


def telemetry(url: str, pods: str, timeout_s: float = 2.0, node: str = "gpu-node") -> Telemetry:
    selectors = {**NAMES, "pods": pods, "node": node}
    return Telemetry(url, selectors, window_s=WINDOW_S, cpu_window_s=WINDOW_S, timeout_s=timeout_s)


def triton(pod: str, rate_rps: float, since_s: float) -> Callable[[], str]:
    """A replica that has answered at a constant rate: 40 ms each, 10 of them in the queue, four to a batch."""

    def text() -> str:
        n = rate_rps * (time.time() - since_s)
        labels = f'{{model="m",version="1",namespace="lab",pod="{pod}"'
        lines = [
            f"nv_inference_request_success{labels}}} {n}",
            f'nv_inference_request_failure{labels},reason="OTHER"}} {n / 4}',
            f"nv_inference_count{labels}}} {n}",
            f"nv_inference_exec_count{labels}}} {n / 4}",
            f"nv_inference_request_duration_us{labels}}} {40_000 * n}",
            f"nv_inference_queue_duration_us{labels}}} {10_000 * n}",
            f"nv_inference_compute_input_duration_us{labels}}} {5_000 * n}",
            f"nv_inference_compute_infer_duration_us{labels}}} {20_000 * n}",
            f"nv_inference_compute_output_duration_us{labels}}} {5_000 * n}",
            f"nv_inference_pending_request_count{labels}}} 3",
            f'nv_inference_request_summary_us{labels},quantile="0.95"}} 70000',
            f'container_cpu_usage_seconds_total{labels},container="triton"}} {0.02 * n}',
            f'container_cpu_usage_seconds_total{labels},container=""}} {0.03 * n}',
            f'container_memory_working_set_bytes{labels},container="triton"}} 3e8',
            f'kube_pod_status_ready{labels},condition="true"}} 1',
        ]
        return "\n".join(lines) + "\n"

    return text


def test_every_field_has_its_known_value(prometheus: RealPrometheus) -> None:
    since_s = time.time() - 1000
    gpu = (
        # One device, named once for each pod on it, and a second one.
        'DCGM_FI_DEV_GPU_UTIL{UUID="a",Hostname="gpu-node",pod="x"} 30\n'
        'DCGM_FI_DEV_GPU_UTIL{UUID="a",Hostname="gpu-node",pod="y"} 30\n'
        # The second one's exporter is of the old kind.
        'DCGM_FI_DEV_GPU_UTIL{UUID="b",Hostname="nvidia-dcgm-exporter-x7"} 50\n'
        'DCGM_FI_DEV_GPU_UTIL{UUID="c",Hostname="another"} 99\n'
        'DCGM_FI_DEV_FB_USED{UUID="a",Hostname="gpu-node",pod="x"} 1000\n'
        'DCGM_FI_DEV_FB_USED{UUID="a",Hostname="gpu-node",pod="y"} 1000\n'
        'DCGM_FI_DEV_FB_USED{UUID="b",Hostname="gpu-node"} 24\n'
    )
    with (
        exporter(prometheus.port(), triton("known-1", 30.0, since_s)),
        exporter(prometheus.port(), triton("known-2", 10.0, since_s)),
        exporter(prometheus.port(), triton("other-1", 500.0, since_s)),
        exporter(prometheus.port(), lambda: gpu),
    ):
        prometheus.wait_for('nv_inference_request_success{pod="known-2"} offset 2s')
        one = telemetry(prometheus.url, "known-.*")
        one.sample(2.0)
    seen = one.levels
    assert one.problem == ""
    assert seen["rate_rps"] == pytest.approx(40.0, rel=0.03)
    assert seen["failed_share"] == pytest.approx(0.2, rel=0.01)
    assert seen["latency_mean_s"] == pytest.approx(0.040, rel=1e-6)
    assert math.isnan(seen["latency_p95_s"]), "of replicas of this minute (tests/manifests/test_queries.py)"
    assert seen["queue_s"] == pytest.approx(0.010, rel=1e-6)
    assert seen["batch_size"] == pytest.approx(4.0, rel=1e-6)
    # Waiting: 3 at each replica. Executing, by Little's law: 40/s of 30 ms.
    assert seen["in_flight"] == pytest.approx(6 + 40 * 0.030, rel=0.01)
    # Only the container's own series: the pod's repeats it.
    assert seen["cpu_cores"] == pytest.approx(0.8, rel=0.03)
    assert seen["memory_bytes"] == 6e8
    assert seen["replicas_ready"] == 2
    assert seen["gpu_utilization"] == pytest.approx(0.40)
    assert seen["vram_bytes"] == 1024 * 2**20
    for age_s in (time.monotonic() - one.scraped_s, time.monotonic() - one.gpu_scraped_s):
        assert 0 <= age_s <= SCRAPE_S + 2.5


def test_counters_grow_by_what_happened_since_the_first_reading(prometheus: RealPrometheus) -> None:
    counts = {"n": 1000.0}

    def text() -> str:
        return "".join(
            f'{name}{{model="m",namespace="lab",pod="grow-1"}} {counts["n"] * scale}\n'
            for name, scale in {
                "nv_inference_request_success": 1,
                "nv_inference_exec_count": 0.5,
                "nv_inference_queue_duration_us": 2e6,
            }.items()
        )

    with exporter(prometheus.port(), text):
        prometheus.wait_for('nv_inference_request_success{pod="grow-1"} == 1000')
        one = telemetry(prometheus.url, "grow-.*")
        one.sample(2.0)
        assert one.growth.of("batches") == 0.0
        counts["n"] = 1007.0
        prometheus.wait_for('nv_inference_request_success{pod="grow-1"} == 1007')
        one.sample(2.0)
    assert one.growth.of("batches") == pytest.approx(3.5)
    assert one.growth.of("queue_sum_s") == pytest.approx(14.0)
    assert math.isnan(one.growth.of("cpu_s")), "nobody exports it"


def test_a_sample_is_as_old_as_its_own_timestamp_says(prometheus: RealPrometheus) -> None:
    taken_ms = round((time.time() - 20) * 1000)
    text = f'nv_inference_request_success{{model="m",namespace="lab",pod="stale-1"}} 5 {taken_ms}\n'
    with exporter(prometheus.port(), lambda: text):
        prometheus.wait_for('nv_inference_request_success{pod="stale-1"}')
        one = telemetry(prometheus.url, "stale-.*")
        one.sample(2.0)
        first_s = one.scraped_s
        assert time.monotonic() - first_s == pytest.approx(time.time() - taken_ms / 1000, abs=0.2)
        time.sleep(0.5)
        one.sample(2.0)
    assert one.scraped_s == first_s, "the same sample again is no news"


def test_what_is_gone_keeps_its_last_value_and_ages(prometheus: RealPrometheus) -> None:
    since_s = time.time() - 1000
    with exporter(prometheus.port(), triton("gone-1", 30.0, since_s)):
        prometheus.wait_for('nv_inference_request_success{pod="gone-1"} offset 2s')
        one = telemetry(prometheus.url, "gone-.*")
        one.sample(2.0)
        before, then_s = dict(one.levels), one.scraped_s
    until_s = time.monotonic() + 5
    while time.monotonic() < until_s and prometheus.ask('nv_inference_request_success{pod="gone-1"}'):
        time.sleep(0.1)
    one.sample(2.0)
    assert one.problem == "Triton's metrics are not there"
    assert before["rate_rps"] == pytest.approx(30.0, rel=0.05)
    assert {k: v for k, v in one.levels.items() if not math.isnan(v)} == {
        k: v for k, v in before.items() if not math.isnan(v)
    }
    assert one.scraped_s >= then_s
    assert time.monotonic() - one.scraped_s > 0.2


def test_without_traffic_quotients_have_no_value(prometheus: RealPrometheus) -> None:
    with exporter(prometheus.port(), triton("idle-1", 0.0, 0.0)):
        prometheus.wait_for('nv_inference_request_success{pod="idle-1"} offset 1s')
        one = telemetry(prometheus.url, "idle-.*")
        one.sample(2.0)
    assert one.levels["rate_rps"] == 0.0
    for name in ("failed_share", "latency_mean_s", "queue_s", "batch_size"):
        assert math.isnan(one.levels[name])


def test_never_had_reads_nan(prometheus: RealPrometheus) -> None:
    one = telemetry(prometheus.url, "nobody", node="nowhere")
    one.sample(2.0)
    assert all(math.isnan(one.levels[name]) for name in queries.OBSERVED)
    assert one.scraped_s == one.gpu_scraped_s == -math.inf


def test_triton_tells_of_the_gpu_where_dcgm_does_not(prometheus: RealPrometheus) -> None:
    labels = 'namespace="lab",gpu_uuid="a"'
    text = "".join(
        f'nv_gpu_utilization{{pod="t-{k}",{labels}}} 0.25\nnv_gpu_memory_used_bytes{{pod="t-{k}",{labels}}} 5e8\n'
        for k in range(2)
    )
    with exporter(prometheus.port(), lambda: text):
        prometheus.wait_for('nv_gpu_utilization{pod="t-1"}')
        one = telemetry(prometheus.url, "t-.*", node="nowhere")
        one.sample(2.0)
    assert one.levels["gpu_utilization"] == 0.25
    assert one.levels["vram_bytes"] == 5e8


def test_readings_by_pod(prometheus: RealPrometheus) -> None:
    since_s = time.time() - 1000
    with (
        exporter(prometheus.port(), triton("each-1", 30.0, since_s)),
        exporter(prometheus.port(), triton("each-2", 10.0, since_s)),
    ):
        prometheus.wait_for('nv_inference_request_success{pod="each-2"} offset 2s')
        one = telemetry(prometheus.url, "each-.*")
        cores = one.by_pod("cpu_cores")
    assert cores == {"each-1": pytest.approx(0.6, rel=0.05), "each-2": pytest.approx(0.2, rel=0.05)}


@pytest.mark.parametrize("field", queries.OF_THE_DEVICE)
def test_gpu_readings_by_pod_are_refused(field: str) -> None:
    with pytest.raises(InputError, match="DCGM measures the device"):
        queries.by_pod(field)


def test_an_unknown_reading_is_refused() -> None:
    with pytest.raises(InputError, match="must be one of cpu_cores"):
        queries.by_pod("colour")


# --- a Prometheus that misbehaves ---

FRESH = vector(scraped_s=(100.0, 98.0), rate_rps=(100.0, 7.0), queue_s=(100.0, math.nan))


@pytest.fixture
def stub() -> Iterator[StubPrometheus]:
    one = StubPrometheus(say(200, FRESH))
    yield one
    one.stop()


def hang(handler: BaseHTTPRequestHandler) -> None:
    handler.server.over.wait(20)  # type: ignore[attr-defined]


def drip(handler: BaseHTTPRequestHandler) -> None:
    """One byte now and then: every read comes back in time, the answer never does."""
    handler.send_response(200)
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    while not handler.server.over.wait(0.05):  # type: ignore[attr-defined]
        handler.wfile.write(b" ")


BAD = {
    "500": say(500, "{}"),
    "422": say(422, '{"status": "error", "error": "bad query"}'),
    "no JSON": say(200, "<html>login</html>"),
    "no data": say(200, '{"status": "success"}'),
    "not a vector": say(200, '{"data": {"result": [1, "2"]}}'),
    "not a number": say(200, FRESH.replace("7.0", "seven")),
    "hangs": hang,
    "drips": drip,
}


@pytest.mark.parametrize("reply", BAD.values(), ids=BAD.keys())
def test_a_bad_answer_changes_nothing_and_costs_bounded_time(
    reply: Callable[[BaseHTTPRequestHandler], None], stub: StubPrometheus
) -> None:
    one = telemetry(stub.url, "p", timeout_s=0.3)
    one.sample(1.0)
    assert one.levels["rate_rps"] == 7.0
    assert math.isnan(one.levels["queue_s"])
    assert one.problem == ""
    scraped_s = one.scraped_s
    stub.reply = reply
    begin_s = time.monotonic()
    for _ in range(3):
        one.sample(0.2)
    assert time.monotonic() - begin_s < 1.2
    assert one.problem
    assert one.levels["rate_rps"] == 7.0
    assert one.scraped_s == scraped_s


def test_metrics_that_come_back_are_taken(stub: StubPrometheus) -> None:
    one = telemetry(stub.url, "p", timeout_s=0.3)
    one.sample(1.0)
    stub.reply = say(500, "{}")
    one.sample(1.0)
    assert "500" in one.problem
    stub.reply = say(200, vector(scraped_s=(200.0, 199.0), rate_rps=(200.0, 9.0)))
    one.sample(1.0)
    assert one.problem == ""
    assert one.levels["rate_rps"] == 9.0
    assert time.monotonic() - one.scraped_s == pytest.approx(1.0, abs=0.3)


def test_a_slow_answer_is_taken_at_the_next_tick(stub: StubPrometheus) -> None:
    def slow(handler: BaseHTTPRequestHandler) -> None:
        time.sleep(0.3)
        say(200, FRESH)(handler)

    stub.reply = slow
    one = telemetry(stub.url, "p", timeout_s=1.0)
    one.sample(0.05)
    assert "no answer" in one.problem
    time.sleep(0.5)
    one.sample(0.05)
    assert one.levels["rate_rps"] == 7.0


def test_hung_rounds_do_not_pile_up(stub: StubPrometheus) -> None:
    stub.reply = hang
    one = telemetry(stub.url, "p", timeout_s=5.0)
    for _ in range(5):
        one.sample(0.05)
    assert stub.asked == 1


def test_no_prometheus_at_all() -> None:
    one = telemetry("http://127.0.0.1:9", "p", timeout_s=0.3)
    one.sample(1.0)
    assert "refused" in one.problem
    with pytest.raises(ClusterError, match="did not answer"):
        one.by_pod("cpu_cores")


def test_an_older_answer_is_neither_news_nor_a_restart() -> None:
    """Two Prometheus servers behind one Service answer by turns."""
    one = telemetry("http://127.0.0.1:9", "p")
    for scraped_s, batches in ((100.0, 1000.0), (99.0, 998.0), (101.0, 1003.0)):
        levels = dict.fromkeys(LEVELS, scraped_s)
        one._take(
            Round(
                levels=levels, counters={("batches", "p1"): batches}, stamps={"scraped_s": (scraped_s, 0.0)}
            )
        )
    assert one.growth.of("batches") == 3.0
    assert one.levels["rate_rps"] == 101.0


# --- growth, queries ---


def test_growth_counts_new_and_restarted_replicas_in_full() -> None:
    growth = Growth()
    assert math.isnan(growth.of("n"))
    growth.add({("n", "a"): 100.0})
    assert growth.of("n") == 0.0
    growth.add({("n", "a"): 110.0, ("n", "b"): 5.0})
    assert growth.of("n") == 15.0
    growth.add({("n", "b"): 7.0})  # a is gone
    assert growth.of("n") == 17.0
    growth.add({("n", "a"): 3.0, ("n", "b"): 7.0})  # a is back, from 0
    assert growth.of("n") == 20.0


def test_growth_leaves_out_what_is_no_number() -> None:
    growth = Growth()
    growth.add({("n", "a"): 100.0})
    growth.add({("n", "a"): math.nan, ("n", "b"): 5.0})
    growth.add({("n", "a"): 110.0, ("n", "b"): math.inf})
    assert growth.of("n") == 15.0


def test_growth_begins_anew_from_the_last_reading() -> None:
    growth = Growth()
    growth.add({("n", "a"): 100.0})
    growth.add({("n", "a"): 110.0, ("n", "b"): 5e5})
    growth.begin()
    assert growth.of("n") == 0.0
    growth.add({("n", "a"): 112.0, ("n", "b"): 5e5 + 1})
    assert growth.of("n") == 3.0


def test_names_are_quoted_and_needed() -> None:
    text = queries.render(queries.OBSERVED["rate_rps"], {**NAMES, "pods": 'a"b\\d'}, 30.0, 60.0)
    assert r'pod=~"a\"b\\d"' in text
    assert "[30000ms]" in text
    with pytest.raises(ValueError, match="pods"):
        queries.render("x", NAMES, 30.0, 60.0)


def test_every_observed_name_is_a_field_of_the_record() -> None:
    from gpusched.core.logs import TickLog
    from gpusched.core.observation import Observation

    known = {name.removesuffix("_E") for name in Observation.columns()}
    known |= {name.removesuffix("_T") for name in TickLog.columns()}
    assert set(queries.OBSERVED) <= known
    assert set(LEVELS) - set(queries.OBSERVED) == set(queries.NODE)
