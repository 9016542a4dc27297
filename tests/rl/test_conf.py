"""conf/policy/ppo.yaml fills the policy's Config, the training load included."""

from typing import Any

import pytest
from composing import composed
from omegaconf import OmegaConf

from gpusched.core.errors import InputError
from gpusched.policy.ppo import PPO


def config(*overrides: str, **values: Any) -> Any:
    """Return the Config that Hydra's overrides give, with further values set as `group.key`."""
    tree, _ = composed("policy=ppo", *overrides)
    for key, value in values.items():
        OmegaConf.update(tree.policy, key, value)
    given: Any = OmegaConf.to_container(tree, resolve=True)
    own = {
        k: v
        for k, v in given["policy"].items()
        if k not in ("_target_", "train_cluster", "shadow", "max_change", "cooldown_s")
    }
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(PPO.Config), own))


def test_every_value_is_given() -> None:
    given = config()
    assert given.encoder.slo_s == 0.2
    assert given.train_load["_target_"].startswith("gpusched.load.")
    assert given.training.updates >= 10


def test_another_training_load() -> None:
    assert config("load@policy.train_load=mixed").train_load["_target_"].endswith("Mixed")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("thrift", -0.1),
        ("network.hidden", []),
        ("training.envs", 0),
        ("training.minibatch", 1),
        ("training.learning_rate", 0.0),
        ("training.gamma", 1.5),
        ("training.frames", 10),
        ("training.kl_stop", -1.0),
        ("training.critic_ahead", -1),
        ("training.critic_epochs", -1),
        ("training.critic_minibatch", 0),
        ("training.validate_episodes", 1),
        ("convergence.window", 2),
        ("convergence.kl_max", 0.0),
        ("convergence.agreement_min", 2.0),
        ("encoder.lags", [2, 1]),
        ("encoder.peaks", [4, 101]),
        ("encoder.troughs", [0]),
    ],
)
def test_a_bad_value_is_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(InputError, match=key.replace(".", r"\.")):
        config(**{key: value})
