"""From configuration to objects: what is built, and one readable answer to everything that cannot be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from jobs import make

from gpusched.core.controls import HPASpec
from gpusched.core.errors import InputError
from gpusched.core.service import Service
from gpusched.job.build import known, option, record
from gpusched.load.assorted import Assorted
from gpusched.policy.hpa import HPA
from gpusched.policy.ppo import PPO


def test_the_default_job_is_the_plan_s_hpa_on_fifty_users() -> None:
    _, setup = make()
    assert isinstance(setup.policy, HPA)
    assert setup.policy.config == HPASpec(metric="cpu", target=70.0, min_replicas=1, max_replicas=6)
    assert setup.plan.max_users == 50
    assert isinstance(setup.service, Service)
    assert setup.reward.slo_s == 0.2
    assert setup.limits.max_replicas == 6
    assert setup.names["policy"] == "hpa"


def test_a_nested_option_is_built_and_named() -> None:
    _, setup = make("policy=ppo")
    assert isinstance(setup.policy, PPO)
    assert isinstance(setup.train_load, Assorted)
    assert setup.train_name == "assorted"
    assert make("policy=ppo", "load@policy.train_load=mixed")[1].train_name == "mixed"


def test_a_nested_record_is_built() -> None:
    _, setup = make("policy.scale_up={policies: [{type: Pods, value: 2, period_s: 30}], select: Min}")
    assert setup.policy.config.scale_up.policies[0].value == 2
    assert setup.policy.config.scale_up.select == "Min"
    assert setup.policy.config.scale_down is None


def test_labels_tell_what_the_command_line_set() -> None:
    _, setup = make("policy.target=50", "load=low", "load.users=12")
    assert setup.names["policy"] == "hpa[target=50]"
    assert setup.names["load"] == "low[users=12]"
    assert setup.load_name == "low"


def test_labels_tell_what_is_set_as_a_whole_or_taken_away() -> None:
    """Otherwise another policy would take the place of the plain one in the study."""
    assert make("policy={target: 50}")[1].names["policy"] == "hpa[{target: 50}]"
    assert make("load={users: 10}")[1].names["load"] == "medium[{users: 10}]"


def test_a_number_is_the_same_key_whole_or_with_a_point() -> None:
    one, other = (make("policy=ppo", f"trial.control_s={text}")[1] for text in ("15", "15.0"))
    assert (one.trial_key, one.fingerprint) == (other.trial_key, other.fingerprint)


def test_what_learns_on_the_trial_s_own_cluster_is_another_training_there() -> None:
    one, other = (
        make(
            "policy=ppo",
            "cluster=sim",
            "cluster@policy.train_cluster=sim",
            "policy.train_cluster=null",
            f"cluster.nodes={n}",
        )[1]
        for n in (1, 2)
    )
    assert one.fingerprint != other.fingerprint


def test_labels_tell_the_options_inside_a_policy() -> None:
    """Otherwise two trainings on different loads would count as one policy, and one would hide the other."""
    inside = ("policy=ppo", "cluster@policy.train_cluster=double")
    assert make(*inside)[1].names["policy"] == "ppo[train_cluster=double]"
    mixed = make(*inside, "load@policy.train_load=mixed")[1]
    assert mixed.names["policy"] == "ppo[train_cluster=double,train_load=mixed]"
    guarded = make("policy=hpa", "guard@policy=careful", "policy.cooldown_s=60")[1]
    assert guarded.names["policy"] == "hpa[cooldown_s=60,guard=careful]"


def test_a_policy_may_learn_where_things_go_wrong() -> None:
    calm = make("policy=table")[1]
    assert calm.trouble is None
    shifted = make("policy=table", "fault@policy.train_fault=service_shift")[1]
    assert shifted.names["policy"] == "table[train_fault=service_shift]"
    assert shifted.names["load"] == calm.names["load"], "the trial is as it was"
    assert shifted.fingerprint != calm.fingerprint
    assert shifted.trouble is not None
    met = shifted.trouble(calm.calm, np.random.SeedSequence(1))
    assert met.plan is calm.calm.plan
    assert met.service is not None
    assert met.service.gpu_alpha_s.value != calm.service.gpu_alpha_s.value


def test_limits_offer_what_the_action_names() -> None:
    assert make()[1].limits.cpu_cores == [make()[1].service.cpu_limit_cores.value]
    assert make("action=resources", "action.cpu_cores=[0.5,1]")[1].limits.cpu_cores == [0.5, 1.0]


BAD = {
    "load.users=abc": r"^load.users = 'abc': must be a whole number\.$",
    "load.users=1.5": r"^load.users = 1.5: must be a whole number\.$",
    "load.users=-3": r"^load.users = -3: must lie in 0\.\.",
    "+load.userz=3": r"^load.userz: no such key. Allowed: think_min_s, think_max_s, users. Did you mean 'users'\?$",
    "+foo=3": r"^foo: no such key. Allowed: seed, ",
    "~load": r"^load: no option chosen",
    "reward.slo_s=0": r"^reward.slo_s = 0.0: must be greater than 0 s\.$",
    "reward.slo_s=-1": r"^reward.slo_s = -1.0: must be greater than 0 s\.$",
    "reward.w2=-1": r"^reward.w2 = -1.0: must be at least 0",
    "reward.w1=0 reward.w2=0 reward.w3=0 reward.w4=0": r"^reward.w1 = .*at least one weight",
    "trial.max_replicas=7": r"^trial.max_replicas = 7: needs more VRAM than the GPU has .*At most 6 fit\.$",
    "trial.min_replicas=4 trial.max_replicas=3": r"^trial.max_replicas = 3: must be at least min_replicas",
    "trial.start_replicas=0": r"^trial.start_replicas = 0: must lie in",
    "trial.duration_s=100": r"^trial.duration_s = 100.0: must be a multiple of control_s",
    "trial.duration_s=-15": r"^trial.duration_s = -15.0: must be greater than 0 s",
    "policy.min_replicas=5 policy.max_replicas=3": r"^policy.max_replicas = 3: must be at least min_replicas",
    "policy.target=-1": r"^policy.target = -1.0: must be greater than 0",
    "policy.metric=gpu": r"^policy.metric = 'gpu': must be one of cpu, queue, in_flight",
    "policy.scale_up={select: Best}": r"^policy.scale_up.select = 'Best': must be Max, Min or Disabled",
    "policy.scale_up={policies: [{type: Pods, value: x, period_s: 1}]}": r"^policy.scale_up.policies\[0\].value = 'x'",
    "policy.scale_up={policies: [{type: Pods, value: 1}]}": r"^policy.scale_up.policies\[0\].period_s: has no value",
    "policy._target_=os.system": r"^policy._target_ = 'os.system': must name a Policy of gpusched",
    "policy._target_=gpusched.load.steady.Steady": r"^policy._target_ = .*must name a Policy",
    "policy._target_=gpusched.policy.nope.Nope": r"^policy._target_ = .*must name a Policy",
    "policy=static policy.replicas=7": r"^policy.replicas = 7: must lie in the trial's limits, 1\.\.6",
    "load=trace": r"^load.path: has no value. Give one with load.path=VALUE",
    "load=trace load.path=/no/such.csv": r"^load.path = '/no/such.csv': no such file",
    "service.pod_vram_bytes.value=2e10": r"^service.pod_vram_bytes.value = 2e\+10 B: more VRAM than the GPU has",
    "service.pod_vram_bytes.unit=GB": r"^service.pod_vram_bytes.unit = 'GB': must be 'B'",
    "service.pod_vram_bytes.status=guess": r"^service.pod_vram_bytes.status = 'guess': must be one of",
    "service.node_cpu_cores.value=4": r"^service.cpu_limit_cores.value = 1.0: 6 replicas .*would need 6 cores",
    "action=resources action.gpu_shares=[0.5,1]": r"^action.gpu_shares = .*needs service.sharing=mps",
    "policy=ppo trial.min_replicas=2 trial.max_replicas=2": r"^action: leaves the policy nothing to choose",
    "policy=table fault@policy.train_fault=service_shift policy.train_fault.constants=[nope]": r"^policy.train_fault.constants = 'nope': ",
    "policy=table policy.train_fault=gpu_throttle": r"^policy.train_fault = 'gpu_throttle': must be an option. "
    r"Choose it with fault@policy.train_fault=gpu_throttle",
    "policy=table policy.train_load=low": r"^policy.train_load = 'low': must be an option. Choose it with load@policy.train_load=low",
    "fault=service_shift fault.constants=[max_batch]": r"^fault.constants = 'max_batch': must be none that counts something",
    "service.max_batch.value=2.5": r"^service.max_batch.value = 2.5: must be a whole number",
    "service.gpu_vram_bytes.value=inf": r"^service.gpu_vram_bytes.value = inf: must be a finite number",
    "cluster=sim cluster.window_s=nan": r"^cluster.window_s = nan: must be a finite number",
    "policy={scale_up: {tolerance: nan}}": r"^policy.scale_up.tolerance = nan: must be a finite number",
    "action=resources action.cpu_cores=[1,inf]": r"^action.cpu_cores = inf: must be a finite number",
    "fault=flash_crowd fault.factor=1e10": r"^fault.factor = 10000000000.0: must be at most 1000",
    "load.think_max_s=1e308": r"^load.think_max_s = 1e\+308: must lie in think_min_s",
    "fault=service_shift fault.constants=[nope]": r"^fault.constants = 'nope': ",
    "policy=ppo policy.train_load.users=-4": r"^policy.train_load.users = -4: must lie in",
    "policy=hpa_tuned policy.space.cpu=[22.5,90]": r"^policy.space.cpu = \[22.5, 90\]: must be a list, each entry a whole number",
    "policy=ppo policy.network.hidden=[0]": r"^policy.network.hidden = ",
    "policy=ppo +policy.training.frame=3": r"^policy.training.frame: no such key.*Did you mean 'frames'",
    "seed=-1": r"^seed = -1: must be at least 0",
    "seed=x": r"^seed = 'x': must be a whole number",
    "study=''": r"^study = '': must be a name",
    "resume=maybe": r"^resume = 'maybe': must be true or false",
    "tracking=3": r"^tracking = 3: must be a group of uri",
}  # fmt: skip


@pytest.mark.parametrize("arguments", [a for a, told in BAD.items() if told])
def test_what_cannot_be_is_refused_with_key_value_and_cure(arguments: str) -> None:
    words = [arguments] if "{" in arguments else arguments.split()
    with pytest.raises(InputError, match=BAD[arguments]) as caught:
        make(*words)
    assert "\n" not in str(caught.value)


@dataclass(kw_only=True)
class Inner:
    many: list[int]
    maybe: float | None = None


@dataclass(kw_only=True)
class Outer:
    name: str
    flag: bool
    inner: Inner
    more: list[Inner]


WHOLE: dict[str, Any] = {
    "name": "a",
    "flag": True,
    "inner": {"many": [1]},
    "more": [{"many": [2], "maybe": 3}],
}


def test_record_builds_what_the_fields_say() -> None:
    made = record(WHOLE, Outer, "x")
    assert made == Outer(name="a", flag=True, inner=Inner(many=[1]), more=[Inner(many=[2], maybe=3.0)])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"flag": "maybe"}, "x.flag = 'maybe': must be true or false."),
        ({"name": None}, "x.name = None: must be text."),
        ({"inner": 3}, "x.inner = 3: must be a group of many, maybe."),
        ({"inner": {}}, "x.inner.many: has no value. Give one with x.inner.many=VALUE."),
        (
            {"inner": {"many": [1, "b"]}},
            "x.inner.many = [1, 'b']: must be a list, each entry a whole number.",
        ),
        ({"more": [{"many": [], "maybe": "c"}]}, "x.more[0].maybe = 'c': must be a number or null."),
        (
            {"more": [{"many": [], "mayb": 1}]},
            "x.more[0].mayb: no such key. Allowed: many, maybe. Did you mean 'maybe'?",
        ),
        (
            {"inner": {"_target_": "builtins.dict"}},
            "x.inner._target_ = 'builtins.dict': must name a Option of gpusched.",
        ),
    ],
)
def test_record_names_the_whole_key(change: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError) as caught:
        record({**WHOLE, **change}, Outer, "x")
    assert str(caught.value) == told


def test_a_plain_node_is_no_option() -> None:
    with pytest.raises(InputError, match="policy: must be an option"):
        option({"target": 3}, HPA, "policy")


def test_unknown_without_a_likely_word() -> None:
    with pytest.raises(InputError, match=r"^a\.zzz: no such key\. Allowed: b\.$"):
        known(["zzz"], ["b"], "a")
