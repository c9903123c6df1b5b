"""`mstr export`: a Refiner as ONNX graphs, in float32 or int8, with all that reading takes beside them.

Three graphs (:data:`mstr_hf.onnx_runtime.GRAPHS`) of any batch size and width: `spotter` from images to cosines and
feature maps, `memory` from what was spotted to what the decoder attends to, keys and values of its cross attention
included, and `decoder`, one step of which extends the caches of all beams of each word. The rows of the prototype bank
are an input of all, so that quantisation leaves them exact. A model whose bank has grown is exported again: what lies
beside the graphs is checked.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from torch.export import Dim
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from mstr_hf.hub.publish import SAMPLES
from mstr_hf.models.modeling_refiner import BOS, MEMORY_COLUMN, RefinerModel
from mstr_hf.models.modeling_spotter import SpotterOutput
from mstr_hf.models.processing_mstr import MSTRProcessor
from mstr_hf.onnx_runtime import FORMAT, LANGUAGE_MODEL

OPSET = 20


class _Network(nn.Module):
    """A part of a Refiner that takes the bank's rows as its first input."""

    def __init__(self, refiner: RefinerModel):
        super().__init__()
        self.refiner = refiner

    @contextmanager
    def _bank(self, prototypes: torch.Tensor) -> Iterator[None]:
        head = self.refiner.spotter.head
        own = head.prototypes
        head.prototypes = prototypes
        yield
        head.prototypes = own


