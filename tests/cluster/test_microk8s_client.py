"""One call to the API server: what is tried again, what is not, and never longer than the deadline."""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from emulator import Emulator
from scene import cluster

from gpusched.cluster.microk8s import client
from gpusched.cluster.microk8s.client import Access, Api, Deadline
from gpusched.cluster.microk8s.failures import ApiFailure, Unreachable
from gpusched.cluster.microk8s.kinds import CONFIGMAPS, DEPLOYMENTS, PODS, SCALE
from gpusched.cluster.microk8s.server import look
from gpusched.core.errors import ClusterError

pytestmark = [pytest.mark.slow, pytest.mark.wall]

NS = "gpusched"


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    with cluster() as made:
        yield made


@pytest.fixture
def api(emulator: Emulator, tmp_path: Path) -> Api:
    return Api(Access(kubeconfig=str(emulator.kubeconfig(tmp_path / "kc")), call_timeout_s=0.3))


def set_replicas(api: Api, replicas: int, seconds: float = 3.0) -> None:
    body = {"spec": {"replicas": replicas}}
    api.call("patch", SCALE, NS, "triton", body=body, deadline=Deadline(seconds))


def replicas(emulator: Emulator) -> int:
    return int(emulator.store.get(("deployments", NS, "triton"))["spec"]["replicas"])


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_what_may_pass_is_tried_again(emulator: Emulator, api: Api, status: int) -> None:
    emulator.fault("patch", "deployments/scale", status=status, times=3)
    set_replicas(api, 4)
    assert replicas(emulator) == 4
    assert emulator.count("patch", "deployments/scale") == 4


def test_a_storm_of_conflicts_is_sat_out(emulator: Emulator, api: Api) -> None:
    emulator.fault("patch", "deployments/scale", status=409, reason="Conflict", times=4)
    set_replicas(api, 3)
    assert replicas(emulator) == 3


@pytest.mark.parametrize(
    ("status", "reason"), [(400, "BadRequest"), (422, "Invalid"), (409, "AlreadyExists")]
)
def test_a_refusal_is_not_tried_again(emulator: Emulator, api: Api, status: int, reason: str) -> None:
    emulator.fault("patch", "deployments/scale", status=status, reason=reason)
    with pytest.raises(ApiFailure, match=f"refused to patch deployments.apps/scale 'triton'.*{reason}"):
        set_replicas(api, 3)
    assert emulator.count("patch", "deployments/scale") == 1


def test_waits_grow_and_do_not_hammer(emulator: Emulator, api: Api) -> None:
    emulator.fault("patch", "deployments/scale", status=500, times=1000)
    with pytest.raises(Unreachable):
        set_replicas(api, 3, seconds=2.0)
    # 0.05..0.1, 0.1..0.2, 0.2..0.4, 0.4..0.8, 0.8..1.6: between 4 and 7 tries fit into 2 s
    assert 4 <= emulator.count("patch", "deployments/scale") <= 7


def test_retry_after_is_honoured(emulator: Emulator, api: Api) -> None:
    emulator.fault("patch", "deployments/scale", status=429, retry_after=1)
    began_s = time.monotonic()
    set_replicas(api, 3)
    assert 1.0 <= time.monotonic() - began_s < 2.0


def test_retry_after_beyond_the_deadline_is_not_waited_for(emulator: Emulator, api: Api) -> None:
    emulator.fault("patch", "deployments/scale", status=429, retry_after=30)
    began_s = time.monotonic()
    with pytest.raises(Unreachable, match="429"):
        set_replicas(api, 3, seconds=1.0)
    assert time.monotonic() - began_s < 0.5


def test_a_hung_connection_is_given_up_and_tried_again(emulator: Emulator, api: Api) -> None:
    emulator.fault("patch", "deployments/scale", hang_s=20)
    began_s = time.monotonic()
    set_replicas(api, 3)
    assert 0.3 <= time.monotonic() - began_s < 1.5


def test_no_call_outlives_its_deadline(emulator: Emulator, api: Api) -> None:
    emulator.fault("patch", "deployments/scale", hang_s=20, times=100)
    began_s = time.monotonic()
    with pytest.raises(
        Unreachable, match=r"could not patch deployments\.apps/scale 'triton' in namespace gpusched in time"
    ):
        set_replicas(api, 3, seconds=1.0)
    assert time.monotonic() - began_s < 1.2


