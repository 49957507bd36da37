"""Capabilities, options, messages about memory, and what all tasks have in common."""

import inspect
import itertools
from typing import Protocol

import pytest
import torch
from omegaconf import OmegaConf
from pydantic import TypeAdapter, ValidationError

from core.errors import UserError
from core.nodes import find_class
from core.types import PositiveInt
from modules import capabilities
from modules.base import GenerativeModule
from tests.tasks.toys import TASKS, ExactMethod, NoisyMethod, PlainMethod, task

CAPABILITIES = [c for c in vars(capabilities).values() if isinstance(c, type) and Protocol in c.__bases__]


def test_yaml_files_hold_every_key_with_its_default():
    files = sorted(TASKS.glob("*.yaml"))
    assert {file.stem for file in files} >= {"generate", "conditional", "edit", "harmonize", "inpaint"}
    for file in files:
        node = OmegaConf.load(file).task
        parameters = inspect.signature(find_class(node.class_path, ["tasks.", "reports."])).parameters
        for name, parameter in parameters.items():
            missing = OmegaConf.is_missing(node, name)
            assert missing if parameter.default is parameter.empty else node[name] == parameter.default, (
                file.name,
                name,
            )
        assert set(node) == {"class_path", *parameters}


@pytest.mark.parametrize(
    ("name", "function", "example"),
    [
        ("conditional", "inject", "FewGAN"),
        ("edit", "inject", "GPNN"),
        ("harmonize", "inject", "SinGAN"),
        ("inpaint", "inpaint", "FewGAN"),
        ("retarget", "inject", "ConSinGAN"),
        ("paint", "inject", "HPVAEGAN"),
        ("superresolve", "super_resolve", "SinGAN"),
        ("animate", "animate", "SinGAN"),
        ("interpolate", "sample_latents", "HPVAEGAN"),
    ],
)
def test_missing_capability_names_task_method_and_methods_that_have_it(files, name, function, example):
    keys = {key: files[key] for key in ("image", "mask") if key in OmegaConf.load(TASKS / f"{name}.yaml").task}
    message = rf"^task {name} needs {function}\(\), which PlainMethod does not have; methods that have it: .*{example}"
    with pytest.raises(UserError, match=message):
        list(task(name, **keys)(PlainMethod()))


def test_method_without_sample_cannot_generate():
    with pytest.raises(UserError, match="task generate needs sample"):
        list(task("generate")(GenerativeModule()))


@pytest.mark.parametrize("method", capabilities.methods(), ids=lambda method: method.__name__)
def test_every_method_accepts_what_its_capabilities_pass(method):
    """Protocols compare names only. Parameters of the protocol come first and in its order, further ones have defaults."""
    for capability in CAPABILITIES:
        for name in capabilities.functions(capability) if issubclass(method, capability) else ():
            common = list(inspect.signature(getattr(capability, name)).parameters)
            parameters = inspect.signature(getattr(method, name)).parameters
            assert list(parameters)[: len(common)] == common, (capability, name)
            for key in [*parameters][len(common) :]:
                assert parameters[key].default is not inspect.Parameter.empty, (name, key)
                assert parameters[key].annotation is not inspect.Parameter.empty, (name, key)


def test_methods_by_capability():
    """Of the methods named here exactly; those that are added later are in the lists by their functions."""
    known = {"FewGAN", "SinGAN", "ConSinGAN", "HPVAEGAN", "GPNN", "GPDM", "VQGAN", "VQGANTransformer", "LatentPatch"}
    names = {c.__name__: {m.__name__ for m in capabilities.methods(c)} for c in CAPABILITIES}
    assert names["Inpaints"] & known == {"FewGAN", "GPNN", "LatentPatch", "VQGANTransformer"}
    assert names["ExplainsSources"] & known == {"GPNN", "LatentPatch"}
    assert names["Autoencodes"] & known == {"LatentPatch", "VQGAN"}
    assert names["Samples"] & known == known - {"VQGAN"} and names["Reconstructs"] & known == known
    without = {m.__name__ for m in capabilities.methods(GenerativeModule) if m.no_samples}
    assert names["Reconstructs"] - names["Samples"] == without >= {"VQGAN"} and "GenerativeModule" not in names["Samples"]


class Choosy(NoisyMethod):
    def sample(self, num_images, size=None, temperature: float = 1.0, top_k: PositiveInt | None = None):
        return super().sample(num_images, size) * temperature


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": "hot"}, "task.options.temperature=hot: Input should be a valid number"),
        ({"temperature": True}, "task.options.temperature=True: Input should be a valid number"),
        ({"temperature": float("nan")}, "task.options.temperature=nan: "),
        ({"top_k": 2.5}, "task.options.top_k=2.5: Input should be a valid integer"),
        ({"top_k": 0}, "task.options.top_k=0: Input should be greater than or equal to 1"),
        ({"temprature": 1}, "task.options.temprature: Choosy has no such option .* Did you mean temperature?"),
    ],
)
def test_options_are_checked_against_the_signature(options, message):
    with pytest.raises(UserError, match=message):
        list(task("generate", options=options)(Choosy()))


