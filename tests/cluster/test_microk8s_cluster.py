"""Microk8sCluster as a trial sees it: built from conf/, its hooks, and where users and Prometheus are found."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from composing import composed
from emulator import Emulator
from scene import cluster, deployment, old_hpa, picture, scale

from gpusched.cluster.microk8s import Microk8sCluster
from gpusched.core.controls import Controls, HPASpec
from gpusched.core.errors import ClusterError, InputError
from gpusched.job.build import setup
from gpusched.job.restore import RestoreJob
from gpusched.job.setup import Job, Setup

pytestmark = [pytest.mark.slow, pytest.mark.wall]

CONF = Path(__file__).parents[2] / "conf"
SHORT = ["trial.duration_s=60", "trial.warmup_s=30", "trial.start_replicas=2"]


def compose_job(*overrides: str) -> tuple[Job, Setup]:
    return setup(*composed("cluster=microk8s", *SHORT, *overrides))


def build(emulator: Emulator, folder: Path, *overrides: str) -> Microk8sCluster:
    kubeconfig = emulator.kubeconfig(folder / "kubeconfig")
    made = compose_job(f"cluster.kubeconfig={kubeconfig}", "cluster.call_timeout_s=0.3", *overrides)[
        1
    ].cluster()
    assert isinstance(made, Microk8sCluster)
    return made


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    with cluster(("horizontalpodautoscalers", old_hpa()), ("services", service())) as made:
        yield made


def service(kind: str = "ClusterIP", **more: Any) -> dict[str, Any]:
    port: dict[str, Any] = {"name": "http", "port": 8000}
    if kind != "ClusterIP":
        port["nodePort"] = 30800
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "triton"},
        "spec": {
            "type": kind,
            "clusterIP": "10.152.183.9",
            "ports": [{"name": "metrics", "port": 8002}, port],
        },
        **more,
    }


def test_the_option_is_real_and_has_one_environment() -> None:
    made = compose_job()[1]
    assert made.cluster_type is Microk8sCluster
    assert Microk8sCluster.real
    with pytest.raises(InputError, match="one environment"):
        made.cluster(envs=2)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("cluster.namespace=''", "cluster.namespace"),
        ("cluster.restore_s=0", "cluster.restore_s"),
        ("cluster.instances_value=two", "must hold {} once"),
        ("cluster.scrape_s=-1", "cluster.scrape_s"),
    ],
)
def test_bad_values_are_told_by_their_key(override: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        compose_job(override)


def test_building_it_asks_nobody(tmp_path: Path) -> None:
    compose_job("cluster.kubeconfig=/nowhere")[1].cluster().close()


# --- hooks ---


def test_a_trial_starts_from_the_profile_without_an_hpa_and_all_is_given_back(
    tmp_path: Path,
) -> None:
    found = deployment(1)
    size = found["spec"]["template"]["spec"]["containers"][0]["resources"]
    size["requests"]["cpu"], size["limits"]["cpu"] = "1", "2"
    with cluster(("deployments", found), ("horizontalpodautoscalers", old_hpa())) as emulator:
        before = picture(emulator)
        one = build(emulator, tmp_path)
        one.take()
        state = one.state()
        assert (state.spec, state.ready) == (2, 2)
        assert np.isnan(state.hpa_target)
        emulator.settle()
        assert one.state().cpu_cores == 1.0  # service.cpu_limit_cores
        assert one.state().instances == 1
        one.apply(Controls.autoscale(HPASpec(target=45, max_replicas=4), 1), 5.0)
        assert one.state().hpa_target == 45
        one.apply(scale(3), 5.0)
        assert one.state().spec == 3
        one.give_back()
        emulator.settle()
        assert picture(emulator) == before


def test_a_step_that_finds_no_server_times_out_and_can_be_repeated(
    emulator: Emulator, tmp_path: Path
) -> None:
    one = build(emulator, tmp_path)
    one.take()
    silence = emulator.fault(hang_s=5, times=10**6)
    began_s = time.monotonic()
    with pytest.raises(TimeoutError, match="in time"):
        one.apply(scale(4), 0.5)
    assert time.monotonic() - began_s < 0.7
    silence.times = 0
    one.apply(scale(4), 2.0)
    assert one.state().spec == 4
    one.give_back()


def test_a_server_that_stays_silent_ends_the_trial(emulator: Emulator, tmp_path: Path) -> None:
    one = build(emulator, tmp_path, "cluster.lost_metrics_s=0.4")
    one.take()
    silence = emulator.fault(hang_s=5, times=10**6)
    with pytest.raises(TimeoutError):
        one.apply(scale(4), 0.2)
    time.sleep(0.3)
    with pytest.raises(ClusterError, match="Nothing could be set for"):
        one.apply(scale(4), 0.2)
    silence.times = 0
    one.give_back()


def test_time_in_which_nothing_was_asked_is_no_silence(emulator: Emulator, tmp_path: Path) -> None:
    """The first step comes after the warm-up, which may last longer than a silence may."""
    one = build(emulator, tmp_path, "cluster.lost_metrics_s=0.4")
    one.take()
    time.sleep(0.6)
    silence = emulator.fault(hang_s=5, times=10**6)
    with pytest.raises(TimeoutError):
        one.apply(scale(4), 0.2)
    silence.times = 0
    one.apply(scale(4), 2.0)
    one.give_back()


def test_looking_is_cheap(emulator: Emulator, tmp_path: Path) -> None:
    one = build(emulator, tmp_path)
    one.take()
    emulator.settle()
    requests = len(emulator.seen)
    one.state()
    assert len(emulator.seen) - requests == 2
    one.give_back()


def test_selectors_name_the_pods_and_their_nodes(emulator: Emulator, tmp_path: Path) -> None:
    import re

    one = build(emulator, tmp_path)
    one.take()
    selectors = one.selectors()
    assert (selectors["model"], selectors["namespace"]) == ("mobilenetv4", "gpusched")
    names = [p["metadata"]["name"] for p in emulator.store.list("pods", "gpusched")]
    assert all(re.fullmatch(selectors["pods"], name) for name in names)
    assert not re.fullmatch(selectors["pods"], "triton-metrics-proxy-0")
    assert re.fullmatch(selectors["node"], "node-1")
    one.give_back()


# --- addresses ---


@pytest.mark.parametrize(
    ("made", "url"),
    [
        (service(), "10.152.183.9:8000"),
        (service("NodePort"), "10.0.0.7:30800"),
        (
            service("LoadBalancer", status={"loadBalancer": {"ingress": [{"ip": "10.64.140.43"}]}}),
            "10.64.140.43:8000",
        ),
        (
            service("LoadBalancer", status={"loadBalancer": {"ingress": [{"ip": "fd00::7"}]}}),
            "[fd00::7]:8000",
        ),
        (service("LoadBalancer", status={"loadBalancer": {}}), "10.0.0.7:30800"),
    ],
)
def test_users_send_to_the_service(tmp_path: Path, made: dict[str, Any], url: str) -> None:
    with cluster(("services", made)) as emulator:
        assert build(emulator, tmp_path).endpoint().urls == [url]


def test_a_given_address_is_taken_as_it_is(emulator: Emulator, tmp_path: Path) -> None:
    one = build(
        emulator, tmp_path, "cluster.url=http://triton.example:80/", "cluster.prometheus=http://p:9090"
    )
    assert one.endpoint().urls == ["triton.example:80"]
    assert one.prometheus_url() == "http://p:9090"
    assert emulator.seen == []


def test_no_service_is_told_with_the_cure(tmp_path: Path) -> None:
    with cluster() as emulator, pytest.raises(ClusterError, match=r"cluster\.url=HOST:PORT"):
        build(emulator, tmp_path).endpoint()


def prometheus(emulator: Emulator, namespace: str, name: str, labels: dict[str, str], ip: str) -> None:
    if ("namespaces", "", namespace) not in emulator.store.objects:
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}
        emulator.store.create("namespaces", "", body, "t")
    made = {
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "labels": labels},
        "spec": {"clusterIP": ip, "ports": [{"name": "reloader-web", "port": 8080}, {"name": "http-web", "port": 9090}]},
    }  # fmt: skip
    emulator.store.create("services", namespace, made, "helm")


def test_prometheus_is_found_where_the_addon_puts_it(emulator: Emulator, tmp_path: Path) -> None:
    label = {"app.kubernetes.io/name": "prometheus"}
    prometheus(emulator, "observability", "prometheus-operated", label, "None")
    prometheus(emulator, "observability", "kube-prom-stack-kube-prome-prometheus", {"app": "kube-prometheus-stack-prometheus"}, "10.1.2.3")  # fmt: skip
    assert build(emulator, tmp_path).prometheus_url() == "http://10.1.2.3:9090"


def test_no_prometheus_is_told_with_the_cure(emulator: Emulator, tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"no Prometheus found.*cluster\.prometheus=URL"):
        build(emulator, tmp_path).prometheus_url()
    emulator.forbid("list", "services")
    with pytest.raises(ClusterError, match=r"can-i list services -n observability.*cluster\.prometheus=URL"):
        build(emulator, tmp_path).prometheus_url()


def test_a_namespace_that_may_not_be_read_hides_no_other(emulator: Emulator, tmp_path: Path) -> None:
    emulator.forbid("list", "services", "observability")
    prometheus(emulator, "monitoring", "prometheus", {"app.kubernetes.io/name": "prometheus"}, "10.1.2.3")
    assert build(emulator, tmp_path).prometheus_url() == "http://10.1.2.3:9090"


# --- job=restore ---


def test_restoring_a_simulation_is_refused() -> None:
    job, made = setup(*composed("job=restore"))
    assert isinstance(job, RestoreJob)
    with pytest.raises(InputError, match="leaves nothing behind"):
        job.run(made, None, None)  # type: ignore[arg-type]
