# SPDX-License-Identifier: Apache-2.0
"""What can be said about the optimizer without training with it: chaos and memory theory."""
