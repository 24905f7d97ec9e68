"""The weights of a family's classifier, from a file or our own.

Owns the reading alone. They are read by the service at its start and at a reload, not by `steersman check`,
which may run where the file is not.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from extproc.config.families import FamilyConfig
from extproc.config.load import ConfigError, Problem

if TYPE_CHECKING:
    from extproc.core.families import Weights

#: A larger file is refused unread.
WEIGHTS_BYTES_MAX = 1024 * 1024


def family_weights(family: FamilyConfig) -> Weights:
    """A family's weights. Raises ConfigError."""
    from extproc.core.families import DEFAULT, read

    if family.weights is None:
        return DEFAULT
    name = f"families.{family.name}.weights"
    path = Path(family.weights)
    try:
        size = path.stat().st_size
        if size > WEIGHTS_BYTES_MAX:
            raise ValueError(f"has {size} bytes; at most {WEIGHTS_BYTES_MAX} are read")
        return read(path.read_bytes())
    except OSError as error:
        message = f"cannot be read: {error.strerror}"
        raise ConfigError([Problem(family.weights, None, name, message)]) from error
    except ValueError as error:
        raise ConfigError([Problem(family.weights, None, name, str(error))]) from error
