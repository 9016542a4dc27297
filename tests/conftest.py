"""What all tests share."""

from __future__ import annotations

import yaml

# Most of the time of a test that composes a configuration is reading YAML in Python; libyaml feeds the same constructors.
if hasattr(yaml, "CSafeLoader"):
    yaml.SafeLoader = yaml.CSafeLoader  # type: ignore[misc]
