"""Reads word images with names of transformers alone; to be copied, as nothing of this repository is imported.

    python scripts/read_with_transformers.py mstr_hf/pretrained/samples/*.jpg
    python scripts/read_with_transformers.py --package mstr_hf/pretrained/samples/*.jpg

The first takes the code that lies beside the weights, the second that of the installed mstr_hf. Prints path, text and
confidence of each image, between tabs.
"""

import argparse
import importlib

from transformers import AutoModelForTextRecognition, AutoProcessor, pipeline


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    parser.add_argument("--model", default="mstr_hf/pretrained/refiner-6lang", help="folder or Hub repository")
    parser.add_argument("--package", action="store_true", help="use the installed mstr_hf, not the checkpoint's code")
    args = parser.parse_args()

    if args.package:
        importlib.import_module("mstr_hf")  # registers its classes and its pipeline
        trust = {}
        reader = pipeline("scene-text-recognition", model=args.model)  # type: ignore[call-overload]  # not built in
    else:
        trust = {"trust_remote_code": True}
        reader = pipeline("image-to-text", model=args.model, **trust)  # type: ignore[call-overload]  # not built in
    readings = reader(args.images, batch_size=8)

    # The same by hand.
    model = AutoModelForTextRecognition.from_pretrained(args.model, **trust)
    processor = AutoProcessor.from_pretrained(args.model, **trust)
    inputs = processor(images=args.images, return_tensors="pt")
    texts = processor.post_process_text_recognition(model(**inputs))
    assert [text["text"] for text in texts] == [reading["text"] for reading in readings]

    for path, reading in zip(args.images, readings, strict=True):
        print(path, reading["text"], f"{reading['score']:.3f}", sep="\t")


if __name__ == "__main__":
    main()
