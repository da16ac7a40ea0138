"""What a package says of itself: its version, and what it needs."""

import importlib
import importlib.metadata
import importlib.util
from pathlib import Path

import pytest


def test_the_version_is_that_of_the_distribution(backend):
    package = backend.module("ops").__spec__.name.split(".")[0]
    found = importlib.import_module(package)
    assert found.__version__ == importlib.metadata.version("pyro-dvae")
    with pytest.raises(AttributeError, match=rf"module '{package}' has no attribute 'version'"):
        found.version  # noqa: B018


def test_what_is_not_installed_is_named_with_the_extra(backend, monkeypatch):
    path = Path(importlib.import_module(f"{backend.name}_dvae").__file__)
    spec = importlib.util.spec_from_file_location(f"{backend.name}_dvae_alone", path)
    module, is_there = importlib.util.module_from_spec(spec), importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == backend.name else is_there(name)
    )
    words = rf"{backend.name}_dvae needs {backend.name}, .*'pyro-dvae\[{backend.name}\]'"
    with pytest.raises(ImportError, match=words):
        spec.loader.exec_module(module)
