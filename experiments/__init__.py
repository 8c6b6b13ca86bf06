# SPDX-License-Identifier: Apache-2.0
"""Data, splits, benchmark runners and plots: what composes the other three packages."""
