"""mCLIP: one embedding space for character images and prompted character texts.

Contrastive learning as in CLIP (Radford et al., 2021), with two changes: every pair of the same character in the batch
is a positive (as in supervised contrastive learning, Khosla et al., 2020), and the batch spans all processes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.distributed.nn.functional as dist_nn
from torch import distributed, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.output_capturing import capture_outputs

from .configuration_mclip import MCLIPConfig
from .layers import Attention, EncoderLayer, WholeCheckpointMixin, additive_mask, cosines, init_layer_weights

NUM_SUBTYPES = 4
DEFAULT_MARGIN = 0.2


@dataclass
class MCLIPOutput(ModelOutput):
    """Output of mCLIP.

    Attributes:
        loss: Sum of the losses in use, scalar; present with `rows`.
        contrastive_loss: Symmetric InfoNCE, scalar.
        bank_loss: 1 - cosine of text embeddings and their prototypes, mean, scalar; present with `prototypes`.
        arcface_loss: ArcFace loss, scalar; present where its weight is above 0.
        subtype_loss: Subtype loss, scalar; present where its weight is above 0.
        image_embeds: Unit rows, `[B, D]`.
        text_embeds: Unit rows, `[B, D]`.
        hidden_states: With `output_hidden_states`: input and output of the text tower's layers, `[B, L, C]` each.
        attentions: With `output_attentions` and eager attention: their weights, `[B, heads, L, L]` each.
    """

    loss: torch.Tensor | None = None
    contrastive_loss: torch.Tensor | None = None
    bank_loss: torch.Tensor | None = None
    arcface_loss: torch.Tensor | None = None
    subtype_loss: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class _ResidualBlock(nn.Module):
    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Conv2d(in_channels, channels, 1, stride, bias=False)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        residual = self.shortcut(hidden_states)
        hidden_states = F.relu(self.norm1(self.conv1(hidden_states)))
        return F.relu(residual + self.norm2(self.conv2(hidden_states)))


class MCLIPImageTower(nn.Module):
    """ResNet-like tower: character crops to embeddings."""

    def __init__(self, config: MCLIPConfig):
        super().__init__()
        channels = list(config.image_channels)
        self.stem = nn.Conv2d(1, channels[0], 5, 2, 2, bias=False)
        self.norm = nn.BatchNorm2d(channels[0])
        # Every other stage halves the map, the first one too: at equal time, more crops teach more than larger maps.
        self.blocks = nn.ModuleList(
            _ResidualBlock(before, after, 1 if index % 2 else 2)
            for index, (before, after) in enumerate(zip([channels[0], *channels[:-1]], channels, strict=True))
        )
        # A position-keeping head: where a dot stands in the line is what tells it from other dots.
        self.pool = nn.AdaptiveAvgPool2d((4, 3))
        self.projection = nn.Linear(channels[-1] * 12, config.projection_dim)
        # Untrained towers see all crops alike; without centring, the text side first collapses onto that one point.
        self.centre = nn.BatchNorm1d(config.projection_dim, affine=False)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """`[B, 1, H, W]` in -1 to 1 to `[B, D]`."""
        hidden_states = F.relu(self.norm(self.stem(pixel_values.to(self.stem.weight.dtype))))
        for block in self.blocks:
            hidden_states = block(hidden_states)
        return self.centre(self.projection(self.pool(hidden_states).flatten(1)))


class MCLIPTextTower(nn.Module):
    """Pre-LN Transformer over prompt tokens; the state of the last one, the character, is projected."""

    def __init__(self, config: MCLIPConfig):
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = nn.Embedding(config.max_prompt_length, config.hidden_size)
        self.layers = nn.ModuleList(
            EncoderLayer(
                config, config.hidden_size, config.num_attention_heads, config.intermediate_size, config.hidden_act
            )
            for _ in range(config.num_hidden_layers)
        )
        self.norm = nn.LayerNorm(config.hidden_size)
        self.projection = nn.Linear(config.hidden_size, config.projection_dim)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """`[B, L]` token ids and mask to `[B, D]`."""
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        hidden_states = self.token_embedding(input_ids) + self.position_embedding(positions)
        mask = additive_mask(attention_mask.bool(), hidden_states.dtype)
        for layer in self.layers:
            hidden_states = layer(hidden_states, mask)
        last = attention_mask.sum(1) - 1
        pooled = hidden_states[torch.arange(len(input_ids), device=input_ids.device), last]
        return self.projection(self.norm(pooled))


def _gather(tensor: torch.Tensor) -> torch.Tensor:
    """Concatenates a tensor over all processes; gradients flow back exactly to the process that made each part."""
    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
        return torch.cat(dist_nn.all_gather(tensor.contiguous()))
    return tensor


def contrastive_loss(similarity: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Symmetric InfoNCE in which all pairs of the same character are positives.

    Args:
        similarity: Scaled cosine of image i and text j, `[B, B]`.
        rows: Character of each pair, `[B]`.

    Returns:
        Scalar loss: cross-entropy against the uniform distribution over the positives, both ways, halved.
    """
    positives = (rows[:, None] == rows[None, :]).to(similarity.dtype)
    target = positives / positives.sum(1, keepdim=True)
    image_to_text = -(target * similarity.log_softmax(1)).sum(1).mean()
    text_to_image = -(target * similarity.t().log_softmax(1)).sum(1).mean()
    return (image_to_text + text_to_image) / 2


