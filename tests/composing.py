"""Configurations as run.py composes them, each choice of options once: composing is most of the time of a test of a job."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict

CONF = Path(__file__).parents[1] / "conf"


def composed(*overrides: str, more: Path | None = None) -> tuple[DictConfig, dict[str, str]]:
    """Return the configuration and the option chosen in each group. `more` is a folder with further options.

    Options are composed by Hydra; values are then set one by one, as Hydra sets them.
    """
    options = tuple(word for word in overrides if _chooses(word, more))
    whole, choices = _of_options(options, more)
    config = copy.deepcopy(whole)
    for value in OverridesParser.create().parse_overrides([w for w in overrides if w not in options]):
        OmegaConf.update(config, value.key_or_group, value.value(), merge=True)
    return config, dict(choices)


def _chooses(word: str, more: Path | None) -> bool:
    """Whether an override names an option, or changes what there is in another way than giving a value."""
    key = word.partition("=")[0]
    if key.startswith(("+", "~", "hydra")) or "@" in key:
        return True
    return any((conf / key).is_dir() for conf in (CONF, more) if conf)


@cache
def _of_options(options: tuple[str, ...], more: Path | None) -> tuple[DictConfig, dict[str, str]]:
    path = [f"hydra.searchpath=[file://{more}]"] if more else []
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", [*path, *options], return_hydra_config=True)
    choices = {str(key): str(value) for key, value in config.hydra.runtime.choices.items()}
    with open_dict(config):
        del config["hydra"]
    return config, choices