def test_no_method_draws_codes_at_temperature_0_or_from_none():
    """That would be a division by zero and a softmax of nothing; the networks rely on the types of the options."""
    refused = set()
    for method, capability in itertools.product(capabilities.methods(), CAPABILITIES):
        options = capabilities.options(method, capability) if issubclass(method, capability) else {}
        for name in {"temperature", "top_k"} & options.keys():
            option = TypeAdapter(options[name].annotation)
            assert option.validate_python(1) == 1
            with pytest.raises(ValidationError, match="greater than"):
                option.validate_python(0)
            refused.add((method.__name__, capability.__name__, name))
    assert set(itertools.product(["FewGAN"], ["Samples", "Inpaints"], ["temperature", "top_k"])) <= refused


@pytest.mark.parametrize(
    ("name", "key"),
    [("generate", "temperature"), ("generate", "top_k"), ("generate", "start_scale"), ("inpaint", "candidates"),
     ("edit", "finetune"), ("retarget", "alpha"), ("retarget", "iterations_coarsest"), ("retarget", "noise"),
     ("animate", "beta")],
)  # fmt: skip
def test_keys_that_have_become_options_are_answered_with_the_new_ones(files, name, key):
    given = {key: files[key] for key in ("image", "mask") if key in OmegaConf.load(TASKS / f"{name}.yaml").task}
    message = rf"^task.{key}: \w+ has no such key. An option of the method is set by task.options.{key}"
    with pytest.raises(UserError, match=message):
        task(name, **given, **{key: 1})


def test_options_of_the_right_type_arrive():
    plain, half = (
        dict(task("generate", options=options)(Choosy()))["sample_000"]
        for options in ({"temperature": 1, "top_k": None}, {"temperature": 0.5})
    )
    assert torch.equal(plain * 0.5, half)


@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        ("generate", {"size": [60000, 60000]}, r"task.size=\[60000, 60000\], .*=16: 60000×60000 pixels need at least .* GB"),
        ("generate", {"num_images": 10**10}, "task.num_images=10000000000, .* need at least .* GB of memory, .* are available"),
        ("interpolate", {"num_frames": 10**9}, "task.num_frames=1000000000"),
        ("animate", {"num_frames": 10**10}, "task.num_frames=10000000000"),
        ("superresolve", {"factor": 1e5}, "task.factor=100000.0"),
        ("conditional", {"size": [10**9, 10**9]}, "task.size"),
        ("retarget", {"size": [10**5, 10**6]}, "task.size"),
    ],
)
def test_sizes_beyond_the_memory_are_refused_before_anything_is_computed(files, name, keys, message):
    keys |= {"image": files["image"]} if "image" in OmegaConf.load(TASKS / f"{name}.yaml").task else {}
    with pytest.raises(UserError, match=message):
        list(task(name, **keys)(ExactMethod()))


def test_the_limit_is_the_memory_of_this_process(monkeypatch):
    monkeypatch.setattr("tasks.task.memory_limit", lambda: 24 * 32 * (12 + 192) * 5)
    assert len(task("generate", num_images=5).run(NoisyMethod())) == 5
    with pytest.raises(UserError, match="task.num_images=6, task.batch_size=16: 24×32 pixels need at least"):
        task("generate", num_images=6).run(NoisyMethod())
    assert len(task("generate", num_images=6, batch_size=2).run(NoisyMethod())) == 6


def allocate_too_much():
    torch.empty(2**55)


def raise_memory_error():
    raise MemoryError


@pytest.mark.parametrize("failure", [allocate_too_much, raise_memory_error])
def test_allocation_failures_become_one_line(failure, monkeypatch):
    monkeypatch.setattr(NoisyMethod, "sample", lambda *_, **__: failure())
    with pytest.raises(UserError, match=r"^task.num_images=8, task.batch_size=16: not enough memory \(.*\); reduce them$"):
        task("generate").run(NoisyMethod())


def test_other_failures_keep_their_traceback(monkeypatch):
    monkeypatch.setattr(NoisyMethod, "sample", lambda *_, **__: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match="size") as caught:
        task("generate").run(NoisyMethod())
    assert not isinstance(caught.value, UserError)


@pytest.mark.parametrize("name", ["generate", "inpaint"])
def test_untrained_prior_is_refused(files, name):
    module = NoisyMethod()
    module.trained, module.stage_name = False, "scale 1"
    keys = {} if name == "generate" else {"image": files["image"], "mask": files["mask"]}
    with pytest.raises(
        ValueError, match=f"task {name}: this NoisyMethod cannot draw images yet, its training ended in scale 1"
    ):
        list(task(name, **keys)(module))


def test_tasks_restore_the_models_mode_and_the_random_state(files):
    module = NoisyMethod()
    module.train()
    state = torch.random.get_rng_state()
    for name in ("generate", "conditional", "edit", "harmonize", "inpaint"):
        keys = {} if name == "generate" else {"image": files["image"]}
        masks = {"mask": files["mask"]} if name in ("edit", "harmonize", "inpaint") else {}
        assert all(image.dtype == torch.float32 for _, image in task(name, **keys, **masks)(module))
    assert module.training and torch.equal(torch.random.get_rng_state(), state)
