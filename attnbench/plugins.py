"""Finding plugins, loading them, and collecting what they bring into one `Registry`."""

import contextlib
import difflib
import fnmatch
import hashlib
import importlib
import importlib.util
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import pluggy

from attnbench import hookspecs
from attnbench.errors import PluginError
from attnbench.implementation import Implementation
from attnbench.problem import suggestion
from attnbench.records import Owner

GROUP = "attnbench"
ENTRY_POINT = "entry point"
"""`Owner.source` of an installed plugin."""


@dataclass(frozen=True, kw_only=True)
class Plugin:
    """A plugin that was found: who it is, where to load it from, and what it brings."""

    owner: Owner
    target: str
    """`package.module`, `package.module:attribute` or `path/to/file.py`: what `load` takes."""
    implementations: tuple[Implementation, ...] = ()
    environment: Callable[[], Mapping[str, str]] = dict
    """Calls the hook of that name."""


@dataclass(frozen=True, kw_only=True)
class Registry:
    """All plugins, the broken ones too, and every implementation by its name."""

    plugins: tuple[Plugin, ...]
    implementations: Mapping[str, Implementation]
    owners: Mapping[str, Plugin]
    """Implementation -> the plugin that brings it."""

    @property
    def broken(self) -> tuple[Owner, ...]:
        return tuple(plugin.owner for plugin in self.plugins if plugin.owner.error)

    def select(self, only: Sequence[str], without: Sequence[str] = ()) -> tuple[str, ...]:
        """Names that match one of the globs `only` and none of `without`, in order of registration.

        Raises `PluginError` for a glob that matches nothing; a broken plugin is then named as a likely cause.
        """
        for pattern in (*only, *without):
            if not fnmatch.filter(self.implementations, pattern) and pattern != "*":
                raise PluginError(f"no implementation matches `{pattern}`", hint=self._hint(pattern))
        return tuple(
            name
            for name in self.implementations
            if any(fnmatch.fnmatchcase(name, p) for p in only)
            and not any(fnmatch.fnmatchcase(name, p) for p in without)
        )

    def _hint(self, pattern: str) -> str:
        broken = [f"plugin `{o.plugin}` could not be loaded: {o.error}" for o in self.broken]
        return "; ".join([*broken, self._similar(pattern)])

    def _similar(self, pattern: str) -> str:
        """Of a glob, the nearest that matches something and differs in its longest literal part only."""
        literal = max(re.split(r"[*?]|\[[^]]*\]", pattern), key=len)
        pieces = {
            name[start : start + size]
            for name in self.implementations
            for size in (len(literal) - 1, len(literal), len(literal) + 1)
            for start in range(len(name) - size + 1)
        }
        globs = [
            pattern.replace(literal, piece) for piece in pieces if len(literal) > 2 and literal != pattern
        ]
        matching = sorted(glob for glob in globs if fnmatch.filter(self.implementations, glob))
        close = difflib.get_close_matches(pattern, matching, n=1)
        return f"did you mean `{close[0]}`?" if close else suggestion(pattern, self.implementations)


PATIENCE = 5.0
"""Seconds that a plugin's import takes before somebody is told."""


def _nobody(plugin: str) -> None:
    pass


def discover(extra: Sequence[str] = (), slow: Callable[[str], object] = _nobody) -> Registry:
    """Everything registered under the entry-point group, and each of `extra` (`file.py` or `package.module`).

    A plugin that fails to import is kept with its error. `slow` is told the name of one whose import takes more than
    `PATIENCE`. Raises `PluginError` for a missing file, a misspelt hook, a plugin of `extra` that has none, a record of
    the wrong type, and two plugins that bring the same name.
    """
    found = [
        _load(point.name, ENTRY_POINT, point.value, _version(point.dist.name if point.dist else None), slow)
        for point in sorted(
            entry_points(group=GROUP), key=lambda p: (not p.value.startswith("attnbench."), p.name)
        )
    ]
    for target in extra:
        if target.endswith(".py") and not Path(target).is_file():
            raise PluginError(
                f"no plugin file `{target}`", hint="give a path to a .py file, or package.module"
            )
        found.append(_load(Path(target).stem if target.endswith(".py") else target, target, target, "", slow))
    implementations: dict[str, Implementation] = {}
    owners: dict[str, Plugin] = {}
    for plugin in found:
        for implementation in plugin.implementations:
            name = implementation.name
            if name in owners:
                one, two = (f"`{p.owner.plugin}` ({p.owner.source})" for p in (owners[name], plugin))
                raise PluginError(
                    f"plugins {one} and {two} both bring an implementation `{name}`", hint="rename one"
                )
            implementations[name], owners[name] = implementation, plugin
    return Registry(plugins=tuple(found), implementations=implementations, owners=owners)


