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
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.utils import cached_file

from mstr_hf.models.configuration_refiner import RefinerConfig
from mstr_hf.models.modeling_refiner import BOS, EOS, RefinerEncoder, RefinerModel, _reading
from mstr_hf.models.modeling_spotter import TOKEN_OFFSET, SpotterOutput, bank_directions
from mstr_hf.models.prototype_bank import PrototypeBank

GRAPHS = ("spotter", "memory", "decoder")
"""The networks, each in a file of its name with the suffix .onnx."""

FORMAT = "1"
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
        columns = pixel_mask[:, ::4]
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

    :meth:`recognise` is that of `RefinerModel`, and so are its readings; alternatives are refused. It can neither be
    trained nor saved.
    """

    device = torch.device("cpu")

    def __init__(self, config: RefinerConfig, bank: PrototypeBank, graphs: dict[str, Graph]):
        # Without memory: a weight that is used after all is an error.
        with torch.device("meta"), init.no_init_weights():
            super().__init__(config)
            self.encoder = OnnxEncoder(config)
        self._bank, self._graphs = bank, graphs
        self.encoder.graph = graphs["spotter"]
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
        return cls(config, bank, graphs)

    def get_bank(self) -> PrototypeBank:
        """The bank beside the graphs."""
        return self._bank

    def digest(self) -> str:
        """SHA-256 of graphs and bank."""
        digest = hashlib.sha256(self._bank.digest().encode())
        for graph in self._graphs.values():
            digest.update(graph.path.read_bytes())
        return digest.hexdigest()

    def _refine(
        self,
        bank: PrototypeBank,
        spotted: SpotterOutput,
        chosen: torch.Tensor,
        row_mask: torch.Tensor | None,
        num_alternatives: int,
    ) -> list[dict[str, Any]]:
        """Decodes the chosen words greedily; the steps that find a reading give its score too."""
        if num_alternatives:
            raise ValueError("alternatives are found with torch only: ask for none, or leave out the ONNX runtime")
        prototypes = self.spotter.head.prototypes
        fine, middle, coarse = (level[chosen] for level in spotted.feature_maps)
        state = self._graphs["memory"](
            prototypes=prototypes,
            top_k_ids=spotted.top_k_ids[chosen],
            top_k_scores=spotted.top_k_scores[chosen],
            character_mask=spotted.character_mask[chosen],
            fine=fine,
            middle=middle,
            coarse=coarse,
            column_mask=spotted.column_mask[chosen],
        )
        # The cache of the decoder's self attention begins empty.
        state |= {name.replace("cross", "past"): state[name][:, :, :0] for name in state if name.startswith("cross")}
        allowed = None if row_mask is None else F.pad(row_mask[chosen], (TOKEN_OFFSET, 0), value=True)
        steps = self.config.spotter_config.max_length + 1
        sequences = torch.full((len(chosen), steps), EOS)
        log_chances = torch.zeros(len(chosen), steps)
        rows = torch.arange(len(chosen))  # words in the batch, and which of them have not ended
        going = torch.ones(len(chosen), dtype=torch.bool)
        ids = torch.full((len(chosen), 1), BOS)
        for step in range(steps):
            outputs = self._graphs["decoder"](prototypes=prototypes, input_ids=ids, **state)
            logits = outputs.pop("logits")[:, 0]
            if allowed is not None:
                logits = logits.masked_fill(~allowed[rows], torch.finfo(logits.dtype).min)
            ids = logits.argmax(-1, keepdim=True) if step < steps - 1 else torch.full_like(ids, EOS)
            chances = (logits / self.config.score_temperature).log_softmax(-1).gather(1, ids)
            sequences[rows[going], step] = ids[going, 0]
            log_chances[rows[going], step] = chances[going, 0]
            going = going & (ids[:, 0] != EOS)
            left = int(going.sum())
            if not left:
                break
            state |= {name.replace("present", "past"): tensor for name, tensor in outputs.items()}
            # Taking words that have ended out copies the caches: only where that halves the batch.
            if 2 * left <= len(rows):
                state = {name: tensor[going] for name, tensor in state.items()}
                rows, ids, going = rows[going], ids[going], going[going]
        return [
            _reading(bank, [[i] for i in word[:count]], [[value] for value in values[:count]], score, 0)
            for word, values, count, score in zip(
                sequences.tolist(),
                log_chances.exp().tolist(),
                (sequences != EOS).sum(1).tolist(),
                log_chances.sum(1).exp().tolist(),
                strict=True,
            )
        ]


def _find(name_or_path: str | Path, file: str) -> Path:
    try:
        return Path(cached_file(str(name_or_path), file))
    except OSError as error:
        raise ExportError(
            f"{name_or_path}: no {file}, so this is no ONNX export, or not all of one: make it with mstr export"
        ) from error
