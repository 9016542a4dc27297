"""Errors that Hydra finds in the arguments, in our form: key, value, what is allowed, the likely slip."""

from __future__ import annotations

import errno
from collections.abc import Sequence

from hydra.errors import CompactHydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from gpusched.core.errors import did_you_mean


class Through(BaseException):
    """Carries an error through Hydra, which would turn an Exception into a warning or announce it in its own words."""

    def __init__(self, error: Exception) -> None:
        self.error = error


def flag_amid(arguments: Sequence[str]) -> str:
    """Return the flag of a sweep that stands between words, which Hydra's parser tells as words it does not know; "" without one."""
    for k, word in enumerate(arguments[:-1]):
        before = any("=" in other and not other.startswith("-") for other in arguments[:k])
        if word in ("-m", "--multirun") and before and not arguments[k + 1].startswith("-"):
            return word
    return ""


def explain(error: Exception, arguments: Sequence[str]) -> str | None:
    """Return what to tell a person about an error of Hydra's; None for an error that is none."""
    if isinstance(error, OverrideParseException):
        quotes = (
            ""
            if error.override.isascii()
            else " Letters beyond ASCII need quotes of their own: \"study='日本'\"."
        )
        return f"{error.override!r}: cannot be read. Write key=value, and quote it for the shell: 'seed=range(5)'.{quotes}"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options is not None:
        return _option(error.missing_cfg_file, error.options)
    if isinstance(error, CompactHydraException | OmegaConfBaseException):
        return _other(error, arguments)
    if isinstance(error, OSError) and (error.filename or error.errno == errno.ENOSPC):
        what = error.filename or "outputs"
        return f"{what}: cannot be read or written ({error.strerror}). Give permission or space, or name another place."
    if isinstance(error, ValueError) and str(error).startswith("Config group override"):
        return f"{' '.join(arguments)}: a group needs the name of an option, as in policy=hpa."
    if isinstance(error, ValueError | TypeError | AssertionError) and _room(error) in ("hydra", "logging"):
        why = str(error).rstrip(".") or "a value it does not take"
        return f"{' '.join(arguments)}: refused by Hydra: {why}. `python run.py --help` shows what can be written."
    return None


def _room(error: Exception) -> str:
    """Return the package in whose code an error was raised."""
    raised = error.__traceback__
    while raised and raised.tb_next:
        raised = raised.tb_next
    return str(raised.tb_frame.f_globals["__name__"]).partition(".")[0] if raised else ""


def _option(missing: str, options: Sequence[str]) -> str:
    group, _, name = missing.rpartition("/")
    return f"{group} = {name!r}: no such option. Allowed: {', '.join(options)}.{did_you_mean(name, options)}"


def _other(error: Exception, arguments: Sequence[str]) -> str:
    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__
    if isinstance(cause, ConfigKeyError | ConfigAttributeError) and isinstance(cause.parent_node, DictConfig):
        return _key(str(cause.full_key), str(cause.key), cause.parent_node)
    if str(error).startswith("Ambiguous value"):
        several = next((a for a in arguments if "," in a), "")
        return f"{several}: several values make a sweep. Add -m, or write a list as key=[a,b]."
    return str(error)


def _key(full_key: str, key: str, parent: DictConfig) -> str:
    keys = [str(k) for k in parent if k not in ("_target_", "hydra")]
    if not keys:
        above = full_key.rpartition(".")[0]
        return f"{full_key}: {above} has no value it could change. Set it as a whole: '{above}={{{key}: VALUE}}'."
    keys += ["experiment"] if full_key == key else []  # a group without an option by default
    return f"{full_key}: no such key. Allowed: {', '.join(keys)}.{did_you_mean(key, keys)}"
