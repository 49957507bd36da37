"""What is particular to DCGAN; all else is the contract's."""

from modules.dcgan_toy import DCGAN

TINY = ["datamodule.image_size=[16,20]", "datamodule.batch_size=2", "datamodule.samples_per_epoch=8", "module.width=4",
        "module.epochs=3"]  # fmt: skip
PARAMETERS = {"dcgan_toy": 226980}


def test_learning_rates_are_the_papers():
    optimizers = DCGAN([16, 20]).stage_optimizers(0)
    assert [group["lr"] for optimizer in optimizers for group in optimizer.param_groups] == [2e-4, 2e-4]
