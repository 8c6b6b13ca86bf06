# SPDX-License-Identifier: Apache-2.0
"""Evolution strategies whose mean is moved by any optax transformation."""

from robotics.es.config import ESConfig, presets
from robotics.es.rivals import list_rivals, make_rival
from robotics.es.train import make_es

__all__ = ["ESConfig", "list_rivals", "make_es", "make_rival", "presets"]