class _Spotter(_Network):
    inputs = ("prototypes", "pixel_values", "pixel_mask")
    outputs = ("similarity", "blank_similarity", "fine", "middle", "coarse")

    def forward(
        self, prototypes: torch.Tensor, pixel_values: torch.Tensor, pixel_mask: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        levels, _ = self.refiner.spotter.backbone(pixel_values, pixel_mask)
        head = self.refiner.spotter.head
        with self._bank(prototypes):
            _, similarity, blank_similarity = head(levels[-1])
        return similarity, blank_similarity, *levels


class _Memory(_Network):
    inputs = (
        "prototypes",
        "top_k_ids",
        "top_k_scores",
        "character_mask",
        "column_mask",
        "fine",
        "middle",
        "coarse",
    )

    @property
    def outputs(self) -> tuple[str, ...]:
        return ("prefix", "memory_mask", *_cache_names(self.refiner, "cross"))

    def forward(
        self,
        prototypes: torch.Tensor,
        top_k_ids: torch.Tensor,
        top_k_scores: torch.Tensor,
        character_mask: torch.Tensor,
        column_mask: torch.Tensor,
        fine: torch.Tensor,
        middle: torch.Tensor,
        coarse: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        spotted = SpotterOutput(
            top_k_ids=top_k_ids,
            top_k_scores=top_k_scores,
            character_mask=character_mask,
            column_mask=column_mask,
            feature_maps=(fine, middle, coarse),
        )
        with self._bank(prototypes):
            memory = self.refiner.encoder.remember(spotted)
        states = memory.last_hidden_state
        caches = []
        for layer in self.refiner.layers:
            for projection in (layer.cross_attn.k_proj, layer.cross_attn.v_proj):
                heads = projection(states).unflatten(-1, (-1, layer.cross_attn.head_dim))
                caches.append(heads.transpose(1, 2))
        # The decoder sees the rest of the states through keys and values only.
        return states[:, : self.refiner.config.spotter_config.max_length], memory.memory_mask, *caches


class _Decoder(_Network):
    @property
    def inputs(self) -> tuple[str, ...]:
        caches = (*_cache_names(self.refiner, "past"), *_cache_names(self.refiner, "cross"))
        return ("prototypes", "input_ids", "prefix", "memory_mask", *caches)

    @property
    def outputs(self) -> tuple[str, ...]:
        return ("logits", *_cache_names(self.refiner, "present"))

    def forward(
        self,
        prototypes: torch.Tensor,
        input_ids: torch.Tensor,
        prefix: torch.Tensor,
        memory_mask: torch.Tensor,
        *caches: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        count = len(self.refiner.layers)
        words, beams = input_ids.shape
        for index in range(count):
            past = (tensor.flatten(0, 1) for tensor in caches[2 * index : 2 * index + 2])
            cache.self_attention_cache.update(*past, index)
            cache.cross_attention_cache.update(*caches[2 * (count + index) : 2 * (count + index) + 2], index)
            cache.is_updated[index] = True
        with self._bank(prototypes):
            states = self.refiner._decode(input_ids.reshape(-1, 1), prefix, memory_mask, cache).last_hidden_state
            logits = self.refiner._logits(states)
        present = [(layer.keys, layer.values) for layer in cache.self_attention_cache.layers]
        return logits[:, 0], *(tensor.unflatten(0, (words, beams)) for pair in present for tensor in pair)


def _cache_names(refiner: RefinerModel, kind: str) -> tuple[str, ...]:
    return tuple(f"{kind}_{part}_{index}" for index in range(len(refiner.layers)) for part in ("key", "value"))


def export_onnx(
    model: RefinerModel, processor: MSTRProcessor, output: str | os.PathLike[str], int8: bool = False
) -> None:
    """Writes a folder that `OnnxRefiner.from_pretrained` reads with: graphs, bank, configuration and processor.

    Args:
        model: A Refiner; it is exported in float32.
        processor: Its processor.
        output: Folder; made if needed, files of the same names are replaced.
        int8: Quantise the weights, and what goes into the Spotter's layers by the ranges that the bundled sample
            images show.

    Raises:
        ImportError: If packages of the extra `onnx` are missing.
        BankError: If the model was never given a bank.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401  (torch asks for it only when it exports)
    except ImportError as error:
        raise ImportError(f"{error}: install the extra onnx: pip install 'mstr_hf[onnx]'") from error
    model, processor = copy.deepcopy(model).to("cpu", torch.float32).eval(), copy.deepcopy(processor)
    # ONNX Runtime fuses plain attention; of sdpa, torch's exporter makes copies of the memory for every step.
    model.config._attn_implementation = "eager"
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    model.get_bank().save_pretrained(folder)
    if model.language_model is not None:
        save_file(model.language_model.state_dict(), folder / LANGUAGE_MODEL)
    # No code is laid beside the graphs.
    for part in (model.config, processor.image_processor):
        for attribute in ("auto_map", "custom_pipelines"):
            part.__dict__.pop(attribute, None)
    processor.save_pretrained(folder)
    log_scale = repr(model.spotter.head.log_scale.item())
    notes = {"mstr_hf_format": FORMAT, "weights": _digest(model) + "-int8" * int8, "log_scale": log_scale}
    for name, (network, inputs, axes) in _networks(model).items():
        graph = _export(network, inputs, axes).model_proto
        onnx.helper.set_model_props(graph, notes)
        path = folder / f"{name}.onnx"
        onnx.save_model(graph, path)
        if int8:
            _quantise(path, list(_samples(model, processor)) if name == "spotter" else None)
    model.config.save_pretrained(folder)


@torch.no_grad()
def _networks(model: RefinerModel) -> dict[str, tuple[_Network, tuple[torch.Tensor, ...], dict[str, Any]]]:
    """Each network with example inputs and, by input, the axes that may have any size."""
    batch, columns, rows, memory = Dim("batch"), Dim("columns", min=2), Dim("rows"), Dim("memory")
    beams = Dim("beams")
    steps = Dim("steps", max=model.config.spotter_config.max_length)
    past = Dim("past", max=model.config.spotter_config.max_length)
    # Images are whole columns of the visual memory wide, and the Spotter's columns may be finer.
    finer = MEMORY_COLUMN // model.config.spotter_config.column_width
    spotted_columns = finer * columns if finer > 1 else columns
    prototypes = model.spotter.head.prototypes
    pixels = torch.zeros(2, 1, model.config.spotter_config.image_height, 64)
    mask = torch.ones(2, 64, dtype=torch.bool)
    spotter, remember, decoder = _Spotter(model), _Memory(model), _Decoder(model)

    spotted = model.spotter(pixels, mask)
    found = (spotted.top_k_ids, spotted.top_k_scores, spotted.character_mask)
    memory_inputs = (prototypes, *found, spotted.column_mask, *spotted.feature_maps)
    prefix, memory_mask, *cross = remember(*memory_inputs)
    # Three beams of each word, whose cache holds three steps.
    caches = [tensor[:, None, :, :3].repeat(1, 3, 1, 1, 1) for tensor in cross] + cross
    return {
        "spotter": (
            spotter,
            (prototypes, pixels, mask),
            {
                "prototypes": {0: rows},
                "pixel_values": {0: batch, 3: MEMORY_COLUMN * columns},
                "pixel_mask": {0: batch, 1: MEMORY_COLUMN * columns},
            },
        ),
        "memory": (
            remember,
            memory_inputs,
            {
                "prototypes": {0: rows},
                **{name: {0: batch, 1: steps} for name in ("top_k_ids", "top_k_scores", "character_mask")},
                "column_mask": {0: batch, 1: spotted_columns},
                "fine": {0: batch, 3: MEMORY_COLUMN // 4 * columns},
                **{name: {0: batch, 3: spotted_columns} for name in ("middle", "coarse")},
            },
        ),
        "decoder": (
            decoder,
            (prototypes, torch.full((2, 3), BOS), prefix, memory_mask, *caches),
            {
                "prototypes": {0: rows},
                "input_ids": {0: batch, 1: beams},
                "prefix": {0: batch},
                "memory_mask": {0: batch, 1: memory},
                "caches": (
                    *({0: batch, 1: beams, 3: past} for _ in cross),
                    *({0: batch, 2: memory} for _ in cross),
                ),
            },
        ),
    }


def _export(network: _Network, inputs: tuple[torch.Tensor, ...], axes: dict[str, Any]) -> Any:
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)  # it misses torchvision, which nothing here needs
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            # Two steps, as torch.onnx.export alone falls back on fixed sizes where the first fails.
            program = torch.export.export(network, inputs, dynamic_shapes=axes, strict=False)
            return torch.onnx.export(
                program,
                input_names=network.inputs,
                output_names=network.outputs,
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
    finally:
        log.setLevel(level)


def _samples(model: RefinerModel, processor: MSTRProcessor) -> Iterator[dict[str, np.ndarray]]:
    """Inputs of the Spotter that show the ranges of its states."""
    prototypes = model.spotter.head.prototypes.numpy()
    for image in sorted(SAMPLES.glob("*.jpg")):
        yield {"prototypes": prototypes, **processor(images=image, return_tensors="np")}


def _quantise(path: Path, samples: list[dict[str, np.ndarray]] | None) -> None:
    """Quantises a graph in its place; with samples statically, which is faster where there are convolutions."""
    import onnx
    from onnxruntime import quantization

    weights = quantization.QuantType.QInt8
    log = logging.getLogger()
    level = log.level
    log.setLevel(logging.ERROR)  # it asks for preparations that change nothing here
    try:
        if samples is None:
            quantization.quantize_dynamic(path, path, op_types_to_quantize=["MatMul"], weight_type=weights)
            return
        graph = onnx.load(path).graph
        constants = {tensor.name for tensor in graph.initializer}
        # Not attention, and not the cosines to the bank, where characters differ by little.
        products = [node.name for node in graph.node if node.op_type == "MatMul" and node.input[1] not in constants]
        quantization.quantize_static(
            path,
            path,
            _Calibration(samples),
            op_types_to_quantize=["Conv", "MatMul"],
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=weights,
            nodes_to_exclude=products,
        )
    finally:
        log.setLevel(level)


class _Calibration:
    """Gives samples one by one, as onnxruntime asks for them."""

    def __init__(self, samples: list[dict[str, np.ndarray]]):
        self._samples = iter(samples)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._samples, None)


def _digest(model: RefinerModel) -> str:
    """SHA-256 of the weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()
