"""Reads words in ONNX Runtime with what :func:`mstr_hf.export.export_onnx` wrote.

Networks run as ONNX graphs, without torch's weights; what goes on between them (frames to characters, scores, the
gate) is that of the torch model.
"""

from __future__ import annotations

import hashlib
import textwrap
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import initialization as init
from transformers.utils import cached_file

from mstr_hf.models.configuration_refiner import RefinerConfig
from mstr_hf.models.language_model import LanguageModel
from mstr_hf.models.modeling_refiner import RefinerEncoder, RefinerModel, next_tokens, readable
from mstr_hf.models.modeling_spotter import SpotterOutput, bank_directions
from mstr_hf.models.prototype_bank import PrototypeBank

GRAPHS = ("spotter", "memory", "decoder")
"""The networks, each in a file of its name with the suffix .onnx."""

LANGUAGE_MODEL = "language_model.safetensors"
"""The table of the language model, where the Refiner has one."""

FORMAT = "2"
"""Stands in every graph's metadata; raised when inputs or outputs change."""


class ExportError(ValueError):
    """A folder that cannot be read with ONNX Runtime; the message is one line that names the file and the mend."""


class Graph:
    """An ONNX graph that takes and gives torch tensors by name.

    Runs on the CPU, on as many threads as torch has when it is loaded (`torch.set_num_threads`, `OMP_NUM_THREADS`).

    Attributes:
        path: Its file.
        notes: Its metadata: `weights` tells the model that it was made from, `log_scale` is that of the cosines.

    Raises:
        ImportError: If ONNX Runtime is missing.
        ExportError: If the file cannot be loaded, or was made by another version of mstr_hf.
    """

    def __init__(self, path: Path):
        try:
            import onnxruntime
        except ImportError as error:
            raise ImportError(f"{error}: install the extra onnx: pip install 'mstr_hf[onnx]'") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        # Threads that wait take the cores from those that decode the next images, and from the other graphs'.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3  # errors, which are raised too
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # One class a kind of failure, with no base of their own.
            reason = textwrap.shorten(str(error), 200, placeholder=" ...")
            raise ExportError(
                f"{path}: cannot be loaded ({reason}): cut off, or beyond onnxruntime {onnxruntime.__version__}; "
                "export it again, or upgrade onnxruntime"
            ) from error
        self.path = path
        self.notes = self._session.get_modelmeta().custom_metadata_map
        if self.notes.get("mstr_hf_format") != FORMAT:
            raise ExportError(f"{path}: not made by this version of mstr_hf: export the model again with mstr export")
        self._outputs = [output.name for output in self._session.get_outputs()]

    def __call__(self, **tensors: torch.Tensor) -> dict[str, torch.Tensor]:
        """Runs the graph; inputs share their memory with it."""
        feeds = {name: tensor.numpy(force=True) for name, tensor in tensors.items()}
        outputs = self._session.run(self._outputs, feeds)
        return {name: torch.from_numpy(output) for name, output in zip(self._outputs, outputs, strict=True)}


