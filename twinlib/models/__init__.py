"""Twin models, one per file. A model outside the package is named `module:Name` in the configuration."""

from __future__ import annotations

import importlib
import pkgutil

from twinlib.engine.contract import Model, ModelError


def find(name: str) -> Model:
    """The model of that name, from this package (`glucose_insulin`) or from anywhere (`module:Name`). Raises ModelError."""
    module, _, attribute = name.partition(":")
    if not attribute:
        known = sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name not in ("batch", "implied", "timeline"))
        if name not in known:
            raise ModelError(f"unknown model {name!r}; known: {', '.join(known)}, or module:Name of your own")
        module, attribute = f"{__name__}.{name}", "MODEL"
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as e:
        raise ModelError(f"model {name!r} cannot be imported: {e}") from None
    found = found() if isinstance(found, type) and issubclass(found, Model) else found
    if not isinstance(found, Model):
        raise ModelError(f"model {name!r} is not a twinlib Model")
    return found
