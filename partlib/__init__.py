"""partlib: learning discriminative parts of images without labels.

One road, one module a stage: photographs → feature maps → regions → codes → parts → learning → answers →
explanations. Each module is imported when it is first named, so that `import partlib` costs nothing.
"""

from importlib import import_module

__version__ = "0.1.0"

_MODULES = {
    "data", "backbones", "features", "regions", "whitening", "clustering", "matching", "encoding", "mining",
    "heads", "training", "partnet", "pretext", "selfcluster", "retrieval", "evaluation", "cam", "plots", "widgets", "report",
}  # fmt: skip
_NAMES = {"Backbone": "backbones", "extract": "features", "Maps": "features", "encode": "encoding", "PartNet": "partnet"}

__all__ = sorted(_MODULES | set(_NAMES))


def __getattr__(name):
    if name in _MODULES:
        return import_module(f"partlib.{name}")
    if name in _NAMES:
        return getattr(import_module(f"partlib.{_NAMES[name]}"), name)
    raise AttributeError(f"partlib has no {name!r}; it has {', '.join(__all__)}")


def __dir__():
    return __all__ + ["__version__"]
