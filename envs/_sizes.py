# SPDX-License-Identifier: Apache-2.0
"""(observation, action) sizes of MuJoCo Playground's tasks, so that listing them imports nothing.

Of tasks whose observation is a dict, the size of its entry ``state``.
"""

from __future__ import annotations

Sizes = tuple[int | None, int | None]

UNKNOWN: Sizes = (None, None)

# The DeepMind Control Suite.
PLAYGROUND: dict[str, Sizes] = {
    "AcrobotSwingup": (6, 1),
    "AcrobotSwingupSparse": (6, 1),
    "BallInCup": (8, 2),
    "CartpoleBalance": (5, 1),
    "CartpoleBalanceSparse": (5, 1),
    "CartpoleSwingup": (5, 1),
    "CartpoleSwingupSparse": (5, 1),
    "CheetahRun": (17, 6),
    "FingerSpin": (9, 2),
    "FingerTurnEasy": (12, 2),
    "FingerTurnHard": (12, 2),
    "FishSwim": (24, 5),
    "HopperHop": (15, 4),
    "HopperStand": (15, 4),
    "HumanoidRun": (67, 21),
    "HumanoidStand": (67, 21),
    "HumanoidWalk": (67, 21),
    "PendulumSwingup": (3, 1),
    "PointMass": (4, 2),
    "ReacherEasy": (6, 2),
    "ReacherHard": (6, 2),
    "SwimmerSwimmer6": (25, 5),
    "WalkerRun": (24, 6),
    "WalkerStand": (24, 6),
    "WalkerWalk": (24, 6),
}
# Robots from MuJoCo Menagerie.
PLAYGROUND_ROBOTS: dict[str, Sizes] = {
    "AeroCubeRotateZAxis": UNKNOWN,
    "AlohaHandOver": (83, 14),
    "AlohaSinglePegInsertion": (82, 14),
    "ApolloJoystickFlatTerrain": (112, 32),
    "BarkourJoystick": UNKNOWN,
    "BerkeleyHumanoidJoystickFlatTerrain": (52, 12),
    "BerkeleyHumanoidJoystickRoughTerrain": (52, 12),
    "G1JoystickFlatTerrain": (103, 29),
    "G1JoystickRoughTerrain": (103, 29),
    "Go1Footstand": (45, 12),
    "Go1Getup": (42, 12),
    "Go1Handstand": (45, 12),
    "Go1JoystickFlatTerrain": (48, 12),
    "Go1JoystickRoughTerrain": (48, 12),
    "H1InplaceGaitTracking": (186, 19),
    "H1JoystickGaitTracking": (113, 19),
    "LeapCubeReorient": (57, 16),
    "LeapCubeRotateZAxis": (32, 16),
    "Op3Joystick": (147, 20),
    "PandaOpenCabinet": UNKNOWN,
    "PandaPickCube": UNKNOWN,
    "PandaPickCubeCartesian": UNKNOWN,
    "PandaPickCubeOrientation": UNKNOWN,
    "PandaRobotiqPushCube": (48, 7),
    "SpotFlatTerrainJoystick": (81, 12),
    "SpotGetup": (30, 12),
    "SpotJoystickGaitTracking": (69, 12),
    "T1JoystickFlatTerrain": (85, 23),
    "T1JoystickRoughTerrain": (85, 23),
}
