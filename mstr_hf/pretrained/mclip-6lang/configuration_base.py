"""What the family's configurations have in common: they refuse what they do not know."""

import dataclasses
import difflib
import math
from collections.abc import Iterable
from typing import Any

from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

# What transformers itself writes into a configuration, or hands it, beside its fields (its Trainer, for one).
_BOOKKEEPING = {
    "_commit_hash",
    "_name_or_path",
    "attn_implementation",
    "auto_map",
    "bos_token_id",
    "custom_pipelines",
    "eos_token_id",
    "experts_implementation",
    "model_type",
    "name_or_path",
    "num_labels",
    "output_attentions",
    "pad_token_id",
    "per_layer_config",
    "quantization_config",
    "tie_word_embeddings",
    "torch_dtype",
    "use_cache",
}


class MSTRConfig(PreTrainedConfig):
    """Configuration that refuses unknown fields, which transformers would keep, and save, in silence."""

    def __post_init__(self, **kwargs: Any) -> None:
        self._refuse_unknown(kwargs.keys())
        super().__post_init__(**kwargs)

    def validate_fields(self) -> None:
        """Refuses, when the configuration is made or saved, attributes that are no fields."""
        self._refuse_unknown(name for name in vars(self) if not name.startswith("_"))

    def _refuse_unknown(self, names: Iterable[str]) -> None:
        known = [field.name for field in dataclasses.fields(self)]
        for name in sorted(set(names).difference(known, _BOOKKEEPING)):
            close = difflib.get_close_matches(name, known, 1)
            mend = f"did you mean {close[0]}?" if close else "leave it out, or install the version that wrote it"
            raise TypeError(f"{type(self).__name__} has no field {name}: {mend}")

    def _check_numbers(self, minimum: int, *names: str) -> None:
        """Refuses fields with a number below the minimum, or none that is finite."""
        for name in names:
            value = getattr(self, name)
            for number in value if isinstance(value, (list, tuple)) else [value]:
                if not minimum <= number < math.inf:
                    raise ValueError(f"{name} is {value}: give {minimum} or more")

    def _check_positive(self, *names: str) -> None:
        """Refuses fields that are not above 0 and finite."""
        for name in names:
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}: give a number above 0")

    def _check_layers(self, width: str, size: int) -> None:
        """Refuses Transformer layers whose heads do not divide their width, or whose activation is unknown."""
        self._check_numbers(1, "num_attention_heads", "intermediate_size")
        self._check_numbers(0, "num_hidden_layers")
        if size < 1 or size % self.num_attention_heads:
            raise ValueError(
                f"{width} {size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )
        if self.hidden_act not in ACT2FN:
            raise ValueError(f"hidden_act is {self.hidden_act!r}: give a name that transformers knows, such as gelu")
