"""The Spotter: a word image to a sequence of embeddings, and from these to characters of the bank.

CTC-style frames (Graves et al., 2006) over a convolutional pyramid and a few Transformer layers. What stands for the
output layer is the cosine to the frozen prototype bank and to one learned blank row, so no weight has the size of the
alphabet.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.output_capturing import capture_outputs

from .configuration_spotter import SpotterConfig
from .layers import Attention, EncoderLayer, WholeCheckpointMixin, additive_mask, cosines, init_layer_weights
from .prototype_bank import BankError, PrototypeBank

# Token id of bank row 0: special and prompt tokens come first (see the tokenizer).
TOKEN_OFFSET = 128
IGNORED = -100


@dataclass
class SpotterOutput(ModelOutput):
    """Output of the Spotter. B images, T frames, N bank rows, L character steps, K hypotheses, D dimensions.

    Attributes:
        loss: Scalar; present with `labels`.
        embeddings: Unit rows, `[B, T, D]`.
        similarity: Cosine to each bank row, `[B, T, N]`; argmax picks the character.
        blank_similarity: Cosine to the blank row, `[B, T]`.
        frame_mask: True on frames of the image, `[B, T]`.
        top_k_ids: Token ids of the best characters of each step, in logical order, `[B, L, K]`; 0 on padding, and where
            the bank has fewer than K rows. Absent, like the next two, from a training step: what only needs the loss
            does not pay for a reading.
        top_k_scores: Their cosines, `[B, L, K]`; 0 on padding, -1 where the bank has fewer than K rows.
        character_mask: True on steps that hold a character, `[B, L]`.
        feature_maps: Pyramid, fine to coarse: `[B, C, H/4, W/4]`, `[B, C, H/8, columns]`, `[B, C, rows, columns]`.
        column_mask: True on columns of the image, `[B, columns]`.
        hidden_states: With `output_hidden_states`: input and output of the Transformer layers, `[B, S, C]` each.
        attentions: With `output_attentions` and eager attention: their weights, `[B, heads, S, S]` each.
    """

    loss: torch.Tensor | None = None
    embeddings: torch.Tensor | None = None
    similarity: torch.Tensor | None = None
    blank_similarity: torch.Tensor | None = None
    frame_mask: torch.Tensor | None = None
    top_k_ids: torch.Tensor | None = None
    top_k_scores: torch.Tensor | None = None
    character_mask: torch.Tensor | None = None
    feature_maps: tuple[torch.Tensor, ...] | None = None
    column_mask: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class MaskedConv(nn.Module):
    """Convolution and batch norm; columns beyond the image are zeroed, so that padding never changes a reading."""

    def __init__(self, in_channels: int, channels: int, stride: int | tuple[int, int] = 1):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(
        self, hidden_states: torch.Tensor, mask: torch.Tensor, residual: torch.Tensor | None = None
    ) -> torch.Tensor:
        """`[B, C, H, W]`, mask `[B, 1, 1, W']` of the output's width."""
        hidden_states = self.norm(self.conv(hidden_states))
        if residual is not None:
            hidden_states = hidden_states + residual
        return F.relu(hidden_states) * mask


