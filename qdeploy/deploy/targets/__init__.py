"""The runtimes that files are made for: each module here is one, and ends in TARGET = Target(...)."""

import pkgutil


def available() -> list[str]:
    """The names of all targets; none of them is imported."""
    return [module.name for module in pkgutil.iter_modules(__path__)]
