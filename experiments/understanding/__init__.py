# SPDX-License-Identifier: Apache-2.0
"""What an optimizer does while it trains a policy: ``mnemosyne analyze policy``.

:mod:`.watch` takes notes of every update, :mod:`.study` trains policies under watch and sums up,
:mod:`.figures` draws.
"""