@pytest.mark.parametrize("silent_after_s", [60.0, 0.6])
def test_an_answer_that_trickles_in_does_not_outlive_the_deadline(
    tmp_path: Path, silent_after_s: float
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        stop = threading.Event()

        def trickle() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
                end_s = time.monotonic() + silent_after_s
                while not stop.wait(0.05):
                    if time.monotonic() < end_s:
                        connection.sendall(b" ")

        thread = threading.Thread(target=trickle, daemon=True)
        thread.start()
        kubeconfig = Emulator.kubeconfig(FakeAddress(server.getsockname()[1]), tmp_path / "kc")  # type: ignore[arg-type]
        api = Api(Access(kubeconfig=str(kubeconfig), call_timeout_s=5.0))
        began_s = time.monotonic()
        with pytest.raises(Unreachable):
            api.get(DEPLOYMENTS, NS, "triton", Deadline(0.8))
        assert time.monotonic() - began_s < 1.0
        stop.set()
        thread.join(5)


class FakeAddress:
    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"


@pytest.mark.parametrize("after", [False, True])
def test_a_lost_connection_is_tried_again_whether_or_not_the_work_was_done(
    emulator: Emulator, api: Api, after: bool
) -> None:
    emulator.fault("patch", "deployments/scale", drop=True, after=after, times=2)
    set_replicas(api, 5)
    assert replicas(emulator) == 5


def test_nobody_listening_is_told_with_the_cure(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    api = Api(Access(kubeconfig=str(Emulator.kubeconfig(FakeAddress(port), tmp_path / "kc"))))  # type: ignore[arg-type]
    with pytest.raises(Unreachable, match=f"127.0.0.1:{port}.*kubectl get --raw /readyz"):
        api.get(DEPLOYMENTS, NS, "triton", Deadline(0.3))


# --- who we are ---


def test_an_expired_token_is_read_anew(emulator: Emulator, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("old")
    emulator.tokens = {"old"}
    api = Api(Access(kubeconfig=str(emulator.kubeconfig(tmp_path / "kc", token))))
    assert api.get(DEPLOYMENTS, NS, "triton", Deadline(1))
    emulator.tokens = {"new"}
    token.write_text("new")
    assert api.get(DEPLOYMENTS, NS, "triton", Deadline(1))


def test_a_token_that_stays_refused_is_told_at_once(emulator: Emulator, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("old")
    emulator.tokens = {"new"}
    api = Api(Access(kubeconfig=str(emulator.kubeconfig(tmp_path / "kc", token))))
    with pytest.raises(ApiFailure, match=r"401.*renew them"):
        api.get(DEPLOYMENTS, NS, "triton", Deadline(5))
    assert emulator.count("get", "deployments") == 2


def test_a_missing_right_names_verb_resource_namespace_and_cure(emulator: Emulator, api: Api) -> None:
    emulator.forbid("patch", "deployments/scale")
    with pytest.raises(ApiFailure) as refused:
        set_replicas(api, 3)
    text = str(refused.value)
    assert "patch deployments.apps/scale 'triton' in namespace gpusched" in text
    assert "kubectl auth can-i patch deployments.apps --subresource=scale -n gpusched" in text


QUOTA = (
    'pods "triton-1" is forbidden: exceeded quota: compute, requested: limits.cpu=2, limited: limits.cpu=4'
)


def test_what_admission_refuses_is_not_told_as_a_missing_right(emulator: Emulator, api: Api) -> None:
    """Quota, LimitRange and Pod Security answer 403 too (admission.NewForbidden)."""
    emulator.fault("patch", "deployments/scale", status=403, reason="Forbidden", message=QUOTA)
    with pytest.raises(
        ApiFailure, match=r"exceeded quota.*kubectl describe quota,limits -n gpusched"
    ) as refused:
        set_replicas(api, 3)
    assert "can-i" not in str(refused.value)


def test_the_servers_own_words_come_with_a_500(emulator: Emulator, api: Api) -> None:
    said = 'Internal error occurred: failed calling webhook "guard.example.org": connection refused'
    emulator.fault("patch", "deployments/scale", status=500, message=said, times=100)
    with pytest.raises(Unreachable, match=r'failed calling webhook "guard.example.org": connection refused'):
        set_replicas(api, 3, seconds=0.3)


def test_what_is_not_there_is_none_or_told_with_the_cure(api: Api) -> None:
    assert api.get(CONFIGMAPS, NS, "nothing", Deadline(1)) is None
    with pytest.raises(ApiFailure, match=r"404.*cluster\.namespace=NAME"):
        api.call("get", DEPLOYMENTS, NS, "other", deadline=Deadline(1))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot connect by kubeconfig"),
        ("{}", "cannot connect by kubeconfig"),
        ("[", "cannot connect by kubeconfig"),
    ],
)
def test_a_kubeconfig_that_is_none_is_told_with_the_cure(tmp_path: Path, text: str | None, said: str) -> None:
    path = tmp_path / "kc"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ClusterError, match=f"{said}.*cluster.kubeconfig=PATH"):
        Api(Access(kubeconfig=str(path)))


def test_an_unknown_context_is_told(emulator: Emulator, tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="elsewhere"):
        Api(Access(kubeconfig=str(emulator.kubeconfig(tmp_path / "kc")), context="elsewhere"))


def test_the_environment_names_a_kubeconfig(
    emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(emulator.kubeconfig(tmp_path / "kc")))
    assert Api(Access()).host == emulator.url


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the test's certificate and is not installed")
    folder = tmp_path_factory.mktemp("tls")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=api",
               "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", folder / "key.pem", "-out", folder / "ca.crt"]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    return str(folder / "ca.crt"), str(folder / "key.pem")


