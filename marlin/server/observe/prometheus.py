"""Metrics as text: the Prometheus exposition format 0.0.4, and OpenMetrics 1.0.0.

Sources: the Prometheus documentation, "Exposition formats", and the OpenMetrics 1.0 specification.
Knows neither HTTP nor where the numbers come from.
"""

from marlin.server.observe.metrics import FAMILIES, OTHER_ENDPOINT, STATUSES, total

TEXT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS_TYPE = "application/openmetrics-text; version=1.0.0; charset=utf-8"
_MODEL_INFO = ("metal_marlin_model_info", "The served model; always 1.")
_BUILD_INFO = ("metal_marlin_build_info", "The running version; always 1.")
_RESIDENT = "metal_marlin_resident_memory_bytes"
_RESIDENT_HELP = "Resident memory of all workers, memory that they share counted once."


def render(snapshots, endpoints, model_labels, build_labels, *, openmetrics=False, key_names=None):
    """The exposition, of all workers together.

    Args:
        snapshots: one array of cells (observe.metrics) for each worker.
        endpoints: label of each endpoint, by its index.
        model_labels: label names to values of the model info; None when no model is loaded.
        build_labels: the same of the build info.
        key_names: {number: name} of named keys.
        openmetrics: the OpenMetrics flavour of it.

    Returns:
        bytes.
    """
    cells = total(snapshots)
    lines = []
    for family in FAMILIES.values():
        if family.kind == "hidden":
            continue
        lines += _header(family.name, family.kind, family.help, openmetrics)
        values = cells[family.start : family.stop]
        if family.kind == "histogram":
            lines += _histogram(family, values)
        elif family.labels == ("key",):
            lines += _by_key(family.name, key_names or {}, values)
        elif family.labels:
            lines += _by_endpoint_and_status(family.name, endpoints, values)
        else:
            lines.append(f"{family.name} {_number(values[0])}")
    lines += _header(_RESIDENT, "gauge", _RESIDENT_HELP, openmetrics)
    lines.append(f"{_RESIDENT} {_number(resident_bytes(cells))}")
    for (name, text), labels in ((_MODEL_INFO, model_labels), (_BUILD_INFO, build_labels)):
        lines += _header(name, "gauge", text, openmetrics)
        if labels is not None:
            lines.append(f"{name}{_label_set(labels)} 1")
    if openmetrics:
        lines.append("# EOF")
    return ("\n".join(lines) + "\n").encode("utf-8")


def resident_bytes(cells):
    """Resident memory of all workers together, from total()'s cells.

    What several of them map (weights above all) are the same pages, so the largest counts once.
    """
    private, shared = FAMILIES["private_memory_bytes"], FAMILIES["shared_memory_bytes"]
    return cells[private.start] + cells[shared.start]


def _header(name, kind, text, openmetrics):
    if openmetrics and kind == "counter":
        name = name.removesuffix("_total")
    return [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]


def _by_endpoint_and_status(name, endpoints, values):
    """Combinations that have not occurred are left out: most of them never do."""
    for index, value in enumerate(values):
        if value:
            endpoint, status = divmod(index, len(STATUSES))
            label = "other" if endpoint == OTHER_ENDPOINT else endpoints[endpoint]
            labels = {"endpoint": label, "status": STATUSES[status]}
            yield f"{name}{_label_set(labels)} {_number(value)}"


def _by_key(name, key_names, values):
    """Of the keys that there are; one that is gone is in the totals of no other."""
    for number, label in sorted(key_names.items()):
        yield f"{name}{_label_set({'key': label})} {_number(values[number])}"


def _histogram(family, values):
    *buckets, seconds = values
    count = 0.0
    for bound, value in zip((*family.bounds, float("inf")), buckets, strict=True):
        count += value
        label = {"le": "+Inf" if bound == float("inf") else repr(bound)}
        yield f"{family.name}_bucket{_label_set(label)} {_number(count)}"
    yield f"{family.name}_sum {_number(seconds)}"
    yield f"{family.name}_count {_number(count)}"


def _number(value):
    """Whole numbers without a point, others to the last digit."""
    return str(int(value)) if float(value).is_integer() else repr(float(value))


def _label_set(labels):
    return "{" + ",".join(f'{name}="{_escaped(text)}"' for name, text in labels.items()) + "}"


def _escaped(text):
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
