"""Reward models, trained on pairs."""

from __future__ import annotations

from .objective import TrlObjective


class Reward(TrlObjective):
    """The loss of TRL's ``RewardTrainer`` on pairs: minus log sigmoid of the difference."""

    name = "reward"
    home = "trl.trainer.reward_trainer:RewardTrainer"
    read_arguments = ("center_rewards_coefficient", "disable_dropout")
