"""The controller of Adaptive Loss Alignment: state, policy, reward, learning, and policies on disk."""

from __future__ import annotations

from .controller import Controller, check_policy
from .critic import Critic
from .critic_file import load_critic, save_critic
from .group import GroupController
from .learner import ControllerSettings, Episode, Learner
from .many import MANY, ManyController
from .policy import Policy
from .policy_file import load_policy, save_policy
from .proposals import mutation, prior_draw
from .reward import discounted_mean, sign_reward
from .selection import ranking, relative_rewards, rungs_for, survivors, training_cost
from .state import StateHistory, range_coordinate, state_width
from .summary import summary_of
from .unit_cube import from_unit, to_unit

__all__ = [
    "MANY",
    "Controller",
    "ControllerSettings",
    "Critic",
    "Episode",
    "GroupController",
    "Learner",
    "ManyController",
    "Policy",
    "StateHistory",
    "check_policy",
    "discounted_mean",
    "from_unit",
    "load_critic",
    "load_policy",
    "mutation",
    "prior_draw",
    "range_coordinate",
    "ranking",
    "relative_rewards",
    "rungs_for",
    "save_critic",
    "save_policy",
    "sign_reward",
    "state_width",
    "summary_of",
    "survivors",
    "to_unit",
    "training_cost",
]
