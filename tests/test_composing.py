"""What tests compose is what run.py composes."""

from __future__ import annotations

import pytest
from composing import CONF, composed
from hydra import compose, initialize_config_dir


@pytest.mark.parametrize(
    "overrides",
    [
        ("policy=ppo", "load@policy.train_load=mixed", "policy.encoder.lags=[]", "seed=3"),
        ("service.gpus.value=2", "policy.scale_up={policies: [{type: Pods, value: 2, period_s: 30}], select: Min}", "load=low"),
        ("experiment=smoke", "trial.duration_s=120", "study='a b'", "policy.thrift=0"),
    ],
)  # fmt: skip
def test_it_is_what_hydra_composes(overrides: tuple[str, ...]) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        whole = compose("config", list(overrides), return_hydra_config=True)
    config, choices = composed(*overrides)
    assert choices == {str(key): str(value) for key, value in whole.hydra.runtime.choices.items()}
    assert config == {key: value for key, value in whole.items() if key != "hydra"}
    composed(*overrides)[0].seed = 5
    assert composed(*overrides)[0] == config, "one test's change must not reach another"
