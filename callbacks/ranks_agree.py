"""Checks that all ranks of a fit start from the same things."""

from collections.abc import Mapping

import torch
from lightning import Callback, LightningModule, Trainer

from experiment.ranks import differing_facts


class CheckRanksAgree(Callback):
    """Ends a fit whose ranks differ in their `experiment.ranks.start_facts`, on all of them, before the first step."""

    def __init__(self, facts: Mapping[str, str]) -> None:
        self.facts = dict(facts)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        facts: list[dict[str, str]] = [self.facts] * trainer.world_size
        if trainer.world_size > 1:
            torch.distributed.all_gather_object(facts, self.facts)
        if lines := differing_facts(facts):
            advice = "run_dir, images and code have to be the same on all nodes, for example on a shared disk."
            message = "\n".join(["error: ranks disagree at start-up:", *lines, advice])
            raise SystemExit(message if trainer.is_global_zero else 2)
