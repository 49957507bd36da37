"""Base of tasks: the capability that a task needs, options of the method, and messages about memory."""

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import Tensor

from core.errors import UserError, nearest_hint
from core.memory import memory_limit
from core.types import ImageSize, NonNegativeInt, Options, PathStr, Seed
from core.units import human_bytes
from modules import capabilities
from modules.base import GenerativeModule, sampling_mode
from modules.capabilities import Injects, Samples
from tasks.inputs import read_prepared

STRICT = ConfigDict(strict=True, allow_inf_nan=False)
OUTPUT_BYTES = 12  # of a pixel of an image: three float32
WORKING_BYTES = 192  # of a pixel while it is computed; the methods take from 200 (SinGAN) to several thousand
SIZE_KEYS = ("size", "factor", "num_images", "batch_size", "num_points", "num_frames")
OUT_OF_MEMORY = re.compile(r"(allocate|enough) memory|Storage size calculation overflowed|out of memory", re.IGNORECASE)
Function = Callable[..., Tensor]
Images = Iterator[tuple[str, Tensor]]  # by name


@dataclass(kw_only=True)
class Task(ABC):
    """A use of a trained model. A call yields names and images [3, H, W] in [-1, 1], or integers of any shape.

    A task is a keyword-only dataclass, whose fields are the keys of its configuration. It sets `capability`, the protocol of
    `modules.capabilities` whose function it calls, and defines `render`.

    Args:
        options: keywords that only some methods have, checked against the method's signature.
        seed: with the number of an image it determines the image.
    """

    capability = Samples
    num_images = batch_size = num_points = num_frames = 1
    size = scale = frames_per_second = None

    options: Options | None = None
    seed: Seed = 0

    @abstractmethod
    def render(self, module: GenerativeModule, function: Function) -> Images:
        """The results; `function` is `call` with the function of the module that the task needs."""

    def __call__(self, module: GenerativeModule) -> Images:
        return self.render(module, self.bind(module))

    @property
    def name(self) -> str:
        return type(self).__module__.rpartition(".")[2]

    def run(self, module: GenerativeModule) -> dict[str, Tensor]:
        """All images by name; UserError if the memory does not suffice."""
        try:
            return dict(self(module))
        except (MemoryError, RuntimeError) as error:
            if not isinstance(error, MemoryError | torch.OutOfMemoryError) and not OUT_OF_MEMORY.search(str(error)):
                raise
            raise UserError(f"{self._sizes()}: not enough memory ({human_bytes(_memory(module))}); reduce them") from error

    def call(
        self, module: GenerativeModule, function: Function, *inputs: Any, indices: Iterable[int] = (0,), **keywords: Any
    ) -> Tensor:
        inputs = [value.to(module.device) if isinstance(value, Tensor) else value for value in inputs]
        with sampling_mode(module, self.seed, indices):
            return function(*inputs, **keywords).cpu()

    def bind(self, module: GenerativeModule) -> Function:
        """`call` of the function of the module that the task needs, with `scale` and `options`; UserError if the method lacks
        the function or an option, and for sizes beyond the memory."""
        capability, method = self.capability_of(type(module)), type(module).__name__
        function = capabilities.functions(capability)[0]
        unwritten = type(module).sample is GenerativeModule.sample and not module.no_samples
        if not isinstance(module, capability) or unwritten:
            able = ", ".join(m.__name__ for m in capabilities.methods(self.capability)) or "none"
            raise UserError(f"task {self.name} needs {function}(), which {method} does not have; methods that have it: {able}")
        height, width = self.output_size(module)
        images = self.num_images * self.num_points * self.num_frames
        needed = height * width * (images * OUTPUT_BYTES + min(self.num_images, self.batch_size) * WORKING_BYTES)
        if needed > (memory := _memory(module)):
            amounts = f"at least {human_bytes(needed)} of memory, {human_bytes(memory)} are available"
            raise UserError(f"{self._sizes()}: {height}×{width} pixels need {amounts}; reduce them")
        keywords = self._checked_options(module) | ({} if self.scale is None else {"scale": self.scale})
        return partial(self.call, module, partial(getattr(module, function), **keywords))

    @classmethod
    def capability_of(cls, method: type) -> type:
        """The capability that the task uses of a method, where it can do with one of several."""
        return cls.capability

    def check_trained(self, module: GenerativeModule) -> None:
        if not module.samples_ready:
            if module.no_samples:
                raise UserError(f"task {self.name}: {module.no_samples}")
            method, stage = type(module).__name__, module.stage_name or "its current stage"
            raise UserError(f"task {self.name}: this {method} cannot draw images yet, its training ended in {stage}")

    def output_size(self, module: GenerativeModule) -> tuple[int, int]:
        return tuple(self.size or module.image_size)

    def _sizes(self) -> str:
        values = {key: value for key in SIZE_KEYS if (value := vars(self).get(key)) is not None}
        return ", ".join(f"task.{key}={value}" for key, value in values.items()) or f"task {self.name}"

    def _checked_options(self, module: GenerativeModule) -> dict[str, Any]:
        known, values = capabilities.options(module, self.capability_of(type(module))), {}
        for name, value in (self.options or {}).items():
            if name not in known:
                methods = capabilities.methods(self.capability)
                able = [m.__name__ for m in methods if name in capabilities.options(m, self.capability_of(m))]
                hint = f"{nearest_hint(name, known)} It has: {', '.join(known) or 'none'}."
                problem = f"{type(module).__name__} has no such option in the task {self.name}.{hint}"
                raise UserError(f"task.options.{name}: {problem} Methods with {name}: {', '.join(able) or 'none'}.")
            if Tensor in (known[name].annotation, *get_args(known[name].annotation)) and isinstance(value, str):
                values[name] = read_prepared(value, module, module.image_size, f"task.options.{name}").to(module.device)
                continue
            try:
                values[name] = TypeAdapter(known[name].annotation, config=STRICT).validate_json(json.dumps(value))
            except ValidationError as error:
                raise UserError(f"task.options.{name}={value}: {error.errors()[0]['msg']}") from None
        return values


@dataclass(kw_only=True)
class ImageTask(Task):
    """A task that renders an image with the model.

    Args:
        image: file of any size and mode.
        scale: where the image enters the model, 0 = coarsest; finer scales keep more of the image. None: the coarsest one
            that the method takes an image at.
        size: [height, width] to work at; by default the image is scaled until its shorter side is the model's.
    """

    capability = Injects

    image: PathStr
    scale: NonNegativeInt | None = None
    size: ImageSize | None = None


def numbered(name: str, images: Iterable[Tensor]) -> Images:
    return ((name.format(index), image) for index, image in enumerate(images))


def _memory(module: GenerativeModule) -> int:
    return torch.cuda.mem_get_info(module.device)[0] if module.device.type == "cuda" else memory_limit()
