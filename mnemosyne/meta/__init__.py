# SPDX-License-Identifier: Apache-2.0
"""Meta-training: tasks, unrolls, gradient estimators, the outer loop and its validation."""
