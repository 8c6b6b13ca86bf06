# SPDX-License-Identifier: Apache-2.0
"""Tasks that judge an optimizer: validation and hold-out families, which never train it."""

from experiments.tasks.base import BenchmarkTask, Builder, content_hash

__all__ = ["BenchmarkTask", "Builder", "content_hash"]
