#!/usr/bin/env bash
# From an empty folder to a small model of six languages: characters, mCLIP, bank, words, Spotter, simulator, Refiner,
# language model, evaluation. Goes on where it stopped.
#
#   scripts/train_tiny.sh FOLDER [FONT_FOLDER ...]
#
# PYTHON names the interpreter, CONFIG one or more config files instead of scripts/configs/tiny.yaml.
set -euo pipefail
[[ ${1:-} != --help ]] || { sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"; exit; }
folder=${1:?name a folder for the runs}
shift
fonts=()
[[ $# == 0 ]] || fonts=(--fonts "$@")
scripts="$(cd "$(dirname "$0")" && pwd)"
samples="$scripts/../mstr_hf/pretrained/samples/labels.jsonl"
python=${PYTHON:-python}
config=("$scripts/configs/tiny.yaml")
[[ -z ${CONFIG:-} ]] || read -ra config <<< "$CONFIG"

stage() { # name of what the stage leaves, command
  if [[ -e $folder/$1 ]]; then
    echo "== $1 is there already"
  else
    echo "== $1"
    local start=$SECONDS
    "$python" "${@:2}"
    echo "== $1: $((SECONDS - start)) s"
  fi
}

train=(--config "${config[@]}" --resume true "${fonts[@]}")
stage mclip/final/README.md "$scripts/train_mclip.py" "${train[@]}" --output_dir "$folder/mclip"
stage bank/map.png "$scripts/build_prototype_bank.py" --mclip "$folder/mclip/final" --output "$folder/bank" "${fonts[@]}"
stage spotter/final/README.md "$scripts/train_spotter.py" "${train[@]}" --bank "$folder/bank" \
  --output_dir "$folder/spotter"
stage simulator.json "$scripts/fit_simulator.py" --spotter "$folder/spotter/final" --output "$folder/simulator.json" \
  --words 100 --severity 0.4 "${fonts[@]}"
stage refiner/final/README.md "$scripts/train_refiner.py" "${train[@]}" --spotter "$folder/spotter/final" \
  --simulator "$folder/simulator.json" --output_dir "$folder/refiner"
stage reader/README.md "$scripts/build_language_model.py" --refiner "$folder/refiner/final" --output "$folder/reader"
stage evaluation/report.html -m mstr_hf.cli evaluate "$samples" --model "$folder/reader" \
  --output "$folder/evaluation"
echo "== $SECONDS s in all"
