"""The Refiner: corrects the Spotter's reading, character by character, against what the image shows.

An autoregressive decoder attends to a prefix memory (the Spotter's top-K characters of each step with their scores)
and to a visual memory (two levels of a feature pyramid, as in Lin et al., 2017, that keep fine marks). Characters go
in and come out as rows of the frozen prototype bank; only start, end and padding have rows of their own. A language
model, where there is one, says beside it which characters may follow each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithCrossAttentions
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple, logging

from .beam_search import Decoder, Hypotheses, beam_search
from .configuration_refiner import RefinerConfig
from .language_model import NOTHING, LanguageModel, character_classes
from .layers import DecoderLayer, WholeCheckpointMixin, additive_mask, cosines, init_layer_weights
from .modeling_spotter import IGNORED, TOKEN_OFFSET, SpotterModel, SpotterOutput
from .prototype_bank import PrototypeBank
from .text import display
from .views import VIEWS, decided, look

logger = logging.get_logger(__name__)

PAD, BOS, EOS = 0, 1, 2
SPECIAL_ROWS = 3
# Pixels of the image for each column of the visual memory: the decoder looks at all of it at each step, and finer
# columns, which the Spotter may have, would cost it twice as much.
MEMORY_COLUMN = 8
# The language model holds at most this much against a reading, in nats: of names and loan words it knows only that they
# are in no list, and that is no reason to read something else.
LEAST_PRIOR = -9.0
# Readings that are this much less likely, in nats, will not win a vote.
MARGIN = 7.0


@dataclass
class RefinerEncoderOutput(ModelOutput):
    """What the decoder attends to.

    Attributes:
        last_hidden_state: Prefix memory (`max_length` rows), then visual memory, `[B, S, C]`.
        memory_mask: True where there is something to attend to, `[B, S]`.
        loss: The Spotter's, where it is trained with the Refiner.
        hidden_states: Those of the Spotter's layers, where asked for.
        attentions: Those of the Spotter's layers, where asked for.
    """

    last_hidden_state: torch.Tensor | None = None
    memory_mask: torch.Tensor | None = None
    loss: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class RefinerOutput(ModelOutput):
    """Output of the Refiner. B images, T decoder steps, V token ids.

    Attributes:
        loss: Scalar; present with `labels`.
        logits: Scaled cosines to the special rows and the bank, `[B, T, V]`; ids that are no output have -inf-like
            values.
        past_key_values: Cache of the decoder.
        decoder_hidden_states: With `output_hidden_states`: input and output of the decoder's layers, `[B, T, C]` each.
        decoder_attentions: With `output_attentions` and eager attention: their weights, `[B, heads, T, T]` each.
        cross_attentions: With `output_attentions` and eager attention: weights on the memory, `[B, heads, T, S]` each.
        encoder_last_hidden_state: Memory, `[B, S, C]`.
        encoder_hidden_states: As `decoder_hidden_states`, of the Spotter's layers.
        encoder_attentions: As `decoder_attentions`, of the Spotter's layers.
        memory_mask: `[B, S]`.
        sequences: Token ids of the readings, `[B, L]`, padded with 0. A call with images alone gives this and the next
            one, and nothing else.
        sequences_scores: Confidence that all of a reading is right, `[B]`.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    past_key_values: Cache | None = None
    decoder_hidden_states: tuple[torch.Tensor, ...] | None = None
    decoder_attentions: tuple[torch.Tensor, ...] | None = None
    cross_attentions: tuple[torch.Tensor, ...] | None = None
    encoder_last_hidden_state: torch.Tensor | None = None
    encoder_hidden_states: tuple[torch.Tensor, ...] | None = None
    encoder_attentions: tuple[torch.Tensor, ...] | None = None
    memory_mask: torch.Tensor | None = None
    sequences: torch.Tensor | None = None
    sequences_scores: torch.Tensor | None = None


def sinusoids(positions: torch.Tensor, size: int) -> torch.Tensor:
    """Sinusoidal position codes (Vaswani et al., 2017): `[...]` to `[..., size]`."""
    rates = torch.exp(torch.arange(0, size, 2, device=positions.device) * (-math.log(10000.0) / size))
    angles = positions[..., None].float() * rates
    return torch.cat([angles.sin(), angles.cos()], -1)


