"""The operations that the simulator serves, one file each; a new file is found by itself."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from pipeline.simulator.base import Operation
from pipeline.simulator.config import SimulatorConfig


def find_operations(config: SimulatorConfig) -> dict[str, Operation]:
    """Make every operation there is, by its path. Names that begin with _ are helpers.

    Raises ModuleNotFoundError where the configuration insists on a package that is not installed.
    """
    names = sorted(module.name for module in iter_modules(__path__) if not module.name.startswith("_"))
    made = [import_module(f"{__name__}.{name}").make_operation(config) for name in names]
    return {operation.path: operation for operation in made}
