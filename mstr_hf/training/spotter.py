"""New Spotters, before any training."""

from mstr_hf.models.configuration_spotter import SpotterConfig
from mstr_hf.models.modeling_spotter import SpotterModel
from mstr_hf.models.prototype_bank import PrototypeBank

from .arguments import mapping

# Fields of the config that the bank decides.
DECIDED = ("projection_dim", "num_prototypes", "num_base_prototypes", "base_digest", "bank")


def new_spotter(bank: str, architecture: str, option: str = "architecture") -> SpotterModel:
    """A Spotter with untrained weights on a bank.

    Args:
        bank: Folder or Hub repository with a prototype bank.
        architecture: Fields of SpotterConfig that differ from the default, such as `num_hidden_layers=4`.
        option: What errors call these.

    Raises:
        ValueError: If a field is unknown, or what the bank decides.
    """
    rows = PrototypeBank.from_pretrained(bank)
    known = [name for name in SpotterConfig.__annotations__ if name not in DECIDED]
    shape = mapping(architecture, option, known)
    model = SpotterModel(SpotterConfig(projection_dim=rows.prototypes.shape[1], num_prototypes=len(rows), **shape))
    model.set_bank(rows, base=True)
    return model
