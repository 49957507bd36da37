"""Metrics of generated images: a pure function and a thin torchmetrics.Metric each, one file per metric. `suite` holds those
of one measurement, `backbones/` the networks of the distances. Imports core and modules.ops alone: no Lightning, no method.
"""
