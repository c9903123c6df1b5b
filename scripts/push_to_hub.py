"""Publishes a folder on the Hub: a checkpoint, a bank, a metric, shards of a data set or the demo page.

    python scripts/push_to_hub.py mstr_hf/pretrained/refiner-6lang mstr/refiner-6lang
    python scripts/push_to_hub.py shards/ mstr/synthetic-words --repo_type dataset
    python scripts/push_to_hub.py mstr_hf/hub/demo mstr/demo --repo_type space

The folder goes up as one commit; again, only what has changed goes. It needs a token that may write: `hf auth login`.
"""

import argparse
import sys

from mstr_hf.hub.publish import PublishError, push


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="what to publish, laid out as its repository")
    parser.add_argument("repo_id", help="such as mstr/refiner-6lang; made if it is not there")
    parser.add_argument("--repo_type", choices=("model", "dataset", "space"), default="model")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--commit_message", help="first line of the commit")
    parser.add_argument("--parent_commit", metavar="SHA", help="revision on the Hub that this push builds on")
    arguments = vars(parser.parse_args())
    try:
        print(push(**arguments))
    except PublishError as error:
        print(f"push_to_hub.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
