"""Configuration → typed objects. Every error of a configuration's content is made here, in one form.

key = value: what is allowed. Did you mean ...?
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from typing import Any, TypeVar, cast, get_args, get_type_hints

from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gpusched.core.controls import Limits
from gpusched.core.errors import InputError, did_you_mean, refuse
from gpusched.core.hypotheses import Hypotheses
from gpusched.core.ports import Action, Cluster, Fault, Load, Option, Policy, Reward
from gpusched.core.service import Service
from gpusched.core.trial import TrialSpec
from gpusched.job.setup import Job, Setup
from gpusched.policy.guard import GuardConfig

T = TypeVar("T")

TARGET = "_target_"
BASES: dict[str, type] = {
    "job": Job,
    "policy": Policy,
    "load": Load,
    "train_load": Load,
    "train_fault": Fault,
    "fault": Fault,
    "reward": Reward,
    "action": Action,
    "service": Service,
    "cluster": Cluster,
}
"""What the option of each group must be; `train_load` and `train_fault` are groups' options inside another option."""
WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


@dataclass(kw_only=True)
class Tracking:
    """Where runs are stored, and their files where that is not beside them."""

    uri: str
    artifacts: str | None = None


@dataclass(kw_only=True)
class Root:
    """The keys beside the groups."""

    seed: int
    study: str
    resume: bool
    tracking: Tracking
    trial: TrialSpec
    hypotheses: Hypotheses

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise refuse("seed", self.seed, "must be at least 0")
        if not self.study.strip():
            raise refuse("study", self.study, "must be a name")


def setup(config: DictConfig, choices: Mapping[str, str], overrides: Sequence[str] = ()) -> tuple[Job, Setup]:
    """Return the job and what it works with.

    `choices` names the option taken in each group, `overrides` are the arguments of the command line.
    Raises InputError for anything that cannot be.
    """
    plain = resolve(config)
    groups = [key for key in BASES if not key.startswith("train_")]
    known([key for key in plain if key not in groups], [f.name for f in fields(Root)], "", more=groups)
    if absent := [key for key in groups if not plain.get(key)]:
        raise InputError(f"{absent[0]}: no option chosen. Choose one with {absent[0]}=NAME.")
    root = record({key: value for key, value in plain.items() if key not in groups}, Root, "")
    service = option(plain["service"], Service, "service")
    action = option(plain["action"], Action, "action")
    policy_type: type[Policy]
    own, guard, simulator = _policy(plain["policy"])
    policy_type, policy_config = typed(own, Policy, "policy")
    cluster_type, cluster_config = typed(plain["cluster"], Cluster, "cluster")
    sim_type, sim_config = (
        typed(simulator, Cluster, "policy.train_cluster") if simulator else (cluster_type, cluster_config)
    )
    made = Setup(
        seed=root.seed,
        study=root.study,
        resume=root.resume,
        uri=root.tracking.uri,
        artifacts=root.tracking.artifacts,
        spec=root.trial,
        limits=limits(root.trial, service, action),
        policy=policy_type(policy_config, *([action] if policy_type.trained else [])),
        guard=guard,
        hypotheses=root.hypotheses,
        load=option(plain["load"], Load, "load"),
        fault=option(plain["fault"], Fault, "fault"),
        reward=option(plain["reward"], Reward, "reward"),
        action=action,
        service=service,
        cluster_type=cluster_type,
        cluster_config=cluster_config,
        simulator_type=sim_type,
        simulator_config=sim_config,
        names=names([group for group in groups if group != "job"], choices, overrides),
        load_name=choices["load"],
        train_name=choices.get("load@policy.train_load", ""),
        config=plain,
    )
    check(made)
    return option(plain["job"], Job, "job"), made


def _policy(node: Any) -> tuple[Any, GuardConfig, Any]:
    """Return a policy's own node, what guards it, and the cluster it is trained on, if it names one."""
    if not isinstance(node, Mapping):
        return node, GuardConfig(), None
    names = [f.name for f in fields(GuardConfig)]
    guard = record({name: node[name] for name in names if name in node}, GuardConfig, "policy")
    own = {key: value for key, value in node.items() if key not in (*names, "train_cluster")}
    return own, guard, node.get("train_cluster")


def resolve(config: DictConfig) -> dict[str, Any]:
    """Return the configuration in plain values, references followed."""
    try:
        return cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
    except OmegaConfBaseException as error:
        raise InputError(f"{error.full_key}: {str(error).splitlines()[0]}.") from None


def option(node: Any, base: type, key: str) -> Any:
    """Return the option a group's node describes."""
    chosen, config = typed(node, base, key)
    return config if isinstance(config, chosen) else chosen(config)


def typed(node: Any, base: type, key: str) -> tuple[type, Any]:
    """Return the class a node names and its typed Config (a plain record is its own)."""
    if not isinstance(node, Mapping) or not node.get(TARGET):
        raise InputError(f"{key}: must be an option with a {TARGET}. Choose one with {key}=NAME.")
    chosen = _class(node[TARGET], base, f"{key}.{TARGET}")
    own = {name: value for name, value in node.items() if name != TARGET}
    return chosen, record(own, getattr(chosen, "Config", chosen), key)


