"""Configuration of mCLIP."""

from huggingface_hub.dataclasses import strict

from .configuration_base import MSTRConfig


@strict
class MCLIPConfig(MSTRConfig):
    """Shape and losses of mCLIP. Unknown fields and values out of range are refused.

    Args:
        vocab_size: Token ids of the prompt tokenizer.
        num_rows: Distinct characters (bank rows); classes of the ArcFace loss.
        projection_dim: Size D of the shared embedding space.
        image_channels: Channels of the image tower's stages, of which the first, third and so on halve the map.
        hidden_size: Width of the text tower.
        num_hidden_layers: Layers of the text tower.
        num_attention_heads: Heads of the text tower.
        intermediate_size: Feed-forward width of the text tower.
        hidden_act: Activation of the text tower.
        max_prompt_length: Longest prompt in tokens.
        logit_scale_init: Initial logit scale; the logarithm is learned and clamped at `logit_scale_max`.
        logit_scale_max: Upper bound of the logit scale.
        arcface_weight: Weight of the ArcFace loss (Deng et al., 2019) on image embeddings; 0 leaves it out.
        arcface_scale: Logit scale of the ArcFace loss.
        arcface_margins: Angular margin in radians by language id; languages that are missing take 0.2.
        subtype_weight: Weight of the subtype classification loss; 0 leaves it out.
    """

    model_type = "mclip"

    vocab_size: int = 1024
    num_rows: int = 512
    projection_dim: int = 192
    image_channels: list[int] | tuple[int, ...] = (64, 128, 192)
    hidden_size: int = 192
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    intermediate_size: int = 384
    hidden_act: str = "quick_gelu"
    max_prompt_length: int = 8
    logit_scale_init: float | int = 14.3
    logit_scale_max: float | int = 100.0
    arcface_weight: float | int = 0.0
    arcface_scale: float | int = 30.0
    arcface_margins: dict[str, float] | None = None
    subtype_weight: float | int = 0.0

    def validate_architecture(self) -> None:
        """Refuses sizes that are out of range or do not fit together."""
        self._check_numbers(1, "vocab_size", "num_rows", "projection_dim", "image_channels", "max_prompt_length")
        self._check_numbers(0, "arcface_weight", "subtype_weight")
        self._check_positive("logit_scale_init", "logit_scale_max", "arcface_scale")
        self._check_layers("hidden_size", self.hidden_size)
        if not self.image_channels:
            raise ValueError("image_channels is empty: give a number for each stage of the image tower")