def load(target: str) -> Mapping[str, Implementation]:
    """The implementations of one plugin, as a worker needs them. Raises whatever the plugin raises."""
    return {found.name: found for found in _collect(_manager(_import(target), target), target)}


def _load(name: str, source: str, target: str, dist_version: str, slow: Callable[[str], object]) -> Plugin:
    owner = Owner(plugin=name, source=source, version=dist_version)
    try:
        with _watched(name, slow):
            module = _import(target)
            manager = _manager(module, name)
            if source != ENTRY_POINT and not manager.get_hookcallers(module):
                raise PluginError(f"plugin `{name}` has no hook, so it brings nothing", hint=_NO_HOOK)
            implementations = _collect(manager, name)
    except (KeyboardInterrupt, PluginError):
        raise
    except BaseException as error:  # a plugin may raise SystemExit while it is imported
        reason = f"{type(error).__name__}: {str(error).strip() or 'no message'}".splitlines()[0]
        return Plugin(owner=replace(owner, error=reason), target=target)
    return Plugin(
        owner=replace(owner, source_hash=_hash(module)),
        target=target,
        implementations=implementations,
        environment=lambda: _facts(manager),
    )


_NO_HOOK = "define `attnbench_implementations` and decorate it with @attnbench.hookimpl"


@contextlib.contextmanager
def _watched(name: str, slow: Callable[[str], object]) -> Iterator[None]:
    timer = threading.Timer(PATIENCE, slow, [name])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _import(target: str) -> Any:
    if target.endswith(".py"):
        path = Path(target).resolve()
        name = f"attnbench_plugin_{hashlib.sha256(bytes(path)).hexdigest()[:12]}"
        if name in sys.modules:
            return sys.modules[name]
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses and pickle look modules up here
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
        return module
    name, _, attribute = target.partition(":")
    found: Any = importlib.import_module(name)
    for part in attribute.split(".") if attribute else ():
        found = getattr(found, part)
    return found


def _manager(module: Any, name: str) -> pluggy.PluginManager:
    manager = pluggy.PluginManager("attnbench")
    manager.add_hookspecs(hookspecs)
    hooks = [hook for hook in vars(hookspecs) if hook.startswith("attnbench_")]
    for key, value in vars(module).items() if isinstance(module, ModuleType) else ():
        if key.startswith("attnbench_") and isinstance(value, FunctionType):
            if key not in hooks:
                raise PluginError(f"plugin `{name}`: there is no hook `{key}`", hint=suggestion(key, hooks))
            if not hasattr(value, "attnbench_impl"):
                raise PluginError(
                    f"plugin `{name}`: `{key}` is not marked", hint="decorate it with @attnbench.hookimpl"
                )
    try:
        manager.register(module, name)
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        message = str(error).strip().splitlines()[-1]
        raise PluginError(f"plugin `{name}`: {message}", hint=f"the hooks are: {', '.join(hooks)}") from None
    return manager


def _collect(manager: pluggy.PluginManager, name: str) -> tuple[Implementation, ...]:
    records = [record for result in manager.hook.attnbench_implementations() for record in result]
    for record in records:
        if not isinstance(record, Implementation):
            raise PluginError(
                f"plugin `{name}` brought {record!r}", hint="yield attnbench.Implementation records"
            )
    return tuple(records)


def _facts(manager: pluggy.PluginManager) -> dict[str, str]:
    return {str(k): str(v) for result in manager.hook.attnbench_environment() for k, v in result.items()}


def _hash(module: Any) -> str:
    """SHA-256 of the source file that defines the plugin; empty where there is none."""
    file = getattr(sys.modules.get(getattr(module, "__module__", ""), module), "__file__", None)
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else ""


@cache
def _version(distribution: str | None) -> str:
    try:
        return version(distribution) if distribution else ""
    except PackageNotFoundError:
        return ""


def requirements(implementation: Implementation) -> tuple[str, str | None]:
    """(`distribution version` of all that it requires, the reason why it is unavailable or None)."""
    missing = [name for name in implementation.requires if not _version(name)]
    if missing:
        return "", f"needs {', '.join(missing)}, which is not installed"
    return " ".join(f"{name} {_version(name)}" for name in implementation.requires), None
