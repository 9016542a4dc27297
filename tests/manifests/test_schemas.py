"""Every object is what the Kubernetes API (or the custom kind's) takes, on the oldest, the installed and the newest version."""

from __future__ import annotations

import copy
import re
from functools import cache
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
from crd_schemas import CUSTOM
from kubernetes_validate import utils
from objects import ROOT, Dict, everything, one

# Each call reads megabytes of definitions otherwise.
utils.schema_contents = cache(utils.schema_contents)

INSTALLED = re.search(r"^MICROK8S_CHANNEL=(\d+\.\d+)/", (ROOT / "install.sh").read_text(), re.M)
assert INSTALLED
VERSIONS = ("1.28", INSTALLED[1], kubernetes_validate.latest_version())
EVERYTHING = everything()


def check(thing: Dict, version: str) -> None:
    """Raise jsonschema.ValidationError where the server of that version would refuse, or drop a field it does not know."""
    if thing["kind"] in CUSTOM:
        jsonschema.validate(thing, CUSTOM[thing["kind"]])
    else:
        kubernetes_validate.validate(thing, version, strict=True)


@pytest.mark.parametrize("where", EVERYTHING)
@pytest.mark.parametrize("version", VERSIONS)
def test_the_api_takes_it(where: str, version: str) -> None:
    check(EVERYTHING[where], version)


def broken(change: Any) -> Dict:
    thing = copy.deepcopy(one("base", "Deployment", "triton"))
    change(thing["spec"]["template"]["spec"])
    return thing


@pytest.mark.parametrize(
    "change",
    [
        lambda pod: pod["containers"][0].update(readinesProbe={}),
        lambda pod: pod["containers"][0].pop("name"),
        lambda pod: pod["containers"][0].update(args="--all"),
        lambda pod: pod["containers"][0]["ports"][0].update(containerPort="http"),
        lambda pod: pod["containers"][0]["securityContext"].update(readOnlyRootFileSystem=True),
        lambda pod: pod["containers"][0]["startupProbe"].update(periodSeconds="1s"),
        lambda pod: pod.update(terminationGracePeriodSeconds=[30]),
        lambda pod: pod["volumes"][0].update(hostpath={"path": "/"}),
    ],
)
@pytest.mark.parametrize("version", VERSIONS)
def test_a_slip_is_caught(change: Any, version: str) -> None:
    with pytest.raises(jsonschema.ValidationError):
        check(broken(change), version)


@pytest.mark.parametrize(
    ("folder", "kind", "name", "path", "value"),
    [
        ("monitoring", "ServiceMonitor", "triton", ("endpoints", 0, "interval"), 5),
        ("monitoring", "ServiceMonitor", "triton", ("endpoints", 0, "scrapeInterval"), "5s"),
        ("overlays/keda", "ScaledObject", "triton", ("triggers", 0, "metadata", "threshold"), 0.02),
        ("overlays/keda", "ScaledObject", "triton", ("triggers", 0, "metricType"), "Average"),
        ("overlays/keda", "ScaledObject", "triton", ("maxReplicas",), 6),
    ],
)
def test_a_slip_in_a_custom_kind_is_caught(
    folder: str, kind: str, name: str, path: tuple[Any, ...], value: Any
) -> None:
    thing = copy.deepcopy(one(folder, kind, name))
    node = thing["spec"]
    for part in path[:-1]:
        node = node[part]
    node[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        check(thing, "1.35")


def test_the_oldest_version_is_the_one_the_adapter_takes() -> None:
    from gpusched.cluster.microk8s.server import OLDEST

    assert VERSIONS[0] == ".".join(map(str, OLDEST))
