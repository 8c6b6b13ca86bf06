# SPDX-License-Identifier: Apache-2.0
"""The executable ``mnemosyne``: one module a verb, with a frozen config and ``run(config)``."""