def _class(target: str, base: type, key: str) -> type:
    allowed = f"must name a {base.__name__} of gpusched"
    try:
        found = get_class(target)
    except Exception as error:
        raise refuse(key, target, allowed, f"It cannot be had ({str(error).splitlines()[0]}).") from None
    if not issubclass(found, base):
        raise refuse(key, target, allowed)
    return found


def record(node: Any, schema: type[T], key: str) -> T:
    """Return a dataclass from plain values: no unknown key, none missing, every value of its type and range."""
    names = {f.name: f for f in fields(cast(Any, schema))}
    if not isinstance(node, Mapping):
        raise refuse(key, node, f"must be a group of {', '.join(names)}")
    known(list(node), list(names), key)
    hints = get_type_hints(schema)
    for name, f in names.items():
        needed = f.default is MISSING and f.default_factory is MISSING
        if node.get(name, "???") == "???" and (needed or name in node):
            raise InputError(f"{join(key, name)}: has no value. Give one with {join(key, name)}=VALUE.")
    nested = {name: _nested(given, hints[name], join(key, name)) for name, given in node.items()}
    leaves = {name: node[name] for name, made in nested.items() if made is None}
    values = {
        **{name: made for name, made in nested.items() if made is not None},
        **_leaves(leaves, schema, hints, key),
    }
    try:
        return schema(**values)
    except InputError as error:
        # A nested record may name itself in its message already.
        told = str(error).removeprefix(key.rpartition(".")[2] + ".")
        raise InputError(join(key, told)) from None


def _nested(given: Any, hint: Any, key: str) -> Any:
    """Return the option, record or list of records that stands at a key; None for a plain value."""
    if isinstance(given, Mapping) and TARGET in given:
        return option(given, BASES.get(key.rpartition(".")[2], Option), key)
    group = key.rpartition(".")[2].removeprefix("train_")
    if key.endswith(f".train_{group}") and given is not None:
        raise refuse(key, given, "must be an option", f"Choose it with {group}@{key}={given}.")
    inner = _record_type(hint)
    if inner is None or given is None:
        return None
    if isinstance(given, list) and "list[" in str(hint):
        return [record(one, inner, f"{key}[{i}]") for i, one in enumerate(given)]
    return record(given, inner, key)


