"""NVIDIA's parser accepts the graphs and builds engines from them; it needs no GPU for that."""

from __future__ import annotations

from typing import Any

import pytest

from berdiff.runtime.bundle import GRAPHS, Bundle

trt = pytest.importorskip("tensorrt_rtx")


@pytest.mark.parametrize("name", GRAPHS)
def test_engine_is_built(tiny_bundle: Bundle, name: str) -> None:
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    parsed = parser.parse_from_file(str(tiny_bundle.file(name)))
    assert parsed, [parser.get_error(index).desc() for index in range(parser.num_errors)]

    config = builder.create_builder_config()
    config.add_optimization_profile(profile(builder, network, tiny_bundle))
    engine = builder.build_serialized_network(network, config)
    assert engine is not None
    assert engine.nbytes > 10_000


def profile(builder: Any, network: Any, bundle: Bundle) -> Any:
    """The batch sizes the bundle was exported for."""
    chosen = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shape = tuple(tensor.shape)
        if shape[0] == -1:
            sizes = [(batch, *shape[1:]) for batch in bundle.manifest.dynamic_batch]
            chosen.set_shape(tensor.name, *sizes)
        else:
            assert shape == (1,)
    return chosen
