"""The options of torch_compile: what they make of inductor, and what is refused by name."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.backends.cases import make_source
from tests.backends.compiling import SEQUENCES, SQUARE

from preheat.backend import Buckets
from preheat.errors import InvalidConfig
from preheat_backends.torch_compile.options import _SWITCHES, CompileOptions, Recipe, make_recipe

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")


def recipe(folder: Path, device: torch.device = CPU, **parameters: str) -> Recipe:
    """What a configuration with ``parameters`` is compiled with; a device need not be there for that."""
    source = make_source(folder, parameters=parameters, device=str(device))
    return make_recipe(source, SQUARE, source.parse_parameters(CompileOptions), device=device)


@pytest.mark.parametrize(
    ("device", "parameters", "inductor"),
    [
        (CPU, {}, {"compile_threads": 1}),
        (CPU, {"freezing": "true"}, {"compile_threads": 1, "freezing": True}),
        (CUDA, {}, {}),
        (CUDA, {"mode": "reduce-overhead"}, {"triton.cudagraphs": True}),
        (
            CUDA,
            {"mode": "max-autotune", "triton_cudagraphs": "false", "max_autotune": "false"},
            {"max_autotune": False},
        ),
        (CUDA, {"shape_padding": "false", "coordinate_descent_tuning": "true"}, {"shape_padding": False}),
        (CUDA, {"force_fuse_int_mm_with_mul": "true"}, {"force_fuse_int_mm_with_mul": True}),
    ],
)
def test_options_are_merged_over_those_of_the_mode(
    tmp_path: Path, device: torch.device, parameters: dict[str, str], inductor: dict[str, Any]
) -> None:
    made = recipe(tmp_path, device, **parameters).inductor
    assert inductor.items() <= made.items()
    assert set(made) <= set(torch._inductor.config.get_config_copy())


def test_the_options_of_a_mode_are_those_that_torch_lists(tmp_path: Path) -> None:
    listed = torch._inductor.list_mode_options("max-autotune")
    assert recipe(tmp_path, CUDA, mode="max-autotune").inductor == listed
    made = recipe(
        tmp_path, mode="max-autotune-no-cudagraphs", freezing="true", cpp_simdlen="0", epilogue_fusion="false"
    )
    assert made.inductor["max_autotune"]
    assert made.inductor["cpp.simdlen"] == 0
    assert not made.inductor["epilogue_fusion"]


@pytest.mark.parametrize(
    ("device", "parameters", "message"),
    [
        (
            CPU,
            {"mode": "reduce-overhead"},
            r"mode: 'reduce-overhead': it is for CUDA graphs, and the model is on cpu; set",
        ),
        (CPU, {"mode": "max-autotune"}, r"mode: 'max-autotune': it is for CUDA graphs, .*max-autotune-no-cudagraphs"),
        (CPU, {"mode": "max-autotune-no-cudagraphs"}, r"mode: .*no effect on the CPU without freezing: true"),
        (CPU, {"max_autotune": "true"}, r"max_autotune: 'true': has no effect on the CPU without freezing: true"),
        (CPU, {"mode": "fastest"}, r"mode: 'fastest': must be one of default, reduce-overhead, max-autotune, max-"),
        (
            CPU,
            {"coordinate_descent_tuning": "true"},
            r"coordinate_descent_tuning: 'true': has no effect on cpu, only on cuda",
        ),
        (
            CPU,
            {"force_fuse_int_mm_with_mul": "true"},
            r"force_fuse_int_mm_with_mul: .* no effect on cpu, only on cuda devices",
        ),
        (
            CPU,
            {"shape_padding": "false"},
            r"shape_padding: 'false': has no effect on cpu, only on cuda devices; leave it out",
        ),
        (CPU, {"triton_cudagraphs": "true"}, r"triton_cudagraphs: 'true': has no effect on cpu"),
        (CPU, {"epilogue_fusion": "false"}, r"epilogue_fusion: 'false': has no effect without max_autotune: true"),
        (
            CPU,
            {"cpp_enable_concat_linear": "true"},
            r"cpp_enable_concat_linear: 'true': has no effect without freezing: true",
        ),
        (CPU, {"cpp_simdlen": "333"}, r"cpp_simdlen: 333: must be one of 0"),
        (CUDA, {"cpp_simdlen": "512"}, r"cpp_simdlen: 512: has no effect on cuda:0, only on cpu devices"),
        (
            CUDA,
            {"coordinate_descent_check_all_directions": "true"},
            r"no effect without coordinate_descent_tuning: true",
        ),
        (
            CUDA,
            {"mode": "reduce-overhead", "dynamic": "true"},
            r"dynamic: 'true': CUDA graphs are recorded for each size",
        ),
        (CPU, {"freezing": "yes"}, r"freezing: 'yes': must be true or false"),
    ],
)
def test_what_would_have_no_effect_is_refused_by_name(
    tmp_path: Path, device: torch.device, parameters: dict[str, str], message: str
) -> None:
    with pytest.raises(InvalidConfig, match=rf"config\.pbtxt: parameters: .*{message}"):
        recipe(tmp_path, device, **parameters)


def test_an_option_that_this_torch_lacks_is_refused_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(_SWITCHES, "freezing", replace(_SWITCHES["freezing"], key="glaciation"))
    with pytest.raises(InvalidConfig, match=r"freezing: 'true': inductor of torch 2\..* has no option glaciation"):
        recipe(tmp_path, freezing="true")


def test_every_option_is_one_that_inductor_has() -> None:
    known = torch._inductor.config.get_config_copy()
    assert [switch.key for switch in _SWITCHES.values() if switch.key not in known] == []


def test_buckets_and_dynamic_are_ways_to_serve_varying_dimensions(tmp_path: Path) -> None:
    for settings in ({"parameters": {"dynamic": "true"}}, {"buckets": Buckets(sizes={"sequence": (8,)})}):
        source = make_source(tmp_path, **settings)
        make_recipe(source, SEQUENCES, source.parse_parameters(CompileOptions), device=CPU)