class PrefixMemory(nn.Module):
    """One memory row for each Spotter step: its top-K prototypes, weighted by their scores, by rank."""

    def __init__(self, config: RefinerConfig):
        super().__init__()
        spotter, size = config.spotter_config, config.text_config.hidden_size
        self.hypotheses = nn.Linear(spotter.top_k * spotter.projection_dim, size)
        self.scores = nn.Linear(spotter.top_k, size)
        self.norm = nn.LayerNorm(size)

    def forward(
        self, prototypes: torch.Tensor, ids: torch.Tensor, scores: torch.Tensor, scale: torch.Tensor
    ) -> torch.Tensor:
        """Bank `[N, D]`, token ids and cosines `[B, L, K]` to `[B, L, C]`.

        The weights carry the gradient: the index of a top-K alone has none.
        """
        weights = (scale * scores).softmax(-1)
        rows = prototypes[(ids - TOKEN_OFFSET).clamp_min(0)]
        hypotheses = (rows * weights[..., None]).flatten(2).to(self.hypotheses.weight.dtype)
        states = self.hypotheses(hypotheses) + self.scores(scores.to(hypotheses.dtype))
        positions = torch.arange(ids.shape[1], device=ids.device)
        return self.norm(states) + sinusoids(positions, states.shape[-1]).to(states.dtype)


