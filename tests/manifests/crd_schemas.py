"""Schemas of the two custom kinds that manifests/ uses; no package ships them.

Written from the API references of prometheus-operator (monitoring.coreos.com/v1, ServiceMonitor) and KEDA
(keda.sh/v1alpha1, ScaledObject; prometheus scaler): the fields in use, and no others.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string", "minLength": 1}
DURATION: Schema = {"type": "string", "pattern": r"^\d+(ms|s|m|h)$"}
LABELS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}
COUNT: Schema = {"type": "integer", "minimum": 0}


def _object(required: dict[str, Schema], optional: dict[str, Schema] | None = None) -> Schema:
    properties = required | (optional or {})
    return {
        "type": "object",
        "properties": properties,
        "required": sorted(required),
        "additionalProperties": False,
    }


def _kind(api_version: str, kind: str, spec: Schema) -> Schema:
    metadata = _object({"name": TEXT, "namespace": TEXT, "labels": LABELS}, {"annotations": LABELS})
    return _object(
        {"apiVersion": {"const": api_version}, "kind": {"const": kind}, "metadata": metadata, "spec": spec}
    )


_RELABELING = _object(
    {"action": {"enum": ["labeldrop", "labelkeep", "drop", "keep", "replace"]}}, {"regex": TEXT}
)
_ENDPOINT = _object(
    {"port": TEXT, "interval": DURATION},
    {
        "path": {"type": "string", "pattern": "^/"},
        "scrapeTimeout": DURATION,
        "metricRelabelings": {"type": "array", "items": _RELABELING},
    },
)
SERVICE_MONITOR = _kind(
    "monitoring.coreos.com/v1",
    "ServiceMonitor",
    _object(
        {
            "selector": _object({"matchLabels": LABELS}),
            "endpoints": {"type": "array", "items": _ENDPOINT, "minItems": 1},
        },
        {
            "namespaceSelector": _object(
                {}, {"any": {"type": "boolean"}, "matchNames": {"type": "array", "items": TEXT}}
            )
        },
    ),
)

# Metadata of a trigger are strings, all of them: KEDA refuses a number that is not quoted.
_TRIGGER = _object(
    {
        "type": {"const": "prometheus"},
        "metadata": _object(
            {"serverAddress": {"type": "string", "pattern": "^https?://"}, "query": TEXT, "threshold": TEXT},
            {"ignoreNullValues": {"enum": ["true", "false"]}, "activationThreshold": TEXT},
        ),
    },
    {"metricType": {"enum": ["AverageValue", "Value"]}},
)
SCALED_OBJECT = _kind(
    "keda.sh/v1alpha1",
    "ScaledObject",
    _object(
        {
            "scaleTargetRef": _object({"name": TEXT}, {"apiVersion": TEXT, "kind": TEXT}),
            "triggers": {"type": "array", "items": _TRIGGER, "minItems": 1},
        },
        {
            "minReplicaCount": COUNT,
            "maxReplicaCount": COUNT,
            "pollingInterval": COUNT,
            "cooldownPeriod": COUNT,
            "advanced": _object({}, {"restoreToOriginalReplicaCount": {"type": "boolean"}}),
        },
    ),
)

CUSTOM = {"ServiceMonitor": SERVICE_MONITOR, "ScaledObject": SCALED_OBJECT}
