"""A plugin that is broken is an error before training, and the error names the distribution to blame."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.examples.conftest import fake_distribution, run_program

START = "import unified_tracker as ut\nut.start_run({backend!r}, project='p')"
GOOD = """
from unified_tracker import Backend
from unified_tracker.hookspecs import hookimpl

@hookimpl
def tracker_backend():
    return Backend(name="acme", check=dict, create=None{more})
"""


def error_of(folder: Path, backend: str = "acme") -> str:
    """The last line that `start_run` leaves on standard error: class and text of the exception."""
    work = folder / "work"
    work.mkdir()
    done = run_program("-c", START.format(backend=backend), cwd=work, path=folder / "site")
    assert done.code == 1
    assert list(work.iterdir()) == [], "nothing is written before the configuration is known to be right"
    return done.err[done.err.index("unified_tracker._errors.") + len("unified_tracker._errors.") :].strip()


def test_a_plugin_that_does_not_import(tmp_path: Path) -> None:
    fake_distribution(tmp_path / "site", "acme-tracker", "acme", {"acme_plugin": "import no_such_package"})
    assert error_of(tmp_path) == (
        "PluginError: tracker backend 'acme' of acme-tracker 1.2 does not import: "
        "ModuleNotFoundError: No module named 'no_such_package'"
    )


def test_two_distributions_with_one_name(tmp_path: Path) -> None:
    fake_distribution(tmp_path / "site", "acme-tracker", "acme", {"acme_plugin": GOOD.format(more="")})
    fake_distribution(tmp_path / "site", "other-acme", "acme", {"other_plugin": GOOD.format(more="")}, "0.9")
    assert error_of(tmp_path) == (
        "PluginError: tracker backend 'acme' is offered by acme-tracker 1.2 and other-acme 0.9: uninstall one of them"
    )


def test_somebody_elses_mlflow_is_refused_beside_ours(tmp_path: Path) -> None:
    fake_distribution(tmp_path / "site", "evil-mlflow", "mlflow", {"evil_plugin": GOOD.format(more="")})
    text = error_of(tmp_path, "mlflow")
    assert "is offered by evil-mlflow 1.2 and unified-tracker" in text


@pytest.mark.parametrize("hook", ["tracker_backnd", "backend"])
def test_a_misspelt_hook(tmp_path: Path, hook: str) -> None:
    plugin = GOOD.format(more="").replace("def tracker_backend", f"def {hook}")
    fake_distribution(tmp_path / "site", "acme-tracker", "acme", {"acme_plugin": plugin})
    text = error_of(tmp_path)
    assert text.startswith("PluginError: plugin 'acme' of acme-tracker 1.2 is not valid (hooks: ")
    assert f"unknown hook '{hook}'" in text


def test_an_argument_that_the_hook_does_not_have(tmp_path: Path) -> None:
    plugin = GOOD.format(more="").replace("def tracker_backend()", "def tracker_backend(config)")
    fake_distribution(tmp_path / "site", "acme-tracker", "acme", {"acme_plugin": plugin})
    text = error_of(tmp_path)
    assert "plugin 'acme' of acme-tracker 1.2 is not valid" in text
    assert "config" in text


def test_a_hook_that_raises(tmp_path: Path) -> None:
    plugin = GOOD.format(more="").replace("return Backend", "raise KeyError('gone')\n    return Backend")
    fake_distribution(tmp_path / "site", "acme-tracker", "acme", {"acme_plugin": plugin})
    assert "acme-tracker 1.2" in error_of(tmp_path)


@pytest.mark.parametrize("value", ["None", "'acme'", "Backend(name='other', check=dict, create=None)"])
def test_a_hook_that_returns_something_else(tmp_path: Path, value: str) -> None:
    plugin = GOOD.format(more="").partition("    return")[0] + f"    return {value}\n"
    fake_distribution(tmp_path / "site", "acme-tracker", "acme", {"acme_plugin": plugin})
    assert error_of(tmp_path).startswith(
        "PluginError: plugin 'acme' of acme-tracker 1.2: tracker_backend() must return one Backend named 'acme', "
    )


def test_a_module_without_a_hook(tmp_path: Path) -> None:
    fake_distribution(tmp_path / "site", "acme-tracker", "acme", {"acme_plugin": "ANSWER = 42\n"})
    assert "plugin 'acme' of acme-tracker 1.2: tracker_backend() must return one Backend" in error_of(tmp_path)


def test_a_missing_client_says_what_to_install(tmp_path: Path) -> None:
    plugin = GOOD.format(more=", requires=('acme_sdk',), install='pip install acme-tracker[sdk]'")
    fake_distribution(tmp_path / "site", "acme-tracker", "acme", {"acme_plugin": plugin})
    assert error_of(tmp_path) == (
        "BackendUnavailableError: tracker backend 'acme' needs the package 'acme_sdk': pip install acme-tracker[sdk]"
    )


def test_an_unknown_name_lists_what_is_there(tmp_path: Path) -> None:
    fake_distribution(tmp_path / "site", "acme-tracker", "acme", {"acme_plugin": GOOD.format(more="")})
    assert error_of(tmp_path, "neptune") == (
        "BackendNotFoundError: no tracker backend named 'neptune' "
        "(installed: acme, mlflow, wandb; 'off' turns tracking off)"
    )


def test_a_broken_plugin_does_no_harm_to_the_others(tmp_path: Path) -> None:
    fake_distribution(tmp_path / "site", "acme-tracker", "acme", {"acme_plugin": "raise SystemError('broken')"})
    code = "from unified_tracker import _plugins; print(_plugins.load('mlflow').name)"
    done = run_program("-c", code, cwd=tmp_path, path=tmp_path / "site")
    assert (done.code, done.out.strip()) == (0, "mlflow")
    listed = run_program("-m", "unified_tracker.cli", "backends", cwd=tmp_path, path=tmp_path / "site", COLUMNS="200")
    assert listed.code == 0
    assert "tracker backend 'acme' of acme-tracker 1.2 does not import: SystemError: broken" in listed.out