class VisualMemory(nn.Module):
    """Feature pyramid: coarse context flows down, fine strokes flow up, two levels become memory rows."""

    def __init__(self, config: RefinerConfig):
        super().__init__()
        fine, middle, coarse = config.spotter_config.stage_channels
        size = config.text_config.hidden_size
        self.step = MEMORY_COLUMN // config.spotter_config.column_width
        self.coarse = nn.Conv2d(coarse, size, (1, self.step), (1, self.step))
        self.middle = nn.Conv2d(middle, size, (1, self.step), (1, self.step))
        self.fine = nn.Conv2d(fine, size, 3, 2, 1)
        self.norm = nn.LayerNorm(size)
        self.level = nn.Embedding(2, size)
        self.row = nn.Embedding(config.spotter_config.image_height // 8, size)

    def forward(
        self, feature_maps: Sequence[torch.Tensor], column_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Pyramid and `[B, columns]` to memory `[B, S, C]` and mask `[B, S]`."""
        fine, middle, coarse = feature_maps
        column_mask = column_mask[:, :: self.step]
        top, bottom = self.coarse(coarse), self.middle(middle) + self.fine(fine)
        bottom = bottom + F.interpolate(top, bottom.shape[2:], mode="nearest")
        memories, masks = [], []
        for level, states in enumerate((top, bottom)):
            batch, size, height, width = states.shape
            codes = sinusoids(torch.arange(width, device=states.device), size).to(states.dtype)
            place = self.row.weight[:height, None] + codes[None] + self.level.weight[level]
            states = self.norm(states.permute(0, 2, 3, 1)) + place
            memories.append(states.reshape(batch, height * width, size))
            masks.append(column_mask.repeat(1, height))
        return torch.cat(memories, 1), torch.cat(masks, 1)


class RefinerEncoder(nn.Module):
    """The Spotter and the two memories."""

    main_input_name = "pixel_values"

    def __init__(self, config: RefinerConfig):
        super().__init__()
        self.config = config
        self.spotter = SpotterModel(config.spotter_config)
        self.prefix_memory = PrefixMemory(config)
        self.visual_memory = VisualMemory(config)

    def spot(
        self,
        pixel_values: torch.Tensor,
        pixel_mask: torch.Tensor | None,
        row_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SpotterOutput:
        """The Spotter's output, without gradient where the Spotter is frozen."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.freeze_spotter):
            spotted = self.spotter(pixel_values, pixel_mask, row_mask=row_mask, **{**kwargs, "return_dict": True})
        return self.spotter.read_frames(spotted) if spotted.top_k_ids is None else spotted

    def remember(self, spotted: SpotterOutput) -> RefinerEncoderOutput:
        """Memories of what was spotted."""
        head = self.spotter.head
        ids, scores = spotted.top_k_ids, spotted.top_k_scores
        if not torch.compiler.is_compiling():
            # There are as many steps as frames, and far fewer characters: the steps that nobody reads are left out.
            used = spotted.character_mask.sum(1).amax()
            ids, scores = ids[:, :used], scores[:, :used]
        prefix = self.prefix_memory(head.prototypes, ids, scores, head.scale)
        visual, visual_mask = self.visual_memory(spotted.feature_maps, spotted.column_mask)
        # As many prefix rows whatever the width, so that the decoder knows where they are.
        length = self.config.spotter_config.max_length
        return RefinerEncoderOutput(
            last_hidden_state=torch.cat([F.pad(prefix, (0, 0, 0, length - prefix.shape[1])), visual], 1),
            memory_mask=torch.cat(
                [F.pad(spotted.character_mask, (0, length - spotted.character_mask.shape[1])), visual_mask], 1
            ),
            loss=spotted.loss,
            hidden_states=spotted.hidden_states,
            attentions=spotted.attentions,
        )

    def forward(
        self,
        pixel_values: torch.Tensor,
        pixel_mask: torch.Tensor | None = None,
        row_mask: torch.Tensor | None = None,
        prefix: dict[str, torch.Tensor] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> RefinerEncoderOutput:
        """Images `[B, 1, H, W]` and mask `[B, W]` to memory; a prefix takes the place of what the Spotter reads."""
        spotted = self.spot(pixel_values, pixel_mask, row_mask, **kwargs)
        for name, tensor in (prefix or {}).items():
            spotted[name] = tensor
        return self.remember(spotted)


class RefinerModel(WholeCheckpointMixin, PreTrainedModel, GenerationMixin):
    """Reads words: Spotter, gate, refinement and scores in one method, :meth:`recognise`."""

    config_class = RefinerConfig
    base_model_prefix = "refiner"
    main_input_name = "pixel_values"
    input_modalities = "image"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["RefinerEncoder", "DecoderLayer"]
    _keep_in_fp32_modules_strict = ["prototypes"]
    _input_embed_layer = "character_projection"
    # The loss is a mean over the batch, so that Trainer has to divide it by its steps of gradient accumulation.
    accepts_loss_kwargs = False

    def __init__(self, config: RefinerConfig):
        super().__init__(config)
        text = config.text_config
        self.encoder = RefinerEncoder(config)
        self.character_projection = nn.Linear(config.spotter_config.projection_dim, text.hidden_size)
        self.special_rows = nn.Parameter(torch.empty(SPECIAL_ROWS, config.spotter_config.projection_dim))
        self.layers = nn.ModuleList(
            DecoderLayer(
                config, text.hidden_size, text.num_attention_heads, text.intermediate_size, text.hidden_act, index
            )
            for index in range(text.num_hidden_layers)
        )
        self.norm = nn.LayerNorm(text.hidden_size)
        self.embedding_projection = nn.Linear(text.hidden_size, config.spotter_config.projection_dim)
        self.log_scale = nn.Parameter(torch.empty(()))
        self._described: tuple[PrototypeBank, torch.Tensor] | None = None
        self.language_model: LanguageModel | None = None
        if config.language_config is not None:
            self.language_model = LanguageModel(config.language_config)
        self._follow_bank()
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        init_layer_weights(module)
        if isinstance(module, RefinerModel):
            init.normal_(module.special_rows, std=module.special_rows.shape[-1] ** -0.5)
            init.constant_(module.log_scale, math.log(module.config.logit_scale_init))

    def set_attn_implementation(self, attn_implementation: str | dict, allow_all_kernels: bool = False) -> None:
        """Chooses the implementation of attention (see `PreTrainedModel.set_attn_implementation`)."""
        if not isinstance(attn_implementation, str):
            super().set_attn_implementation(attn_implementation, allow_all_kernels)
            return
        models = {"": attn_implementation, "spotter_config": attn_implementation}
        super().set_attn_implementation(models, allow_all_kernels)
        # Transformers would warn of these, which have no model of their own.
        for part in (self.config.text_config, self.config.language_config):
            if part is not None:
                part._attn_implementation = attn_implementation

    @classmethod
    def from_spotter(cls, spotter: SpotterModel, text_config: dict[str, Any] | None = None) -> RefinerModel:
        """A Refiner with untrained weights around a Spotter, on the Spotter's bank.

        Args:
            spotter: The Spotter; its weights are copied.
            text_config: What differs from the decoder's default shape.
        """
        shape = spotter.config.to_dict()
        shape.pop("_name_or_path", None)  # a folder of this machine, which would be saved
        model = cls(RefinerConfig(spotter_config=shape, text_config=text_config))
        model.spotter.load_state_dict(spotter.state_dict())
        return model.train()  # before an optimiser or DistributedDataParallel collects what is trained

    def train(self, mode: bool = True) -> RefinerModel:
        """Training mode; a frozen Spotter stays as it is, batch statistics included."""
        super().train(mode)
        if self.config.freeze_spotter:
            self.spotter.requires_grad_(False).eval()
        return self

    @property
    def spotter(self) -> SpotterModel:
        """The Spotter inside."""
        return self.encoder.spotter

    def set_bank(self, bank: PrototypeBank, base: bool = False) -> None:
        """Puts a bank into the model (see `SpotterModel.set_bank`).

        The language model has no opinion on rows that it was not made for (`scripts/build_language_model.py` makes it
        anew), and goes where the first rows are others.
        """
        self.spotter.set_bank(bank, base)
        self._follow_bank()
        if self.language_model is not None:
            known = self.config.language_config
            if bank.digest_of_characters(known.num_rows) != known.rows_digest:
                logger.warning("the language model is of another bank's characters, and is left out from now on")
                self.set_language_model(None)

    def get_bank(self) -> PrototypeBank:
        """The bank in the model (see `SpotterModel.get_bank`)."""
        return self.spotter.get_bank()

    def set_language_model(self, model: LanguageModel | None) -> None:
        """Puts a language model over the bank's rows into the Refiner; None takes it out."""
        self.config.language_config = None if model is None else model.config
        self.language_model = None if model is None else model.to(self.device)
        self._described = None

    def _follow_bank(self) -> None:
        self.config.text_config.vocab_size = TOKEN_OFFSET + self.config.spotter_config.num_prototypes

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        pixel_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        encoder_outputs: RefinerEncoderOutput | None = None,
        past_key_values: Cache | None = None,
        row_mask: torch.Tensor | None = None,
        use_cache: bool | None = None,
        prefix: dict[str, torch.Tensor] | None = None,
        frame_labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> RefinerOutput:
        """Decodes with teacher forcing, or one step of generation; images alone are read, as :meth:`recognise` does.

        Args:
            pixel_values: Grey images, `[B, 1, H, W]`, -1 to 1; W a multiple of 8.
            pixel_mask: True on columns of the image, `[B, W]`.
            labels: Token ids in logical order without start and end, `[B, S]`, padded with -100.
            decoder_input_ids: Token ids so far, `[B, T]`; made from the labels where left out.
            encoder_outputs: Memory, where it is known already.
            past_key_values: Cache.
            row_mask: Bank rows that may be read, bool `[N]` or `[B, N]` (language mask).
            use_cache: Whether to return a cache.
            prefix: Hypotheses to refine instead of the Spotter's: `top_k_ids`, `top_k_scores` and `character_mask`
                as in `SpotterOutput` (training on simulated errors).
            frame_labels: As for `SpotterModel`; used where the Spotter is trained with the Refiner
                (`config.freeze_spotter` false), whose loss is then added.
            **kwargs: `output_hidden_states`, `output_attentions` and `return_dict`, as everywhere in transformers.

        Returns:
            RefinerOutput.
        """
        if decoder_input_ids is None and labels is None:
            return self._read(pixel_values, pixel_mask, row_mask)
        if encoder_outputs is None:
            if self.training and not self.config.freeze_spotter:
                kwargs |= {"labels": labels, "frame_labels": frame_labels}
            encoder_outputs = self.encoder(pixel_values, pixel_mask, row_mask, prefix, **kwargs)
        memory, memory_mask = encoder_outputs.last_hidden_state, encoder_outputs.memory_mask
        if decoder_input_ids is None:
            decoder_input_ids = F.pad(labels.masked_fill(labels == IGNORED, PAD), (1, 0), value=BOS)
        if use_cache and past_key_values is None:
            past_key_values = EncoderDecoderCache(DynamicCache(), DynamicCache())
        decoded = self._decode(decoder_input_ids, memory, memory_mask, past_key_values)
        logits = self._logits(decoded.last_hidden_state)
        if row_mask is not None:
            logits = self._allow(logits, row_mask[..., None, :])
        loss = None
        if labels is not None:
            targets = F.pad(labels, (0, 1), value=IGNORED)
            ends = (labels != IGNORED).sum(1)
            targets = targets.scatter(1, ends[:, None], EOS)
            loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
            if encoder_outputs.loss is not None:
                loss = loss + encoder_outputs.loss
        wanted = {
            name: getattr(self.config, name) if kwargs.get(name) is None else kwargs[name]
            for name in ("output_hidden_states", "output_attentions")
        }
        return RefinerOutput(
            loss=loss,
            logits=logits,
            past_key_values=past_key_values,
            decoder_hidden_states=decoded.hidden_states if wanted["output_hidden_states"] else None,
            decoder_attentions=decoded.attentions if wanted["output_attentions"] else None,
            cross_attentions=decoded.cross_attentions if wanted["output_attentions"] else None,
            encoder_last_hidden_state=memory,
            encoder_hidden_states=encoder_outputs.hidden_states,
            encoder_attentions=encoder_outputs.attentions,
            memory_mask=memory_mask,
        )

    def _decode(
        self,
        decoder_input_ids: torch.Tensor,
        memory: torch.Tensor,
        memory_mask: torch.Tensor,
        past_key_values: Cache | None,
    ) -> BaseModelOutputWithCrossAttentions:
        """Token ids `[B, T]` to states `[B, T, C]`, with all that the layers make on the way.

        The memory may be one for every few words that follow each other (see `Attention`).
        """
        length = decoder_input_ids.shape[1]
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        positions = past + torch.arange(length, device=memory.device)
        states = self._embed(decoder_input_ids)
        states = states + sinusoids(positions, states.shape[-1]).to(states.dtype)
        # The Spotter's step at the same place is right most of the time: it goes in directly, and attention is left
        # with what the Spotter got wrong.
        nearest = positions.clamp(max=self.config.spotter_config.max_length - 1)
        # (By index_select, whose gradient a GPU has in a tenth of the time.)
        spotted = memory.index_select(1, nearest) * memory_mask.index_select(1, nearest)[..., None].to(states.dtype)
        states = (states.view(spotted.shape[0], -1, *states.shape[1:]) + spotted[:, None]).flatten(0, 1)
        # A static cache is as long as it may ever get; what lies ahead is masked like the future.
        total = past + length
        if past_key_values is not None and past_key_values.is_compileable:
            total = past_key_values.get_max_length()
        keys = torch.arange(total, device=memory.device)
        future = keys[None, :] > positions[:, None]
        causal = torch.zeros_like(future, dtype=states.dtype).masked_fill(future, torch.finfo(states.dtype).min)
        mask = additive_mask(memory_mask, states.dtype)
        device = memory.device.type
        if torch.is_autocast_enabled(device):
            memory = memory.to(torch.get_autocast_dtype(device))  # once, not for each projection
        inputs, self_weights, cross_weights = [], [], []
        for layer in self.layers:
            inputs.append(states)
            states, self_weight, cross_weight = layer(states, memory, causal[None, None], mask, past_key_values)
            self_weights.append(self_weight)
            cross_weights.append(cross_weight)
        states = self.norm(states)
        return BaseModelOutputWithCrossAttentions(
            last_hidden_state=states,
            hidden_states=(*inputs, states),
            attentions=tuple(self_weights),
            cross_attentions=tuple(cross_weights),
        )

    def _logits(self, states: torch.Tensor) -> torch.Tensor:
        """States `[B, T, C]` to logits `[B, T, V]`."""
        embeddings = F.normalize(self.embedding_projection(states).float(), dim=-1)
        bank = self.spotter.head.prototypes.to(embeddings.device)
        special = cosines(embeddings, F.normalize(self.special_rows.float(), dim=-1))
        scale = self.log_scale.float().exp().clamp(max=100.0)
        logits = scale * torch.cat([special, cosines(embeddings, bank)], -1)
        # Only the end and characters can be read; start, padding and prompt tokens cannot.
        never = torch.finfo(logits.dtype).min
        outputs = logits.new_full((*logits.shape[:2], TOKEN_OFFSET + bank.shape[0]), never)
        outputs[..., EOS] = logits[..., EOS]
        outputs[..., TOKEN_OFFSET:] = logits[..., SPECIAL_ROWS:]
        return outputs

    def _allow(self, logits: torch.Tensor, row_mask: torch.Tensor) -> torch.Tensor:
        """Logits `[..., V]` without those of bank rows that may not be read, by a mask `[..., N]`."""
        allowed = F.pad(row_mask.to(logits.device), (TOKEN_OFFSET, 0), value=True)
        return logits.masked_fill(~allowed, torch.finfo(logits.dtype).min)

    def _embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Token ids `[B, T]` to decoder states `[B, T, C]`, through the bank."""
        special = F.normalize(self.special_rows, dim=-1)[ids.clamp_max(SPECIAL_ROWS - 1)]
        bank = self.spotter.head.prototypes
        rows = bank[(ids - TOKEN_OFFSET).clamp_min(0).to(bank.device)].to(special)
        return self.character_projection(torch.where((ids < TOKEN_OFFSET)[..., None], special, rows))

    def generate(self, inputs: torch.Tensor | None = None, **kwargs: Any) -> Any:
        """See transformers; `row_mask` is as in :meth:`forward`."""
        images = kwargs.get("pixel_values") if inputs is None else inputs
        if kwargs.get("row_mask") is not None and images is not None:
            # A row for each image, as beams take each row several times.
            kwargs["row_mask"] = kwargs["row_mask"].expand(len(images), -1)
        return super().generate(inputs, **kwargs)

    def prepare_inputs_for_generation(
        self, decoder_input_ids: torch.Tensor, past_key_values: Cache | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """What one step of generation needs: the last id, the cache and the memory."""
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        return {
            "decoder_input_ids": decoder_input_ids[:, past:],
            "past_key_values": past_key_values,
            "encoder_outputs": kwargs["encoder_outputs"],
            "row_mask": kwargs.get("row_mask"),
            "use_cache": kwargs.get("use_cache", True),
            **{name: kwargs[name] for name in ("output_attentions", "output_hidden_states") if name in kwargs},
        }

    @torch.no_grad()
    def recognise(
        self,
        pixel_values: torch.Tensor,
        pixel_mask: torch.Tensor | None = None,
        languages: Sequence[str] | None = None,
        num_alternatives: int = 0,
        gate_threshold: float | None = None,
        num_views: int | None = None,
    ) -> list[dict[str, Any]]:
        """Reads words: the Spotter first, then the Refiner where the Spotter is not sure, from several views.

        Args:
            pixel_values: Grey images, `[B, 1, H, W]`, -1 to 1; W a multiple of 8.
            pixel_mask: True on columns of the image, `[B, W]`.
            languages: Only characters that one of these uses are read; every character where left out.
            num_alternatives: Other readings to give for each word and other characters for each character; refines
                every word where above 0.
            gate_threshold: Words whose Spotter score is at least this are not refined; the config's where left out.
            num_views: Most views of a word that is below the threshold, which vote; the config's where left out.

        Returns:
            A reading for each image: `text` (NFC), `score`, `script` (ISO 15924), `characters` (`char`, `score`,
            `alternatives`), `alternatives` (`text`, `score`), `spotter_text`. Scores are between 0 and 1.

        Raises:
            ValueError: If a language is not in the bank.
        """
        bank = self.get_bank()
        row_mask = None if languages is None else bank.language_mask(languages)
        return self._recognise(bank, pixel_values, pixel_mask, row_mask, num_alternatives, gate_threshold, num_views)

    @torch.no_grad()
    def _read(
        self, pixel_values: torch.Tensor, pixel_mask: torch.Tensor | None, row_mask: torch.Tensor | None
    ) -> RefinerOutput:
        """What :meth:`recognise` reads, as token ids and scores."""
        bank = self.get_bank()
        readings = self._recognise(bank, pixel_values, pixel_mask, row_mask)
        ids = [
            torch.tensor([TOKEN_OFFSET + bank.row(character["char"]) for character in reading["characters"]]).long()
            for reading in readings
        ]
        return RefinerOutput(
            sequences=nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=PAD).to(pixel_values.device),
            sequences_scores=torch.tensor([reading["score"] for reading in readings], device=pixel_values.device),
        )

    def _recognise(
        self,
        bank: PrototypeBank,
        pixel_values: torch.Tensor,
        pixel_mask: torch.Tensor | None,
        row_mask: torch.Tensor | None,
        num_alternatives: int = 0,
        gate_threshold: float | None = None,
        num_views: int | None = None,
    ) -> list[dict[str, Any]]:
        """:meth:`recognise`, with the bank and its rows that may be read."""
        if row_mask is not None:
            row_mask = row_mask.to(pixel_values.device).expand(len(pixel_values), -1)
        spotted = self.encoder.spot(pixel_values, pixel_mask, row_mask)
        scores = self.spotter.word_scores(spotted)
        scale = self.spotter.head.scale / self.spotter.config.score_temperature
        threshold = self.config.gate_threshold if gate_threshold is None else gate_threshold
        readings = [
            _reading(bank, ids[:count], probabilities[:count], score, num_alternatives)
            for ids, probabilities, count, score in zip(
                spotted.top_k_ids.tolist(),
                (scale * spotted.top_k_scores).softmax(-1).tolist(),
                spotted.character_mask.sum(1).tolist(),
                scores.tolist(),
                strict=True,
            )
        ]
        unsure = (scores < threshold).nonzero()[:, 0].tolist()
        chosen = list(range(len(readings))) if num_alternatives else unsure
        ballots: dict[int, list[list[_Hypothesis]]] = {index: [] for index in chosen}
        most = max(1, self.config.num_views if num_views is None else num_views)
        # All words as they are, then those that this leaves undecided in the other views, all at once: one search more,
        # where a view after the other would take several, for little more work.
        for views in (VIEWS[:1], VIEWS[1:most]):
            left = [
                index
                for index, ballot in ballots.items()
                if not ballot or (index in unsure and not decided(_shares(ballot).values()))
            ]
            if not left or not views:
                break
            # No more images at once than there are in the batch, whose size is the caller's choice.
            size = max(1, len(pixel_values) // len(views))
            for part in (left[start : start + size] for start in range(0, len(left), size)):
                rows = torch.tensor(part, device=pixel_values.device)
                seen, allowed = spotted, None if row_mask is None else row_mask[rows].repeat(len(views), 1)
                if views[0] != VIEWS[0]:
                    if pixel_mask is None:
                        pixel_mask = torch.ones_like(pixel_values[:, 0, 0], dtype=torch.bool)
                    seen = self.encoder.spot(*look(views, pixel_values[rows], pixel_mask[rows].bool()), allowed)
                    rows = torch.arange(len(seen.top_k_ids), device=pixel_values.device)
                found = self._refine(bank, seen, rows, allowed, num_alternatives)
                for index, hypotheses in zip(part * len(views), found, strict=True):
                    ballots[index].append(hypotheses)
        for index, ballot in ballots.items():
            readings[index] = {
                **_vote(bank, ballot, num_alternatives, self.config.vote_temperature),
                "spotter_text": readings[index]["spotter_text"],
            }
        return readings

    def _refine(
        self,
        bank: PrototypeBank,
        spotted: SpotterOutput,
        chosen: torch.Tensor,
        row_mask: torch.Tensor | None,
        num_alternatives: int,
    ) -> list[list[_Hypothesis]]:
        """Decodes the chosen words: some readings of each, in that order; the mask is that of the chosen words."""
        # The longest first: words leave the decoder's batch from its end.
        order = spotted.character_mask[chosen].sum(1).argsort(descending=True)
        chosen = chosen[order]
        config = self.config
        found = beam_search(
            self._decoder(
                SpotterOutput(
                    top_k_ids=spotted.top_k_ids[chosen],
                    top_k_scores=spotted.top_k_scores[chosen],
                    character_mask=spotted.character_mask[chosen],
                    feature_maps=tuple(level[chosen] for level in spotted.feature_maps),
                    column_mask=spotted.column_mask[chosen],
                )
            ),
            self._prior(bank),
            words=len(chosen),
            beams=max(config.beam_width, num_alternatives + 1),
            limit=config.spotter_config.max_length + 1,
            temperature=config.score_temperature,
            row_mask=None if row_mask is None else row_mask[order],
            num_top=num_alternatives + 1,
            margin=math.inf if num_alternatives else MARGIN,
            device=spotted.top_k_ids.device,
        )
        scores, priors = found.log_probs.sum(-1).exp().tolist(), (found.prior / config.score_temperature).tolist()
        counts, alive = (found.ids > 0).sum(-1).tolist(), found.alive.tolist()
        words = [
            [
                _Hypothesis(_text(bank, ids[:count]), score, prior, (found, word, beam))
                for beam, (ids, count, score, prior, exists) in enumerate(
                    zip(found.ids[word].tolist(), counts[word], scores[word], priors[word], alive[word], strict=True)
                )
                if exists
            ]
            for word in range(len(chosen))
        ]
        return [words[place] for place in order.argsort().tolist()]

    def _prior(self, bank: PrototypeBank) -> _Prior | None:
        """What says which characters may follow each other, if there is a language model."""
        if self.language_model is None or not self.config.language_weight:
            return None
        # A large bank takes long to describe.
        if self._described is None or self._described[0] is not bank:
            classes = character_classes(bank.characters, bank.subtypes, bank.joiners)
            known = 1 + self.config.language_config.num_rows
            classes[known:] = [NOTHING] * (len(classes) - known)
            self._described = bank, torch.tensor(classes, device=self.language_model.keys.device)
        config = self.config
        return _Prior(self.language_model, self._described[1], config.language_weight, config.language_bonus)

    def _decoder(self, spotted: SpotterOutput) -> Decoder:
        """What decodes the words that were spotted."""
        return _Decoder(self, self.encoder.remember(spotted))


@dataclass
class _Hypothesis:
    """A reading of one view.

    Attributes:
        text: What is read.
        score: The Refiner's probability.
        prior: What the language model adds to its logarithm.
        place: Where the search has its characters.
    """

    text: str
    score: float
    prior: float
    place: tuple[Hypotheses, int, int]


class _Decoder:
    """The Refiner's decoder, step by step, with its cache."""

    def __init__(self, model: RefinerModel, memory: RefinerEncoderOutput):
        self.model = model
        self.states, self.mask = memory.last_hidden_state, memory.memory_mask
        self.cache = DynamicCache()
        self.beams = 0

    def step(self, ids: torch.Tensor) -> torch.Tensor:
        """See `beam_search.Decoder`."""
        self.beams = self.beams or len(ids) // len(self.states)
        tokens = next_tokens(ids, first=not self.cache.get_seq_length())
        states = self.model._decode(tokens[:, None], self.states, self.mask, self.cache).last_hidden_state
        return readable(self.model._logits(states)[:, 0])

    def select(self, beams: torch.Tensor) -> None:
        """See `beam_search.Decoder`."""
        words = len(beams) // self.beams
        self.states, self.mask = self.states[:words], self.mask[:words]
        for layer in self.cache.layers:
            if self.beams == 1:
                layer.keys, layer.values = layer.keys[:words], layer.values[:words]
            else:
                layer.keys, layer.values = layer.keys[beams], layer.values[beams]


def next_tokens(ids: torch.Tensor, first: bool) -> torch.Tensor:
    """Token ids of a search's ids: the start at first, later the end for what waits for other beams of its word."""
    return torch.where(ids > 0, ids + TOKEN_OFFSET - 1, BOS if first else EOS)


def readable(logits: torch.Tensor) -> torch.Tensor:
    """Logits of a search's ids `[B, 1 + N]`, of those of token ids `[B, V]`."""
    return torch.cat([logits[:, EOS : EOS + 1], logits[:, TOKEN_OFFSET:]], 1)


class _Prior:
    """The language model, step by step."""

    def __init__(self, model: LanguageModel, classes: torch.Tensor, weight: float, bonus: float):
        self.model, self.classes, self.weight, self.bonus = model, classes, weight, bonus
        self.contexts: torch.Tensor | None = None

    def step(self, ids: torch.Tensor) -> None:
        """See `beam_search.Prior`."""
        if self.contexts is None:
            self.contexts = self.model.contexts(len(ids))
        else:
            self.contexts = self.model.append(self.contexts, self.classes[ids])

    def score(self, candidates: torch.Tensor) -> torch.Tensor:
        """See `beam_search.Prior`."""
        classes = self.classes[candidates]
        return self.weight * (self.model(self.contexts, classes) + self.bonus * (classes > 0))

    def select(self, beams: torch.Tensor) -> None:
        """See `beam_search.Prior`."""
        self.contexts = self.contexts[beams]


def _text(bank: PrototypeBank, ids: Sequence[int]) -> str:
    """Ids, 1 + row each, to the text that is shown."""
    return display("".join(bank.characters[index - 1] for index in ids))


def _shares(ballot: Sequence[Sequence[_Hypothesis]]) -> dict[str, float]:
    """Text -> how likely it is, by what the views of a word and the language model say.

    The language model moves what the views have given to the readings that they name, and gives nothing itself: what
    no view is sure of stays so.
    """
    votes: dict[str, float] = {}
    priors: dict[str, float] = {}
    for hypothesis in (hypothesis for view in ballot for hypothesis in view):
        votes[hypothesis.text] = votes.get(hypothesis.text, 0.0) + hypothesis.score / len(ballot)
        priors[hypothesis.text] = max(priors.get(hypothesis.text, LEAST_PRIOR), hypothesis.prior)
    likeliest = max(priors.values())
    weighed = {text: vote * math.exp(priors[text] - likeliest) for text, vote in votes.items()}
    total = sum(weighed.values()) or 1.0  # 0 where a score is too small for a float
    return {text: weight / total * sum(votes.values()) for text, weight in weighed.items()}


def _vote(
    bank: PrototypeBank, ballot: Sequence[Sequence[_Hypothesis]], num_alternatives: int, temperature: float
) -> dict[str, Any]:
    """What the views of a word agree on: the likeliest reading.

    What several views give it is too low for a probability, as views that miss a word say little against what others
    read: it is raised to the power of 1 / temperature. What one view decides keeps its score.
    """
    power = 1.0 if len(ballot) == 1 else 1 / temperature
    (text, share), *others = sorted(_shares(ballot).items(), key=lambda item: -item[1])
    best = max((one for view in ballot for one in view if one.text == text), key=lambda one: one.score)
    found, word, beam = best.place
    count = int((found.ids[word, beam] > 0).sum())
    ids, values = found.ids[word, beam, :count].tolist(), found.log_probs[word, beam, :count].exp().tolist()
    tops = zip(
        found.top_ids[word, beam, :count].tolist(), found.top_log_probs[word, beam, :count].exp().tolist(), strict=True
    )
    steps = [
        [(own, value), *((other, chance) for other, chance in zip(*top, strict=True) if other != own)]
        for own, value, top in zip(ids, values, tops, strict=True)
    ]
    reading = _reading(
        bank,
        [[index + TOKEN_OFFSET - 1 for index, _ in step] for step in steps],
        [[value for _, value in step] for step in steps],
        min(1.0, share) ** power,
        num_alternatives,
    )
    alternatives = [{"text": other, "score": min(1.0, score) ** power} for other, score in others[:num_alternatives]]
    return {**reading, "alternatives": alternatives}


def _reading(
    bank: PrototypeBank,
    ids: Sequence[Sequence[int]],
    probabilities: Sequence[Sequence[float]],
    score: float,
    num_alternatives: int,
) -> dict[str, Any]:
    """A reading from the hypotheses of each step, best first."""
    text = _text(bank, [step[0] - TOKEN_OFFSET + 1 for step in ids])
    scripts: dict[str, int] = {}
    for step in ids:
        row = step[0] - TOKEN_OFFSET
        if row >= 0 and bank.subtypes[row] == 0:
            scripts[bank.scripts[row]] = scripts.get(bank.scripts[row], 0) + 1
    characters = []
    for step, values in zip(ids, probabilities, strict=True):
        others = [
            {"char": bank.characters[index - TOKEN_OFFSET], "score": value}
            for index, value in zip(step[1:], values[1:], strict=True)
            if index >= TOKEN_OFFSET
        ]
        characters.append(
            {
                "char": bank.characters[step[0] - TOKEN_OFFSET],
                "score": values[0],
                "alternatives": others[:num_alternatives],
            }
        )
    return {
        "text": text,
        "score": score,
        "script": max(scripts, key=scripts.__getitem__, default="Zyyy"),
        "characters": characters,
        "alternatives": [],
        "spotter_text": text,
    }
