"""Configuration of the Spotter."""

from typing import Any

from huggingface_hub.dataclasses import strict

from .configuration_base import MSTRConfig


@strict
class SpotterConfig(MSTRConfig):
    """Shape of the Spotter, and the bank that it retrieves from. Unknown fields and values out of range are refused.

    Args:
        stem_channels: Channels after the first convolution (H/2 x W/2).
        stage_channels: Channels of the pyramid's levels: H/4 x W/4, H/8 x columns, H/16 x columns.
        stage_blocks: Residual blocks of the first two levels.
        num_hidden_layers: Transformer layers on the last level.
        num_attention_heads: Their heads.
        intermediate_size: Their feed-forward width.
        hidden_act: Their activation.
        image_height: Height of the input in pixels; a multiple of 16.
        column_width: Pixels of the image for each column of the last two levels: 4 or 8.
        frames_per_column: Frames for each of these columns.
        merge_rows: Whether the rows of the last level become one before its layers (as in CRNN, Shi et al., 2017): at
            equal compute, columns may be half as wide.
        projection_dim: Size D of an embedding; the bank's.
        logit_scale_init: Initial scale of the cosines in the training loss; learned.
        alignment_weight: Weight of the frame alignment loss, used where a batch says where its characters stand.
        top_k: Hypotheses a step.
        max_length: Longest reading in characters.
        num_prototypes: Rows of the bank in the model.
        num_base_prototypes: Rows that the model was trained with.
        base_digest: Digest of those rows; other banks must begin with them.
        bank: Characters, subtypes, scripts and languages of the rows (`PrototypeBank.metadata`).
        score_temperature: Divides the scaled cosines when scores are made; fitted on held-out data.
    """

    model_type = "mstr_spotter"

    stem_channels: int = 32
    stage_channels: list[int] | tuple[int, ...] = (48, 96, 192)
    stage_blocks: list[int] | tuple[int, ...] = (1, 2)
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    intermediate_size: int = 512
    hidden_act: str = "gelu"
    image_height: int = 32
    column_width: int = 4
    frames_per_column: int = 2
    merge_rows: bool = False
    projection_dim: int = 192
    logit_scale_init: float | int = 16.0
    alignment_weight: float | int = 1.0
    top_k: int = 5
    max_length: int = 64
    num_prototypes: int = 512
    num_base_prototypes: int = 512
    base_digest: str = ""
    bank: dict[str, Any] | None = None
    score_temperature: float | int = 1.0

    def validate_architecture(self) -> None:
        """Refuses sizes that are out of range or do not fit together."""
        self._check_numbers(1, "stem_channels", "stage_channels", "image_height", "frames_per_column", "projection_dim")
        self._check_numbers(1, "top_k", "max_length", "num_prototypes", "num_base_prototypes")
        self._check_numbers(0, "stage_blocks", "alignment_weight")
        self._check_positive("logit_scale_init", "score_temperature")
        if self.image_height % 16:
            raise ValueError(f"image_height {self.image_height} is not a multiple of 16")
        self._check_numbers(4, "column_width")
        if self.column_width not in (4, 8):
            raise ValueError(f"column_width {self.column_width}: give 4 or 8")
        if len(self.stage_channels) != 3 or len(self.stage_blocks) != 2:
            raise ValueError("stage_channels takes 3 numbers and stage_blocks 2: one for each pyramid level")
        self._check_layers("the last of stage_channels", self.stage_channels[-1])

    def validate_bank(self) -> None:
        """Refuses what is no description of `num_prototypes` rows."""
        if self.bank is None:
            return
        fields = ("characters", "subtypes", "scripts", "languages", "joiners", "mclip_revision")
        if missing := [name for name in fields if name not in self.bank]:
            raise ValueError(f"bank has no {', '.join(missing)}: take PrototypeBank.metadata()")
        described = len(self.bank["characters"])
        if {len(self.bank["subtypes"]), self.num_prototypes} != {described}:
            raise ValueError(f"bank describes {described} rows, num_prototypes is {self.num_prototypes}")

    @property
    def num_rows(self) -> int:
        """Rows of the last level."""
        return 1 if self.merge_rows else self.image_height // 16

    @property
    def hidden_size(self) -> int:
        """Width of the Transformer layers."""
        return self.stage_channels[-1]