class OnnxEncoder(RefinerEncoder):
    """The Spotter as a graph; of the torch Spotter there is the bank with the scale of its cosines."""

    graph: Graph

    def spot(
        self,
        pixel_values: torch.Tensor,
        pixel_mask: torch.Tensor | None,
        row_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> SpotterOutput:
        """The Spotter's output, but for its embeddings."""
        if pixel_mask is None:
            pixel_mask = torch.ones_like(pixel_values[:, 0, 0], dtype=torch.bool)
        pixel_mask = pixel_mask.bool()
        outputs = self.graph(
            prototypes=self.spotter.head.prototypes, pixel_values=pixel_values.float(), pixel_mask=pixel_mask
        )
        similarity = outputs["similarity"]
        if row_mask is not None:
            similarity = similarity.masked_fill(~row_mask[..., None, :], -1.0)
        columns = pixel_mask[:, :: self.spotter.config.column_width]
        return self.spotter.read_frames(
            SpotterOutput(
                similarity=similarity,
                blank_similarity=outputs["blank_similarity"],
                frame_mask=columns.repeat_interleave(self.spotter.config.frames_per_column, dim=1),
                feature_maps=(outputs["fine"], outputs["middle"], outputs["coarse"]),
                column_mask=columns,
            )
        )


class OnnxRefiner(RefinerModel):
    """A Refiner without weights of its own, which reads words in ONNX Runtime on the CPU.

    :meth:`recognise` is that of `RefinerModel`, and so are its readings. It can neither be trained nor saved.
    """

    device = torch.device("cpu")

    def __init__(
        self,
        config: RefinerConfig,
        bank: PrototypeBank,
        graphs: dict[str, Graph],
        language_model: LanguageModel | None = None,
    ):
        # Without memory: a weight that is used after all is an error.
        with torch.device("meta"), init.no_init_weights():
            super().__init__(config)
            self.encoder = OnnxEncoder(config)
        self._bank, self._graphs = bank, graphs
        self.encoder.graph = graphs["spotter"]
        self.language_model = language_model
        head = self.spotter.head
        head.prototypes = bank.prototypes.float().contiguous()
        head.directions = bank_directions(config.spotter_config)
        head.log_scale = nn.Parameter(torch.tensor(float(graphs["spotter"].notes["log_scale"])))
        self.eval()

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path) -> OnnxRefiner:
        """Loads an export.

        Args:
            name_or_path: Folder or Hub repository.

        Raises:
            ImportError: If ONNX Runtime is missing.
            ExportError: If it is no export, is not whole, or was made by another version of mstr_hf.
            BankError: If the bank beside the graphs was changed or cut off.
        """
        graphs = {name: Graph(_find(name_or_path, f"{name}.onnx")) for name in GRAPHS}
        if len({graph.notes["weights"] for graph in graphs.values()}) > 1:
            raise ExportError(f"{name_or_path}: its graphs come from different models: export it again")
        config = RefinerConfig.from_pretrained(name_or_path)
        bank = PrototypeBank.from_pretrained(name_or_path)
        spotter = config.spotter_config
        if len(bank) != spotter.num_prototypes or bank.digest(spotter.num_base_prototypes) != spotter.base_digest:
            raise ExportError(f"{name_or_path}: its bank is not that of its model: export it again")
        language_model = None
        if config.language_config is not None:
            path = _find(name_or_path, LANGUAGE_MODEL)
            language_model = LanguageModel(config.language_config)
            try:
                language_model.load_state_dict(load_file(path))
            except (SafetensorError, RuntimeError) as error:
                raise ExportError(f"{path}: not the table of this model, or cut off: export it again") from error
        return cls(config, bank, graphs, language_model)

    def get_bank(self) -> PrototypeBank:
        """The bank beside the graphs."""
        return self._bank

    def set_bank(self, bank: PrototypeBank, base: int | None = None) -> None:
        """See `RefinerModel.set_bank`."""
        super().set_bank(bank, base)
        self._bank = bank

    def digest(self) -> str:
        """SHA-256 of graphs and bank."""
        digest = hashlib.sha256(self._bank.digest().encode())
        for graph in self._graphs.values():
            digest.update(graph.path.read_bytes())
        for tensor in self.language_model.state_dict().values() if self.language_model is not None else ():
            digest.update(tensor.numpy().tobytes())
        return digest.hexdigest()

    def _decoder(self, spotted: SpotterOutput) -> _OnnxDecoder:
        return _OnnxDecoder(self._graphs, self.spotter.head.prototypes, spotted)


class _OnnxDecoder:
    """The graph of the decoder, step by step, with its caches."""

    def __init__(self, graphs: dict[str, Graph], prototypes: torch.Tensor, spotted: SpotterOutput):
        self.graph, self.prototypes = graphs["decoder"], prototypes
        fine, middle, coarse = spotted.feature_maps
        self.memory = graphs["memory"](
            prototypes=prototypes,
            top_k_ids=spotted.top_k_ids,
            top_k_scores=spotted.top_k_scores,
            character_mask=spotted.character_mask,
            fine=fine,
            middle=middle,
            coarse=coarse,
            column_mask=spotted.column_mask,
        )
        self.past: dict[str, torch.Tensor] = {}

    def step(self, ids: torch.Tensor) -> torch.Tensor:
        """See `beam_search.Decoder`."""
        first, words = not self.past, len(self.memory["prefix"])
        beams = len(ids) // words
        if first:
            # The cache of the decoder's self attention begins empty.
            crosses = [name for name in self.memory if name.startswith("cross")]
            self.past = {
                name.replace("cross", "past"): self.memory[name][:, None, :, :0].expand(-1, beams, -1, -1, -1)
                for name in crosses
            }
        input_ids = next_tokens(ids, first).view(words, beams)
        outputs = self.graph(prototypes=self.prototypes, input_ids=input_ids, **self.memory, **self.past)
        logits = outputs.pop("logits")
        self.past = {name.replace("present", "past"): tensor for name, tensor in outputs.items()}
        return readable(logits)

    def select(self, beams: torch.Tensor) -> None:
        """See `beam_search.Decoder`."""
        each = next(iter(self.past.values())).shape[1]
        words = len(beams) // each
        self.memory = {name: tensor[:words] for name, tensor in self.memory.items()}
        self.past = {
            name: tensor.flatten(0, 1)[beams].unflatten(0, (words, each)) for name, tensor in self.past.items()
        }


def _find(name_or_path: str | Path, file: str) -> Path:
    try:
        return Path(cached_file(str(name_or_path), file))
    except OSError as error:
        raise ExportError(
            f"{name_or_path}: no {file}, so this is no ONNX export, or not all of one: make it with mstr export"
        ) from error
