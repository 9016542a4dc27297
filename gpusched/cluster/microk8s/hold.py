"""Taking hold of a Deployment, changing it, and giving it back as it was found, whatever happens in between."""

from __future__ import annotations

import logging
import math
import statistics

from gpusched.cluster.microk8s.actuator import Actuator, Target, instance_readers
from gpusched.cluster.microk8s.autoscalers import FORGET_S, delete_hpa, kept, scales
from gpusched.cluster.microk8s.client import Access, Api, Deadline
from gpusched.cluster.microk8s.desired import MPS_ENV, Wanted, container, env_of
from gpusched.cluster.microk8s.failures import Unreachable
from gpusched.cluster.microk8s.journal import Journal, found, found_in
from gpusched.cluster.microk8s.kinds import (
    DEPLOYMENTS,
    HPAS,
    OURS,
    PART_OF,
    Dict,
    dig,
    made_by,
    name_of,
    ours,
)
from gpusched.cluster.microk8s.owner import Owner
from gpusched.cluster.microk8s.pods import cpu_limit_cores, holds_resources, pods_of, stays
from gpusched.cluster.microk8s.ready import wait_ready
from gpusched.cluster.microk8s.restore import Restorer
from gpusched.cluster.microk8s.server import Server, look
from gpusched.core.errors import ClusterError
from gpusched.live.state import ReplicaState

log = logging.getLogger(__name__)

LOOK_S = 30.0
"""What looking around before the first change may take."""


