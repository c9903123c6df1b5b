"""Which decoder reads best for its compute? Trains several over the same backbone, on equal words.

    python scripts/compare_decoders.py --bank runs/bank --output_dir runs/decoders --max_steps 10000 --batch_size 16 \
        --config scripts/configs/scaling.yaml --photographs words.jsonl

All see the same words in the same order. What they may compute for a word is evened out by the number of Transformer
layers in the backbone: parallel queries and finer maps have as much as frames, the larger frames as much as the Spotter
and its Refiner. `table.md` in the output folder compares WRR on held-out words and on photographs. With `--resume` a
run that was stopped goes on.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from mstr_hf.models.configuration_refiner import RefinerDecoderConfig
from mstr_hf.models.configuration_spotter import SpotterConfig
from mstr_hf.models.layers import DecoderLayer, additive_mask
from mstr_hf.models.modeling_refiner import RefinerModel, sinusoids
from mstr_hf.models.modeling_spotter import IGNORED, TOKEN_OFFSET, MaskedConv, SpotterModel, SpotterOutput
from mstr_hf.models.prototype_bank import PrototypeBank
from mstr_hf.synthesis.cache import read_json, write_json
from mstr_hf.training.arguments import TrainingArguments, WordArguments, mapping, parse_arguments
from mstr_hf.training.sources import RealWords, Word
from mstr_hf.training.trainer import Trainer
from mstr_hf.training.words import image_height, reading_accuracy, refined_accuracy, word_data

ARMS = ("frames", "queries", "refiner", "large", "plain", "columns", "merged", "maps")
# Rows of the table: what is read, and by what of which arm.
READINGS = {
    "CTC frames": ("frames", "spotter"),
    "CTC frames, without the alignment loss": ("plain", "spotter"),
    "CTC frames, the last maps H/16 x W/4": ("columns", "spotter"),
    "CTC frames, the last maps H/16 x W/4, rows merged": ("merged", "spotter"),
    "CTC frames, the last maps H/8 x W/4": ("maps", "spotter"),
    "parallel queries": ("queries", "spotter"),
    "CTC frames, trained beside the Refiner": ("refiner", "spotter"),
    "the Refiner": ("refiner", "refiner"),
    "CTC frames, as much compute as with the Refiner": ("large", "spotter"),
}
# Characters that queries can read.
QUERIES = 32
# Options that change nothing in what an arm comes to.
UNRELATED = (
    *("output_dir", "config", "resume", "time_limit", "push_to_hub", "arms"),
    *("log_steps", "save_steps", "save_total_limit", "num_workers", "num_threads"),
)
# Columns of 4 pixels instead of 8, with frames as far from each other as ever.
NARROW = {"column_width": 4, "frames_per_column": 2}
# What compute is counted on: the middle of the widths and lengths of words.
WIDTH, LENGTH = 96, 7


@dataclass
class DecoderArguments:
    """The Spotter, and what it is compared with."""

    bank: str = field(metadata={"help": "Prototype bank."})
    spotter_architecture: str = field(default="", metadata={"help": "Fields of SpotterConfig, with num_hidden_layers."})
    architecture: str = field(default="", metadata={"help": "Fields of RefinerDecoderConfig."})
    photographs: list[str] = field(default_factory=list, metadata={"help": "Manifests of photographed words to read."})
    arms: list[str] = field(default_factory=lambda: list(ARMS), metadata={"help": f"Some of {', '.join(ARMS)}."})

    def __post_init__(self) -> None:
        if unknown := set(self.arms) - set(ARMS):
            raise ValueError(f"arms: unknown {', '.join(sorted(unknown))}: there are {', '.join(ARMS)}")


class QuerySpotter(SpotterModel):
    """Reads with learned queries, one a character, all at once (as MGP-STR, or PARSeq's first pass).

    Each query attends to the others and to the last level of the pyramid; its embedding retrieves from the bank, or the
    row for the end.
    """

    def __init__(self, config: SpotterConfig):
        super().__init__(config)
        size = config.hidden_size
        self.queries = nn.Parameter(torch.randn(QUERIES, size) * 0.02)
        self.row = nn.Embedding(config.image_height // 16, size)
        self.layer = DecoderLayer(config, size, config.num_attention_heads, config.intermediate_size, "gelu", 0)
        self.query_norm = nn.LayerNorm(size)
        self.head.projection = nn.Linear(size, config.projection_dim)

    def forward(
        self,
        pixel_values: torch.Tensor,
        pixel_mask: torch.Tensor,
        labels: torch.Tensor | None = None,
        frame_labels: torch.Tensor | None = None,
    ) -> SpotterOutput:
        """As that of SpotterModel. Queries are not told where characters stand; the blank row is the end's."""
        (*_, coarse), columns = self.backbone(pixel_values, pixel_mask)
        batch, size, height, width = coarse.shape
        places = sinusoids(torch.arange(width, device=coarse.device), size) + self.row.weight[:, None]
        memory = (coarse.permute(0, 2, 3, 1) + places).reshape(batch, height * width, size)
        states = self.queries.expand(batch, -1, -1)
        states, *_ = self.layer(states, memory, None, additive_mask(columns.repeat(1, height), memory.dtype))
        embeddings = F.normalize(self.head.projection(self.query_norm(states)).float(), dim=-1)
        similarity, end = self.head.retrieve(embeddings)
        output = SpotterOutput()
        if labels is not None:
            targets = F.pad((labels - TOKEN_OFFSET + 1).masked_fill(labels == IGNORED, IGNORED), (0, 1), value=IGNORED)
            targets = targets.scatter(1, (labels != IGNORED).sum(1, keepdim=True), 0)
            targets = F.pad(targets, (0, max(0, QUERIES - targets.shape[1])), value=IGNORED)[:, :QUERIES]
            output.loss = F.cross_entropy(self.log_probs(similarity, end).flatten(0, 1), targets.flatten())
        scores, rows = similarity.max(-1)
        mask = (end < scores).long().cumprod(1).bool()
        output.top_k_ids, output.top_k_scores = ((rows + TOKEN_OFFSET) * mask)[..., None], scores[..., None]
        return output


class FineSpotter(SpotterModel):
    """Keeps the height of the second level, H/8, in the last, whose layers see twice as many places."""

    def __init__(self, config: SpotterConfig):
        super().__init__(config)
        *_, middle, coarse = config.stage_channels
        self.backbone.down3 = MaskedConv(middle, coarse)
        size = coarse * config.image_height // 8
        self.head.projection = nn.Linear(size, config.frames_per_column * config.projection_dim)


def compute(model: SpotterModel | RefinerModel) -> float:
    """Millions of multiplications and additions for a word; of a Refiner as if its steps were one pass."""
    pixels = torch.zeros(1, 1, image_height(model), WIDTH * image_height(model) // 32)
    batch = {"pixel_values": pixels, "pixel_mask": torch.ones(1, pixels.shape[-1], dtype=torch.bool)}
    if isinstance(model, RefinerModel):
        batch["decoder_input_ids"] = torch.full((1, LENGTH + 1), TOKEN_OFFSET)
    still = copy.deepcopy(model).cpu().requires_grad_(False).eval()  # the counter follows what goes into modules
    still.set_attn_implementation("eager")  # and counts nothing for another one on a CPU
    with FlopCounterMode(display=False) as counter:
        still(**batch)
    return counter.get_total_flops() / 1e6


class Makers:
    """Makes the untrained models.

    Args:
        bank: Their bank.
        shape: Fields of SpotterConfig.
        text: Fields of RefinerDecoderConfig.
    """

    def __init__(self, bank: PrototypeBank, shape: dict[str, Any], text: dict[str, Any]):
        self.bank, self.shape, self.text = bank, shape, text

    def spotter(self, kind: type[SpotterModel] = SpotterModel, **other: Any) -> SpotterModel:
        """A Spotter whose shape differs in some fields."""
        set_seed(0)
        shape: dict[str, Any] = {"projection_dim": self.bank.prototypes.shape[1], "num_prototypes": len(self.bank)}
        model = kind(SpotterConfig(**(shape | self.shape | other)))
        model.set_bank(self.bank, base=True)
        return model

    def refiner(self) -> RefinerModel:
        """A Refiner around a Spotter, both to be trained."""
        model = RefinerModel.from_spotter(self.spotter(), self.text)
        model.config.freeze_spotter = False
        return model.requires_grad_(True).train()

    def equal(self, kind: type[SpotterModel], wanted: float, **other: Any) -> SpotterModel:
        """The Spotter of a kind whose number of layers brings its compute nearest to what is wanted."""
        models = (self.spotter(kind, num_hidden_layers=count, **other) for count in range(1, 13))
        return min(models, key=lambda model: abs(compute(model) - wanted))

    def make(self, arm: str) -> SpotterModel | RefinerModel:
        """The model of an arm."""
        if arm == "refiner":
            return self.refiner()
        if arm == "plain":
            return self.spotter(alignment_weight=0)
        if arm == "queries":
            return self.equal(QuerySpotter, compute(self.spotter()))
        if arm == "columns":
            return self.equal(SpotterModel, compute(self.spotter()), **NARROW)
        if arm == "merged":
            return self.equal(SpotterModel, compute(self.spotter()), merge_rows=True, **NARROW)
        if arm == "maps":
            # At its full width, not even one layer has so little to compute.
            *first, coarse = self.spotter().config.stage_channels
            return self.equal(FineSpotter, compute(self.spotter()), stage_channels=[*first, coarse // 2], **NARROW)
        if arm == "large":
            return self.equal(SpotterModel, compute(self.refiner()))
        return self.spotter()


def main() -> None:
    """Runs the command line."""
    args, data, options = parse_arguments("refiner", [TrainingArguments, WordArguments, DecoderArguments], __doc__)
    bank = PrototypeBank.from_pretrained(options.bank)
    shape = mapping(options.spotter_architecture, "spotter_architecture", list(SpotterConfig.__annotations__))
    text = mapping(options.architecture, "architecture", list(RefinerDecoderConfig.__annotations__))
    makers = Makers(bank, shape, text)
    words = word_data(data, bank, image_height(makers.spotter()))
    sets: dict[str, Sequence[Word]] = {"unseen fonts": words.heldout}
    for path in options.photographs:
        photographs = RealWords([path], words.vocabulary)
        name = Path(path).stem
        if name in sets:
            raise ValueError(f"--photographs: two sets are called {name}: rename a manifest")
        sets[name] = found = [word for word in photographs.some(len(photographs)) if word.lang in bank.all_languages]
        if not found:
            raise ValueError(f"--photographs {path}: no word in it has the bank's characters and languages")
        print(f"{path}: reads {len(found)} of {len(photographs.table)} words, those in the bank's characters")
    output = Path(args.output_dir)
    given = {**dataclasses.asdict(args), **dataclasses.asdict(data), **dataclasses.asdict(options)}
    asked = {name: value for name, value in given.items() if name not in UNRELATED}
    figures: dict[str, dict[str, Any]] = {}
    for arm in options.arms:
        result = output / arm / "figures.json"
        model = makers.make(arm)
        kept = read_json(result)
        if kept is not None and (other := [name for name in asked if kept["options"].get(name) != asked[name]]):
            raise ValueError(f"{output / arm} was made with other {', '.join(other)}: name another --output_dir")
        if kept is None:
            set_seed(args.seed)
            settings = dataclasses.replace(args, output_dir=str(output / arm))
            readers: dict[str, Callable[..., dict[str, float]]] = {"spotter": reading_accuracy}
            if isinstance(model, RefinerModel):
                readers = {"spotter": _spotter_accuracy, "refiner": refined_accuracy}
            trainer = Trainer(settings, model, words.batches(args))
            trained = trainer.train().eval()
            with torch.no_grad():
                kept = {
                    reader: {name: accuracy(trained, some, words.vocabulary) for name, some in sets.items()}
                    for reader, accuracy in readers.items()
                }
            kept["compute"] = {"spotter": compute(getattr(model, "spotter", model)), "refiner": compute(model)}
            kept |= {"options": asked, "parameters": model.num_parameters(), "minutes": trainer.seconds / 60}
            write_json(result, kept)
        figures[arm] = kept
        (output / "table.md").write_text(table(args, figures, sets), encoding="utf-8")
    print((output / "table.md").read_text(encoding="utf-8"))


def _spotter_accuracy(model: RefinerModel, *rest: Any) -> dict[str, float]:
    return reading_accuracy(model.spotter, *rest)


def table(args: TrainingArguments, figures: dict[str, dict[str, Any]], sets: dict[str, Sequence[Word]]) -> str:
    """Compute, parameters, minutes of training, and WRR in per cent: of all words of a set, and by language."""
    counts = ", ".join(f"{len(words)} {name}" for name, words in sets.items())
    lines = [
        f"{args.max_steps} steps of {args.batch_size} words each, seed {args.seed}; WRR in %, words: {counts}",
        "",
        f"| | MFLOP a word | million parameters | minutes | {' | '.join(sets)} |",
        "| --- |" + " --: |" * (3 + len(sets)),
    ]
    for name, (arm, reader) in READINGS.items():
        if arm not in figures:
            continue
        found = figures[arm]
        cells = []
        for split, words in sets.items():
            rates = found[reader][split]
            by_lang = {key[4:]: 100 * rate for key, rate in rates.items() if key != "wrr"}
            total = math.fsum(by_lang[word.lang] for word in words) / len(words)
            cells.append(f"{total:.1f} ({', '.join(f'{lang} {rate:.1f}' for lang, rate in by_lang.items())})")
        spent = found["compute"][reader], found["parameters"] / 1e6, found["minutes"]
        lines.append(f"| {name} | {spent[0]:.2f} | {spent[1]:.2f} | {spent[2]:.0f} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