def _leaves(given: dict[str, Any], schema: type, hints: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Let OmegaConf convert and check the plain values of one record, those that have their type already excepted."""
    for name, value in given.items():
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, float) and not math.isfinite(one):
                raise refuse(join(key, name), one, "must be a finite number")
    fine = {name: value for name, value in given.items() if _fits(value, hints[name])}
    given = {name: value for name, value in given.items() if name not in fine}
    if not given:
        return fine
    try:
        plain = OmegaConf.to_container(OmegaConf.merge(_schema(schema), given))
    except OmegaConfBaseException as error:
        name = re.split(r"[.\[]", str(error.full_key))[0]
        raise refuse(join(key, name), given[name], f"must be {_words(hints[name])}") from None
    return fine | {name: value for name, value in cast(dict[str, Any], plain).items() if name in given}


def _fits(value: Any, hint: Any) -> bool:
    """Return whether a value is of exactly its plain type: OmegaConf, slow at telling, would only give it back."""
    return hint in WORDS and type(value) is hint


@cache
def _schema(record_type: type) -> DictConfig:
    return cast(DictConfig, OmegaConf.structured(record_type))


def _record_type(hint: Any) -> type | None:
    """Return the dataclass inside X, X | None, list[X] or list[X] | None."""
    if isinstance(hint, type) and is_dataclass(hint):
        return hint
    return next((found for part in get_args(hint) if (found := _record_type(part))), None)


def _words(hint: Any) -> str:
    if hint in WORDS:
        return WORDS[hint]
    parts = get_args(hint)
    if "list[" in str(hint):
        return f"a list, each entry {_words(parts[0])}"
    return " or ".join("null" if part is type(None) else _words(part) for part in parts) or "of another type"


def known(given: Sequence[Any], allowed: Sequence[str], key: str, more: Sequence[str] = ()) -> None:
    """Raise InputError for the first key that is not allowed."""
    for name in given:
        if name not in allowed:
            every = [*allowed, *more]
            cure = did_you_mean(str(name), every)
            raise InputError(f"{join(key, name)}: no such key. Allowed: {', '.join(every) or 'none'}.{cure}")


def join(key: str, name: object) -> str:
    """Return the full key of something inside `key`."""
    return f"{key}.{name}" if key else str(name)


def label(group: str, choices: Mapping[str, str], overrides: Sequence[str]) -> str:
    """Return the option's name, with what the command line sets in it: `hpa[target=50]`, `ppo[train_load=low]`."""
    values = sorted(filter(None, (_inside_of(group, o.lstrip("+~")) for o in overrides)))
    return choices.get(group, "none") + (f"[{','.join(values)}]" if values else "")


def _inside_of(group: str, override: str) -> str:
    """Return what an override sets inside the group's option, "" where it sets nothing there.

    `policy.target=50` sets a value, `policy={target: 50}` several, `load@policy.train_load=low` an option inside it, `guard@policy=strict` a part.
    """
    key, _, value = override.partition("=")
    if key == group and value.startswith("{"):
        return value
    part, _, package = key.rpartition("@")
    if part and package == group:
        return f"{part}={value}"
    name = package.removeprefix(f"{group}.")
    return f"{name}={value}" if name != package else ""


def names(groups: Sequence[str], choices: Mapping[str, str], overrides: Sequence[str]) -> dict[str, str]:
    """Return how runs are labelled. A fault makes another load of it: what is compared met the same."""
    found = {group: label(group, choices, overrides) for group in groups}
    if choices.get("fault", "none") != "none":
        found["load"] += f"+{found['fault']}"
    return found


def limits(trial: TrialSpec, service: Service, action: Action) -> Limits:
    """Return what a policy may set: what the action names, and the service profile's one value otherwise."""
    offered = {key: getattr(action.config, key, None) for key in ("cpu_cores", "instances", "gpu_shares")}
    return Limits(
        min_replicas=trial.min_replicas,
        max_replicas=trial.max_replicas,
        cpu_cores=offered["cpu_cores"] or [service.cpu_limit_cores.value],
        instances=offered["instances"] or [int(service.instances.value)],
        gpu_shares=offered["gpu_shares"] or [1.0],
    )


def check(made: Setup) -> None:
    """Raise InputError where options that are fine alone cannot be together."""
    if made.policy.trained and made.simulator_type.real:
        raise InputError(
            "policy.train_cluster: must be simulated; a real one has one environment and wall time."
        )
    if made.cluster_type.real and made.fault.simulated:
        raise InputError("fault: only a simulated cluster can let it happen. Choose cluster=sim.")
    if made.policy.hindsight and made.cluster_type.real:
        raise InputError(
            "policy: knows the future, which only a simulated cluster can tell. Choose cluster=sim."
        )
    check_room(made)
    if len(made.limits.gpu_shares) > 1 and made.service.sharing != "mps":
        raise refuse(
            "action.gpu_shares", made.limits.gpu_shares, "needs service.sharing=mps to mean anything"
        )
    _inside("load", lambda: made.calm)
    _inside("fault", lambda: made.episode)
    if made.policy.trained:
        if not made.action.sizes(made.limits):
            raise InputError(
                "action: leaves the policy nothing to choose. Offer more than one value of a lever."
            )
        _inside("policy.train_load", lambda: made.fingerprint)
        if trouble := made.trouble:
            _inside("policy.train_fault", lambda: trouble(made.calm, made.policy_seed))
    else:
        # A trial resets the policy anyway; doing it here first finds a bad value before anything has started.
        _inside("policy", lambda: made.policy.reset(made.limits, made.policy_seed))


def check_room(made: Setup) -> None:
    """Raise InputError where the replicas that are allowed could not all run."""
    _fits_gpu(made)
    _fits_node(made)


def _fits_gpu(made: Setup) -> None:
    service, most = made.service, made.spec.max_replicas
    room = (
        f"{service.usable_vram_bytes / 1e9:g} GB usable on each of {made.nodes * service.gpus.value:g} GPU(s)"
    )
    if most > made.nodes * service.replicas_bound:
        one = service.vram_per_pod_bytes() / 1e9
        raise refuse("trial.max_replicas", most, f"needs more VRAM than the GPU has ({one:g} GB each, {room})",
                     f"At most {made.nodes * service.replicas_bound} fit.")  # fmt: skip
    largest = service.vram_per_pod_bytes(max(made.limits.instances))
    if largest > service.usable_vram_bytes:
        raise refuse("action.instances", made.limits.instances,
                     f"needs more VRAM than the GPU has ({largest / 1e9:g} GB for one replica, {room})")  # fmt: skip


def _fits_node(made: Setup) -> None:
    cores, most = made.nodes * made.service.node_cpu_cores.value, made.spec.max_replicas
    need = most * max(made.limits.cpu_cores)
    if need > cores:
        key = "action.cpu_cores" if len(made.limits.cpu_cores) > 1 else "service.cpu_limit_cores.value"
        raise refuse(key, max(made.limits.cpu_cores),
                     f"{most} replicas (trial.max_replicas) would need {need:g} cores, the node{'s have' if made.nodes > 1 else ' has'} {cores:g}")  # fmt: skip


def _inside(key: str, do: Callable[[], object]) -> None:
    """Do it; an InputError names a key of this group."""
    try:
        do()
    except InputError as error:
        raise InputError(f"{key}.{error}") from None
