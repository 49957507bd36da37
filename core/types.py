"""Types of parameters with the range of their values, for constructors that a configuration describes. Imports pydantic only.

`cli.schema` checks a configuration against them; Python itself does not.
"""

import os
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, Field

PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
AtLeastTwo = Annotated[int, Field(ge=2)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, le=1)]
OpenFraction = Annotated[float, Field(gt=0, lt=1)]  # neither none nor all
BelowOne = Annotated[float, Field(ge=0, lt=1)]  # such as a rate of dropout
Betas = Annotated[tuple[BelowOne, BelowOne], Field(description="[beta1, beta2], both >= 0 and < 1")]
Seed = Annotated[int, Field(ge=0, lt=2**32, description="int from 0 to 2^32 - 1")]  # what numpy accepts
ImageSize = Annotated[list[PositiveInt], Field(min_length=2, max_length=2, description="[height, width], both >= 1")]
PathStr = Annotated[str, AfterValidator(os.path.expanduser), Field(description="path")]  # ~ is expanded at load
Node = Mapping[str, Any]  # {class_path: …, keyword: value}, built by `core.nodes.build_node`
Options = Mapping[str, Any]  # keywords that a method's own signature checks, see `tasks.task`