class MCLIPModel(WholeCheckpointMixin, PreTrainedModel):
    """Character images and prompts in one space; see the module's docstring."""

    config_class = MCLIPConfig
    base_model_prefix = "mclip"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["EncoderLayer", "_ResidualBlock"]
    _can_record_outputs = {"hidden_states": EncoderLayer, "attentions": Attention}
    # The loss is a mean over the batch, so that Trainer has to divide it by its steps of gradient accumulation.
    accepts_loss_kwargs = False

    def __init__(self, config: MCLIPConfig):
        super().__init__(config)
        self.image_tower = MCLIPImageTower(config)
        self.text_tower = MCLIPTextTower(config)
        self.logit_scale = nn.Parameter(torch.empty(()))
        if config.arcface_weight:
            self.arcface_centres = nn.Parameter(torch.empty(config.num_rows, config.projection_dim))
        if config.subtype_weight:
            self.subtype_head = nn.Linear(config.projection_dim, NUM_SUBTYPES)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        init_layer_weights(module)
        if isinstance(module, nn.Embedding) and module.num_embeddings == self.config.vocab_size:
            # Characters start far apart: rows that begin in one cluster take most of the training to spread.
            init.normal_(module.weight, std=1.0)
        if isinstance(module, MCLIPModel):
            init.constant_(module.logit_scale, math.log(module.config.logit_scale_init))
            if module.config.arcface_weight:
                init.normal_(module.arcface_centres, std=module.config.projection_dim**-0.5)

    def get_input_embeddings(self) -> nn.Module:
        """The table of prompt tokens."""
        return self.text_tower.token_embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the table of prompt tokens."""
        self.text_tower.token_embedding = value

    def get_image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Unit embeddings `[B, D]` of character crops `[B, 1, H, W]`."""
        return F.normalize(self.image_tower(pixel_values), dim=-1)

    def get_text_features(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Unit embeddings `[B, D]` of prompts `[B, L]`."""
        return F.normalize(self.text_tower(input_ids, attention_mask), dim=-1)

    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        rows: torch.Tensor | None = None,
        subtypes: torch.Tensor | None = None,
        margins: torch.Tensor | None = None,
        prototypes: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MCLIPOutput:
        """Embeds pairs of crops and prompts and, given their characters, scores them.

        Args:
            pixel_values: Crops, `[B, 1, H, W]`, -1 to 1.
            input_ids: Prompts, `[B, L]`.
            attention_mask: `[B, L]`.
            rows: Bank row of each pair, `[B]`; asks for the loss.
            subtypes: Subtype of each pair, `[B]`; needed where the subtype loss has a weight.
            margins: ArcFace margin of each pair in radians, `[B]` (see :meth:`margin`).
            prototypes: Rows of a bank whose space is to be learned, `[B, D]`, zero where it has none. They stand in for
                the text side against the images, so that nothing can move them; the text side learns to give them.
            **kwargs: `output_hidden_states`, `output_attentions` and `return_dict`, as everywhere in transformers.

        Returns:
            MCLIPOutput.
        """
        image_embeds = self.get_image_features(pixel_values)
        text_embeds = self.get_text_features(input_ids, attention_mask)
        if rows is None:
            return MCLIPOutput(image_embeds=image_embeds, text_embeds=text_embeds)
        targets, bank = text_embeds, None
        if prototypes is not None:
            known = prototypes.any(1)
            targets = torch.where(known[:, None], prototypes.to(text_embeds.dtype), text_embeds)
            bank = ((1 - (text_embeds * prototypes).sum(1)) * known).sum() / known.sum().clamp(min=1)
        scale = self.logit_scale.exp().clamp(max=self.config.logit_scale_max)
        similarity = cosines(scale * _gather(image_embeds), _gather(targets))
        contrastive = contrastive_loss(similarity, _gather(rows))
        loss, arcface, subtype = contrastive, None, None
        if bank is not None:
            loss = loss + bank
        if self.config.arcface_weight:
            arcface = self._arcface_loss(image_embeds, rows, margins)
            loss = loss + self.config.arcface_weight * arcface
        if self.config.subtype_weight:
            subtype = F.cross_entropy(self.subtype_head(image_embeds), subtypes)
            loss = loss + self.config.subtype_weight * subtype
        return MCLIPOutput(loss, contrastive, bank, arcface, subtype, image_embeds, text_embeds)

    def margin(self, lang: str) -> float:
        """ArcFace margin of a language in radians."""
        return (self.config.arcface_margins or {}).get(lang, DEFAULT_MARGIN)

    def _arcface_loss(
        self, image_embeds: torch.Tensor, rows: torch.Tensor, margins: torch.Tensor | None
    ) -> torch.Tensor:
        cosine = cosines(image_embeds, F.normalize(self.arcface_centres, dim=-1))
        if margins is None:
            margins = torch.full(rows.shape, DEFAULT_MARGIN, device=cosine.device)
        # Kept off +-1, where the derivative of arccos is infinite.
        angle = cosine.gather(1, rows[:, None]).clamp(-1 + 1e-6, 1 - 1e-6).acos()
        target = (angle + margins[:, None]).clamp(max=math.pi).cos()
        return F.cross_entropy(self.config.arcface_scale * cosine.scatter(1, rows[:, None], target), rows)
