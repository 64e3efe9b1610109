import textwrap
import threading
from pathlib import Path

import pytest

from attnbench import plugins
from attnbench.errors import PluginError

HEAD = """
from attnbench import Capabilities, Implementation, hookimpl

def one(name):
    return Implementation(name=name, summary="s", capabilities=Capabilities(dtypes=frozenset({"float32"})),
                          prepare=lambda problem, inputs: lambda: inputs.q)
"""


def plugin(folder: Path, body: str, name: str = "mine.py") -> str:
    path = folder / name
    path.write_text(HEAD + textwrap.dedent(body))
    return str(path)


GOOD = """
    @hookimpl
    def attnbench_implementations():
        yield one("my-kernel")
"""


def test_a_file_is_a_plugin(tmp_path: Path) -> None:
    path = plugin(tmp_path, GOOD)
    registry = plugins.discover([path])
    assert "my-kernel" in registry.implementations
    assert registry.owners["my-kernel"].owner.source == path
    assert list(plugins.load(path)) == ["my-kernel"]


def test_built_in_implementations_come_through_entry_points_like_anybodys() -> None:
    registry = plugins.discover()
    assert {owner.owner.source for owner in registry.owners.values()} == {"entry point"}
    assert {
        "numpy",
        "torch-naive",
        "torch-chunked",
        "torch-sdpa",
        "torch-sdpa-math",
        "torch-sdpa-flash",
    } <= set(registry.implementations)
    assert all(p.owner.source_hash for p in registry.plugins)


def test_two_plugins_may_not_bring_the_same_name(tmp_path: Path) -> None:
    first, second = plugin(tmp_path, GOOD), plugin(tmp_path, GOOD, "yours.py")
    with pytest.raises(PluginError) as caught:
        plugins.discover([first, second])
    assert "`mine`" in caught.value.message
    assert "`yours`" in caught.value.message


def test_a_misspelt_hook_is_an_error_with_a_suggestion(tmp_path: Path) -> None:
    path = plugin(tmp_path, "@hookimpl\ndef attnbench_implementation():\n    return []\n")
    with pytest.raises(PluginError) as caught:
        plugins.discover([path])
    assert "attnbench_implementation" in caught.value.message
    assert "did you mean `attnbench_implementations`?" in (caught.value.hint or "")


def test_a_hook_without_its_mark_is_an_error(tmp_path: Path) -> None:
    path = plugin(tmp_path, "def attnbench_implementations():\n    return []\n")
    with pytest.raises(PluginError, match="is not marked"):
        plugins.discover([path])


def test_a_wrong_argument_of_a_hook_is_an_error(tmp_path: Path) -> None:
    path = plugin(tmp_path, "@hookimpl\ndef attnbench_implementations(registry):\n    return []\n")
    with pytest.raises(PluginError, match="mine"):
        plugins.discover([path])


def test_a_record_of_another_type_is_an_error(tmp_path: Path) -> None:
    path = plugin(tmp_path, "@hookimpl\ndef attnbench_implementations():\n    return ['softmax']\n")
    with pytest.raises(PluginError, match="brought 'softmax'"):
        plugins.discover([path])


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("import nothing_of_that_name", "ModuleNotFoundError: No module named 'nothing_of_that_name'"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("def broken(:", "SyntaxError"),
        ("@hookimpl\ndef attnbench_implementations():\n    yield one('two words')\n", "ValueError"),
    ],
)
def test_a_plugin_that_fails_to_load_is_kept_with_its_reason(tmp_path: Path, body: str, reason: str) -> None:
    registry = plugins.discover([plugin(tmp_path, body)])
    assert [owner.plugin for owner in registry.broken] == ["mine"]
    assert registry.broken[0].error.startswith(reason)
    assert "torch-sdpa" in registry.implementations


def test_a_broken_plugin_is_named_where_its_implementation_is_asked_for(tmp_path: Path) -> None:
    registry = plugins.discover([plugin(tmp_path, "import nothing_of_that_name")])
    with pytest.raises(PluginError) as caught:
        registry.select(["mine-*"])
    assert "nothing_of_that_name" in (caught.value.hint or "")


def test_a_missing_file_is_an_error() -> None:
    with pytest.raises(PluginError, match="no plugin file"):
        plugins.discover(["nowhere/kernel.py"])


def test_globs_choose_and_leave_out() -> None:
    registry = plugins.discover()
    assert set(registry.select(["torch-sdpa*"], ["*-flash"])) >= {"torch-sdpa", "torch-sdpa-math"}
    assert "torch-sdpa-flash" not in registry.select(["torch-sdpa*"], ["*-flash"])
    with pytest.raises(PluginError) as caught:
        registry.select(["torch-sdpaa"])
    assert "did you mean `torch-sdpa`?" in (caught.value.hint or "")


def test_requirements_that_are_missing_are_named() -> None:
    import dataclasses

    found = plugins.discover().implementations["torch-sdpa"]
    assert plugins.requirements(found)[0].startswith("torch ")
    lacking = dataclasses.replace(found, requires=("torch", "no-such-distribution"))
    assert plugins.requirements(lacking)[1] == "needs no-such-distribution, which is not installed"


@pytest.mark.parametrize("body", ["", "def implementations():\n    return []\n"])
def test_a_file_without_a_hook_is_an_error_with_a_hint(tmp_path: Path, body: str) -> None:
    with pytest.raises(PluginError, match="plugin `mine` has no hook") as caught:
        plugins.discover([plugin(tmp_path, body)])
    assert "attnbench_implementations" in (caught.value.hint or "")


def test_an_import_that_takes_long_is_told_while_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = threading.Event()
    monkeypatch.setattr(plugins, "PATIENCE", 0.01)
    monkeypatch.setattr(plugins, "told", told, raising=False)
    path = plugin(
        tmp_path, f"from attnbench import plugins\nassert plugins.told.wait(30)\n{textwrap.dedent(GOOD)}"
    )
    seen: list[str] = []

    def slow(name: str) -> None:
        seen.append(name)
        if name == "mine":
            told.set()

    assert "my-kernel" in plugins.discover([path], slow).implementations
    assert seen[-1] == "mine"
