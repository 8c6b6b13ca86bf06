# SPDX-License-Identifier: Apache-2.0
"""Policy optimization in JAX: PPO and evolution strategies with any optax transformation."""
