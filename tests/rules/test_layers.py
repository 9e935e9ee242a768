"""Which module may import which: the floor plan as a list of layers, read from the source.

A new module belongs to the group with the longest name that its own name begins with. To add a
group, write it into the layer above everything that it imports.
"""

from __future__ import annotations

import pytest

from tests.support.source import MODULES, PRODUCT, imports, imports_when_loaded, loaded_with, within

# From the lowest layer up. A module may import modules of lower layers and of its own group.
LAYERS = (
    ("dlrm.op_library",),
    (
        *("interact_op", "dlrm.version", "dlrm.cli", "dlrm.formats", "dlrm.metrics", "dlrm.optim"),
        *("dlrm.layers", "dlrm.distributed", "dlrm.cpu_ops"),
    ),
    ("dlrm.config", "dlrm.data", "dlrm.embedding", "dlrm.reporting"),
    ("dlrm.checkpoint",),
    ("dlrm.train",),
    ("model", "dataset", "split_bin", "preprocess", "launch"),
    ("serving",),
    ("dlrm_v3",),
    ("main", "tools", "benchmarks", "setup"),
)
LAYER_OF = {group: number for number, layer in enumerate(LAYERS) for group in layer}

TENSORFLOW_FREE = (
    *("dlrm.cli", "dlrm.formats", "dlrm.data", "dlrm.config", "dlrm.optim.schedule"),
    *("dlrm.metrics", "dlrm.reporting", "dlrm.distributed.watchdog"),
    *("dlrm.distributed.sharding", "dlrm.distributed.host_memory", "dlrm.train.callback"),
    "dlrm.layers.interaction_width",
    "dlrm.layers.interaction_shape",
    *("dlrm.checkpoint.__main__", "preprocess", "launch", "split_bin", "serving"),
    *("dlrm_v3.config", "dlrm_v3.data", "dlrm_v3.generate", "dlrm_v3.accuracy"),
    "dlrm_v3.quality",
)
# These make or run TensorFlow's form of a model.
TENSORFLOW_ANYWAY = ("serving.saved_model", "serving.inference_benchmark")
TENSORFLOW = {"tensorflow", "keras", "horovod", "sparse_operation_kit"}

# Errors in flags and --help must not wait for these.
QUICK = (
    *("main", "split_bin", "launch.__main__", "preprocess.__main__", "dlrm.checkpoint.__main__"),
    "launch.srun",
    *("dlrm.config", "dlrm.optim.schedule", "dlrm.formats.metadata", "serving.__main__"),
    *("dlrm_v3.train.__main__", "dlrm_v3.train.settings"),
)
HEAVY = TENSORFLOW | {"polars", "pyspark", "matplotlib", "numba"}


def group_of(name: str) -> str:
    """The group of a module, by the longest matching name."""
    groups = [group for group in LAYER_OF if within(name, group)]
    assert groups, f"{name} is in no layer: add it, or a package around it, to LAYERS"
    return max(groups, key=len)


def importers(package: str) -> set[str]:
    """The modules that import a package; tests may import what they test."""
    return {name for name in PRODUCT if package in imports(name)}


@pytest.mark.parametrize("name", sorted(PRODUCT.keys() - {"dlrm"}))
def test_a_module_imports_only_lower_layers_and_its_own_group(name: str) -> None:
    group = group_of(name)
    for target in imports(name) & PRODUCT.keys() - {"dlrm"}:
        other = group_of(target)
        assert other == group or LAYER_OF[other] < LAYER_OF[group], f"{name} imports {target}"


def test_every_group_of_the_layers_is_there() -> None:
    found = {group_of(name) for name in PRODUCT.keys() - {"dlrm"}}
    assert found == LAYER_OF.keys()


def test_the_package_itself_loads_nothing() -> None:
    """Otherwise each module of it would load that too."""
    assert imports("dlrm") == set()


def test_the_product_imports_no_tests() -> None:
    assert {
        name for name in PRODUCT if any(within(target, "tests") for target in imports(name))
    } == set()


@pytest.mark.parametrize(
    ("package", "allowed"),
    [
        ("horovod", {"dlrm.distributed.collective"}),
        ("sparse_operation_kit", {"dlrm.embedding.sok_storage"}),
        ("merlin_sok", set()),
        ("absl", {"main"}),
    ],
)
def test_one_module_alone_imports(package: str, allowed: set[str]) -> None:
    assert importers(package) == allowed


def test_only_the_spark_engine_imports_spark() -> None:
    assert all(within(name, "preprocess.engine_spark") for name in importers("pyspark"))
    assert importers("pyspark")


def test_the_engines_of_preprocess_do_not_import_each_other() -> None:
    for engine, other in (("polars", "spark"), ("spark", "polars")):
        for name in PRODUCT:
            if within(name, f"preprocess.engine_{engine}"):
                found = [target for target in imports(name) if f"engine_{other}" in target]
                assert not found, name


@pytest.mark.parametrize("name", ["step", "loop", "evaluation", "callback"])
def test_step_and_loop_import_neither_files_nor_reports(name: str) -> None:
    """What they need of these, `dlrm.train.run` hands to them."""
    above = ("dlrm.checkpoint", "dlrm.reporting", "dlrm.train.run", "dlrm.train.build")
    found = [target for target in imports(f"dlrm.train.{name}") if within(target, *above)]
    assert not found


def test_only_the_model_imports_the_fused_interaction() -> None:
    apart = "interact_op", "benchmarks", "tools"  # itself, and what measures or checks it
    assert {name for name in importers("interact_op") if not within(name, *apart)} == {"model"}


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in sorted(PRODUCT)
        if within(name, *TENSORFLOW_FREE) and not within(name, *TENSORFLOW_ANYWAY)
    ],
)
def test_no_tensorflow_in(name: str) -> None:
    found = (imports(name) | loaded_with(name)) & TENSORFLOW
    assert not found


@pytest.mark.parametrize("name", QUICK)
def test_quick_modules_load_nothing_heavy(name: str) -> None:
    assert name in MODULES
    found = loaded_with(name) & HEAVY
    assert not found


def test_no_cycle() -> None:
    graph = {
        # A package may gather what its own modules define.
        name: {target for target in imports_when_loaded(name) if target in PRODUCT}
        for name in PRODUCT
    }
    while graph:
        leaves = {name for name, targets in graph.items() if not targets & graph.keys()}
        assert leaves, f"a cycle among {sorted(graph)}"
        graph = {name: targets for name, targets in graph.items() if name not in leaves}