class ResidualBlock(nn.Module):
    """Two masked convolutions around a shortcut."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = MaskedConv(channels, channels)
        self.conv2 = MaskedConv(channels, channels)

    def forward(self, hidden_states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """`[B, C, H, W]` to the same."""
        return self.conv2(self.conv1(hidden_states, mask), mask, hidden_states)


class SpotterBackbone(nn.Module):
    """Convolutional pyramid at H/4 x W/4, H/8 and H/16 by columns, and Transformer layers on the last level.

    What the last level has of rows may become one before the layers.
    """

    def __init__(self, config: SpotterConfig):
        super().__init__()
        self.column_width = config.column_width
        fine, middle, coarse = config.stage_channels
        self.stem = MaskedConv(1, config.stem_channels, 2)
        self.down1 = MaskedConv(config.stem_channels, fine, 2)
        self.stage1 = nn.ModuleList(ResidualBlock(fine) for _ in range(config.stage_blocks[0]))
        self.down2 = MaskedConv(fine, middle, (2, config.column_width // 4))
        self.stage2 = nn.ModuleList(ResidualBlock(middle) for _ in range(config.stage_blocks[1]))
        self.down3 = MaskedConv(middle, coarse, (2, 1))
        # Positions come from a depth-wise convolution, which serves any width.
        self.position = nn.Conv2d(coarse, coarse, 3, 1, 1, groups=coarse)
        self.merge = nn.Conv2d(coarse, coarse, (config.image_height // 16, 1)) if config.merge_rows else None
        self.layers = nn.ModuleList(
            EncoderLayer(config, coarse, config.num_attention_heads, config.intermediate_size, config.hidden_act)
            for _ in range(config.num_hidden_layers)
        )
        self.norm = nn.LayerNorm(coarse)

    def forward(
        self, pixel_values: torch.Tensor, pixel_mask: torch.Tensor
    ) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        """`[B, 1, H, W]`, `[B, W]` to the three levels and the column mask `[B, columns]`."""
        pixel_values = pixel_values.to(self.stem.conv.weight.dtype)
        columns = pixel_mask[:, :: self.column_width]
        half, quarter, column = (
            pixel_mask[:, None, None, ::step].to(pixel_values.dtype) for step in (2, 4, self.column_width)
        )
        hidden_states = self.stem(pixel_values, half)
        fine = self.down1(hidden_states, quarter)
        for block in self.stage1:
            fine = block(fine, quarter)
        middle = self.down2(fine, column)
        for block in self.stage2:
            middle = block(middle, column)
        coarse = self.down3(middle, column)
        coarse = coarse + self.position(coarse)
        if self.merge is not None:
            coarse = self.merge(coarse)
        batch, channels, height, width = coarse.shape
        tokens = coarse.flatten(2).transpose(1, 2)
        mask = additive_mask(columns.repeat(1, height), tokens.dtype)
        for layer in self.layers:
            tokens = layer(tokens, mask)
        coarse = self.norm(tokens).transpose(1, 2).reshape(batch, channels, height, width) * column
        return (fine, middle, coarse), columns


class SpotterPreTrainedModel(WholeCheckpointMixin, PreTrainedModel):
    """Initialisation and flags of the Spotter."""

    config_class = SpotterConfig
    base_model_prefix = "spotter"
    main_input_name = "pixel_values"
    input_modalities = "image"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["SpotterBackbone", "RetrievalHead"]
    _keep_in_fp32_modules_strict = ["prototypes"]
    _can_record_outputs = {"hidden_states": EncoderLayer, "attentions": Attention}
    # The loss is a mean over the batch, so that Trainer has to divide it by its steps of gradient accumulation.
    accepts_loss_kwargs = False

    def _init_weights(self, module: nn.Module) -> None:
        init_layer_weights(module)
        if isinstance(module, RetrievalHead):
            init.normal_(module.blank, std=module.blank.shape[-1] ** -0.5)
            init.constant_(module.log_scale, torch.tensor(float(module.config.logit_scale_init)).log().item())
            init.copy_(module.prototypes, random_unit_rows(*module.prototypes.shape))
            init.copy_(module.directions, bank_directions(module.config))


def random_unit_rows(count: int, size: int) -> torch.Tensor:
    """Deterministic unit rows `[count, size]`: what a model holds until it is given a bank."""
    return F.normalize(torch.randn(count, size, generator=torch.Generator().manual_seed(0)), dim=-1)


def bank_directions(config: SpotterConfig) -> torch.Tensor:
    """Writing direction of each row, int8 `[N]`: 1 left-to-right letter or number, 2 right-to-left letter, else 0."""
    kinds = {"L": 1, "EN": 1, "AN": 1, "R": 2, "AL": 2}
    characters = config.bank["characters"] if config.bank else "\0" * config.num_prototypes
    return torch.tensor([kinds.get(unicodedata.bidirectional(c), 0) for c in characters], dtype=torch.int8)


class RetrievalHead(nn.Module):
    """Frames from columns, and cosine retrieval from the bank."""

    prototypes: torch.Tensor
    directions: torch.Tensor

    def __init__(self, config: SpotterConfig):
        super().__init__()
        self.config = config
        size = config.hidden_size * config.num_rows
        self.projection = nn.Linear(size, config.frames_per_column * config.projection_dim)
        self.blank = nn.Parameter(torch.empty(config.projection_dim))
        self.log_scale = nn.Parameter(torch.empty(()))
        self.register_buffer("prototypes", random_unit_rows(config.num_prototypes, config.projection_dim))
        self.register_buffer("directions", bank_directions(config), persistent=False)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> nn.Module:
        rows = self.prototypes
        super()._apply(fn, recurse)
        # `.half()` and the like: the bank keeps its precision, whatever the weights', and so its digest.
        if self.prototypes.dtype != rows.dtype:
            self.prototypes = rows.to(self.prototypes.device)
        return self

    def embed(self, coarse: torch.Tensor) -> torch.Tensor:
        """Last level `[B, C, rows, columns]` to unit embeddings `[B, T, D]`."""
        batch, channels, height, width = coarse.shape
        columns = coarse.permute(0, 3, 2, 1).reshape(batch, width, height * channels)
        frames = self.projection(columns).view(batch, width * self.config.frames_per_column, -1)
        return F.normalize(frames.float(), dim=-1)

    def retrieve(self, embeddings: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings `[..., D]` to cosines with the bank `[..., N]` and with the blank row `[...]`."""
        blank = F.normalize(self.blank.float(), dim=-1)
        return cosines(embeddings, self.prototypes), cosines(embeddings, blank)

    def forward(self, coarse: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Last level to embeddings `[B, T, D]` and their cosines with the bank `[B, T, N]` and the blank `[B, T]`."""
        embeddings = self.embed(coarse)
        return embeddings, *self.retrieve(embeddings)

    @property
    def scale(self) -> torch.Tensor:
        """Scale of the cosines in the loss and, over the temperature, in scores."""
        return self.log_scale.float().exp().clamp(max=100.0)


class SpotterModel(SpotterPreTrainedModel):
    """Word images to characters; see the module's docstring."""

    def __init__(self, config: SpotterConfig):
        super().__init__(config)
        self.backbone = SpotterBackbone(config)
        self.head = RetrievalHead(config)
        self._checked_bank: tuple[torch.Tensor, tuple, PrototypeBank] | None = None
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """What images go through first."""
        return self.backbone.stem

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces what images go through first."""
        self.backbone.stem = value

    def set_bank(self, bank: PrototypeBank, base: bool = False) -> None:
        """Puts a bank into the model.

        Args:
            bank: The bank.
            base: True makes its rows the base rows that later banks must begin with (before training).

        Raises:
            BankError: If the bank's size or first rows are not those that the model was trained with.
        """
        config = self.config
        if bank.prototypes.shape[1] != config.projection_dim:
            raise BankError(
                f"the bank's rows have {bank.prototypes.shape[1]} dimensions, this model retrieves among "
                f"{config.projection_dim}: use the bank it was trained with"
            )
        if base:
            config.num_base_prototypes, config.base_digest = len(bank), bank.digest()
        elif len(bank) < config.num_base_prototypes or bank.digest(config.num_base_prototypes) != config.base_digest:
            raise BankError(
                f"the bank's first {config.num_base_prototypes} rows are not those that this model was trained with: "
                "use its own bank, or an extension of it (PrototypeBank.extend)"
            )
        config.bank, config.num_prototypes = bank.metadata(), len(bank)
        device = self.head.prototypes.device
        self.head.prototypes = bank.prototypes.detach().to(device=device, dtype=torch.float32, copy=True)
        self.head.directions = bank_directions(config).to(device)

    def get_bank(self) -> PrototypeBank:
        """The bank in the model: the same object until the model's rows change.

        Raises:
            BankError: If it was never given one, or its rows are not those that it was trained with.
        """
        config, rows = self.config, self.head.prototypes
        # Every reading asks for it, and a large one takes long to describe and to check.
        version = None if rows.is_inference() else rows._version
        state = (version, config.bank, config.num_base_prototypes, config.base_digest)
        if self._checked_bank is not None and self._checked_bank[0] is rows and self._checked_bank[1] == state:
            return self._checked_bank[2]
        if config.bank is None:
            raise BankError("this model has no prototype bank: give it one with set_bank, or load a trained checkpoint")
        bank = PrototypeBank.from_metadata(config.bank, rows.detach().cpu())
        if bank.digest(config.num_base_prototypes) != config.base_digest:
            raise BankError(
                f"the first {config.num_base_prototypes} rows of the bank in this model do not match their digest: the "
                "checkpoint was changed, or mixed from two; fetch it again, or give it its own bank with set_bank"
            )
        self._checked_bank = (rows, state, bank)
        return bank

    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor,
        pixel_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        frame_labels: torch.Tensor | None = None,
        row_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SpotterOutput:
        """Spots characters.

        Args:
            pixel_values: Grey images, `[B, 1, H, W]`, -1 to 1; W a multiple of 8.
            pixel_mask: True on columns of the image, `[B, W]`; all of them where left out.
            labels: Token ids in logical order, `[B, S]`, padded with -100.
            frame_labels: Token id of each frame from left to right, 0 for blank, -100 where unknown, `[B, T]`: a
                synthetic word's character positions. Adds the alignment loss, which spares CTC its long search for an
                alignment.
            row_mask: Bank rows that may be read, bool `[N]` or `[B, N]` (language mask).
            **kwargs: `output_hidden_states`, `output_attentions` and `return_dict`, as everywhere in transformers.

        Returns:
            SpotterOutput.
        """
        if pixel_mask is None:
            pixel_mask = torch.ones_like(pixel_values[:, 0, 0], dtype=torch.bool)
        levels, columns = self.backbone(pixel_values, pixel_mask.bool())
        embeddings, similarity, blank_similarity = self.head(levels[-1])
        frame_mask = columns.repeat_interleave(self.config.frames_per_column, dim=1)
        loss = None
        if labels is not None:
            loss = self._loss(similarity, blank_similarity, frame_mask, labels, frame_labels)
        if row_mask is not None:
            similarity = similarity.masked_fill(~row_mask[..., None, :].to(similarity.device), -1.0)
        output = SpotterOutput(
            loss=loss,
            embeddings=embeddings,
            similarity=similarity,
            blank_similarity=blank_similarity,
            frame_mask=frame_mask,
            feature_maps=levels,
            column_mask=columns,
        )
        return output if self.training and labels is not None else self.read_frames(output)

    def read_frames(self, output: SpotterOutput) -> SpotterOutput:
        """Adds the hypotheses of each step; the loss alone does without them."""
        output.top_k_ids, output.top_k_scores, output.character_mask = collapse_frames(
            output.similarity,
            output.blank_similarity,
            output.frame_mask,
            self.head.directions,
            self.config.top_k,
            self.config.max_length,
        )
        return output

    def log_probs(self, similarity: torch.Tensor, blank_similarity: torch.Tensor) -> torch.Tensor:
        """Cosines `[B, T, N]` and `[B, T]` to log-probabilities of blank and rows, `[B, T, 1 + N]`."""
        return (self.head.scale * torch.cat([blank_similarity[..., None], similarity], -1)).log_softmax(-1)

    def word_scores(self, output: SpotterOutput) -> torch.Tensor:
        """Probability of each reading, `[B]`: the sum over all CTC paths that collapse to it, at the temperature."""
        present = output.character_mask
        targets = self._targets(output.top_k_ids[..., 0].masked_fill(~present, IGNORED))
        scale = self.head.scale / self.config.score_temperature
        blank = scale * output.blank_similarity
        similarity = output.similarity.to(blank.dtype)
        # The loss takes the classes that occur in the reading alone, however large the bank is; the sum over all of
        # its rows is made once.
        total = torch.logaddexp(torch.logsumexp(scale * similarity, -1), blank)
        rows = (targets - 1).clamp_min(0)
        chosen = scale * similarity.gather(-1, rows[:, None].expand(-1, similarity.shape[1], -1))
        log_probs = torch.cat([blank[..., None], chosen], -1) - total[..., None]
        # A character that occurs again has the class of its first place: two in a row need a blank between.
        classes = (targets[:, :, None] == targets[:, None, :]).long().argmax(-1) + 1
        losses = F.ctc_loss(
            log_probs.transpose(0, 1),
            classes.masked_fill(~present, 0),
            output.frame_mask.sum(1),
            present.sum(1),
            reduction="none",
        )
        return (-losses).exp()

    def _targets(self, labels: torch.Tensor) -> torch.Tensor:
        """Token ids in logical order to CTC classes in the order of the frames, from left to right."""
        present = labels != IGNORED
        rows = (labels - TOKEN_OFFSET).masked_fill(~present, 0)
        # CTC would write where it must not. On a GPU, asking would make it wait at every step.
        asked = rows.device.type == "cpu" and not torch.compiler.is_compiling()
        if asked and not ((rows >= 0) & (rows < self.config.num_prototypes)).all():
            raise ValueError(
                f"labels hold a token id outside {TOKEN_OFFSET} to {TOKEN_OFFSET + self.config.num_prototypes - 1}, "
                f"those of characters: leave start and end out, and pad with {IGNORED}"
            )
        order = logical_order(self.head.directions[rows].masked_fill(~present, 0), present.sum(1))
        return (rows.gather(1, order) + 1).masked_fill(~present, 0)

    def _loss(
        self,
        similarity: torch.Tensor,
        blank_similarity: torch.Tensor,
        frame_mask: torch.Tensor,
        labels: torch.Tensor,
        frame_labels: torch.Tensor | None,
    ) -> torch.Tensor:
        """CTC over cosines; with known character positions, frame-wise cross-entropy beside it."""
        log_probs = self.log_probs(similarity, blank_similarity)
        loss = F.ctc_loss(
            log_probs.transpose(0, 1),
            self._targets(labels),
            frame_mask.sum(1),
            (labels != IGNORED).sum(1),
            reduction="mean",
            zero_infinity=True,
        )
        if frame_labels is not None:
            known = (frame_labels != IGNORED) & frame_mask
            classes = (frame_labels - TOKEN_OFFSET + 1).clamp_min(0)
            errors = -log_probs.gather(-1, classes[..., None])[..., 0]
            # Blanks outnumber characters several times: each kind has half of the loss.
            for kind in (known & (classes > 0), known & (classes == 0)):
                weight = kind.to(errors.dtype)
                loss = loss + self.config.alignment_weight * 0.5 * (errors * weight).sum() / weight.sum().clamp_min(1)
        return loss


def collapse_frames(
    similarity: torch.Tensor,
    blank_similarity: torch.Tensor,
    frame_mask: torch.Tensor,
    directions: torch.Tensor,
    top_k: int,
    max_length: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Frames to character steps: runs of one character collapse to their best frame, blanks go.

    Args:
        similarity: `[B, T, N]`.
        blank_similarity: `[B, T]`.
        frame_mask: `[B, T]`.
        directions: Writing direction of each row, `[N]` (:func:`bank_directions`).
        top_k: K.
        max_length: Steps at most; L = min(T, max_length).

    Returns:
        Token ids `[B, L, K]` in logical order, cosines `[B, L, K]`, mask `[B, L]`. A bank of fewer than K rows leaves
        ids 0 and cosines -1, the least there is.
    """
    batch, frames, rows = similarity.shape
    best, row = similarity.max(-1)
    row = row.masked_fill((blank_similarity >= best) | ~frame_mask, -1)
    before = F.pad(row[:, :-1], (1, 0), value=-1)
    starts = (row != before) & (row >= 0)
    step = starts.cumsum(1) - 1
    length = min(frames, max_length)
    inside = (row >= 0) & (step < length)
    slot = step.masked_fill(~inside, length)  # one slot more than needed takes what is left out
    peak = best.new_full((batch, length + 1), -2.0).scatter_reduce(1, slot, best, "amax")
    positions = torch.arange(frames, device=row.device).expand(batch, -1)
    at_peak = positions.masked_fill(best < peak.gather(1, slot), frames - 1)
    frame = positions.new_full((batch, length + 1), frames - 1).scatter_reduce(1, slot, at_peak, "amin")[:, :length]
    count = starts.sum(1).clamp_max(length)
    mask = torch.arange(length, device=row.device) < count[:, None]

    top_row = row.gather(1, frame).masked_fill(~mask, 0)
    order = logical_order(directions[top_row].masked_fill(~mask, 0), count)
    frame = frame.gather(1, order)
    hypotheses = similarity.gather(1, frame[..., None].expand(-1, -1, rows))
    scores, ids = hypotheses.topk(min(top_k, rows), dim=-1)
    missing = (0, top_k - ids.shape[-1])
    ids, scores = F.pad(ids + TOKEN_OFFSET, missing), F.pad(scores, missing, value=-1.0)
    return ids * mask[..., None], scores * mask[..., None], mask


def logical_order(directions: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """Where each step in logical order stands on the page: the tensor form of :func:`text.visual_order`.

    Args:
        directions: Direction of each step from left to right, `[B, L]`: 1 left-to-right, 2 right-to-left, 0 neither.
        count: Steps in use, `[B]`.

    Returns:
        Permutation `[B, L]`; padding stays where it is.
    """
    batch, length = directions.shape
    place = torch.arange(length, device=directions.device).expand(batch, -1)
    used = place < count[:, None]
    strong = (directions > 0) & used
    # Nearest directed step on either side, itself included; neutral steps between two numbers go with them.
    left = torch.where(strong, place, -1).cummax(1).values
    right = torch.where(strong, place, length).flip(1).cummin(1).values.flip(1)

    def is_ltr(index: torch.Tensor) -> torch.Tensor:
        return (index >= 0) & (index < length) & (directions.gather(1, index.clamp(0, length - 1)) == 1)

    run = is_ltr(left) & is_ltr(right) & used
    begin = torch.where(run & ~F.pad(run[:, :-1], (1, 0)), place, -1).cummax(1).values
    end = torch.where(run & ~F.pad(run[:, 1:], (0, 1)), place, length).flip(1).cummin(1).values.flip(1)
    last = count[:, None] - 1
    target = torch.where(run, last - end + (place - begin), last - place)
    reverse = ((directions == 2) & used).any(1, keepdim=True)
    target = torch.where(reverse & used, target, place)
    return torch.zeros_like(target).scatter(1, target, place)
