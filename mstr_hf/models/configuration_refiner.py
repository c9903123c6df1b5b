"""Configuration of the Refiner."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .configuration_base import MSTRConfig
from .configuration_spotter import SpotterConfig


@strict
class RefinerDecoderConfig(MSTRConfig):
    """Shape of the Refiner's decoder. Unknown fields and values out of range are refused.

    Args:
        hidden_size: Width.
        num_hidden_layers: Layers.
        num_attention_heads: Heads.
        intermediate_size: Feed-forward width.
        hidden_act: Activation.
        max_position_embeddings: Longest reading in characters, with its start and end.
        vocab_size: Token ids; follows from the bank.
    """

    model_type = "mstr_refiner_decoder"
    base_config_key = "text_config"

    hidden_size: int = 192
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    intermediate_size: int = 512
    hidden_act: str = "gelu"
    max_position_embeddings: int = 66
    vocab_size: int = 640

    def validate_architecture(self) -> None:
        """Refuses sizes that are out of range or do not fit together."""
        self._check_numbers(1, "hidden_size", "max_position_embeddings", "vocab_size")
        self._check_layers("hidden_size", self.hidden_size)
        if self.hidden_size % 2:
            raise ValueError(f"hidden_size {self.hidden_size} is odd: position codes come in pairs")


@strict
class RefinerLanguageConfig(MSTRConfig):
    """Size of the language model. Unknown fields and values out of range are refused.

    Args:
        order: Characters of its longest n-grams.
        num_ngrams: N-grams in its table.
        num_rows: Bank rows that it was made for; it has no opinion on later ones.
        rows_digest: SHA-256 of their characters and subtypes.
    """

    model_type = "mstr_refiner_language"
    base_config_key = "language_config"

    order: int = 6
    num_ngrams: int = 1
    num_rows: int = 0
    rows_digest: str = ""

    def validate_architecture(self) -> None:
        """Refuses sizes that are out of range."""
        self._check_numbers(2, "order")
        self._check_numbers(1, "num_ngrams")
        self._check_numbers(0, "num_rows")


@strict
class RefinerConfig(MSTRConfig):
    """A Spotter and the decoder that corrects it. Unknown fields and values out of range are refused.

    Args:
        spotter_config: The Spotter's configuration.
        text_config: The decoder's configuration.
        language_config: The language model's configuration; None for none.
        logit_scale_init: Initial scale of the cosines; learned.
        freeze_spotter: True trains the Refiner alone, on what a finished Spotter sees.
        score_temperature: Divides the scaled cosines when scores are made; fitted on held-out data.
        gate_threshold: Words whose Spotter score is at least this are not refined; chosen on held-out data.
        num_views: Most views that a word below the threshold is read from, up to 4; 1 reads it as it is.
        vote_temperature: The score is what the views agree on, to the power of its inverse; fitted on held-out data.
        beam_width: Readings of a view that are followed at a time; 1 takes the likeliest character at each step.
        language_weight: Weight of the language model's log-probabilities beside the Refiner's.
        language_bonus: Added to the language model's log-probability of each letter and mark, so that it does not
            favour short words.
        pad_token_id: Id of padding.
        bos_token_id: Id of the start of a word.
        eos_token_id: Id of the end of a word.
        decoder_start_token_id: What decoding starts from.
    """

    model_type = "mstr_refiner"
    sub_configs = {
        "spotter_config": SpotterConfig,
        "text_config": RefinerDecoderConfig,
        "language_config": RefinerLanguageConfig,
    }

    # Any class of configuration, as remote code may have loaded its own copy of these.
    spotter_config: dict[str, Any] | PreTrainedConfig | None = None
    text_config: dict[str, Any] | PreTrainedConfig | None = None
    language_config: dict[str, Any] | PreTrainedConfig | None = None
    logit_scale_init: float | int = 16.0
    freeze_spotter: bool = True
    # Not "temperature", which transformers would take for that of sampling.
    score_temperature: float | int = 1.0
    gate_threshold: float | int = 1.0
    num_views: int = 1
    vote_temperature: float | int = 1.0
    beam_width: int = 1
    language_weight: float | int = 0.45
    language_bonus: float | int = 2.0
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    decoder_start_token_id: int | None = 1
    is_encoder_decoder: bool = True
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        if not isinstance(self.spotter_config, PreTrainedConfig):
            self.spotter_config = SpotterConfig(**(self.spotter_config or {}))
        if not isinstance(self.text_config, PreTrainedConfig):
            self.text_config = RefinerDecoderConfig(**(self.text_config or {}))
        if isinstance(self.language_config, dict):
            self.language_config = RefinerLanguageConfig(**self.language_config)
        super().__post_init__(**kwargs)

    def validate_numbers(self) -> None:
        """Refuses numbers that are out of range."""
        self._check_positive("logit_scale_init", "score_temperature", "vote_temperature")
        self._check_numbers(0, "gate_threshold", "language_weight", "language_bonus")
        self._check_numbers(1, "num_views", "beam_width")
