"""The controller of Adaptive Loss Alignment: state, policy, reward, learning, and policies on disk."""

from __future__ import annotations

from .controller import Controller, check_policy
from .learner import ControllerSettings, Episode, Learner
from .policy import Policy
from .policy_file import load_policy, save_policy
from .reward import discounted_mean, sign_reward
from .state import StateHistory, range_coordinate, state_width

__all__ = [
    "Controller",
    "ControllerSettings",
    "Episode",
    "Learner",
    "Policy",
    "StateHistory",
    "check_policy",
    "discounted_mean",
    "load_policy",
    "range_coordinate",
    "save_policy",
    "sign_reward",
    "state_width",
]
