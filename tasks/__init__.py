"""Uses of a trained model: one class per file, with its YAML file of the same name in configs/tasks/.

Imports the data modules' decoder, modules.base, modules.capabilities, modules.ops and core; knows no method by name.
"""
