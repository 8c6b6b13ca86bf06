# SPDX-License-Identifier: Apache-2.0
"""Columns of the readout of the token network: what it says of each token.

In the order of :data:`mnemosyne.controller.NUM_SCALARS`: step size, Nesterov weight, decays of both
moments, weight of the orthogonalised momentum, direction and pace of the gain.
"""

STEP, NESTEROV, BETA1, BETA2, POLAR, TURN, PACE = range(7)
