"""gnnstab: what went numerically wrong in a graph transformer, where, why, and proof that the fix works."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gnnstab import fixes as fixes
    from gnnstab.diagnosis import diagnose as diagnose
    from gnnstab.monitor import Monitor as Monitor
    from gnnstab.probe.attention_calls import attention as attention
    from gnnstab.records import Diagnosis as Diagnosis
    from gnnstab.records import Finding as Finding
    from gnnstab.trace import Trace as Trace
    from gnnstab.verification import verify as verify

__version__ = "0.1.0"

__all__ = ["Diagnosis", "Finding", "Monitor", "Trace", "__version__", "attention", "diagnose", "fixes", "verify"]

# Loaded on first use, so that `import gnnstab` stays cheap and free of torch.
_HOMES = {
    "Diagnosis": "gnnstab.records",
    "Finding": "gnnstab.records",
    "Monitor": "gnnstab.monitor",
    "Trace": "gnnstab.trace",
    "attention": "gnnstab.probe.attention_calls",
    "diagnose": "gnnstab.diagnosis",
    "fixes": "gnnstab.fixes",
    "verify": "gnnstab.verification",
}


# Records are the lowest room and know no report; only the face of the package knows both.
_PRESENTERS = {
    "text": ("gnnstab.report", "render"),
    "page": ("gnnstab.report.html", "embed"),
    "file": ("gnnstab.report.saving", "save"),
}


def presented(diagnosis: "Diagnosis", form: str, *arguments: Any, **options: Any) -> Any:
    """A diagnosis as ``text`` for a terminal, as a ``page`` for a notebook, or as a ``file``."""
    home, name = _PRESENTERS[form]
    return getattr(import_module(home), name)(diagnosis, *arguments, **options)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'gnnstab' has no attribute {name!r}")
    home = import_module(_HOMES[name])
    value = home if name == "fixes" else getattr(home, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