def test_in_a_pod_its_service_account_is_used_and_its_token_renewed(
    certificate: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import kubernetes.config.incluster_config as incluster

    token = tmp_path / "token"
    token.write_text("first")
    with cluster(tls=certificate, tokens={"first"}) as emulator:
        monkeypatch.delenv("KUBECONFIG", raising=False)
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(emulator.port))
        monkeypatch.setattr(client, "IN_CLUSTER", token)
        monkeypatch.setattr(incluster, "SERVICE_TOKEN_FILENAME", str(token))
        monkeypatch.setattr(incluster, "SERVICE_CERT_FILENAME", certificate[0])
        api = Api(Access())
        assert api.get(DEPLOYMENTS, NS, "triton", Deadline(3))
        token.write_text("second")
        emulator.tokens = {"second"}
        assert api.get(DEPLOYMENTS, NS, "triton", Deadline(3))


def test_a_server_that_cannot_prove_itself_is_refused(certificate: tuple[str, str], tmp_path: Path) -> None:
    authority = {"certificate-authority": certificate[0]}
    with cluster(tls=certificate) as emulator:
        other_name = {**authority, "server": f"https://localhost:{emulator.port}"}
        for settings, said in (({}, "self-signed"), (other_name, "Hostname mismatch")):
            api = Api(Access(kubeconfig=str(emulator.kubeconfig(tmp_path / "kc", **settings))))
            with pytest.raises(ClusterError, match=f"no secure connection.*{said}"):
                api.get(DEPLOYMENTS, NS, "triton", Deadline(2))
            with pytest.raises(ClusterError, match=f"no secure connection.*{said}"):
                list(api.stream(DEPLOYMENTS, NS, {"watch": "true"}, Deadline(2), 1.0))


def test_a_secure_connection_that_is_cut_is_tried_again(certificate: tuple[str, str], tmp_path: Path) -> None:
    """An API server that restarts, or a load balancer without one behind it: accepted and closed."""
    with cluster(tls=certificate) as emulator:
        kubeconfig = emulator.kubeconfig(tmp_path / "kc", **{"certificate-authority": certificate[0]})
        api = Api(Access(kubeconfig=str(kubeconfig)))
        emulator.cut = 3
        assert api.get(DEPLOYMENTS, NS, "triton", Deadline(5))
        assert emulator.cut == 0
        other = Api(Access(kubeconfig=str(kubeconfig)))
        emulator.cut = 1
        with pytest.raises(Unreachable, match="could not watch"):
            list(other.stream(DEPLOYMENTS, NS, {"watch": "true"}, Deadline(2), 1.0))


# --- what the server is ---


@pytest.mark.parametrize("resize", [True, False])
def test_resize_is_discovered(tmp_path: Path, resize: bool) -> None:
    with cluster(resize=resize, version=(1, 31)) as emulator:
        server = look(Api(Access(kubeconfig=str(emulator.kubeconfig(tmp_path / "kc")))), Deadline(2))
    assert (server.version, server.resize) == ((1, 31), resize)


def test_an_old_server_is_refused(tmp_path: Path) -> None:
    with (
        cluster(version=(1, 27)) as emulator,
        pytest.raises(ClusterError, match=r"is 1\.27; gpusched needs 1\.28"),
    ):
        look(Api(Access(kubeconfig=str(emulator.kubeconfig(tmp_path / "kc")))), Deadline(2))


def test_the_servers_clock_is_read(api: Api) -> None:
    api.list(PODS, NS, Deadline(1))
    assert abs(api.now_s() - time.time()) < 1.1  # the Date header has whole seconds
