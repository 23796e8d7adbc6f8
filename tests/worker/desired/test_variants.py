"""Shapes of real products, and the variant that a node takes."""

from __future__ import annotations

from typing import Any

import pytest

from schemas.model import ModelRecord
from schemas.node import Device
from worker.desired.variants import Machine, chosen, gpu_model, machine, shape_of
from worker.labels import hardware_labels

GIB = 1 << 30


def gpu(name: str, number: int = 0, backend: str = "cuda", gib: int = 80, **more: Any) -> Device:
    free = {"memory_total_bytes": gib * GIB, "memory_free_bytes": gib * GIB}
    return Device.model_validate({"device": f"{backend}:{number}", "backend": backend, "name": name} | free | more)


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA A100 80GB PCIe", "A100"),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "A100"),
        ("Tesla T4", "T4"),
        ("Tesla V100-SXM2-16GB", "V100"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 NVL", "H100"),
        ("NVIDIA GH200 480GB", "GH200"),
        ("NVIDIA B200", "B200"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA A10G", "A10G"),
        ("GRID A100-40C", "A100"),
        ("NVIDIA RTX A6000", "A6000"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX6000ADA"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "RTXPRO6000"),
        ("Quadro RTX 8000", "RTX8000"),
        ("NVIDIA GeForce RTX 4090", "RTX4090"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "RTX4090"),
        ("NVIDIA GeForce GTX 1080 Ti", "GTX1080TI"),
        ("NVIDIA GeForce RTX 4070 Ti SUPER", "RTX4070TISUPER"),
        ("AMD Instinct MI300X", "MI300X"),
        ("AMD Instinct MI250X / MI250", "MI250X"),
        ("AMD Radeon RX 7900 XTX", "RX7900XTX"),
        ("AMD Radeon PRO W7900", "W7900"),
        ("AMD Radeon 8060S Graphics", "8060S"),
        ("AMD Radeon Graphics", "AMDRADEONGRAPHICS"),
        ("Intel(R) Arc(TM) A770 Graphics", "A770"),
        ("Intel(R) Data Center GPU Max 1550", "MAX1550"),
        ("Intel(R) Data Center GPU Flex 170", "FLEX170"),
        ("Apple M1", "M1"),
        ("Apple M3 Max", "M3MAX"),
        ("", "UNKNOWN"),
        ("図形", "UNKNOWN"),
    ],
)
def test_the_model_is_read_off_the_products_name(name: str, model: str) -> None:
    assert gpu_model(name) == model


def test_a_shape_counts_the_model_of_which_there_are_most() -> None:
    four = [gpu("NVIDIA A100-SXM4-80GB", number) for number in range(4)]
    assert shape_of(four) == "GPU.A100.4"
    assert shape_of([*four, gpu("NVIDIA L4", 4)]) == "GPU.A100.4"
    assert shape_of([gpu("NVIDIA L4"), gpu("NVIDIA A10G", 1)]) == "GPU.A10G.1"
    assert shape_of([]) == "CPU"


def test_parts_of_one_gpu_count_as_that_one() -> None:
    parts = [gpu("NVIDIA A100-SXM4-40GB MIG 1g.5gb", device=f"cuda:0.{n}", parent="cuda:0") for n in range(7)]
    assert shape_of(parts) == "GPU.A100.1"


def test_every_node_tells_what_its_hardware_is() -> None:
    cpu = gpu("AMD EPYC 7763", backend="cpu")
    of_a_cpu = {"puna.shape": "CPU", "puna.backend": "cpu", "puna.arch": "x86_64", "puna.engine": "yes"}
    assert hardware_labels([cpu], "x86_64") == of_a_cpu
    assert hardware_labels([cpu], "x86_64", engine=False) == of_a_cpu | {"puna.engine": "no"}
    both = [cpu, gpu("Tesla T4"), gpu("Tesla T4", 1)]
    found = hardware_labels(both, "aarch64")
    assert (found["puna.shape"], found["puna.backend"]) == ("GPU.T4.2", "cuda")


def wanted(source: str = "hf://o/r@main:Q4_K_M", **fields: Any) -> ModelRecord:
    variants = [
        {"shape": "GPU.A100.4", "quant": "F16"},
        {"memory_at_least_bytes": 40 * GIB, "quant": "Q8_0", "profile": {"slots": 8}},
        {"selector": {"labels": {"disk": "slow"}}, "files": ["*tiny*"]},
    ]
    return ModelRecord.model_validate({"model": "m", "source": source, "variants": variants} | fields)


def here(shape: str = "CPU", gib: int = 8, labels: dict[str, str] | None = None) -> Machine:
    return Machine(shape, gib * GIB, labels or {})


def test_the_first_variant_that_fits_is_taken() -> None:
    best = chosen(wanted(), here("GPU.A100.4", 80))
    assert (best.source, best.variants, best.profile.slots) == ("hf://o/r@main:F16", (), None)
    best = chosen(wanted(), here("GPU.H100.1", 80))
    assert (best.source, best.profile.slots) == ("hf://o/r@main:Q8_0", 8)
    best = chosen(wanted(), here(labels={"disk": "slow"}))
    assert (best.source, best.files) == ("hf://o/r@main:Q4_K_M", ("*tiny*",))


def test_where_none_fits_what_stands_beside_them_counts() -> None:
    best = chosen(wanted(), here())
    assert (best.source, best.files, best.variants) == ("hf://o/r@main:Q4_K_M", (), ())
    assert best.generation == wanted().generation


def test_a_quantisation_of_a_source_that_is_no_hub_is_looked_for_in_the_names() -> None:
    best = chosen(wanted("s3://bucket/models/"), here("GPU.H100.1", 80))
    assert (best.source, best.files) == ("s3://bucket/models/", ("*Q8_0*",))


def test_a_named_file_of_a_hub_gives_way_to_the_variants_quantisation() -> None:
    assert chosen(wanted("hf://o/r#a.gguf"), here("GPU.H100.1", 80)).source == "hf://o/r:Q8_0"


def test_the_largest_gpu_counts_and_without_one_the_hosts_memory() -> None:
    cpu = gpu("a processor", backend="cpu", gib=512)
    assert machine([cpu, gpu("Tesla T4", gib=16), gpu("NVIDIA L4", 1, gib=24)], {}).memory_bytes == 24 * GIB
    assert machine([cpu], {}).memory_bytes == 512 * GIB