class Hold:
    """One Deployment in one namespace; connects when it is first needed."""

    def __init__(self, access: Access, target: Target, trial: str = "") -> None:
        self.access, self.target = access, target
        self.owner = Owner.me(trial)
        self._api: Api | None = None
        self._server: Server | None = None
        self.journal: Journal | None = None
        self.actuator: Actuator | None = None
        self._last: ReplicaState | None = None

    @property
    def api(self) -> Api:
        if self._api is None:
            self._api = Api(self.access)
        return self._api

    @property
    def server(self) -> Server:
        if self._server is None:
            self._server = look(self.api, Deadline(LOOK_S))
        return self._server

    @property
    def levers(self) -> list[str]:
        """The pods' environment variables that a trial may set."""
        return [MPS_ENV, self.target.instances_env]

    # --- taking ---

    def take(self, restore_s: float) -> None:
        """Check everything, undo what a dead trial left, write down what is found, and remove a found HPA.

        Raises ClusterError before anything is changed where the objects are not ours, somebody holds them, or
        another autoscaler acts on them.
        """
        self._last = None
        log.info("Kubernetes %s at %s, %s", self.server, self.api.host, self.target)
        self.look()
        recovered = self._recover(restore_s)
        deadline = Deadline(LOOK_S)
        deployment = self.look()
        hpa = next(iter(self.autoscalers(deadline)), None)  # all have one name
        self.actuator = Actuator(self.api, self.server, self.target, deployment, self.owner.token)
        pods = [pod for pod in pods_of(self.api, self.target.namespace, deployment, deadline) if stays(pod)]
        self.journal = Journal(self.api, self.target.namespace, self.owner)
        # An HPA of a trial whose journal is gone is not given back.
        theirs = None if hpa is None or made_by(hpa) else hpa
        self.journal.write(found(deployment, theirs, pods, self.levers), deadline)
        if hpa is not None:
            delete_hpa(self.api, hpa, deadline)  # nobody scales during the warm-up
        if hpa is not None or recovered:
            # An HPA made anew starts without the old one's memory only once a sync has missed that one.
            self.actuator.hpa_from = Deadline(FORGET_S)

    def look(self) -> Dict:
        """Return the Deployment; ClusterError with the cure where there is none or it is not ours to change."""
        t = self.target
        one = self.api.call("get", DEPLOYMENTS, t.namespace, t.deployment, deadline=Deadline(LOOK_S))
        if not ours(one):
            raise ClusterError(
                f"{t}: is not labelled {PART_OF}={OURS}, so gpusched does not touch it. If it may be changed during trials: "
                f"kubectl label deployment {t.deployment} -n {t.namespace} {PART_OF}={OURS}"
            )
        if dig(one, "spec", "paused"):
            raise ClusterError(
                f"{t}: its rollout is paused. kubectl rollout resume deployment {t.deployment} -n {t.namespace}"
            )
        Actuator(self.api, self.server, t, one, self.owner.token)  # reads the container's CPU
        return one

    def _recover(self, restore_s: float) -> bool:
        """Restore from a dead trial's journal, if there is one, and return whether there was.

        Raises ClusterError where its owner lives or something cannot be undone.
        """
        journal = Journal(self.api, self.target.namespace, self.owner)
        old = journal.read(Deadline(LOOK_S))
        if old is None:
            return False
        journal.refuse_if_held(old)
        log.warning("a trial ended without giving the cluster back; restoring it first")
        self._restore_from(journal, journal.claim(old, Deadline(LOOK_S)), restore_s)
        return True

    def autoscalers(self, deadline: Deadline) -> list[Dict]:
        """Return the HPAs of the Deployment; ClusterError where one is not ours to set aside."""
        every = self.api.list(HPAS, self.target.namespace, deadline)
        found = [hpa for hpa in every if scales(hpa, self.target.deployment)]
        for hpa in found:
            self._check_hpa(hpa)
        return found

    def _check_hpa(self, hpa: Dict) -> None:
        t, name = self.target, name_of(hpa)
        where = f"HorizontalPodAutoscaler {name} in namespace {t.namespace}"
        if maker := dig(hpa, "metadata", "ownerReferences"):
            by = f"{maker[0].get('kind')} {maker[0].get('name')}"
            raise ClusterError(
                f"{where}: {by} makes it again whenever it is removed, so two autoscalers would fight. "
                f"Remove or pause {by} during trials."
            )
        if not ours(hpa) or name != t.deployment:
            raise ClusterError(
                f"{where}: scales {t.deployment} too and is not ours (label {PART_OF}={OURS}, name {t.deployment}), so two "
                f"autoscalers would fight. Remove it during trials: kubectl delete hpa {name} -n {t.namespace}"
            )
        if finalizers := dig(hpa, "metadata", "finalizers"):
            raise kept(t.namespace, name, finalizers)

    # --- holding ---

    def apply(self, wanted: Wanted, deadline: Deadline, instances_known: int) -> None:
        """Set what is wanted; see `Actuator`."""
        actuator, journal = self._held()
        journal.renew(deadline)
        actuator.apply(wanted, deadline, instances_known)

    def wait_ready(self, replicas: int, timeout_s: float) -> None:
        """Return once exactly so many pods are ready; ClusterError says why they never are."""
        actuator, journal = self._held()
        t = self.target

        def between() -> None:
            deadline = Deadline(self.access.call_timeout_s)
            try:
                journal.renew(deadline)
                actuator.resize_new(
                    pods_of(self.api, t.namespace, actuator.read(deadline), deadline), deadline
                )
            except Unreachable as lost:
                log.debug("while waiting: %s", lost)

        wait_ready(self.api, t.namespace, t.deployment, replicas, timeout_s, between)
        between()

    def _held(self) -> tuple[Actuator, Journal]:
        if self.actuator is None or self.journal is None:
            raise RuntimeError("the cluster is not taken")
        return self.actuator, self.journal

    def state(self, deadline: Deadline) -> ReplicaState:
        """Return the replicas as they are, or as last seen where the API server does not answer in time.

        Also keeps the journal's heartbeat going and brings pods that came since the last look to their size.
        """
        actuator, journal = self._held()
        try:
            deployment = actuator.read(deadline)
            pods = pods_of(self.api, self.target.namespace, deployment, deadline)
            self._last = self._read_state(deployment, pods, actuator)
            actuator.resize_new(pods, deadline)
            journal.renew(deadline)
        except Unreachable as lost:
            log.debug("state not read: %s", lost)
        if self._last is None:
            return ReplicaState(spec=0, ready=0, alive=0)
        return self._last

    def _read_state(self, deployment: Dict, pods: list[Dict], actuator: Actuator) -> ReplicaState:
        t = self.target
        one = container(dig(deployment, "spec", "template"), t.container, str(t))
        counts = [t.instances(value) for _, _, value in instance_readers(deployment, t.instances_env)]
        share = env_of(one, MPS_ENV)
        alive = sum(map(holds_resources, pods))
        return ReplicaState(
            spec=int(dig(deployment, "spec", "replicas") or 0),
            ready=min(
                int(dig(deployment, "status", "readyReplicas") or 0), alive
            ),  # two looks, a moment apart
            alive=alive,
            hpa_target=actuator.hpa_target,
            cpu_cores=cpu_limit_cores(filter(stays, pods), t.container),
            instances=statistics.fmean(counts) if counts else math.nan,
            gpu_share=float(share) / 100 if share else math.nan,
        )

    def nodes(self, deadline: Deadline) -> list[str]:
        """Return the names of the nodes the pods run on."""
        pods = pods_of(self.api, self.target.namespace, self.look(), deadline)
        return sorted({str(name) for pod in pods if (name := dig(pod, "spec", "nodeName"))})

    # --- giving back ---

    def give_back(self, restore_s: float) -> None:
        """Undo everything since `take`; where another process has taken the cluster meanwhile, that is its business.

        Raises ClusterError where something could not be undone; the journal stays then and says what.
        """
        if self.journal is None:
            return
        current = self.journal.read(Deadline(restore_s)) or self.journal.written
        if current and dig(current, "data", "owner") != self.owner.write():
            log.warning("%s: taken over by another process, which restores it", self.target)
        elif current:
            self._restore_from(self.journal, current, restore_s)
        self.journal = self.actuator = None

    def restore(self, restore_s: float) -> list[str]:
        """Undo what a dead trial left, if any did; returns what was done, in words."""
        journal = Journal(self.api, self.target.namespace, self.owner)
        old = journal.read(Deadline(LOOK_S))
        if old is None:
            return [f"namespace {self.target.namespace}: no journal, nothing to restore"]
        journal.refuse_if_held(old)
        who = Owner.read(old["data"]["owner"])
        self._restore_from(journal, journal.claim(old, Deadline(LOOK_S)), restore_s)
        return [f"{self.target}: given back as {who} had found it"]

    def _restore_from(self, journal: Journal, current: Dict, restore_s: float) -> None:
        deadline = Deadline(restore_s)
        was = found_in(current)
        levers = was.get("levers", self.levers)  # the dead trial's, whatever the configuration calls them now
        left = Restorer(self.api, was, levers, self.server.resize).run(deadline)
        if left:
            text = "\n".join(left)
            journal.leave(text)
            raise ClusterError(
                f"{self.target}: not everything is as it was found:\n{text}\nThe journal stays; once the cause is gone: "
                "python run.py job=restore cluster=microk8s"
            )
        journal.delete(current, deadline)
        log.info("%s: given back as found", self.target)
