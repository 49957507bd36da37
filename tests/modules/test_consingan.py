TINY = [
    "datamodule.image_size=[16,20]",
    "datamodule.batch_size=2",
    "datamodule.samples_per_epoch=8",
    "module.epochs_per_stage=2",
    "module.num_scales=4",
    "module.min_size=9",
    "module.train_depth=2",
    "module.num_layers=2",
    "module.width=8",
]
