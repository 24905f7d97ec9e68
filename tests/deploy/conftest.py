"""Fixtures of the deployment's tests: the repository, the real helm, the chart in each mode."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from deploy_harness import GOLDEN, MODES, ROOT, SCALING


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def helm() -> str:
    """The real helm: $HELM, else PATH's. Its output is kept under golden/, so that a machine without it still
    checks every manifest; building it takes minutes, and CI does without."""
    found = os.environ.get("HELM") or shutil.which("helm")
    if found is None:
        pytest.skip("no helm: go install helm.sh/helm/v3/cmd/helm@latest, or give its path in HELM")
    return found


@pytest.fixture(scope="session", params=MODES)
def chart(request: pytest.FixtureRequest) -> tuple[str, list[dict[str, Any]]]:
    """A mode, and the chart's manifests in it as the real helm rendered them."""
    mode = str(request.param)
    text = (GOLDEN / f"{mode}.yaml").read_text(encoding="utf-8")
    return mode, [document for document in yaml.load_all(text, Loader=yaml.CSafeLoader) if document]


@pytest.fixture(scope="session", params=(*MODES, *SCALING))
def any_chart(request: pytest.FixtureRequest) -> tuple[str, list[dict[str, Any]]]:
    """The same of every kept rendering, those of scaling too."""
    name = str(request.param)
    text = (GOLDEN / f"{name}.yaml").read_text(encoding="utf-8")
    return name, [document for document in yaml.load_all(text, Loader=yaml.CSafeLoader) if document]
